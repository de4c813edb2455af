"""What validation looks at, with a network that does nothing."""

from __future__ import annotations

import pytest
import torch

from sat_sr.training import validation


class Nothing:
    """F = 0, so that D(x; sigma) = c_skip·x."""

    dtype = torch.float32

    def __call__(self, images, *_, **__):
        return torch.zeros_like(images[:, :3])


def batch(*levels: float) -> dict[str, torch.Tensor]:
    target = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    return {"target": target, "lr": target[..., ::4, ::4].contiguous(), "lr_upsampled": target}


@pytest.mark.parametrize(
    ("batches", "shown"),
    [
        ([(-1.0,), (-0.5,), (0.0,), (0.5,), (1.0,)], [-1.0, -0.5, 0.0, 0.5]),  # a micro batch of one
        ([(-1.0, -0.5, 0.0), (0.5, 1.0)], [-1.0, -0.5, 0.0, 0.5]),
        ([(-1.0, 1.0)], [-1.0, 1.0]),
        ([], []),
    ],
)
def test_four_pictures_are_shown_however_small_the_micro_batches(monkeypatch, batches, shown):
    monkeypatch.setattr(validation.dist, "all_reduce", lambda numbers, op=None: None)  # alone
    result = validation.validate(
        Nothing(), [batch(*levels) for levels in batches], steps=2, seed=0, device=torch.device("cpu")
    )
    if not shown:
        assert result.grid is None
        return
    assert result.grid.shape == (3, 16 * len(shown), 4 * 16)
    targets = result.grid[0, ::16, -1]  # the last of four columns, a row a picture
    assert targets.tolist() == [round((level + 1) * 127.5) for level in shown]
