"""Crop rules, by pictures whose pixels say where they are from."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from sat_sr.data.crops import LEAST_CONTRAST, TONE_PROB, center_crop, center_pair, orient, paired_crop, training_crop
from sat_sr.diffusion.resize import resize

SIZE = 8


def coordinates(height: int, width: int) -> torch.Tensor:
    """(3,H,W) uint8: row, column, and zero."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)


def generators(count: int):
    return (torch.Generator().manual_seed(number) for number in range(count))


def is_crop(crop: torch.Tensor) -> bool:
    """Whether it is a square of `coordinates`, mirrored or not: neighbours differ by one pixel."""
    rows, columns = crop[0].int(), crop[1].int()
    return bool((rows.diff(dim=0) == 1).all() and (columns.diff(dim=1).abs() == 1).all())


def test_shares_of_crops_and_flips_are_those_of_the_release():
    image, cropped, flipped, corners = coordinates(30, 40), 0, 0, set()
    trials = 2000
    for generator in generators(trials):
        crop = training_crop(image, SIZE, generator)
        assert crop.shape == (3, SIZE, SIZE)
        assert crop.dtype == torch.uint8
        if is_crop(crop):
            cropped += 1
            mirrored = bool(crop[1, 0, 0] > crop[1, 0, -1])
            flipped += mirrored
            corners.add((int(crop[0, 0, 0]), int(crop[1, 0].min())))
    assert binomtest(cropped, trials, 0.7).pvalue > 1e-4
    assert binomtest(flipped, cropped, 0.3).pvalue > 1e-4
    assert {row for row, _ in corners} == set(range(30 - SIZE + 1))
    assert {column for _, column in corners} == set(range(40 - SIZE + 1))


def test_the_rest_is_the_whole_picture_reduced_to_its_shorter_side():
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reduced = resize(image[None].float(), (16, 24))[0].round().clamp(0, 255).to(torch.uint8)
    windows = [reduced[:, :, left : left + 16] for left in range(9)]
    matches = [
        left
        for generator in generators(300)
        for left, window in enumerate(windows)
        if torch.equal(training_crop(image, 16, generator), window)
    ]
    # Each call draws anew from a generator that moved on: what counts is that reduced windows of many places turn up.
    assert len(set(matches)) >= 7


def test_full_augmentation_gives_all_eight_orientations():
    image = coordinates(SIZE, SIZE)
    image[2] = 7  # a square of the picture's own size: cropping and reducing leave it alone
    seen = {training_crop(image, SIZE, generator, "full").numpy().tobytes() for generator in generators(200)}
    turns = [torch.rot90(m, k, (-2, -1)) for m in (image, image.flip(-1)) for k in range(4)]
    assert seen == {turn.contiguous().numpy().tobytes() for turn in turns}
    assert {orient(image, turn).contiguous().numpy().tobytes() for turn in range(8)} == seen


@pytest.mark.parametrize("augment", ["release", "full", "tone"])
def test_a_pairs_crops_stay_aligned(augment):
    lr = coordinates(12, 15)
    image = lr.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)  # each pixel says which LR pixel it covers
    places = set()
    for generator in generators(60):
        target, low = paired_crop(image, lr, 16, generator, augment)
        assert torch.equal(target, low.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1))
        if int(low[0].max()) - int(low[0].min()) == 3:  # else the crop's contrast was changed
            places.add(int(low[0].min()))
    assert places >= set(range(9))


def test_tone_is_one_straight_line_a_crop_and_never_clips():
    image = torch.linspace(0, 255, SIZE * SIZE).round().to(torch.uint8).reshape(1, SIZE, SIZE).repeat(3, 1, 1)
    contrasts, ends = [], []
    for generator in generators(400):
        values = training_crop(image, SIZE, generator, "tone").flatten().sort().values.double()
        slope, start = torch.linalg.lstsq(
            torch.stack([image.flatten().sort().values.double(), torch.ones(values.numel(), dtype=torch.double)], 1),
            values[:, None],
        ).solution.flatten()
        line = image.flatten().sort().values * slope + start
        assert (values - line).abs().max() <= 0.75  # rounding, and what it moves the fit by
        contrasts.append(float(slope))
        ends.append((float(values[0]), float(values[-1])))
    kept = sum(abs(contrast - 1) < 1e-6 for contrast in contrasts)
    assert binomtest(kept, len(contrasts), 1 - TONE_PROB).pvalue > 1e-3
    changed = [contrast for contrast in contrasts if abs(contrast - 1) >= 1e-6]
    assert min(changed) == pytest.approx(LEAST_CONTRAST, abs=0.03)
    assert max(changed) == pytest.approx(1, abs=0.03)
    assert min(low for low, _ in ends) == 0
    assert max(low for low, _ in ends) > 100  # bright, pale crops
    assert min(high for _, high in ends) < 100  # dark ones


def test_center_crops_are_in_the_middle_and_aligned():
    lr = coordinates(7, 9)
    image = lr.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)
    target, low = center_pair(image, lr, 12)
    assert (int(low[0, 0, 0]), int(low[1, 0, 0])) == (2, 3)
    assert torch.equal(target, low.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1))
    assert torch.equal(target, center_crop(image, 12))
