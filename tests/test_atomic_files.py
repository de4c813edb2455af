"""Files and folders that are whole or not there."""

from __future__ import annotations

import pytest

from sat_sr.atomic_files import LEFTOVERS, atomic_file, atomic_folder


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_has_its_name_when_it_is_complete(tmp_path, durable):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and [*tmp_path.glob(LEFTOVERS)] == [temporary]
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
