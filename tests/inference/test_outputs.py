"""Names of outputs, what becomes of files that are there, and writing that leaves a whole file or none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from sat_sr.inference import outputs
from sat_sr.inference.image_io import read_picture, write_picture
from sat_sr.inference.inputs import Entry, Member, expand_inputs
from sat_sr.inference.outputs import atomic_write, plan_outputs, require_writable
from sat_sr.inference.picture import PictureError


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
        entries[:1], out_dir="o", template="{stem}-x{scale:.1f}-{width}x{height}", format="jpg", values={"scale": 4},
        size_of=lambda _: (640, 480),
    )  # fmt: skip
    assert paths(plan) == ["o/a-x4.0-640x480.jpg"]
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
    with pytest.raises(ValueError, match="is itself the input"):
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

    def size_of(_):
        raise PictureError("b.png is empty (0 bytes): fetch or save it again")

    plan = plan_outputs([broken, entry("d/a.png"), entry("b.png")], out_dir="o")
    assert plan[0].error == broken.error and paths(plan)[1] == "o/a_sr.png"
    entries = [entry("b.png"), entry("c.png", error="e")]
    plan = plan_outputs(entries, out_dir="o", template="{stem}{width}", size_of=size_of)
    assert "empty" in plan[0].error and plan[1].error == "e"


@pytest.mark.parametrize(
    ("options", "word"),
    [({"template": "{stem.__class__}"}, "no field"), ({"template": "{nope}"}, r"\{scale\}"),
     ({"template": "{stem"}, "no template"), ({"template": "../{stem}"}, "no file name"),
     ({"template": ""}, "no file name"), ({"template": "{stem}.png"}, "suffix"),
     ({"template": "{stem:{scale}}"}, "format"), ({"format": "gif"}, "choose from png, jpg, webp, tiff, keep"),
     ({"out_file": "x.png"}, "either"), ({"existing": "ask"}, "none of")],
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


# --- writing ----------------------------------------------------------------------------------------------------------
def test_a_failure_leaves_the_old_file_and_nothing_else(folder):
    Path("a.png").write_bytes(b"old")
    for failure in (KeyboardInterrupt(), ValueError("x"), PictureError("y")):
        with pytest.raises(type(failure)), atomic_write("a.png") as file:
            file.write(b"half")
            raise failure
    assert [path.name for path in folder.iterdir()] == ["a.png"] and Path("a.png").read_bytes() == b"old"
    with atomic_write("sub/new/a.png") as file:
        file.write(b"whole")
    assert Path("sub/new/a.png").read_bytes() == b"whole"
    assert Path("sub/new/a.png").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_a_full_disk_is_said_and_leaves_nothing(folder, monkeypatch, suffix):
    Image.new("RGB", (64, 64)).save("in.png")
    like = read_picture("in.png")
    create = outputs._create_temporary

    def create_on_a_full_disk(where):
        descriptor, temporary = create(where)
        full = os.open("/dev/full", os.O_RDWR)  # every write to it: no space left on device
        os.dup2(full, descriptor)
        os.close(full)
        return descriptor, temporary

    monkeypatch.setattr(outputs, "_create_temporary", create_on_a_full_disk)
    noise = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(PictureError, match=rf"cannot write out\.{suffix}: the disk is full: free some space"):
        write_picture(f"out.{suffix}", noise, like)
    assert [path.name for path in folder.iterdir()] == ["in.png"]


def test_where_nothing_can_be_written_is_said_before_the_work(folder, monkeypatch):
    Path("file").write_bytes(b"")
    with pytest.raises(PictureError, match=r"cannot write file: a part of the path is a file.*--out-dir"):
        require_writable("file")
    with pytest.raises(PictureError, match="a part of the path is a file"):
        require_writable("file/below")
    with pytest.raises(PictureError, match="name is too long"):
        require_writable("x" * 300)
    require_writable("deep/new")
    assert list(Path("deep/new").iterdir()) == []
    with pytest.raises(PictureError, match="there is a folder of that name"), atomic_write("deep"):
        pass

    def refuse(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(outputs.os, "open", refuse)
    with pytest.raises(PictureError, match=r"no permission.*--out-dir"):
        require_writable("deep/new")


def test_kill_9_in_the_middle_leaves_no_output_and_the_next_write_sweeps(folder):
    code = (
        "import sys, time\nfrom sat_sr.inference.outputs import atomic_write\n"
        "with atomic_write('a.png') as file:\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"writing\n"
    with atomic_write("other.png") as file:
        file.write(b"whole")
    (temporary,) = folder.glob(".*")  # in use: not swept
    assert temporary.suffix == ".part" and temporary.read_bytes() == b"half"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not Path("a.png").exists() and expand_inputs(["."])[0].source == Path("other.png")
    with atomic_write("a.png") as file:
        file.write(b"whole")
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "other.png"]


def test_ctrl_c_at_the_last_moment_leaves_nothing(folder, monkeypatch):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("in.png")
    like = read_picture("in.png")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture("out.png", torch.zeros(3, 32, 32), like)
    assert [path.name for path in folder.iterdir()] == ["in.png"]
