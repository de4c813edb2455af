"""AdamW with EMA against torch.optim.AdamW and closed forms; learning rate; Muon's orthogonalisation."""

import math

import pytest
import torch

from sat_sr.training.muon import MuonWithEMA, muon_parameter_groups, orthogonalise
from sat_sr.training.optimizer import AdamWWithEMA, ema_decay, learning_rate, parameter_groups

SHAPES = [(5, 3), (7,), (2, 4, 3)]


def groups_of(parameters, lr=0.01, weight_decay=0.1):
    return [{"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}]


def test_the_weights_are_those_of_torch_adamw_and_the_average_is_the_weighted_sum_of_all_of_them():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = AdamWWithEMA(groups_of(ours), betas=(0.9, 0.99), eps=1e-6, ema_decay=0.6)
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1, foreach=False)
    history = [[p.detach().double().clone() for p in ours]]
    for _ in range(12):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
        history.append([p.detach().double().clone() for p in theirs])
    # The decays are 2/11, 3/12, … up to the maximum 0.6; the average after K updates is
    # Σ_k w_k (1 − d_k) Π_{j>k} d_j, and the initial weights with Π_j d_j.
    decays = [min(0.6, (1 + k) / (10 + k)) for k in range(1, 13)]
    assert decays[0] == 2 / 11 and decays[-1] == 13 / 22 and 0.6 not in decays[:11]
    shares = [math.prod(decays)] + [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(12)]
    assert sum(shares) == pytest.approx(1)
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)
        average = sum(share * weights[i] for share, weights in zip(shares, history, strict=True))
        assert optimizer.state[p]["ema"].dtype == torch.float32
        torch.testing.assert_close(optimizer.state[p]["ema"].double(), average, rtol=0, atol=1e-6)


def test_the_decay_rises_to_its_maximum():
    assert [ema_decay(k, 0.9999) for k in (1, 90)] == [2 / 11, 0.91]
    assert ema_decay(89_990, 0.9999) == pytest.approx(0.9999, abs=1e-9) and ema_decay(10**7, 0.9999) == 0.9999


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened():
    def run(steps, resume_at=None):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
        optimizer = AdamWWithEMA(groups_of([parameter]))
        for step in range(steps):
            if step == resume_at:
                saved, weights = optimizer.state_dict(), parameter.detach().clone()
                parameter = torch.nn.Parameter(weights)
                optimizer = AdamWWithEMA(groups_of([parameter]))
                optimizer.start()
                optimizer.load_state_dict(saved)
            parameter.grad = torch.sin(parameter.detach() + step)
            optimizer.step()
        return parameter.detach(), optimizer.state[parameter]["ema"]

    for whole, resumed in zip(run(7), run(7, resume_at=3), strict=True):
        assert torch.equal(whole, resumed)


def test_a_parameter_without_gradient_keeps_its_weights_and_average():
    idle, busy = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = AdamWWithEMA(groups_of([idle, busy]))
    busy.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(idle, torch.ones(2, 2)) and torch.equal(optimizer.state[idle]["ema"], torch.ones(2, 2))
    assert not torch.equal(busy, torch.ones(2, 2))


def test_biases_and_norms_are_not_decayed_and_frozen_parameters_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].requires_grad_(False)
    decayed, rest = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)] and decayed["weight_decay"] == 0.1
    assert [p.shape for p in rest["params"]] == [(4,)] * 3 and rest["weight_decay"] == 0.0


def test_learning_rate_rises_over_one_percent_and_falls_to_zero():
    rates = [learning_rate(step, 1000, peak=2.0, warmup=0.01) for step in range(1001)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])  # 10 steps of warm-up
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[505] == pytest.approx(1.0) and rates[1000] == 0.0
    assert learning_rate(505, 1000, 2.0, 0.01, "cosine") == pytest.approx(1.0)
    assert learning_rate(10 + 990 // 4, 1000, 2.0, 0.01, "cosine") == pytest.approx(1 + math.cos(math.pi / 4), rel=1e-2)
    assert learning_rate(999, 1000, 2.0, 0.01, "constant") == 2.0
    assert learning_rate(0, 1, 2.0) == 2.0
    with pytest.raises(ValueError, match="linear, cosine, constant"):
        learning_rate(50, 100, 1.0, style="step")


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 32)])
def test_orthogonalise_keeps_the_directions_and_levels_the_singular_values(shape):
    torch.manual_seed(1)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    flat = u.mT @ orthogonalise(matrices) @ vh.mT  # diagonal where the singular vectors are kept
    values = flat.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6 and values.max() < 1.3
    assert (flat - torch.diag_embed(values)).abs().max() < 1e-3


def test_muon_moves_matrices_by_the_rate_and_leaves_the_rest_to_adamw():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = torch.nn.Module()
            self.transformer.layers = torch.nn.ModuleList([torch.nn.Linear(6, 6)])
            self.head = torch.nn.Linear(6, 2)

    torch.manual_seed(2)
    model, other = Model(), Model()
    other.load_state_dict(model.state_dict())
    muon = MuonWithEMA(muon_parameter_groups(model, 0.01, 0.5, 0.0), ema_decay=0.5)
    adamw = AdamWWithEMA(parameter_groups(other, 0.01, 0.0))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    before = model.transformer.layers[0].weight.detach().clone()
    muon.step()
    adamw.step()
    for name in ("transformer.layers.0.bias", "head.weight", "head.bias"):
        assert torch.equal(model.get_parameter(name), other.get_parameter(name)), name
    weight = model.transformer.layers[0].weight
    moved = (before - weight.detach()) / 0.5
    u, _, vh = torch.linalg.svd(weight.grad)
    assert (moved - u @ vh).norm() / 6**0.5 < 0.4  # the nearest orthogonal matrix, as well as five iterations find it
    assert torch.allclose(muon.state[weight]["ema"], before + (weight.detach() - before) * (1 - 2 / 11), atol=1e-6)
