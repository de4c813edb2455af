"""Names of outputs, and what becomes of files that are there."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from sat_sr.cli.entry import Entry, Member
from sat_sr.cli.inputs import expand_inputs
from sat_sr.cli.outputs import plan_outputs
from sat_sr.image_io.picture import PictureError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entry(path: str, **options) -> Entry:
    return Entry(Path(path), Path(path).stem, **options)


def paths(plan) -> list[str]:
    return [str(output.path) for output in plan]


# --- names ------------------------------------------------------------------------------------------------------------
def test_names_by_template_format_and_folder(folder):
    entries = [entry("in/a.png"), entry("in/x/b.JPEG", folder=PurePosixPath("x")), entry("in/c.bmp")]
    assert paths(plan_outputs(entries, out_dir="out")) == ["out/a_sr.png", "out/x/b_sr.png", "out/c_sr.png"]
    kept = plan_outputs(entries, out_dir="out", format="keep")
    assert paths(kept) == ["out/a_sr.png", "out/x/b_sr.JPEG", "out/c_sr.png"]
    plan = plan_outputs(
        entries[:1], out_dir="o", template="{stem}-x{scale}-{width}x{height}-{seed}", format="jpg",
        values={"seed": 7}, fields_of=lambda _: {"width": 640, "height": 480, "scale": "2.5"},
    )  # fmt: skip
    assert paths(plan) == ["o/a-x2.5-640x480-7.jpg"]
    assert paths(plan_outputs(entries[:1], out_file="some.webp")) == ["some.webp"]
    member = entry("shard.tar", member=Member("k/000.webp", 0, 1), folder=PurePosixPath("k"))
    assert paths(plan_outputs([member], out_dir="o", format="keep")) == ["o/k/shard_sr.webp"]


def test_names_that_collide_are_numbered_in_order_and_said(folder):
    entries = [entry("d1/a.png"), entry("d2/a.jpg"), entry("d3/A.png"), entry("a_sr_2.png")]
    plan = plan_outputs(entries, out_dir="out")
    assert paths(plan) == ["out/a_sr.png", "out/a_sr_2.png", "out/A_sr_3.png", "out/a_sr_2_sr.png"]
    assert plan[0].note is None and "output of another input" in plan[1].note
    assert plan_outputs(entries, out_dir="out") == plan


def test_an_output_is_never_an_input(folder):
    for name in ("a.png", "a_sr.png", "b.png"):
        Path(name).write_bytes(b"x")
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("real/b_sr.png").symlink_to(folder / "b.png")
    plan = plan_outputs([entry("a.png"), entry("a_sr.png")], out_dir=".")
    assert paths(plan) == ["a_sr_2.png", "a_sr_sr.png"] and "itself an input" in plan[0].note
    assert paths(plan_outputs([entry("b.png")], out_dir="link")) == ["link/b_sr_2.png"]
    assert paths(plan_outputs([entry("a.png")], out_dir=".", template="{stem}", existing="overwrite")) == ["a_2.png"]
    with pytest.raises(ValueError, match="is itself an input"):
        plan_outputs([entry("b.png")], out_file="real/b_sr.png")


def test_earlier_outputs_in_a_searched_folder_are_not_enlarged_again(folder):
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(name)
    first = plan_outputs(expand_inputs(["."]), out_dir=".")
    for output in first:
        Image.new("L", (16, 16)).save(output.path)
    second = plan_outputs(expand_inputs(["."]), out_dir=".", existing="skip")
    done = [(str(output.path), output.skip) for output in second if not output.note]
    assert done == [("a_sr.png", True), ("b_sr.png", True)]
    left_out = [output for output in second if output.note]
    assert [output.entry.stem for output in left_out] == ["a_sr", "b_sr"] and all(output.skip for output in left_out)
    for taken in ([], [Path("a_sr.png")]):  # of an earlier run, or of this one, which is asked for it again
        (again,) = plan_outputs([entry("a.png")], out_dir=".", existing="number", taken=taken)
        assert again.path == Path("a_sr_2.png") and again.note.endswith("a_sr.png is there already")
    for name in ("a_sr_2.png", "c_2.png", "a_2.png"):
        Image.new("L", (4, 4)).save(name)
    third = plan_outputs(expand_inputs(["."]), out_dir=".", existing="number")
    stems = [output.entry.stem for output in third if not output.left_out]
    assert stems == ["a", "a_2", "b", "c_2"], "a numbered output is one, a picture with a number is none"


def test_existing_outputs(folder):
    Path("out").mkdir()
    Path("out/done_sr.png").write_bytes(b"whole")
    Path("out/empty_sr.png").touch()
    Path("out/dir_sr.png").mkdir()
    Path("out/.sat-sr-00000000-1234.part").write_bytes(b"half")
    entries = [entry(f"{stem}.png") for stem in ("done", "empty", "dir", "new")]
    for existing, done in (("error", (False, True)), ("skip", (True, False)), ("overwrite", (False, False))):
        plan = plan_outputs(entries, out_dir="out", existing=existing)
        assert (plan[0].skip, bool(plan[0].error)) == done
        assert not any(output.skip for output in plan[1:])
        assert [bool(output.error) for output in plan[1:]] == [False, True, False]
    assert "--overwrite" in plan_outputs(entries, out_dir="out")[0].error


def test_entries_with_errors_keep_them_and_take_no_name(folder):
    broken = entry("a.png", error="a.png is not there: check the path")

    def fields_of(_):
        raise PictureError("b.png is empty (0 bytes): fetch or save it again")

    plan = plan_outputs([broken, entry("d/a.png"), entry("b.png")], out_dir="o")
    assert plan[0].error == broken.error and paths(plan)[1] == "o/a_sr.png"
    entries = [entry("b.png"), entry("c.png", error="e")]
    plan = plan_outputs(entries, out_dir="o", template="{stem}{width}", fields_of=fields_of)
    assert "empty" in plan[0].error and plan[1].error == "e"


def test_places_that_cannot_be_written_are_told_in_the_plan_and_the_others_are_planned(folder):
    Path("o").mkdir()
    os.mkfifo("o/pipe_sr.png")
    entries = [entry(f"{'x' * 251}.png"), entry("pipe.png"), entry("a.png")]
    for existing in ("error", "skip", "overwrite"):
        long, pipe, good = plan_outputs(entries, out_dir="o", existing=existing)
        assert "the name is too long for this file system" in long.error
        assert "o/pipe_sr.png is a device, a pipe or a socket" in pipe.error
        assert (str(good.path), good.error) == ("o/a_sr.png", None)
    assert paths(plan_outputs(entries[1:], out_dir="o", existing="number")) == ["o/pipe_sr_2.png", "o/a_sr.png"]


def test_a_backslash_in_the_name_of_a_picture_is_none_of_the_template(folder):
    assert paths(plan_outputs([entry("w\\in.png")], out_dir="o")) == ["o/w\\in_sr.png"]


@pytest.mark.parametrize(
    ("options", "word"),
    [({"template": "{stem.__class__}"}, "no field"), ({"template": "{nope}"}, r"\{scale\}"),
     ({"template": "{stem"}, "not a template"), ({"template": "../{stem}"}, "not a file name"),
     ({"template": ""}, "not a file name"), ({"template": "{stem}.png"}, "suffix"),
     ({"template": "{stem:{scale}}"}, "format"), ({"template": "{stem:d}"}, r"'\{stem:d\}' cannot be made"),
     ({"template": "{stem:/>9}"}, "is not a file name"),
     ({"format": "gif"}, "choose from png, jpg, webp, tiff, keep"),
     ({"out_file": "x.png"}, "either"), ({"existing": "ask"}, "not one of")],
)  # fmt: skip
def test_plans_that_cannot_work(folder, options, word):
    with pytest.raises(ValueError, match=word):
        plan_outputs([entry("a.png")], **{"out_dir": "o", "values": {"scale": 4}} | options)


def test_one_output_file_wants_one_input(folder):
    with pytest.raises(ValueError, match=r"x\.png is one file for 2 pictures: use --out-dir"):
        plan_outputs([entry("a.png"), entry("b.png")], out_file="x.png")
    with pytest.raises(ValueError, match="no format"):
        plan_outputs([entry("a.png")], out_file="x.xyz")


def test_planning_thousands_of_pictures_gives_each_its_own_name(folder):
    entries = [entry(f"in/{number}.png", explicit=False) for number in range(4000)]
    assert len(set(paths(plan_outputs(entries, out_dir="out")))) == 4000


@pytest.mark.parametrize("existing", ["error", "skip", "overwrite", "number"])
@pytest.mark.parametrize("done", [False, True])
def test_the_disk_is_asked_in_proportion_to_the_pictures_of_one_name(folder, monkeypatch, existing, done):
    """Each knows its own among the finished ones; planned in another order than they were made."""

    def asked(count: int) -> int:
        place, stored = folder / f"{count}", {}
        entries = [entry(f"{place}/{number}/a.png") for number in range(count)]
        for number, one in enumerate(entries, start=1):
            one.source.parent.mkdir(parents=True)
            one.source.write_bytes(b"%d" % number)
            if done:
                output = place / f"out/a_sr{f'_{number}' if number > 1 else ''}.png"
                output.parent.mkdir(exist_ok=True)
                output.write_bytes(b"done")
                stored[output] = {"source": one.origin()}
        calls = []
        with monkeypatch.context() as patch:
            for name in ("stat", "lstat"):
                original = getattr(os, name)
                patch.setattr(os, name, lambda *args, ask=original, **kw: calls.append(args) or ask(*args, **kw))
            patch.setattr(Entry, "origin", lambda one, ask=Entry.origin: calls.append(one) or ask(one))
            plan = plan_outputs(
                entries[::-1],
                out_dir=place / "out",
                existing=existing,
                stored_in=lambda p: calls.append(p) or stored[p],
            )
        assert len(set(paths(plan))) == count
        assert all(output.skip for output in plan) == (done and existing == "skip")
        if done and existing == "skip":
            assert [stored[output.path]["source"] for output in plan] == [output.entry.origin() for output in plan]
        return len(calls)

    assert asked(80) < 2.5 * asked(40)


def test_the_first_reason_for_a_number_is_told(folder):
    Path("out").mkdir()
    Path("out/a_sr_2.png").write_bytes(b"x")
    plan = plan_outputs([entry("x/a.png"), entry("y/a.png")], out_dir="out", existing="number")
    assert paths(plan) == ["out/a_sr.png", "out/a_sr_3.png"]
    assert plan[1].note == "y/a.png is written to out/a_sr_3.png: out/a_sr.png is the output of another input"
