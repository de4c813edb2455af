"""The nearby-LR cross-attention against a loop over blocks, tokens and window cells in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sat_sr.config import InfDiTConfig
from sat_sr.model.lr_cross_attention import group_lr, lr_features

CONFIG = InfDiTConfig(
    num_layers=1, hidden_size=16, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
)
SIDE = CONFIG.lr_features_per_side  # 2 features along a block: windows of 6 x 6
GRID = (2, 3)


@pytest.fixture(scope="module")
def adaln(make_model):
    return make_model(CONFIG).mixins["adaln_layer"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * layer.weight.double().numpy() + layer.bias.double().numpy()


def linear(x, layer):
    return x @ layer.weight.double().numpy().T + layer.bias.double().numpy()


def feature_map(lr, conv):
    """2 x 2 pixels at a time: (3, y, x) -> {(row, column): (C,)}."""
    weight, bias = conv.weight.double().numpy(), conv.bias.double().numpy()
    return {
        (y, x): np.einsum("ocpq,cpq->o", weight, lr[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]) + bias
        for y in range(lr.shape[1] // 2)
        for x in range(lr.shape[2] // 2)
    }


def by_hand(adaln, x, lr):
    """x (I, J, L, C) tokens of a whole picture, lr (3, H/4, W/4): what the cross-attention adds to each token."""
    projections, features = adaln.cross_attention, feature_map(lr, adaln.proj_lr)
    query_position = adaln.lr_query_position_embedding[0].double().numpy()  # (L, h, d)
    key_position = adaln.lr_key_position_embedding[0].double().numpy()  # (36, h, d)
    C, h = CONFIG.hidden_size, CONFIG.num_attention_heads
    out = np.empty_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            keys, values = [], []
            for y in range((i - 1) * SIDE, (i + 2) * SIDE):
                for c in range((j - 1) * SIDE, (j + 2) * SIDE):
                    feature = features.get((y, c), np.zeros(C))  # outside: a zero vector, attended like any other
                    key, value = np.split(linear(feature, projections.key_value), 2)
                    keys.append(norm(key.reshape(h, -1), adaln.cross_k_ln) + key_position[len(keys)])
                    values.append(value.reshape(h, -1))
            for token in range(x.shape[2]):
                q = norm(linear(x[i, j, token], projections.query).reshape(h, -1), adaln.cross_q_ln)
                q = q + query_position[token]
                heads = []
                for head in range(h):
                    logits = np.array([q[head] @ key[head] for key in keys]) / np.sqrt(CONFIG.head_dim)
                    weights = np.exp(logits - logits.max())
                    heads.append(sum(w * v[head] for w, v in zip(weights / weights.sum(), values, strict=True)))
                out[i, j, token] = linear(np.concatenate(heads), projections.dense)
    return out


GROUPS = {"whole": (range(2), range(3)), "corner": (range(1), range(1)), "last": (range(1, 2), range(1, 3))}


@pytest.mark.parametrize("group", GROUPS)
def test_equals_the_loop(adaln, group):
    rows, cols = GROUPS[group]
    x, lr = normal(*GRID, CONFIG.tokens_per_block, CONFIG.hidden_size), normal(1, 3, 8, 12, seed=1)
    expected = by_hand(adaln, x.double().numpy(), lr[0].double().numpy())
    part = x[rows.start : rows.stop, cols.start : cols.stop]
    with torch.no_grad():
        out = adaln.lr_cross_attention(part[None], group_lr(lr, rows, cols, GRID))
    expected = expected[rows.start : rows.stop, cols.start : cols.stop]
    np.testing.assert_allclose(out[0], expected, rtol=0, atol=5e-6)


def test_what_is_seen_of_the_lr_condition():
    """A group's own part with one block around it; NaN where there is no picture."""
    lr = normal(2, 3, 8, 12)
    whole = group_lr(lr, range(2), range(3), GRID)
    assert whole.shape == (2, 3, 16, 20)
    assert torch.equal(whole[..., 4:12, 4:16], lr)
    outside = torch.ones(16, 20, dtype=torch.bool)
    outside[4:12, 4:16] = False
    assert bool((whole.isnan() == outside).all())
    inner = group_lr(lr, range(1, 2), range(1, 2), GRID)
    assert torch.equal(inner[..., :8, :], lr) and bool(inner[..., 8:, :].isnan().all())


def test_features_outside_are_zero_not_the_bias():
    lr = torch.full((1, 3, 2, 4), float("nan"))
    lr[..., 2:] = normal(3, 2, 2)
    features = lr_features(lr, normal(5, 3, 2, 2), normal(5))
    assert features.shape == (1, 1, 2, 5)
    assert bool((features[0, 0, 0] == 0).all()) and bool((features[0, 0, 1] != 0).all())
