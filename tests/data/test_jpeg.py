"""The tensor codec against libjpeg, and libjpeg against itself."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from sat_sr.data.jpeg import _quantisation_tables, jpeg, jpeg_pillow, jpeg_tensor

QUALITIES = (10, 30, 50, 60, 75, 90, 95, 100)


def photograph(name: str, height: int, width: int) -> torch.Tensor:
    """(3,height,width) in [0, 1]: the middle of one of scikit-image's photographs."""
    picture = getattr(skimage.data, name)()
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return torch.from_numpy(picture[top : top + height, left : left + width].copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("size", [(256, 256), (131, 97), (40, 57), (9, 16)])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_tensor_codec_agrees_with_pillow(name, size):
    image = photograph(name, *size)
    found = jpeg_tensor(image.expand(len(QUALITIES), -1, -1, -1), QUALITIES)
    differences, losses = [], []
    for quality, picture in zip(QUALITIES, found, strict=True):
        reference = jpeg_pillow(image, quality)
        differences.append(255 * (picture - reference).abs().mean().item())
        losses.append(255 * (reference - image).abs().mean().item())
    assert max(differences) < 1, dict(zip(QUALITIES, differences, strict=True))
    assert np.mean(differences) < 0.5 and np.mean(differences) < 0.2 * np.mean(losses)


def test_tables_are_those_that_pillow_writes():
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
        written = Image.open(file).quantization  # undone zigzag: row by row
        found = _quantisation_tables(quality)
        assert [written[0], written[1]] == [table.flatten().tolist() for table in found], f"{quality=}"


def test_pillow_codec_is_pillow():
    image = photograph("chelsea", 50, 61)
    file = io.BytesIO()
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(file, "JPEG", quality=70, subsampling=2)
    decoded = np.asarray(Image.open(file))
    found = jpeg(image[None], [70])[0]
    assert np.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), decoded)


@pytest.mark.parametrize("codec", [jpeg, jpeg_tensor])
def test_every_picture_has_its_own_quality(codec):
    image = photograph("coffee", 64, 64)
    both = codec(torch.stack([image, image]), [20, 90])
    torch.testing.assert_close(both[0], codec(image[None], [20])[0], atol=0, rtol=0)
    torch.testing.assert_close(both[1], codec(image[None], [90])[0], atol=0, rtol=0)
    assert (both[0] - image).abs().mean() > 2 * (both[1] - image).abs().mean()


@pytest.mark.parametrize("codec", [jpeg, jpeg_tensor])
def test_out_of_range_values_are_clamped_and_results_are_8_bit(codec):
    image = photograph("coffee", 32, 48)[None] * 1.6 - 0.3
    found = codec(image, [80])
    assert found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found * 255, (found * 255).round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, codec(image.clamp(0, 1), [80]), atol=0, rtol=0)


def test_impossible_quality():
    with pytest.raises(ValueError, match=r"quality 0 is outside of 1\.\.100"):
        jpeg(torch.zeros(1, 3, 8, 8), [0])


@pytest.mark.cuda
def test_codec_on_the_gpu_agrees_with_pillow():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = photograph("astronaut", 200, 150)
    found = jpeg(image[None].cuda(), [75])[0].cpu()
    assert 255 * (found - jpeg_pillow(image, 75)).abs().mean() < 0.6
