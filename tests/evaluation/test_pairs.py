"""Inputs made from sharp pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sat_sr.evaluation.pairs import Pairs, spread


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for name in ("one", "sub/two"):
        Image.fromarray(rng.integers(0, 256, (98, 130, 3), dtype=np.uint8)).save(tmp_path / "set" / f"{name}.png")
    return tmp_path / "set"


def test_clean_input_is_the_antialiased_bicubic(folder):
    pairs = Pairs(folder)
    assert pairs.names == ["one", "sub/two"] and pairs.cropped == pairs.names
    pair = pairs.read("one")
    assert pair.target.shape == (96, 128, 3) and pair.lr.shape == (24, 32, 3) and pair.lr.dtype == np.uint8
    # Pillow's bicubic has the same kernel and antialiasing, with rounding between its two passes.
    reference = np.asarray(Image.fromarray(pair.target).resize((32, 24), Image.Resampling.BICUBIC))
    assert np.abs(pair.lr.astype(int) - reference.astype(int)).max() <= 1


def test_fractional_scale(folder):
    pair = Pairs(folder, scale=3.5).read("one")
    assert pair.lr.shape == (28, 37, 3) and pair.target.shape == (98, 130, 3)  # 37 · 3.5 = 129.5, rounded


def test_degraded_inputs_depend_on_seed_and_name_alone(folder):
    def lr(name, seed=0, **options):
        return Pairs(folder, degradation="mild", seed=seed, **options).read(name).lr

    first = lr("one")
    assert first.shape == (24, 32, 3)
    np.testing.assert_array_equal(first, lr("one", limit=1))
    assert (lr("one", seed=1) != first).any() and (Pairs(folder).read("one").lr != first).any()
    two = lr("sub/two")
    (folder / "one.png").rename(folder / "three.png")
    np.testing.assert_array_equal(two, lr("sub/two"))  # what else is in the folder does not matter
    renamed = folder.with_name("other")
    folder.rename(renamed)
    np.testing.assert_array_equal(two, Pairs(renamed, degradation="mild").read("sub/two").lr)


def test_digest_sees_every_pixel(folder):
    pairs = Pairs(folder)
    pair = pairs.read("one")
    changed = pair.lr.copy()
    changed[-1, -1, -1] ^= 1
    assert pair.digest == pairs.read("one").digest
    assert pair.digest != type(pair)(pair.name, pair.target, changed).digest


def test_limit_spreads_and_counts_usable_pictures(folder):
    (folder / "a_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    pairs = Pairs(folder, limit=1)
    assert pairs.names == ["one"] and list(pairs.skipped) == ["a_broken"]
    for i in range(8):
        (folder / f"x{i}.png").write_bytes((folder / "one.png").read_bytes())
    assert Pairs(folder, limit=3).names == ["one", "x0", "x4"]  # the 1st (broken, so the next), 4th, 8th of 11
    assert Pairs(folder, limit=99).names == Pairs(folder).names


def test_spread_reaches_over_the_whole_list():
    assert spread([*"abcdefghijklmno"], 8) == [*"abdfhjln"]  # 15/8 apart, rounded down
    assert spread([*"abc"], 8) == [*"abc"] and spread([*"abcd"], 2) == [*"ac"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.5}, "must be more than 1"),
        ({"limit": 0}, "at least 1"),
        ({"degradation": "strng"}, "clean; or none, antialiased bicubic"),
    ],
)
def test_wrong_values(folder, options, message):
    with pytest.raises(ValueError, match=message):
        Pairs(folder, **options)
