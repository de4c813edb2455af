"""scripts/get_photos.py, without the network: stand-ins for apt-get and the package."""

from __future__ import annotations

import importlib.util
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def jpeg(seed: int, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def get_photos(tmp_path, monkeypatch):
    """The script as a module, for one package that is already unpacked: an .edj, a wallpaper and a photograph."""
    spec = importlib.util.spec_from_file_location("get_photos", ROOT / "scripts" / "get_photos.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "get_photos", module)
    spec.loader.exec_module(module)
    source = tmp_path / "package"
    (source / "themes").mkdir(parents=True)
    (source / "wallpapers" / "Path" / "contents").mkdir(parents=True)
    (source / "themes" / "Hill.edj").write_bytes(b"EET\xff\xd8\xff" + jpeg(0, 16) + b"name" + jpeg(1, 48) + b"tail")
    (source / "wallpapers" / "Path" / "contents" / "big.jpg").write_bytes(jpeg(2, 40))
    (source / "drawing.jpg").write_bytes(jpeg(3, 40))
    (source / "photo.jpg").write_bytes(jpeg(4, 40))
    photos = ("*/Hill.edj", "wallpapers/*/contents/*.jpg", "[dp]*.jpg")
    package = module.Package("train", "some-photos", photos, "CC0-1.0", without=("drawing.jpg",))
    fetched = []

    def download(package, folder):
        fetched.append(package.name)
        (folder / "some-photos_1_all.deb").write_bytes(b"archive")
        return folder / "some-photos_1_all.deb"

    monkeypatch.setattr(module, "PACKAGES", (package,))
    monkeypatch.setattr(module, "download", download)
    monkeypatch.setattr(module, "unpack", lambda archive, folder: shutil.copytree(source, folder))
    monkeypatch.setattr(sys, "argv", ["get_photos.py", str(tmp_path / "out")])
    module.fetched = fetched
    return module


def test_photographs_and_manifest(get_photos, tmp_path):
    get_photos.main()
    out = tmp_path / "out" / "train"
    assert sorted(path.name for path in out.iterdir()) == [
        *("some-photos__Hill.jpg", "some-photos__Path.jpg", "some-photos__photo.jpg"),
    ]
    assert (out / "some-photos__Hill.jpg").read_bytes() == jpeg(1, 48)  # the largest in the container
    rows = get_photos.read_manifest(tmp_path / "out" / "manifest.tsv")
    assert [(row["width"], row["licence"], row["source"]) for row in rows] == [
        (size, "CC0-1.0", "some-photos_1_all.deb") for size in ("48", "40", "40")
    ]


def test_what_is_there_is_not_fetched_again(get_photos, tmp_path):
    get_photos.main()
    get_photos.main()
    assert get_photos.fetched == ["some-photos"]
    (tmp_path / "out" / "train" / "some-photos__Path.jpg").unlink()
    get_photos.main()
    assert get_photos.fetched == ["some-photos"] * 2
    assert len(get_photos.read_manifest(tmp_path / "out" / "manifest.tsv")) == 3


def test_another_version_of_a_package_is_named(get_photos, monkeypatch):
    package = get_photos.Package("train", "some-photos", ("gone/*.jpg",), "CC0-1.0")
    monkeypatch.setattr(get_photos, "PACKAGES", (package,))
    with pytest.raises(SystemExit, match=r"some-photos_1_all.deb holds no gone/\*.jpg"):
        get_photos.main()


def test_a_failing_apt_get_says_what_to_do(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("get_photos", ROOT / "scripts" / "get_photos.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "get_photos", module)
    spec.loader.exec_module(module)
    tool = tmp_path / "apt-get"
    tool.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(module.FetchError, match=r"Unable to locate package.*apt-get update"):
        module.download(module.Package("train", "some-photos", (), "CC0-1.0"), tmp_path)
