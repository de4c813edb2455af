"""The degradation against its table of parameters, a plain reference pipeline, and the laws of its noise."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from sat_sr.data.camera_noise import gaussian_noise, poisson_noise
from sat_sr.data.degradation import degrade
from sat_sr.data.degradation_law import (
    KERNEL_SIZES,
    PRESETS,
    DegradationParams,
    StageParams,
    parse_degradation,
    sample_params,
)
from sat_sr.data.kernels import kernel_from_parameters

DRAWN = 6000
FAMILIES = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(height: int, width: int) -> torch.Tensor:
    """(1,3,height,width) in [0, 1]."""
    picture = skimage.data.astronaut()[100 : 100 + height, 100 : 100 + width].copy()
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module", params=["strong", "mild"])
def drawn(request) -> tuple[str, list[DegradationParams]]:
    return request.param, sample_params(PRESETS[request.param], DRAWN, seeded(1))


def assert_share(events: list[bool], probability: float) -> None:
    """The share of true events is within 4.5 standard deviations of the binomial law."""
    bound = 4.5 * math.sqrt(probability * (1 - probability) / len(events))
    assert abs(np.mean(events) - probability) <= bound, (np.mean(events), probability, bound)


def assert_uniform(values: list[float], low: float, high: float) -> None:
    assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-5


# ---------------------------------------------------------------- what is drawn

STAGES = [
    # blur, up/down/keep, range, sigma, Poisson scale, quality
    (1.0, (0.2, 0.7, 0.1), (0.3, 1.5), (1, 15), (0.05, 2.0), (60, 95)),
    (0.5, (0.3, 0.4, 0.3), (0.6, 1.2), (1, 12), (0.05, 1.0), (60, 100)),
]


@pytest.mark.parametrize("index", [0, 1])
def test_resize_noise_and_jpeg_of_a_stage_follow_the_table(drawn, index):
    blur, directions, (low, high), sigma, poisson, quality = STAGES[index]
    stages = [p.stages[index] for p in drawn[1]]
    assert_share([s.kernel is not None for s in stages], blur)

    scales = [s.resize_scale for s in stages]
    assert_share([x > 1 for x in scales], directions[0])
    assert_share([x < 1 for x in scales], directions[1])
    assert_share([x == 1 for x in scales], directions[2])
    assert_uniform([x for x in scales if x > 1], 1, high)
    assert_uniform([x for x in scales if x < 1], low, 1)
    for mode in ("area", "bilinear", "bicubic"):
        assert_share([s.resize_mode == mode for s in stages], 1 / 3)

    assert_share([s.noise == "gaussian" for s in stages], 0.5)
    assert_uniform([s.noise_strength for s in stages if s.noise == "gaussian"], *sigma)
    assert_uniform([s.noise_strength for s in stages if s.noise == "poisson"], *poisson)
    assert_share([s.gray_noise for s in stages], 0.4)

    counts = Counter(s.jpeg_quality for s in stages)
    assert sorted(counts) == list(range(quality[0], quality[1] + 1))
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-5


@pytest.mark.parametrize("index", [0, 1])
def test_kernels_follow_the_table(drawn, index):
    preset, params = drawn
    sigma, generalized, plateau = {
        ("strong", 0): ((0.2, 3.0), (0.5, 4.0), (1.0, 2.0)),
        ("strong", 1): ((0.2, 1.5), (0.5, 4.0), (1.0, 2.0)),
        ("mild", 0): ((0.2, 1.5), (0.5, 2.0), (1.0, 1.5)),
        ("mild", 1): ((0.2, 1.0), (0.5, 2.0), (1.0, 1.5)),
    }[preset, index]
    kernels = [p.stages[index].kernel for p in params if p.stages[index].kernel]
    assert scipy.stats.chisquare([sum(k["kernel_size"] == s for k in kernels) for s in KERNEL_SIZES]).pvalue > 1e-5
    assert KERNEL_SIZES == (7, 9, 11, 13, 15, 17, 19, 21)
    assert_share([k["kind"] == "sinc" for k in kernels], 0.1)

    sinc = [k for k in kernels if k["kind"] == "sinc"]
    assert_uniform([k["cutoff"] for k in sinc if k["kernel_size"] < 13], math.pi / 3, math.pi)
    assert_uniform([k["cutoff"] for k in sinc if k["kernel_size"] >= 13], math.pi / 5, math.pi)

    gaussian = [k for k in kernels if k["kind"] != "sinc"]
    for kind, share in FAMILIES.items():
        assert_share([k["kind"] == kind for k in gaussian], share)
    assert_uniform([k["sigma_x"] for k in gaussian], *sigma)
    assert_uniform([k["sigma_y"] for k in gaussian if k["kind"].endswith("aniso")], *sigma)
    assert_uniform([k["theta"] for k in gaussian if k["kind"].endswith("aniso")], -math.pi, math.pi)
    assert not any("theta" in k or "sigma_y" in k for k in gaussian if k["kind"].endswith("_iso"))

    for family, (low, high) in {"generalized": generalized, "plateau": plateau}.items():
        betas = [k["beta"] for k in gaussian if k["kind"].startswith(family)]
        assert_share([beta > 1 for beta in betas], 0.5)
        assert_uniform([beta for beta in betas if beta > 1], 1, high)
        if low < 1:
            assert_uniform([beta for beta in betas if beta < 1], low, 1)
        else:
            assert min(betas) == 1


def test_the_end_follows_the_table(drawn):
    params = drawn[1]
    assert_share([p.jpeg_last for p in params], 0.5)
    assert_share([p.final_kernel is not None for p in params], 0.8)
    for mode in ("area", "bilinear", "bicubic"):
        assert_share([p.final_resize_mode == mode for p in params], 1 / 3)
    final = [p.final_kernel for p in params if p.final_kernel]
    assert {k["kind"] for k in final} == {"sinc"}
    assert_uniform([k["cutoff"] for k in final], math.pi / 3, math.pi)  # whatever the size
    assert_uniform([k["cutoff"] for k in final if k["kernel_size"] > 13], math.pi / 3, math.pi)
    assert scipy.stats.chisquare([sum(k["kernel_size"] == s for k in final) for s in KERNEL_SIZES]).pvalue > 1e-5


def test_a_mixture_draws_its_presets_by_weight():
    params = sample_params(parse_degradation("clean:3, mild:1"), 4000, seeded(2))
    assert_share([p.stages is None for p in params], 0.75)
    sigmas = [p.stages[0].kernel.get("sigma_x", 0) for p in params if p.stages]
    assert 1.4 < max(sigmas) <= 1.5  # mild, not strong


def test_parse_degradation():
    assert parse_degradation("strong") == [(1.0, PRESETS["strong"])]
    assert parse_degradation("clean:0.25,mild:0.75") == [(0.25, PRESETS["clean"]), (0.75, PRESETS["mild"])]


@pytest.mark.parametrize("text", ["harsh", "", "clean:0.5,", "clean 0.5"])
def test_an_unknown_preset_names_the_known_ones(text):
    with pytest.raises(ValueError, match=r"unknown degradation .* known are strong, mild, clean"):
        parse_degradation(text)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much", ""])
def test_a_weight_must_be_a_positive_number(weight):
    with pytest.raises(ValueError, match=r"'clean'.*give a positive number"):
        parse_degradation(f"mild:1,clean:{weight}")


# ---------------------------------------------------------------- what is done


def params_without_noise(jpeg_last: bool) -> DegradationParams:
    return DegradationParams(
        stages=(
            StageParams(
                kernel={"kind": "aniso", "kernel_size": 9, "sigma_x": 1.5, "sigma_y": 0.5, "theta": 0.7},
                resize_scale=0.7,
                resize_mode="bicubic",
                noise="gaussian",
                noise_strength=0.0,
                gray_noise=False,
                jpeg_quality=70,
            ),
            StageParams(
                kernel={"kind": "plateau_iso", "kernel_size": 7, "sigma_x": 0.8, "beta": 1.5},
                resize_scale=1.15,
                resize_mode="bilinear",
                noise="poisson",
                noise_strength=0.0,
                gray_noise=True,
                jpeg_quality=60,
            ),
        ),
        final_kernel={"kind": "sinc", "kernel_size": 13, "cutoff": 1.5},
        final_resize_mode="area",
        jpeg_last=jpeg_last,
    )


def reference_without_noise(image: torch.Tensor, p: DegradationParams) -> np.ndarray:
    """The pipeline in plain steps on (h,w,3) arrays. Of the code under test it has the kernels, which test_kernels.py
    compares with their formulas."""

    def blur(x, parameters):
        kernel = kernel_from_parameters(**parameters).numpy()
        return np.stack([scipy.ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)], axis=-1)

    def resize(x, height, width, mode):
        tensor = torch.from_numpy(x).permute(2, 0, 1)[None]
        return F.interpolate(tensor, size=(height, width), mode=mode)[0].permute(1, 2, 0).numpy()

    def jpeg(x, quality):
        file = io.BytesIO()
        Image.fromarray(np.uint8(np.clip(x * 255, 0, 255).round())).save(file, "JPEG", quality=quality, subsampling=2)
        return np.asarray(Image.open(file)) / 255

    x = image[0].permute(1, 2, 0).double().numpy()
    h, w = x.shape[:2]
    one, two = p.stages
    x = blur(x, one.kernel)
    x = np.clip(resize(x, int(h * one.resize_scale), int(w * one.resize_scale), one.resize_mode), 0, 1)
    x = blur(jpeg(x, one.jpeg_quality), two.kernel)
    x = resize(x, int(h / 4 * two.resize_scale), int(w / 4 * two.resize_scale), two.resize_mode)
    if p.jpeg_last:
        x = blur(resize(x, h // 4, w // 4, p.final_resize_mode), p.final_kernel)
        x = jpeg(x, two.jpeg_quality)
    else:
        x = jpeg(x, two.jpeg_quality)
        x = blur(resize(x, h // 4, w // 4, p.final_resize_mode), p.final_kernel)
    return np.clip(x * 255, 0, 255).round()


@pytest.mark.parametrize("jpeg_last", [True, False])
def test_order_of_the_steps_against_a_reference(jpeg_last):
    image, params = photograph(136, 180), params_without_noise(jpeg_last)
    found = (degrade(image, [params], seeded(0))[0] * 255).permute(1, 2, 0).numpy()
    assert found.shape == (34, 45, 3)
    assert np.abs(found - reference_without_noise(image, params)).mean() < 0.05
    other = reference_without_noise(image, params_without_noise(not jpeg_last))
    assert np.abs(found - other).mean() > 0.5  # so the comparison above can tell


def test_every_picture_of_a_batch_gets_its_own_degradation():
    """Pictures that go through steps together come out as they do alone."""
    images = torch.cat([photograph(96, 64), photograph(96, 64).flip(3), photograph(96, 64).flip(2)])
    params = [params_without_noise(True), DegradationParams(stages=None), params_without_noise(False)]
    together = degrade(images, params, seeded(0))
    alone = [degrade(images[i : i + 1], params[i : i + 1], seeded(0)) for i in range(3)]
    # Less than a grey level: an FFT of several pictures may round the last digit otherwise.
    assert 255 * (together - torch.cat(alone)).abs().mean() < 0.05


def test_clean_is_the_antialiased_bicubic_of_pillow():
    image = photograph(120, 200)
    low = degrade(image, sample_params(PRESETS["clean"], 1, seeded(0)), seeded(0))
    for channel, found in zip(image[0], low[0], strict=True):
        wanted = np.asarray(Image.fromarray(channel.numpy() * 255).resize((50, 30), Image.Resampling.BICUBIC))
        assert np.abs((found * 255).numpy() - np.clip(wanted, 0, 255)).max() <= 0.501  # the rounding to 8 bit


@pytest.mark.parametrize("preset", ["strong", "mild", "clean"])
def test_result_is_8_bit_a_quarter_of_the_size_and_reproducible(preset):
    images = torch.cat([photograph(64, 100)] * 6)

    def run(seed: int) -> torch.Tensor:
        generator = seeded(seed)
        return degrade(images, sample_params(PRESETS[preset], 6, generator), generator)

    low = run(3)
    assert low.shape == (6, 3, 16, 25) and low.dtype == torch.float32
    assert low.min() >= 0 and low.max() <= 1
    assert torch.equal(low, (low * 255).round() / 255)
    assert torch.equal(low, run(3))
    if preset != "clean":
        assert not torch.equal(low, run(4))
        assert not torch.equal(low[0], low[1])


def test_the_smallest_picture_survives_every_extreme():
    widest = {"kind": "sinc", "kernel_size": 21, "cutoff": 1.0}
    for scale_1, scale_2 in ((0.3, 0.6), (1.5, 1.2)):
        stages = tuple(StageParams(widest, scale, "area", "poisson", 2.0, False, 60) for scale in (scale_1, scale_2))
        for jpeg_last in (True, False):
            params = [DegradationParams(stages, widest, "bicubic", jpeg_last)]
            assert degrade(photograph(44, 44), params, seeded(0)).shape == (1, 3, 11, 11)


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("gray", [True, False])
def test_gaussian_noise(gray):
    noise = gaussian_noise(torch.zeros(3, 200, 300), 12.0, gray, seeded(0))
    assert noise.shape == (1 if gray else 3, 200, 300)
    assert scipy.stats.kstest(noise.flatten().numpy()[:60000], scipy.stats.norm(0, 12 / 255).cdf).pvalue > 1e-4


def test_photon_counts_follow_poissons_law():
    """256 levels are present, so white is 256 photons: at level l the count has rate 256·l/255."""
    scale = 0.5
    image = (torch.arange(256.0) / 255).expand(3, 4000, 256)
    noise = poisson_noise(image, scale, False, seeded(0))
    for level in (0, 1, 10, 77, 254):
        counts = (noise[..., level].flatten() / scale + level / 255) * 256
        torch.testing.assert_close(counts, counts.round(), atol=2e-3, rtol=0)
        law = scipy.stats.poisson(256 * level / 255)
        counts = counts.round().numpy()
        assert counts.mean() == pytest.approx(law.mean(), abs=5 * law.std() / math.sqrt(len(counts)) + 1e-9)
        assert counts.var() == pytest.approx(law.var(), rel=0.07)
        shares = np.bincount(counts.astype(int), minlength=400) / len(counts)
        wanted = law.pmf(np.arange(len(shares)))
        assert (np.abs(shares - wanted) <= 5 * np.sqrt(wanted / len(counts)) + 3e-4).all()


def test_white_is_worth_as_many_photons_as_levels_rounded_up_to_a_power_of_two():
    image = torch.tensor([0.0, 100.0, 200.0, 255.0, 255.0])[:, None].expand(3, 5, 20000) / 255  # 4 levels
    assert poisson_noise(image, 1.0, False, seeded(0))[:, 3:].var() == pytest.approx(1 / 4, rel=0.05)
    image = torch.tensor([0.0, 50.0, 100.0, 200.0, 255.0])[:, None].expand(3, 5, 20000) / 255  # 5 levels -> 8
    assert poisson_noise(image, 1.0, False, seeded(0))[:, 4].var() == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("gray", [True, False])
def test_no_photons_no_noise(gray):
    assert not poisson_noise(torch.zeros(3, 30, 30), 2.0, gray, seeded(0)).any()


def test_gray_photon_noise_is_that_of_the_luma():
    ramp = torch.arange(256.0) / 255
    image = torch.stack([ramp, ramp, ramp]).unsqueeze(1).repeat(1, 3000, 1)
    image[:, :, 128] = torch.tensor([1.0, 0.0, 0.0])[:, None]  # pure red: luma 0.2989
    noise = poisson_noise(image, 1.0, True, seeded(0))
    assert noise.shape == (1, 3000, 256)
    assert noise[..., 128].var() == pytest.approx(0.2989 / 256, rel=0.12)
    assert noise.mean().abs() < 1e-3


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, 64, 64), r"shape \(3, 64, 64\): \(B, 3, H, W\) is wanted"),
        (torch.zeros(1, 1, 64, 64), r"shape \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "torch.uint8: float32"),
        (torch.zeros(1, 3, 64, 66), "66x64: both sides must be multiples of 4"),
        (torch.zeros(1, 3, 40, 64), "no side may be less than 44"),
        (torch.full((1, 3, 64, 64), -1.0), r"from -1 to -1: the range is \[0, 1\]"),
        (torch.full((1, 3, 64, 64), math.nan), "from nan to nan"),
        (torch.zeros(2, 3, 64, 64), "1 degradations for 2 pictures"),
    ],
)
def test_what_degrade_refuses(batch, message):
    params = sample_params(PRESETS["strong"], 1, seeded(0))
    with pytest.raises(ValueError, match=message):
        degrade(batch, params, seeded(0))


@pytest.mark.cuda
def test_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = photograph(128, 192)
    for jpeg_last in (True, False):
        params = [params_without_noise(jpeg_last)]
        found = degrade(image.cuda(), params, torch.Generator("cuda").manual_seed(0)).cpu()
        assert 255 * (found - degrade(image, params, seeded(0))).abs().mean() < 2
    params = sample_params(PRESETS["strong"], 8, torch.Generator("cuda").manual_seed(1))
    twice = [degrade(image.cuda().repeat(8, 1, 1, 1), params, torch.Generator("cuda").manual_seed(2)) for _ in "12"]
    assert torch.equal(*twice)
