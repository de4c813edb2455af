"""The recorded numbers of the public release decide: one test a file, chosen by the file's `kind`.

Tolerances: denoise and clip 5e-6, kernels 1e-6, sample 2e-5 of the largest value, loss 1e-4 relative, gradient norms
1e-4 relative plus 1e-8.
"""

from __future__ import annotations

import functools
import json
from dataclasses import fields

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sat_sr.config import InfDiTConfig
from sat_sr.inference.workload import Workload


class Case:
    """One file: `case` is its JSON description, attributes are its tensors, `weights` its state dict."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            self.case = json.loads(file.metadata()["case"])
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.weights = {
            name.removeprefix("weights."): t for name, t in self.tensors.items() if name.startswith("weights.")
        }

    def __getattr__(self, name):
        return self.tensors.get(name)

    def model(self):
        from sat_sr.model.inf_dit import InfDiT

        known = {field.name for field in fields(InfDiTConfig)}
        fixed = {"in_channels": 6, "out_channels": 3, "sr_scale": 4}
        config = {k: v for k, v in self.case["config"].items() if k in known or fixed.get(k) != v}
        model = InfDiT(InfDiTConfig.from_dict(config))
        model.load_state_dict({name: t for name, t in self.weights.items() if ".rope.freqs_" not in name})
        return model


def pytest_generate_tests(metafunc):
    if "case_path" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-dir")
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:  # a mistyped folder must not pass
            raise pytest.UsageError(f"--golden-dir {folder}: no *.safetensors in it, name a folder of recorded cases")
        metafunc.parametrize("case_path", paths, ids=[path.stem for path in paths])


def test_recorded_case(case_path):
    case = Case(case_path)
    check = CHECKS.get(case.case["kind"])
    if check is None:
        pytest.skip(f"kind {case.case['kind']!r} is not known to this version")
    check(case)


def test_an_unknown_kind_is_skipped_by_name(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "new.safetensors", {"case": json.dumps({"kind": "video"})})
    with pytest.raises(pytest.skip.Exception, match="kind 'video' is not known to this version"):
        test_recorded_case(tmp_path / "new.safetensors")


MODES = [("full", 1), ("ar", 1), ("ar2", 1), ("ar2", 2), ("ar2", 3)]


def plans(config, canvas, batch=1):
    """(name, plan) of every way to compute the same function; `auto` in the least memory that it can do with."""
    from sat_sr.inference.planner import make_plan
    from sat_sr.model.attention_kernels import choose_kernel

    for mode, block_batch in MODES:
        yield f"{mode}{block_batch}", make_plan(Workload(config, canvas, batch), mode=mode, block_batch=block_batch)
    kernel, _ = choose_kernel("auto", torch.device("cpu"), torch.float32, config.head_dim, config.tokens_per_block)
    auto = functools.partial(make_plan, config, canvas, mode="auto", batch=batch, kernel=kernel)
    least = min(plan.device_bytes for plan in (auto(), *auto().fallbacks))
    with pytest.raises(MemoryError):
        auto(budget=least - 1)
    yield "auto", auto(budget=least)


def check_lr_upsampled(case):
    """The condition of the case is our resize of its LR picture, bit for bit."""
    from sat_sr.diffusion.resize import lr_conditions

    assert torch.equal(lr_conditions(case.lr, tuple(case.lr_upsampled.shape[-2:]))[1], case.lr_upsampled)


def check_denoise(case):
    from sat_sr.diffusion.edm import denoise
    from sat_sr.inference.denoiser import Denoiser

    check_lr_upsampled(case)
    model, offset = case.model(), tuple(case.case.get("position_offset", (0, 0)))
    with torch.no_grad():
        whole = denoise(model, case.noisy, case.sigma, case.lr, case.lr_upsampled, case.clip_embedding, offset)
    assert (whole - case.denoised).abs().max() <= 5e-6
    model.rotary = functools.partial(model.rotary, offset=offset)  # pictures start at (0, 0): only a case may not
    for name, plan in plans(model.config, tuple(case.noisy.shape[-2:])):
        # The recorded batches have a noise level each; a sampler has one for all, so pictures go one by one here.
        for b, sigma in enumerate(case.sigma.tolist()):
            clip = None if case.clip_embedding is None else case.clip_embedding[b : b + 1]
            denoiser = Denoiser(model, plan, case.lr[b : b + 1], case.lr_upsampled[b : b + 1], clip)
            difference = (denoiser(case.noisy[b : b + 1], sigma) - case.denoised[b : b + 1]).abs().max()
            assert difference <= 5e-6, f"mode {name}, sample {b}"


def check_sample(case):
    from sat_sr.diffusion.edm import karras_sigmas
    from sat_sr.diffusion.samplers import heun
    from sat_sr.inference.denoiser import Denoiser

    check_lr_upsampled(case)
    model = case.model()
    sigmas = karras_sigmas(case.case["num_steps"])
    torch.testing.assert_close(sigmas, case.sigmas, rtol=1e-5, atol=0)
    for name, plan in plans(model.config, tuple(case.noise.shape[-2:]), len(case.noise)):
        denoiser = Denoiser(model, plan, case.lr, case.lr_upsampled, case.clip_embedding)
        sample = heun(denoiser, case.lr_upsampled + case.sigmas[0] * case.noise, case.sigmas)
        assert (sample - case.sample).abs().max() <= 2e-5 * case.sample.abs().max(), f"mode {name}"
        assert denoiser.calls == 2 * case.case["num_steps"] - 1


def check_loss(case):
    from sat_sr.diffusion.edm import edm_loss

    check_lr_upsampled(case)
    model = case.model()
    arguments = (case.target, case.noise, case.sigma, case.lr, case.lr_upsampled, case.clip_embedding)
    loss = edm_loss(model, *arguments, position_offset=tuple(case.case["position_offset"]))
    torch.testing.assert_close(loss, case.loss_per_sample, rtol=1e-4, atol=0)
    loss.mean().backward()
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(case.case["grad_norm"])
    for name, norm in case.case["grad_norm"].items():
        if norm is None:
            assert parameters[name].grad is None, name
        else:
            assert abs(parameters[name].grad.norm().item() - norm) <= 1e-4 * norm + 1e-8, name


def check_clip(case):
    from sat_sr.model.clip import CLIPImageEncoder

    weights = {
        name.removeprefix("image_encoder.model."): t
        for name, t in case.weights.items()
        if name.startswith("image_encoder.model.")
    }
    encoder = CLIPImageEncoder.from_openclip(weights, head_width=case.case["head_width"])
    for i in range(len(case.case["sizes"])):
        image = case.tensors[f"image_{i}"]
        with torch.no_grad():
            assert (encoder.preprocess(image) - case.tensors[f"preprocessed_{i}"]).abs().max() <= 5e-6
            assert (encoder(image) - case.tensors[f"embedding_{i}"]).abs().max() <= 5e-6


def check_kernels(case):
    from sat_sr.data.kernels import kernel_from_parameters

    for i, parameters in enumerate(case.case["kernels"]):
        recorded = case.tensors[f"kernel_{i:02d}"]
        difference = (kernel_from_parameters(**parameters) - recorded).abs().max()
        assert difference <= 1e-6, f"kernel {i}: {parameters}"


CHECKS = {
    "denoise": check_denoise,
    "sample": check_sample,
    "loss": check_loss,
    "clip": check_clip,
    "kernels": check_kernels,
}
