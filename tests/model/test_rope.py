"""Rotary positions against an explicit loop, and what makes them rotary: only distances count, until they wrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sat_sr.config import InfDiTConfig
from sat_sr.model.rope import norm_and_rotate, rotary, rotate_

CONFIG = InfDiTConfig(
    num_layers=2, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
)
PERIOD = 128  # 8·64/4


def rotated_by_hand(x, rows, cols):
    """One token, head and pair at a time, in float64. x (B, i, j, L, h, d)."""
    x = x.double().numpy()  # a copy
    out = np.empty_like(x)
    _, i, j, tokens, _, d = x.shape
    half, n = d // 2, math.isqrt(tokens)
    for a in range(i):
        for b in range(j):
            for token in range(tokens):
                places = int(rows[a, token // n]), int(cols[b, token % n])
                for pair in range(d // 2):
                    axis, t = divmod(pair, half // 2)
                    angle = places[axis] * 10000 ** (-2 * t / half)
                    first, second = x[:, a, b, token, :, 2 * pair], x[:, a, b, token, :, 2 * pair + 1]
                    out[:, a, b, token, :, 2 * pair] = first * math.cos(angle) - second * math.sin(angle)
                    out[:, a, b, token, :, 2 * pair + 1] = second * math.cos(angle) + first * math.sin(angle)
    return out


@pytest.mark.parametrize("d", [4, 8, 20])
def test_rotation_equals_the_loop(d):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 3, 9, 2, d, generator=generator)
    rows, cols = (torch.randint(0, 1024, (blocks, 3), generator=generator) for blocks in (2, 3))
    # Angles reach 1,000 rad: float32 knows them to 6e-5.
    expected = rotated_by_hand(x, rows, cols)
    np.testing.assert_allclose(rotate_(x, rotary(rows, cols, d, 1024)), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_rotation_keeps_lengths_and_dtype_and_is_computed_in_float32(grad):
    """Only what comes out is rounded to bfloat16: by half a unit of its last of 8 binary digits."""
    x = torch.randn(2, 3, 1, 4, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows, cols = torch.tensor([[5, 900], [6, 3], [0, 1]]), torch.tensor([[0, 77]])
    rotation = rotary(rows, cols, 8, 1024)
    with torch.set_grad_enabled(grad):
        rotated = rotate_(x.clone(), rotation)
    assert rotated.dtype is torch.bfloat16 and rotation.dtype is torch.complex64
    expected = rotated_by_hand(x, rows, cols)
    np.testing.assert_allclose(rotated.double(), expected, rtol=2**-8, atol=3e-4)
    torch.testing.assert_close(rotate_(x.float(), rotation).norm(dim=-1), x.float().norm(dim=-1))


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(CONFIG)


def ids_by_hand(blocks, offset):
    n = CONFIG.tokens_per_side
    return torch.tensor([[(block * n + t + offset) % PERIOD for t in range(n)] for block in blocks])


@pytest.mark.parametrize("offset", [(0, 0), (3, 70), (PERIOD - 5, PERIOD - 1)])
@pytest.mark.parametrize(("rows", "cols"), [(range(1), range(3)), (range(5, 7), range(30, 34))])
def test_ids_of_a_group(model, rows, cols, offset):
    """Blocks 32 of 4 tokens fill the period: the ids begin again, with or without an offset."""
    assert CONFIG.rope_period == PERIOD
    expected = rotary(ids_by_hand(rows, offset[0]), ids_by_hand(cols, offset[1]), CONFIG.head_dim, PERIOD)
    assert torch.equal(model.rotary(rows, cols, offset), expected)


@pytest.fixture(scope="module")
def call(model):
    """offset -> F of one fixed canvas of 2 x 3 blocks.

    Without relation embeddings: those are added to keys that are already rotated, so q·e depends on the place.
    """
    model.mixins["adaln_layer"].re_pos_embed.zero_()
    generator = torch.Generator().manual_seed(1)
    images, lr = torch.randn(1, 6, 32, 48, generator=generator), torch.randn(1, 3, 8, 12, generator=generator)

    def f(offset):
        with torch.no_grad():
            return model(images, torch.tensor([0.1]), lr, position_offset=offset)

    return f


def test_a_shift_of_all_positions_changes_nothing(call):
    for offset in [(1, 0), (0, 1), (37, 90)]:
        torch.testing.assert_close(call(offset), call((0, 0)), rtol=0, atol=2e-4)


def test_a_wrap_inside_the_picture_does(call):
    """The second block row begins at id 0 again: it is far from the first one now."""
    difference = (call((PERIOD - 4, 0)) - call((0, 0))).abs()
    assert difference[..., :16, :].max() < 2e-4
    assert difference[..., 16:, :].max() > 1e-2


def test_positions_are_periodic_and_axes_differ(call):
    assert torch.equal(call((5, 9)), call((5 + PERIOD, 9 + 2 * PERIOD)))
    wrapped = [call((PERIOD - 4, 0)), call((0, PERIOD - 4))]
    assert (wrapped[0] - wrapped[1]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_and_rotation_in_real_numbers_are_those_of_pytorch_and_of_complex_ones(dtype):
    """The form that torch.compile makes one pass of."""
    rotation = rotary(torch.tensor([[5, 900]]), torch.tensor([[0, 77]]), 8, 1024)
    norm = torch.nn.LayerNorm(8, eps=1e-6)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    norm = norm.to(dtype)
    x = (3 * torch.randn(2, 1, 1, 4, 3, 8) + 1).to(dtype)
    with torch.no_grad():
        normed = torch.nn.functional.layer_norm(x.double(), (8,), norm.weight.double(), norm.bias.double(), 1e-6)
        pairs = torch.view_as_complex(normed.unflatten(-1, (-1, 2))) * rotation
        alike = norm_and_rotate(x, norm, torch.view_as_real(rotation))
    assert alike.dtype is dtype
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-8}[dtype]
    wanted = torch.view_as_real(pairs).flatten(-2)
    assert ((alike.double() - wanted).abs() <= rounding * (1 + wanted.abs())).all()
