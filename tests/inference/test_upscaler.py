"""The upscaler, by a tiny network with random weights: every mode, every setting, every wrong one."""

from __future__ import annotations

import math
import re
import weakref

import pytest
import torch
import torch.nn.functional as F
from tiny_upscaler import CONFIG, SETTINGS, bicubic, tensor_picture

from sat_sr.diffusion.edm import denoise
from sat_sr.diffusion.resize import resize
from sat_sr.inference import budget as budget_module
from sat_sr.inference.backprojection import Backprojection
from sat_sr.inference.budget import PROGRAM_BYTES
from sat_sr.inference.canvas import Canvas
from sat_sr.inference.devices import resolve_device
from sat_sr.inference.job import make_job
from sat_sr.inference.noise import position_noise
from sat_sr.inference.planner import make_plan
from sat_sr.inference.upscaler import Upscaler
from sat_sr.inference.workload import Workload
from sat_sr.model.counts import parameter_count


@pytest.mark.parametrize("init_noise", [True, False])
def test_one_step_is_the_network_on_the_whole_canvas(tiny_model, upscaler, init_noise):
    image = tensor_picture(8, 12)
    output = upscaler(image, 4, seed=3, num_steps=1, init_noise=init_noise)
    up = bicubic(image, (32, 48))
    x = 2.0 * position_noise(3, (32, 48)) + (up if init_noise else 0)
    with torch.no_grad():
        expected = denoise(tiny_model, x, torch.tensor([2.0]), image, up).clamp(-1, 1)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    assert (output - up).abs().mean() > 0.05, "a network that does nothing could not fail here"
    assert (output.abs() < 0.99).float().mean() > 0.5


@pytest.fixture(scope="module")
def whole(upscaler):
    """43 x 69 pixels: 3 x 5 blocks, the last row and column of blocks only partly wanted."""
    return upscaler(tensor_picture(13, 21), 3.3, seed=5, mode="full", sampler="heun")


@pytest.mark.parametrize(("mode", "block_batch"), [("ar", 1), ("ar2", 1), ("ar2", 2), ("ar2", 3), ("auto", 1)])
def test_every_mode_gives_the_same_picture(upscaler, whole, mode, block_batch):
    picture = upscaler(tensor_picture(13, 21), 3.3, seed=5, mode=mode, block_batch=block_batch, sampler="heun")
    assert picture.shape == whole.shape == (1, 3, 43, 69)
    torch.testing.assert_close(picture, whole, rtol=0, atol=1e-4)


# On a CPU pictures and program take their part of the memory: four canvases of 48 x 80 pixels, and the LR condition.
PICTURES = int((4 + 1 / 16) * 3 * 48 * 80 * 4)
BESIDES = PROGRAM_BYTES + PICTURES


@pytest.fixture
def least():
    """Bytes of the smallest plan for 48 x 80 pixels, pictures and the program included."""
    plans = (make_plan(Workload(CONFIG, (48, 80), kernel="sdpa"), mode=mode) for mode in ("ar2", "full"))
    return BESIDES + min(plan.device_bytes for plan in plans)


def test_little_memory_gives_the_same_picture(upscaler, whole, least):
    job = upscaler.prepare((13, 21), scale=3.3, memory=least)
    assert job.plan.device_bytes + BESIDES <= least
    assert job.plan.device_bytes < upscaler.prepare((13, 21), scale=3.3).plan.device_bytes
    picture = upscaler(tensor_picture(13, 21), 3.3, seed=5, memory=least, sampler="heun")
    torch.testing.assert_close(picture, whole, rtol=0, atol=1e-4)
    with pytest.raises(MemoryError, match=r"canvas 80x48 in mode auto needs about .* raise --memory"):
        upscaler(tensor_picture(13, 21), 3.3, memory=BESIDES + (least - BESIDES) // 4)


def test_most_of_what_is_free_is_the_default_memory(upscaler, whole, least, monkeypatch):
    weights = parameter_count(CONFIG) * 4

    def free(wanted):
        count = math.ceil((wanted - PROGRAM_BYTES) / 0.9 - weights)
        monkeypatch.setattr(budget_module, "free_bytes", lambda device: count)
        monkeypatch.setattr(budget_module, "resident_bytes", lambda: PROGRAM_BYTES + weights)

    free(least)
    assert upscaler.prepare((13, 21), scale=3.3, settings=SETTINGS).plan.device_bytes <= least - BESIDES
    picture = upscaler(tensor_picture(13, 21), 3.3, seed=5, sampler="heun")
    torch.testing.assert_close(picture, whole, rtol=0, atol=1e-4)
    free(BESIDES + (least - BESIDES) // 2)
    with pytest.raises(MemoryError, match=r"canvas 80x48 in mode auto needs about .* raise --memory"):
        upscaler(tensor_picture(13, 21), 3.3)


def test_seeds(upscaler):
    image = tensor_picture()
    first = upscaler(image, 2, seed=1)
    assert torch.equal(first, upscaler(image, 2, seed=1))
    assert (first - upscaler(image, 2, seed=2)).abs().mean() > 0.01
    assert torch.equal(upscaler(image, 2), upscaler(image, 2, seed=0))


def test_a_batch_is_its_pictures(upscaler):
    batch = tensor_picture(7, 9, batch=3)
    together = upscaler(batch, 2.5, seed=4)
    assert together.shape == (3, 3, round(17.5), round(22.5))
    for picture, output in zip(batch, together, strict=True):
        torch.testing.assert_close(upscaler(picture, 2.5, seed=4), output, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "scale"), [((1, 1), 4), ((1, 30), 2), ((5, 3), 7.7), ((33, 20), 0.3), ((16, 16), 1), ((7, 11), math.pi)]
)
def test_output_is_exactly_scale_times_the_input(upscaler, source, scale):
    output = upscaler(tensor_picture(*source), scale, num_steps=1)
    assert output.shape[-2:] == tuple(max(1, round(side * scale)) for side in source)
    assert bool(output.isfinite().all()) and output.abs().max() <= 1


def test_size_is_width_and_height(upscaler):
    assert upscaler(tensor_picture(), size=(20, 33), num_steps=1).shape == (1, 3, 33, 20)
    assert upscaler(tensor_picture(), num_steps=1).shape == (1, 3, 28, 36), "by default four times as large"
    assert torch.equal(upscaler(tensor_picture(), size=(18, 14)), upscaler(tensor_picture(), 2))


def test_strength_says_how_far_it_may_go_from_the_input(upscaler):
    image = tensor_picture()
    plain = bicubic(image, (28, 36))
    distances = [(upscaler(image, strength=s) - plain).abs().mean().item() for s in (0, 0.5, 0.8, 1)]
    assert distances == sorted(distances)
    assert distances[0] < 0.005 and distances[-1] > 0.1


def test_color_fix_is_applied(upscaler):
    image = tensor_picture() / 4
    fixed = upscaler(image, color_fix="mean", strength=0.6)
    torch.testing.assert_close(fixed.mean((-2, -1)), image.mean((-2, -1)), rtol=0, atol=0.01)
    assert (upscaler(image, strength=0.6).mean((-2, -1)) - image.mean((-2, -1))).abs().max() > 0.03


def test_backprojection_acts_in_the_calls(upscaler):
    """Not just on the result: the network answers to what has been taken over before."""
    image = tensor_picture() / 4
    plain, inside = (upscaler(image, color_fix=fix, sigma_min=1.0) for fix in ("none", "backprojection"))
    canvas = Canvas.of((7, 9), CONFIG.image_block_size, scale=4)
    uncropped = F.pad(plain, (0, canvas.size[1] - 36, 0, canvas.size[0] - 28))
    afterwards = canvas.crop(Backprojection(lambda x, sigma: uncropped, image, canvas)(uncropped, 1.0))
    wrong = [(resize(picture, (7, 9)) - image).abs().mean() for picture in (plain, inside)]
    assert wrong[1] < 0.2 * wrong[0]
    assert (inside - afterwards).abs().mean() > 0.01


@pytest.mark.parametrize("choice", [{"mode": "full"}, {"mode": "ar2", "block_batch": 2}, {"mode": "ar"}])
def test_a_shifted_grid_gives_one_picture_in_all_modes(upscaler, choice):
    image = tensor_picture()
    shifted = upscaler(image, grid_shift=7, mode="auto")
    torch.testing.assert_close(upscaler(image, grid_shift=7, **choice), shifted, rtol=0, atol=1e-5)
    assert (shifted - upscaler(image)).abs().max() > 1e-2


def test_more_detail_is_farther_from_the_interpolated_input(upscaler):
    image = tensor_picture() / 4
    interpolated = resize(image, (28, 36))
    distances = [float((upscaler(image, detail=w) - interpolated).square().mean()) for w in (0.25, 1, 2)]
    assert distances[0] < distances[1] < distances[2]


def test_a_shift_of_a_block_is_refused(upscaler):
    with pytest.raises(ValueError, match="grid_shift=16: must be less than the model's blocks of 16 pixels"):
        upscaler(tensor_picture(), grid_shift=16)


def test_bfloat16_is_close(make_model, upscaler):
    other = Upscaler(make_model(CONFIG).bfloat16(), defaults=SETTINGS)
    image = tensor_picture()
    difference = (other(image) - upscaler(image)).abs()
    assert 0 < difference.mean() < 0.02


def test_nan_from_the_network_names_block_call_and_step(make_model):
    broken = make_model(CONFIG)
    broken.mixins["final_layer"].linear.bias[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"NaN .* in blocks .* at network call 1, sigma 2, step 1 of 2"):
        Upscaler(broken, defaults=SETTINGS)(tensor_picture())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"scale": 0}, "scale 0: must be a number above 0.25"),
        ({"scale": math.nan}, "scale nan: must be"),
        ({"scale": 2, "size": (8, 8)}, "either a scale or a target size, not both"),
        ({"size": (1, 30)}, "target size 1x30 for a picture of 9x7"),
        ({"size": 64}, r"size=64: must be \(width, height\)"),
        ({"size": (64,)}, r"size=\(64,\): must be \(width, height\)"),
        ({"size": (64.5, 64)}, r"target size 64\.5x64: must be whole numbers"),
        ({"seed": -1}, "seed -1: must be an integer between 0 and"),
        ({"seed": 0.5}, r"seed 0\.5"),
        ({"mode": "fast"}, "unknown inference type 'fast': choose one of auto, full, ar2, ar"),
        ({"mode": "ar2", "block_batch": 0}, "block_batch"),
        ({"kernel": "fast"}, "unknown attention kernel 'fast'"),
        ({"steps": 3}, "unknown sampling setting steps"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"strength": 2}, "strength=2"),
    ],
    ids=str,
)
def test_wrong_choices(upscaler, choice, message):
    with pytest.raises(ValueError, match=message) as caught:
        upscaler(tensor_picture(), **choice)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", "mps:-1"])
def test_devices_that_are_not_there(name):
    with pytest.raises(ValueError, match=re.escape(f"device {name!r}")):
        resolve_device(name)


# --- what is told meanwhile


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
def test_callbacks_show_each_step(upscaler, sampler):
    seen = []
    output = upscaler(
        tensor_picture(batch=2), 2.5, sampler=sampler, num_steps=3, callback=lambda *what: seen.append(what)
    )
    assert [(step, steps) for step, steps, _ in seen] == [(0, 3), (1, 3), (2, 3)]
    for _, _, preview in seen:
        assert preview.shape == output.shape and preview.abs().max() <= 1
    assert torch.equal(seen[-1][2], output)
    distances = [(preview - output).abs().mean().item() for *_, preview in seen]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.01


@pytest.mark.parametrize("mode", ["full", "ar2"])
def test_progress_rises_to_one(upscaler, mode):
    settings, shares = SETTINGS.replace(sampler="heun"), []
    job = upscaler.prepare((7, 9), scale=4, mode=mode, block_batch=1, settings=settings)
    upscaler.run(tensor_picture(), job, on_progress=shares.append)
    assert len(shares) == job.settings.network_calls * (2 if mode == "full" else 6)  # layers, or 2 x 3 blocks
    assert shares == sorted(set(shares)) and 0 < shares[0] <= 1 / job.settings.network_calls
    assert shares[-1] == 1.0


def test_the_job_says_what_it_will_cost():
    job = make_job(CONFIG, (13, 21), scale=3.3, settings=SETTINGS.replace(sampler="heun"), batch=2)
    assert job.canvas.target == (43, 69) and job.canvas.size == (48, 80) and job.plan.schedule.grid == (3, 5)
    one = make_job(CONFIG, (4, 4), settings=SETTINGS.replace(num_steps=1), scale=4)
    assert one.canvas.size == (16, 16)
    assert job.flops == 3 * 2 * 15 * one.flops  # network calls, pictures, blocks


# --- weights


def test_the_weights_are_given_back(make_model):
    with Upscaler(make_model(CONFIG), defaults=SETTINGS) as upscaler:
        alive = weakref.ref(upscaler.model)
        job = upscaler.prepare((4, 4), scale=4)
        upscaler.run(tensor_picture(4, 4), job, on_progress=lambda share: None)
        assert alive() is not None
    assert alive() is None
    upscaler.close()  # again
    with pytest.raises(ValueError, match="this upscaler is closed"):
        upscaler(tensor_picture(4, 4))


def test_what_a_run_keeps_is_gone_after_it(tiny_model, upscaler, monkeypatch):
    """Keys, values and hidden state of a picture must not wait for the garbage collector."""
    from sat_sr.inference import denoiser

    alive, make = [], denoiser.Denoiser.__init__
    monkeypatch.setattr(
        denoiser.Denoiser, "__init__", lambda self, *a, **k: (alive.append(weakref.ref(self)), make(self, *a, **k))[1]
    )
    job = upscaler.prepare((4, 4), scale=4)
    upscaler.run(tensor_picture(4, 4), job, on_progress=lambda share: None, callback=lambda *what: None)
    assert len(alive) == 1 and alive[0]() is None
