"""EDM (arXiv 2206.00364) against its formulas, written down once more in numpy and float64."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from sat_sr.diffusion.edm import (
    denoise,
    edm_loss,
    karras_sigmas,
    precondition,
    sample_training_sigmas,
    stratified_training_sigmas,
)
from sat_sr.training.error_norm import ErrorNorm

SIGMAS = np.array([0.001, 0.002, 0.37, 0.5, 1.0, 12.5, 40.0, 80.0])


class Spy:
    """A network that remembers its inputs and answers with a fixed picture."""

    def __init__(self, answer, dtype=torch.float32):
        self.answer, self.dtype = answer, dtype

    def __call__(self, images, c_noise, lr, clip_embedding, position_offset):
        self.seen = images, c_noise, lr, clip_embedding, position_offset
        return self.answer.to(self.dtype)


def pictures(batch, seed=0):
    """x, lr, lr_upsampled, answer of an 8 x 12 canvas."""
    generator = torch.Generator().manual_seed(seed)
    x, upsampled, answer = (torch.randn(batch, 3, 8, 12, generator=generator) for _ in range(3))
    return x, torch.randn(batch, 3, 2, 3, generator=generator), upsampled, answer


def test_preconditioning_is_that_of_table_1():
    scale = precondition(torch.tensor(SIGMAS))
    data = 0.5
    np.testing.assert_allclose(scale.c_skip, data**2 / (SIGMAS**2 + data**2), rtol=1e-12)
    np.testing.assert_allclose(scale.c_out, SIGMAS * data / np.sqrt(data**2 + SIGMAS**2), rtol=1e-12)
    np.testing.assert_allclose(scale.c_in, 1 / np.sqrt(SIGMAS**2 + data**2), rtol=1e-12)
    np.testing.assert_allclose(scale.c_noise, np.log(SIGMAS) / 4, rtol=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 20, 100])
@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 40.0, 7.0), (0.01, 5.0, 3.0)])
def test_karras_sigmas_are_equation_5(steps, low, high, rho):
    i = np.arange(steps)
    expected = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    sigmas = karras_sigmas(steps, low, high, rho)
    assert sigmas.dtype is torch.float32 and sigmas.shape == (steps + 1,)
    np.testing.assert_allclose(sigmas[:-1], expected, rtol=1e-6)
    assert sigmas[0].item() == pytest.approx(high) and sigmas[-2].item() == pytest.approx(low)
    assert sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())


def test_karras_sigmas_of_the_release():
    sigmas = karras_sigmas()
    assert len(sigmas) == 21
    assert sigmas[[0, 19, 20]].tolist() == pytest.approx([40.0, 0.002, 0.0])
    assert karras_sigmas(1).tolist() == pytest.approx([40.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_steps=0: at least one step"),
        ((5, 0.0, 40.0), "sigma_min=0.0, sigma_max=40.0: must be 0 < sigma_min"),
        ((5, 2.0, 1.0), "sigma_min=2.0, sigma_max=1.0"),
        ((5, 0.1, math.nan), "sigma_max=nan"),
        ((5, 0.1, math.inf), "sigma_max=inf"),
    ],
)
def test_karras_sigmas_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        karras_sigmas(*arguments)


def test_training_sigmas_are_log_normal_and_clipped():
    sigmas = sample_training_sigmas(40_000, torch.Generator().manual_seed(0))
    logs = sigmas.double().log()
    assert sigmas.dtype is torch.float32 and sigmas.min() >= 1e-3
    assert logs.mean().item() == pytest.approx(-1.0, abs=5 * 1.4 / 200)
    assert logs.std().item() == pytest.approx(1.4, abs=5 * 1.4 / 282)
    assert torch.equal(sigmas, sample_training_sigmas(40_000, torch.Generator().manual_seed(0)))
    clipped = sample_training_sigmas(1000, torch.Generator().manual_seed(0), minimum=0.3)
    assert clipped.min().item() == pytest.approx(0.3)
    # One half lies below the median exp(-1) = 0.37, P(ln sigma < ln 0.3) = Phi((ln 0.3 + 1)/1.4) = 0.442.
    assert (clipped == clipped.min()).float().mean().item() == pytest.approx(0.442, abs=0.06)


def test_stratified_sigmas_have_one_in_each_of_equally_likely_ranges():
    normal, batch = NormalDist(-1.0, 1.4), 16
    generator = torch.Generator().manual_seed(0)
    batches = [stratified_training_sigmas(batch, generator) for _ in range(500)]
    for sigmas in batches:
        assert sorted(int(batch * normal.cdf(math.log(sigma))) for sigma in sigmas) == list(range(batch))
    first = torch.stack([sigmas[0] for sigmas in batches]).log()  # one sample alone: as if it were not stratified
    assert abs(float(first.mean()) + 1) < 0.2 and abs(float(first.std()) - 1.4) < 0.15


def test_denoise_is_equation_7_and_scales_all_six_channels():
    x, lr, upsampled, answer = pictures(2)
    model, sigma = Spy(answer), torch.tensor([0.3, 7.0])
    clip = torch.randn(2, 5)
    denoised = denoise(model, x, sigma, lr, upsampled, clip, (3, 8))
    images, c_noise, seen_lr, seen_clip, offset = model.seen
    for b, s in enumerate([0.3, 7.0]):
        total = s**2 + 0.25
        six = np.concatenate([x[b].numpy(), upsampled[b].numpy()]).astype(np.float64)
        np.testing.assert_allclose(images[b], six / math.sqrt(total), rtol=1e-5, atol=1e-7)
        expected = 0.25 / total * x[b].double().numpy() + s * 0.5 / math.sqrt(total) * answer[b].double().numpy()
        np.testing.assert_allclose(denoised[b], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c_noise, np.log([0.3, 7.0]) / 4, rtol=1e-6)
    assert torch.equal(seen_lr, lr) and torch.equal(seen_clip, clip) and offset == (3, 8)


def test_denoise_gives_the_network_its_dtype_and_keeps_its_own():
    x, lr, upsampled, answer = pictures(1)
    model = Spy(answer, torch.bfloat16)
    denoised = denoise(model, x, torch.tensor([1e-3]), lr, upsampled, torch.randn(1, 5))
    images, c_noise, seen_lr, seen_clip, _ = model.seen
    assert {t.dtype for t in (images, seen_lr, seen_clip)} == {torch.bfloat16}
    assert c_noise.dtype is torch.float32 and denoised.dtype is torch.float32
    # At sigma 0.001 the picture passes by the network: nothing of it may be rounded to bfloat16.
    assert (denoised - x).abs().max() < 1e-3 * 5


def test_loss_is_equation_8():
    """lambda(sigma)·c_out² = 1: the loss is the plain squared error of the network against its effective target."""
    target, lr, upsampled, answer = pictures(4)
    noise, sigma = torch.randn_like(target), torch.tensor([0.01, 0.5, 3.0, 30.0])
    loss = edm_loss(Spy(answer), target, noise, sigma, lr, upsampled)
    assert loss.shape == (4,) and loss.dtype is torch.float32
    for b, s in enumerate(sigma.double().tolist()):
        y, n, f = (t[b].double().numpy() for t in (target, noise, answer))
        wanted = (y - 0.25 / (s**2 + 0.25) * (y + s * n)) * math.sqrt(s**2 + 0.25) / (s * 0.5)
        assert loss[b].item() == pytest.approx(((f - wanted) ** 2).mean(), rel=1e-3)


def test_error_norm_is_brute_force_sums_of_differences():
    error = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    norm = ErrorNorm(patch_size=4, gradient_weight=3.0, seam_weight=5.0)(error)
    for b in range(2):
        e = error[b].numpy()
        down = np.array([[(e[:, y + 1, x] - e[:, y, x]) ** 2 for x in range(8)] for y in range(11)])
        right = np.array([[(e[:, y, x + 1] - e[:, y, x]) ** 2 for x in range(7)] for y in range(12)])
        seams = down[[3, 7]].mean() + right[:, [3]].mean()
        assert norm[b].item() == pytest.approx((e**2).mean() + 3 * (down.mean() + right.mean()) + 5 * seams)
    assert ErrorNorm(patch_size=4)(error).tolist() == pytest.approx([(error[b] ** 2).mean().item() for b in range(2)])


def test_loss_weighs_the_norm_it_is_given():
    target, lr, upsampled, answer = pictures(2)
    noise, sigma = torch.randn_like(target), torch.tensor([0.3, 2.0])
    arguments = (Spy(answer), target, noise, sigma, lr, upsampled)
    doubled = edm_loss(*arguments, norm=lambda error: 2 * error.square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(doubled, 2 * edm_loss(*arguments))


def test_loss_is_zero_for_the_perfect_network_and_sees_the_offset():
    target, lr, upsampled, _ = pictures(2)
    noise, sigma = torch.randn_like(target), torch.tensor([0.2, 5.0])
    s = sigma.view(-1, 1, 1, 1)
    wanted = (target - 0.25 / (s**2 + 0.25) * (target + s * noise)) * (s**2 + 0.25).sqrt() / (s * 0.5)
    model = Spy(wanted)
    assert edm_loss(model, target, noise, sigma, lr, upsampled, None, (1, 2)).max() < 1e-9
    assert model.seen[-2:] == (None, (1, 2))
