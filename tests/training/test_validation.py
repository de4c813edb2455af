"""What validation measures and shows, with a network that does nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sat_sr.training import validation
from sat_sr.training.noise import mix_seed


class Nothing:
    """F = 0, so that D(x; sigma) = c_skip·x."""

    dtype = torch.float32

    def __call__(self, images, *_, **__):
        return torch.zeros_like(images[:, :3])


def batch(*levels: float) -> dict[str, torch.Tensor]:
    target = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    return {"target": target, "lr": target[..., ::4, ::4].contiguous(), "lr_upsampled": target}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(validation.dist, "all_reduce", lambda numbers, op=None: None)


@pytest.mark.parametrize(
    ("batches", "shown"),
    [
        ([(-1.0,), (-0.5,), (0.0,), (0.5,), (1.0,)], [-1.0, -0.5, 0.0, 0.5]),  # a micro batch of one
        ([(-1.0, -0.5, 0.0), (0.5, 1.0)], [-1.0, -0.5, 0.0, 0.5]),
        ([(-1.0, 1.0)], [-1.0, 1.0]),
        ([], []),
    ],
)
def test_four_pictures_are_shown_however_small_the_micro_batches(batches, shown):
    result = validation.validate(
        Nothing(), [batch(*levels) for levels in batches], steps=2, seed=0, device=torch.device("cpu")
    )
    if not shown:
        assert result.grid is None
        return
    assert result.grid.shape == (3, 16 * len(shown), 4 * 16)
    targets = result.grid[0, ::16, -1]  # the last of four columns, a row a picture
    assert targets.tolist() == [round((level + 1) * 127.5) for level in shown]


def test_the_loss_at_each_level_is_that_of_the_formula_and_the_psnr_that_of_the_samples_shown():
    targets = [torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1 for count in (2, 1)]
    batches = [{"target": y, "lr": y[..., ::4, ::4].contiguous(), "lr_upsampled": y} for y in targets]
    result = validation.validate(Nothing(), batches, steps=2, seed=7, device=torch.device("cpu"))

    wanted = []
    for sigma in validation.SIGMAS:
        losses = []
        for number, target in enumerate(targets):
            generator = torch.Generator().manual_seed(mix_seed("validation", 7, number))
            y, n = target.double().numpy(), torch.randn(target.shape, generator=generator).double().numpy()
            c_skip, weight = 0.5**2 / (sigma**2 + 0.5**2), (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2  # EDM, Table 1
            losses += [*(weight * (c_skip * (y + sigma * n) - y) ** 2).mean(axis=(1, 2, 3))]
        wanted.append(np.mean(losses))
    assert result.by_sigma == pytest.approx(wanted, rel=1e-5)
    assert result.loss == pytest.approx(np.mean(wanted), rel=1e-5)

    _, _, sample, target = np.split(result.grid.double().numpy(), 4, axis=-1)
    errors = ((sample - target) ** 2).reshape(3, 3, 16, 16).mean(axis=(0, 2, 3))  # of three rows
    assert result.psnr == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=0.05)  # it is shown in 8 bits


CALLS = 3 * len(validation.SIGMAS) + 3 * 4  # of three batches, sampled in four steps


@pytest.mark.parametrize("after", [0, 4, 7, 16, 20, CALLS - 1])
def test_a_signal_is_answered_before_the_next_call_of_the_network_and_at_the_same_exchange_as_on_other_ranks(
    monkeypatch, after
):
    network, calls, exchanges = Nothing(), [], []

    class Counted(Nothing):
        def __call__(self, *args, **kwargs):
            calls.append(1)
            return network(*args, **kwargs)

    def run(asked, stops):
        calls.clear()
        exchanges.clear()

        def stop():
            exchanges.append("stop")
            return stops and asked()

        return validation.validate(
            Counted(), [batch(0.5)] * 3, steps=4, seed=0, device=torch.device("cpu"), stop=stop, asked=asked
        )

    monkeypatch.setattr(validation.dist, "all_reduce", lambda numbers, op=None: exchanges.append("all_reduce"))
    assert run(lambda: False, stops=True) is not None
    assert len(calls) == CALLS
    of_others = [*exchanges]
    assert run(lambda: len(calls) >= after, stops=True) is None
    assert len(calls) == after
    assert exchanges == of_others[: len(exchanges)] and exchanges[-1] == "stop"
    run(lambda: len(calls) >= after, stops=False)
    assert exchanges == of_others, "wherever it leaves a batch"
