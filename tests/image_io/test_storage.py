"""Writing that leaves a whole file or none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat_sr.cli.inputs import expand_inputs
from sat_sr.image_io import read_picture, storage, write_picture
from sat_sr.image_io.encode import write_by_pillow
from sat_sr.image_io.picture import PictureError
from sat_sr.image_io.storage import NameTaken, atomic_write, require_writable


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


def test_a_name_that_is_taken_in_the_meantime_is_left_alone(folder):
    for theirs in (b"theirs", b""):
        taken = pytest.raises(NameTaken, match=r"a\.png: it is there already")
        with taken, atomic_write("a.png", replace=False) as file:
            file.write(b"ours")
            Path("a.png").write_bytes(theirs)
        assert [path.name for path in folder.iterdir()] == ["a.png"] and Path("a.png").read_bytes() == theirs
        Path("a.png").unlink()
    with atomic_write("a.png", replace=False) as file:
        file.write(b"ours")
    assert Path("a.png").read_bytes() == b"ours"


def test_a_name_is_given_back_when_it_cannot_be_used(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), atomic_write("a.png", replace=False) as file:
        file.write(b"ours")
    assert list(folder.iterdir()) == []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_a_full_disk_is_said_and_leaves_nothing(folder, monkeypatch, suffix):
    Image.new("RGB", (64, 64)).save("in.png")
    like = read_picture("in.png")
    create = storage._create_temporary

    def create_on_a_full_disk(where):
        descriptor, temporary = create(where)
        full = os.open("/dev/full", os.O_RDWR)  # every write to it: no space left on device
        os.dup2(full, descriptor)
        os.close(full)
        return descriptor, temporary

    monkeypatch.setattr(storage, "_create_temporary", create_on_a_full_disk)
    noise = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(PictureError, match=rf"cannot write out\.{suffix}: the disk is full: free some space"):
        write_picture(f"out.{suffix}", noise, like)
    assert [path.name for path in folder.iterdir()] == ["in.png"]


def test_where_nothing_can_be_written_is_said_before_the_work(folder, monkeypatch):
    Path("file").write_bytes(b"")
    with pytest.raises(PictureError, match=r"cannot write file: a part of the path is a file.*another folder$"):
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

    monkeypatch.setattr(storage.os, "open", refuse)
    with pytest.raises(PictureError, match=r"no permission.*another folder$"):
        require_writable("deep/new")


def test_kill_9_in_the_middle_leaves_no_output_and_the_next_write_sweeps(folder):
    code = (
        "import sys, time\nfrom sat_sr.image_io.storage import atomic_write\n"
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

    monkeypatch.setattr(storage.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture("out.png", torch.zeros(3, 32, 32), like)
    assert [path.name for path in folder.iterdir()] == ["in.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="the size of files is limited by POSIX means")
@pytest.mark.parametrize("format", ["JPEG", "WebP"])
def test_a_write_that_the_system_cuts_short_leaves_no_file(tmp_path, format):
    """As a disk does that is full before the last byte: no error comes with the first short write."""
    import resource

    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(PictureError, match="cannot write"), atomic_write(tmp_path / "picture") as file:
            write_by_pillow(file, [pixels], size=(128, 128), channels=3, format=format, quality=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
