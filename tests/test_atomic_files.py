"""Files and folders that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sat_sr.atomic_files import atomic_file, atomic_folder, leftovers


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_has_its_name_when_it_is_complete(tmp_path, durable):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and [*tmp_path.glob(leftovers("a.txt"))] == [temporary]
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
    with pytest.raises(FileNotFoundError, match="gone; make it first"), atomic_file(tmp_path / "gone" / "a.txt"):
        pass


def test_a_folder_has_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "shards"
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as folder:
        (folder / "0.tar").touch()
        raise KeyboardInterrupt
    assert not [*path.parent.iterdir()]
    path.mkdir()  # an empty one may be there
    with atomic_folder(path) as folder:
        (folder / "0.tar").touch()
        assert not [*path.iterdir()]
    assert [*path.parent.iterdir()] == [path] and [*path.iterdir()] == [path / "0.tar"]
    assert path.stat().st_mode & 0o777 == 0o755


def write_shards(path):
    """Once in vain, once to the end; while it is written nothing is there but what is hidden."""
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as folder:
        (folder / "0.tar").touch()
        raise KeyboardInterrupt
    assert not [*path.iterdir()]
    with atomic_folder(path) as folder:
        (folder / "0.tar").touch()
        (folder / "1.tar").touch()
        assert not [found for found in path.iterdir() if not found.name.startswith(".")]
    assert sorted(found.name for found in path.iterdir()) == ["0.tar", "1.tar"]


def test_a_link_to_an_empty_folder_stays_and_that_folder_is_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    write_shards(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "disk")) == ["0.tar", "1.tar"] and len([*tmp_path.iterdir()]) == 2


def test_the_working_directory_is_filled_and_stays_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_shards(Path("."))
    assert sorted(os.listdir(os.curdir)) == ["0.tar", "1.tar"] and os.listdir(tmp_path) == ["here"]


def test_a_mount_that_does_not_look_like_one_is_filled_too(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()

    def busy(self, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    write_shards(disk)
    assert os.listdir(tmp_path) == ["disk"]


def test_what_was_put_there_meanwhile_stays_alone(tmp_path):
    path = tmp_path / "shards"
    with (
        pytest.raises(FileExistsError, match=r"mine.txt is in it: nothing is overwritten"),
        atomic_folder(path) as folder,
    ):
        (folder / "0.tar").touch()
        path.mkdir()
        (path / "mine.txt").touch()
    assert os.listdir(path) == ["mine.txt"] and os.listdir(tmp_path) == ["shards"]


def test_a_mount_point_is_filled_as_it_cannot_be_replaced(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == disk)
    inode = disk.stat().st_ino
    write_shards(disk)
    assert disk.stat().st_ino == inode and os.listdir(tmp_path) == ["disk"]
    (disk / "0.tar").unlink()
    with pytest.raises(FileExistsError, match=r"1.tar is in it: nothing is overwritten"), atomic_folder(disk) as folder:
        (folder / "0.tar").touch()
    assert os.listdir(disk) == ["1.tar"]
