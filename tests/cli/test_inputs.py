"""Arguments become pictures: every form, in order, and every wrong form a sentence beside the ones that are done."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from sat_sr.cli.entry import PAIR_BOXES
from sat_sr.cli.inputs import expand_inputs
from sat_sr.image_io.picture import PictureError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with a few pictures: each of its own grey level and size."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(["b.png", "a.JPG", "with space.png", "sub/c.png", "sub/deep/d.webp", ".hidden.png"]):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8 + index, 8), 40 * index).save(name)
    Path("sub/notes.md").write_text("no picture")
    return tmp_path


def names(arguments, **options) -> list[str]:
    return [str(entry.source) for entry in expand_inputs(arguments, **options) if not entry.error]


def errors(arguments, **options) -> list[str]:
    found = [entry.error for entry in expand_inputs(arguments, **options) if entry.error]
    assert all("\n" not in error for error in found)
    return found


def test_files_and_folders(folder):
    assert names(["with space.png", "b.png"]) == ["with space.png", "b.png"]
    assert names(["."]) == ["a.JPG", "b.png", "with space.png"]
    assert names([".", "b.png", folder / "b.png", "sub/../b.png"]) == ["a.JPG", "b.png", "with space.png"]
    repeated = next(entry for entry in expand_inputs([".", "b.png"]) if entry.stem == "b")
    assert repeated.explicit and "more than once" in repeated.note


def test_recursive_keeps_the_structure_and_leaves_the_output_folder_out(folder):
    Path("sub/out").mkdir()
    Image.new("L", (4, 4)).save("sub/out/c_sr.png")
    (folder / "sub/loop").symlink_to(folder)
    entries = expand_inputs([folder], recursive=True, exclude="sub/out")
    assert [(str(entry.folder), entry.stem) for entry in entries] == [
        (".", "a"), (".", "b"), (".", "with space"), ("sub", "c"), ("sub/deep", "d"),
    ]  # fmt: skip
    assert len(expand_inputs([folder], recursive=True)) == 6


def test_globs(folder):
    assert names(["*.png"]) == ["b.png", "with space.png"]
    assert names(["**/*.webp"]) == ["sub/deep/d.webp"]
    assert names(["sub/*"]) == ["sub/c.png"]
    assert not any(entry.explicit for entry in expand_inputs(["*.png"]))
    Image.new("L", (4, 4)).save("[x]*.png")
    assert names(["[x]*.png"]) == ["[x]*.png"]  # a file of that very name
    assert "nothing matches" in errors(["*.tif"])[0] and "no picture among" in errors(["sub/*.md"])[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_list(folder, encoding, newline):
    lines = ["# pictures", "", "b.png", "  with space.png ", "#b.png", "sub", "missing.png", "sub/deep/*.webp"]
    Path("list.txt").write_bytes(newline.join(lines).encode(encoding))
    assert names(["list.txt"]) == ["b.png", "with space.png", "sub/c.png", "sub/deep/d.webp"]
    assert errors(["list.txt"]) == ["list list.txt, line 7: missing.png is not there: check the path"]


def test_paths_of_a_list_count_from_the_working_directory_then_from_the_list(folder):
    Image.new("L", (4, 4)).save("sub/b.png")
    Path("sub/list.txt").write_text("b.png\nc.png\n*.webp\ndeep/*.webp\n")
    assert names(["sub/list.txt"]) == ["b.png", "sub/c.png", "sub/deep/d.webp"]
    assert len(errors(["sub/list.txt"])) == 1


def test_pair_sheets(folder):
    sheet = np.zeros((520, 1030), np.uint8)
    sheet[2:514, 2:514], sheet[2:514, 516:1028] = 10, 20
    Image.fromarray(sheet).save("pair sheet.png")
    Path("b.png 1").write_bytes(Path("b.png").read_bytes())
    Path("list.txt").write_text("pair sheet.png 1\npair sheet.png 2\nb.png 1\nb.png 2\nsub 1\nnone.png 1\n")
    left, right, whole, small, several, missing = expand_inputs(["list.txt"])
    assert left.box == PAIR_BOXES["1"] == (2, 2, 514, 514) and right.box == (516, 2, 1028, 514)
    for entry, level in ((left, 10), (right, 20)):
        picture = entry.read()
        assert picture.size == entry.size() == (512, 512) and entry.stem == "pair sheet"
        assert ((picture.rgb + 1) * 127.5).round().unique().tolist() == [level]
    assert whole.box is None and str(whole.source) == "b.png 1"
    for ask in (small.read, small.size):
        with pytest.raises(PictureError, match=r"b\.png is 8x8 px, too small"):
            ask()
    assert "not a single pair sheet" in several.error and "none.png 1 is not there" in missing.error


def test_standard_input(folder):
    assert names(["-"], stdin=io.BytesIO("b.png\nsub/c.png\n".encode("utf-8-sig"))) == ["b.png", "sub/c.png"]
    assert names(["-"], stdin=io.StringIO("with space.png")) == ["with space.png"]
    assert errors(["-"], stdin=io.BytesIO(b"gone.png\n")) == [
        "standard input, line 1: gone.png is not there: check the path"
    ]
    nothing = errors(["-"], stdin=io.BytesIO(b"\n# nothing\n"))
    assert nothing == ["standard input names no picture: write one path a line"]


def test_standard_input_that_is_closed(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert errors(["-"]) == ["standard input is closed: give the list as a file, or the paths as arguments"]


def test_standard_input_by_zero_bytes(folder):
    """What `find -print0` prints."""
    Path("two\nlines #1 .png").write_bytes(Path("b.png").read_bytes())
    assert names(["-"], stdin=io.BytesIO(b"./two\nlines #1 .png\0sub/c.png\0")) == ["two\nlines #1 .png", "sub/c.png"]


def test_a_list_of_names_that_are_no_utf_8(folder):
    name = os.fsdecode("straße.png".encode("latin-1"))
    Path(name).write_bytes(Path("b.png").read_bytes())
    Path("list.txt").write_bytes(b"b.png\n" + os.fsencode(name) + b"\nsub/c.png\n")
    assert names(["list.txt"]) == ["b.png", name, "sub/c.png"]


@pytest.mark.parametrize(
    "spelt", ["~/with space.png", "'with space.png'", '"with space.png"', "file://{}/with%20space.png"]
)
def test_paths_as_programs_and_people_write_them(folder, monkeypatch, spelt):
    monkeypatch.setenv("HOME", str(folder))
    Path("list.txt").write_text(spelt.format(folder) + "\n")
    (found,) = expand_inputs(["list.txt"])
    assert not found.error and found.source.samefile("with space.png")
    Path(spelt.replace("/", "_")).write_bytes(Path("b.png").read_bytes())  # a file of that very name
    Path("list.txt").write_text(spelt.replace("/", "_") + "\n")
    assert names(["list.txt"]) == [spelt.replace("/", "_")]


@pytest.mark.parametrize("spelt", ["~/with*.png", "'with sp*.png'", "file://{}/with%20sp*.png"])
def test_patterns_as_programs_and_people_write_them(folder, monkeypatch, spelt):
    monkeypatch.setenv("HOME", str(folder))
    Path("list.txt").write_text(spelt.format(folder) + "\n")
    (found,) = expand_inputs(["list.txt"])
    assert not found.error and found.source.samefile("with space.png")


@pytest.mark.parametrize("uri", ["file://[x.png", "file://a\u2100b/c.png", "file://", "file:///%E9\udcff.png"])
def test_a_strange_uri_is_a_path_that_is_not_there(folder, uri):
    Path("list.txt").write_bytes(uri.encode("utf-8", "surrogateescape") + b"\nb.png\n")
    strange, good = expand_inputs(["list.txt"])
    assert strange.error and str(good.source) == "b.png"


def test_a_uri_of_a_name_that_is_no_utf_8(folder):
    name = os.fsdecode("straße #1?.png".encode("latin-1"))
    Path(name).write_bytes(Path("b.png").read_bytes())
    (entry,) = expand_inputs([f"file://{folder}/stra%DFe%20#1?.png"])
    assert not entry.error and entry.stem == Path(name).stem


def test_links_of_other_names_are_pictures_of_their_own(folder):
    Path("one.png").symlink_to("b.png")
    Path("two.png").symlink_to("b.png")
    assert names(["one.png", "two.png", "./one.png"]) == ["one.png", "two.png"]


def test_only_ends_of_lines_part_a_list(folder):
    name = "a\x0cb\x85c\u2028d.png"
    Path(name).write_bytes(Path("b.png").read_bytes())
    Path("odd.txt").write_bytes(f"{name}\rb.png\n".encode())
    assert [str(entry.source) for entry in expand_inputs(["odd.txt"])] == [name, "b.png"]


def test_patterns_of_a_list_in_a_folder_whose_name_is_one(folder):
    Path("lists[1]").mkdir()
    Path("lists[1]/x.png").write_bytes(Path("b.png").read_bytes())
    Path("lists[1]/list.txt").write_text("x*.png\n")
    assert [str(entry.source) for entry in expand_inputs(["lists[1]/list.txt"])] == ["lists[1]/x.png"]


def test_tar_members_are_entries(folder):
    with tarfile.open("shard.tar", "w") as tar:
        for name in ("000.png", "x/001.jpg", "000.json", "../evil.png", "/abs.png"):
            data = Path("b.png" if name.endswith("png") else "a.JPG").read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        hard, symbolic = tarfile.LNKTYPE, tarfile.SYMTYPE
        for name, kind, target in (
            ("same.png", hard, "000.png"), ("x/sym.png", symbolic, "../000.png"), ("out.png", symbolic, "/etc/passwd"),
        ):  # fmt: skip
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    first, second, evil, absolute, same, linked, outside = expand_inputs(["shard.tar"])
    assert (first.stem, second.stem, second.folder) == ("000", "001", PurePosixPath("x"))
    assert first.open().read() == Path("b.png").read_bytes() and second.open().read() == Path("a.JPG").read_bytes()
    assert first.read().size == first.size() == (8, 8) and second.size() == (9, 8)
    assert first.read().name == first.name == "shard.tar:000.png" and first.read().path is None
    assert "outside the archive" in evil.error and "outside the archive" in absolute.error
    assert (same.stem, linked.stem, linked.folder) == ("same", "sym", PurePosixPath("x"))
    assert same.open().read() == linked.open().read() == Path("b.png").read_bytes()
    assert "out.png is a link to /etc/passwd, of which there is no file" in outside.error

    Path("cut.tar").write_bytes(Path("shard.tar").read_bytes()[:700])
    Path("text.tar").write_text("no archive" * 100)
    Path("empty.tar").write_bytes(bytes(10240))
    cut, text, empty = (expand_inputs([name])[-1] for name in ("cut.tar", "text.tar", "empty.tar"))
    assert "not a complete tar archive" in text.error and "holds no picture" in empty.error
    with pytest.raises(PictureError):
        cut.read()


def test_links_of_a_tar_mean_what_they_mean_when_it_is_unpacked(folder):
    """Names with ./, a link to a link, one to a file that comes later, and a folder under the name of a picture."""
    data = Path("b.png").read_bytes()
    with tarfile.open("links.tar", "w") as tar:
        file, symbolic, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
        for name, kind, target in (
            ("./a.png", file, ""), ("./s.png", symbolic, "a.png"), ("./h.png", hard, "a.png"),
            ("./x/t.png", symbolic, "../s.png"), ("./early.png", symbolic, "z.png"), ("./z.png", file, ""),
            ("./a.png", tarfile.DIRTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data) if kind == file else 0
            tar.addfile(info, io.BytesIO(data) if info.size else None)
    entries = expand_inputs(["links.tar"])
    good = [entry.stem for entry in entries if not entry.error]
    assert good == ["a", "s", "h", "t", "z"]
    assert all(entry.open().read() == data for entry in entries if not entry.error)
    (early,) = (entry.error for entry in entries if entry.error)
    assert "early.png is a link to z.png, of which there is no file before it" in early


def test_what_is_wrong_has_its_sentence_and_the_others_are_done(folder):
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "bare").mkdir()
    Path("latin.txt").write_bytes("straße.png\nb.png\n".encode("latin-1"))
    Path("wide.txt").write_text("b.png", encoding="utf-16")
    Path("blank.txt").write_text("# only a comment\n")
    Path("nested.txt").write_text("blank.txt")
    os.mkfifo("pipe.png")
    Path("packed.tar.gz").touch()
    bad = [
        "gone.png",
        "dangling.png",
        "bare",
        "latin.txt",
        "wide.txt",
        "blank.txt",
        "nested.txt",
        "pipe.png",
        "",
        "\0",
        "packed.tar.gz",
    ]
    entries = expand_inputs([*bad[:5], "b.png", *bad[5:]])
    assert [str(entry.source) for entry in entries if not entry.error] == ["b.png"]
    told = [entry.error for entry in entries if entry.error]
    words = ["not there", "link to nowhere.png", "holds no picture", "line 1: byte 0xdf", "UTF-16", "names no picture",
             "is a list itself", "not a regular file", "not a path", "not a path",
             "compressed archive"]  # fmt: skip
    assert len(told) == len(words)
    for error, word in zip(told, words, strict=True):
        assert word in error and ": " in error and "\n" not in error
    with pytest.raises(PictureError, match="not there"):
        entries[0].read()


def test_a_path_that_cannot_be_looked_at_has_its_sentence_in_a_folder_a_list_and_a_pattern(folder, monkeypatch):
    stat = os.stat

    def refused(path, *args, **kwargs):
        if str(path).startswith("private/"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refused)
    Path("list.txt").write_text("b.png\nprivate/a.png\n")
    long, *entries = expand_inputs(["x" * 300 + ".png", "private/*.png", "list.txt"])
    assert long.error.endswith("cannot be opened (File name too long): check it or leave it out")
    assert [entry.error for entry in entries] == [
        "private/*.png cannot be opened (Permission denied): check it or leave it out",
        None,
        "list list.txt, line 2: private/a.png cannot be opened (Permission denied): check it or leave it out",
    ]


def test_blanks_around_a_line_belong_to_the_name_where_such_a_file_is_there(folder):
    Path(" b.png ").write_bytes(Path("b.png").read_bytes())
    Path("list.txt").write_text(" b.png \n  b.png\n")
    assert [str(entry.source) for entry in expand_inputs(["list.txt"])] == [" b.png ", "b.png"]


def test_names_that_are_no_text_can_be_told(folder):
    Path(os.fsdecode(b"\xff.png")).write_bytes(Path("b.png").read_bytes())
    entry = next(entry for entry in expand_inputs(["."]) if entry.stem == "\udcff")
    assert entry.name == r"\udcff.png"
    assert entry.read().name == r"\udcff.png"


def test_planning_does_without_torch():
    code = "import sys, sat_sr.cli.outputs; print([name for name in ('torch', 'PIL') if name in sys.modules])"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout.strip() == "[]"
