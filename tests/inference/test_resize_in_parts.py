"""A region has the bits of the whole; `test_backprojection` and `test_ranks` add up parts."""

from __future__ import annotations

import pytest
import torch

from sat_sr.diffusion.resize import resize
from sat_sr.inference import resize_in_parts
from sat_sr.inference.resize_in_parts import resize_region


@pytest.mark.parametrize(
    "sizes", [((37, 29), (148, 116)), ((50, 61), (23, 17)), ((20, 40), (20, 97)), ((9, 300), (300, 2))]
)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_region_has_the_bits_of_the_whole(sizes, scaled, monkeypatch):
    (h, w), (height, width) = sizes
    image = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scales = (1.003 * height / h, 0.997 * width / w) if scaled and h != height else (None, None)
    whole = torch.ops.aten._upsample_bicubic2d_aa(image, [height, width], False, *scales)
    monkeypatch.setattr(resize_in_parts, "STRIP", 7)
    for rows in (slice(None), slice(0, 3), slice(height // 3, height // 2), slice(height - 1, None)):
        for columns in (slice(None), slice(0, 1), slice(width // 2, None)):
            region = resize_region(image, (height, width), rows, columns, scales)
            assert torch.equal(region, whole[..., rows, columns]), (rows, columns)


def test_a_region_of_a_single_column():
    """PyTorch 2.13 makes something else of pictures of one column."""
    row = torch.rand(1, 3, 1, 14)
    torch.testing.assert_close(resize_region(row.mT, (50, 1)), resize(row, (1, 50)).mT, rtol=0, atol=1e-6)
