"""scripts/evaluate.py from its arguments to its files, with a stand-in for the network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from sat_sr.evaluation import metrics, source
from sat_sr.sampling import SamplingSettings

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NearestUpscaler:
    """Repeats every pixel, and adds sigma_max levels; its "checkpoint" is a text file with the side of a block."""

    calls: ClassVar[list[dict]] = []
    fails_at: int | None = None

    def __init__(self, block: int) -> None:
        self.model = types.SimpleNamespace(config=types.SimpleNamespace(patch_size=4, image_block_size=block))
        self.defaults = SamplingSettings(sigma_max=1.0)
        self.fast = self.defaults.replace(sampler="euler", num_steps=1)

    @classmethod
    def from_checkpoint(cls, path, device, dtype):
        return cls(int(Path(path).read_text()))

    def close(self):
        self.model = None

    def __call__(self, image, *, size, seed, sampler, num_steps, sigma_max, **settings):
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append({"size": size, "sampler": sampler, "num_steps": num_steps, "sigma_max": sigma_max})
        enlarged = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
        return np.clip(enlarged.astype(int) + int(sigma_max), 0, 255).astype(np.uint8)


@pytest.fixture
def upscaler(monkeypatch):
    module = types.ModuleType("sat_sr.inference.upscaler")
    module.Upscaler = NearestUpscaler
    monkeypatch.setitem(sys.modules, "sat_sr.inference.upscaler", module)
    monkeypatch.setattr(NearestUpscaler, "calls", [])
    monkeypatch.setattr(NearestUpscaler, "fails_at", None)
    return NearestUpscaler


@pytest.fixture
def images(tmp_path):
    """Two usable pictures, one too small, one broken, and a text file."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a": (96, 64), "b": (70, 66), "small": (40, 80)}.items():
        smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height)))
        Image.fromarray(smooth).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (folder / "notes.txt").write_text("hello")
    return folder


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_text("32")
    return path


def run(script, images, out, *arguments):
    return script.main(["--images", str(images), "--out", str(out), "--device", "cpu", *map(str, arguments)])


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_figures_are_those_of_the_written_pictures(script, upscaler, images, network, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(script, images, out, "--network", network, "--metrics", "psnr_rgb,block_grid") == 0
    printed = capsys.readouterr().out
    assert "skipped small: 40x80 pixels is too small: both sides must have 64 or more" in printed
    assert "skipped broken: " in printed and "notes.txt" in printed and "cut 1 pictures" in printed

    content = report(out)
    assert content["pictures"] == ["a", "b"] and set(content["skipped"]) == {"small", "broken"}
    runs = {r["title"]: r for r in content["runs"]}
    assert set(runs) == {"target", "bicubic", "Lanczos", "small"}
    psnrs = []
    for name, size in (("a", (96, 64)), ("b", (68, 64))):
        (path,) = (out / "pictures").glob(f"small-*/{name}-*.png")
        output = np.asarray(Image.open(path))
        assert output.shape[1::-1] == size
        target = np.asarray(Image.open(images / f"{name}.png"))[: size[1], : size[0]]
        psnrs.append(peak_signal_noise_ratio(target, output, data_range=255))
        result = runs["small"]["pictures"][name]
        assert result["figures"]["psnr_rgb"] == pytest.approx(psnrs[-1])
        assert result["calls"] == 39 and result["seconds"] >= 0 and result["peak_mib"] > 0
    assert runs["small"]["mean"]["psnr_rgb"] == pytest.approx(np.mean(psnrs))
    assert set(runs["target"]["mean"]) == {"block_grid_32"}
    for name in ("report.md", "sheet.png"):
        assert (out / name).stat().st_size
    assert len(list((out / "worst").glob("small-*-block_grid_32.png"))) == 1


def test_grids_of_all_calls_and_of_the_target_at_their_lines(
    script, upscaler, images, network, tmp_path, monkeypatch, capsys
):
    """Two calls, the second with the picture 22 px farther in: the stand-in leaves that one's lines, at 10, 42, …"""
    marked = np.cumsum(np.where(np.arange(96) % 32 == 10, 6, 1))[:, None].repeat(3, 1).astype(np.uint8)
    monkeypatch.setattr(upscaler, "__call__", lambda self, image, size, **_: marked[None, : size[0]].repeat(size[1], 0))
    options = ("--network", network, "--metrics", "block_grid", "--num-steps", 2, "--sampler", "euler", "--no-sheets")
    found = {}
    for shift in (0, 22):
        arguments = ("--grid-shift", shift, "--bar", "block_grid=3")
        assert run(script, images, tmp_path / "out", *options, *arguments) == 0
        found[shift] = {r["title"].partition(",")[0]: r for r in report(tmp_path / "out")["runs"]}
        kept = 2 if shift == 0 else 0
        assert re.search(rf"^\| small, .*\| *{kept} of 2; most \d", capsys.readouterr().out, re.MULTILINE)
    assert found[0]["small"]["mean"]["block_grid_32"] < 1.2 and found[22]["small"]["mean"]["block_grid_32"] > 5
    for name, width in (("a", 96), ("b", 68)):
        target = metrics.luma(np.asarray(Image.open(images / f"{name}.png"))[:64, :width])
        at_rest, moved = (found[shift]["small"]["pictures"][name]["target"]["block_grid_32"] for shift in (0, 22))
        assert at_rest == found[22]["target"]["pictures"][name]["figures"]["block_grid_32"]
        assert moved == pytest.approx(max(metrics.grid_ratio(target, 32), metrics.grid_ratio(target, 32, [22])))


def test_settings_of_one_network_share_one_table(script, upscaler, images, network, tmp_path, capsys):
    grid = tmp_path / "grid.json"
    grid.write_text('{"sampler": ["heun", "dpmpp_2m"], "num_steps": [2, 5]}')
    more = (
        "--grid",
        grid,
        "--setting",
        "sampler=euler,sigma_max=3",
        "--setting",
        "preset=fast,sigma_max=2",
        "--num-steps",
        7,
        "--no-sheets",
    )
    assert run(script, images, tmp_path / "out", "--network", network, "--metrics", "psnr_y", *more) == 0
    runs = report(tmp_path / "out")["runs"][3:]
    assert [(r["setting"].get("sampler"), r["setting"]["num_steps"], r["mean"]["calls"]) for r in runs] == [
        ("euler", 7, 7),
        (None, 7, 7),
        ("heun", 2, 3),
        ("heun", 5, 9),
        ("dpmpp_2m", 2, 2),
        ("dpmpp_2m", 5, 5),
    ]
    assert (
        runs[0]["mean"]["psnr_y"] < runs[1]["mean"]["psnr_y"] < runs[2]["mean"]["psnr_y"] == runs[3]["mean"]["psnr_y"]
    )
    table = capsys.readouterr().out
    assert all(word in table for word in ("| num_steps |", "sigma_max", "PSNR(Y) dB", "bicubic", "Lanczos"))
    assert not (tmp_path / "out" / "sheet.png").exists()
    assert run(script, images, tmp_path / "out", "--network", network, "--metrics", "psnr_y", *more, "--brief") == 0
    lines = [line.replace(" ", "") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    mean = runs[-1]["mean"]["psnr_y"]
    assert lines[0] == "||calls|PSNR(Y)dB|" and len(lines) == 2 + 2 + len(runs)
    assert lines[-1].startswith(f"|small,num_steps=5,sampler=dpmpp_2m|5|{mean:.2f}(")


def test_names_that_are_no_utf_8_are_evaluated_and_reported(script, upscaler, images, network, tmp_path, capsys):
    try:
        shutil.copy(images / "a.png", images / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    (images / os.fsdecode(b"bad\xe9.png")).write_bytes(b"broken")
    options = ("--network", network, "--metrics", "psnr_y", "--degradation", "mild")
    assert run(script, images, tmp_path / "out", *options) == 0
    said = capsys.readouterr().out
    assert r"skipped bad\udce9" in said and r"caf\udce9" in said
    assert r"| caf\udce9 " in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report(tmp_path / "out")["pictures"] == ["a", "b", "caf\udce9"]


def test_lines_that_are_no_records_are_told_of(script, upscaler, images, network, tmp_path, capsys):
    options = ("--network", network, "--metrics", "psnr_y", "--no-sheets")
    run(script, images, tmp_path / "out", *options)
    assert "not a record" not in capsys.readouterr().out
    records = tmp_path / "out" / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-9])  # killed while writing
    number = len(records.read_text().splitlines())
    assert run(script, images, tmp_path / "out", *options) == 0
    assert f"records.jsonl: line {number}: not a record" in capsys.readouterr().out


def test_distance_to_the_converged_pictures(script, upscaler, images, network, tmp_path, capsys):
    out = tmp_path / "out"
    more = ("--converged", "num_steps=50", "--setting", "num_steps=2,sigma_max=3", "--no-sheets")
    assert run(script, images, out, "--network", network, "--metrics", "psnr_y", *more) == 0
    assert "to converged dB" in capsys.readouterr().out
    converged, other = report(out)["runs"][3:]
    assert converged["setting"] == {"num_steps": 50} and "to_converged" not in converged["mean"]
    found = []
    for name in ("a", "b"):
        pictures = [next((out / "pictures").glob(f"{run}-*/{name}-*.png")) for run in ("*=50", "*=3.0")]
        limit, picture = (np.asarray(Image.open(path.as_posix())) for path in pictures)
        found.append(peak_signal_noise_ratio(limit, picture, data_range=255))
    assert other["mean"]["to_converged"] == pytest.approx(np.mean(found))


def test_an_interrupted_evaluation_goes_on(script, upscaler, images, network, tmp_path, capsys):
    settings = ("--setting", "num_steps=2", "--setting", "num_steps=3", "--no-sheets")
    options = ("--network", network, "--metrics", "psnr_y,patch_grid", *settings)
    arguments = (script, images, tmp_path / "out", *options)
    upscaler.fails_at = 3
    assert run(*arguments) == 130
    assert "continues from there" in capsys.readouterr().err
    upscaler.fails_at = None
    assert run(*arguments) == 0
    assert len(upscaler.calls) == 4  # 2 pictures × 2 settings, none twice
    resumed = report(tmp_path / "out")["runs"]

    upscaler.calls.clear()
    assert run(script, images, tmp_path / "fresh", *options) == 0
    for ours, fresh in zip(resumed, report(tmp_path / "fresh")["runs"], strict=True):
        assert {k: v["figures"] for k, v in ours["pictures"].items()} == {
            k: v["figures"] for k, v in fresh["pictures"].items()
        }

    # Finished: nothing is computed again, more figures come from the written pictures, other settings start anew.
    upscaler.calls.clear()
    assert run(*arguments) == 0 and not upscaler.calls
    assert run(*arguments, "--metrics", "ssim_y") == 0 and not upscaler.calls
    assert all("ssim_y" in r["mean"] for r in report(tmp_path / "out")["runs"][1:])
    assert run(*arguments, "--seed", "1") == 0 and len(upscaler.calls) == 4
    upscaler.calls.clear()
    network.write_text("64")  # the same name, another network
    assert run(*arguments) == 0 and len(upscaler.calls) == 4


def test_results_of_other_code_are_not_taken_over(script, upscaler, images, network, tmp_path, monkeypatch):
    arguments = (script, images, tmp_path / "out", "--network", network, "--metrics", "psnr_y", "--no-sheets")
    assert run(*arguments) == 0 and len(upscaler.calls) == 2
    package = tmp_path / "package"
    shutil.copytree(source.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "PACKAGE", package)
    assert run(*arguments) == 0 and len(upscaler.calls) == 2, "the same code in another place"

    def change(file: str) -> None:
        (package / file).write_text((package / file).read_text() + "# changed\n")

    # A new metric measures the pictures that are there; training has no part in either.
    measured = []
    monkeypatch.setattr(metrics, "psnr", lambda *pictures: measured.append(pictures) or 1.0)
    change("evaluation/metrics.py")
    assert run(*arguments) == 0 and len(upscaler.calls) == 2
    assert len(measured) == 2 * 3 and report(tmp_path / "out")["runs"][3]["mean"]["psnr_y"] == 1.0
    change("training/trainer.py")
    assert run(*arguments) == 0 and len(upscaler.calls) == 2 and len(measured) == 2 * 3
    for count, file in enumerate(("inference/denoiser.py", "model/inf_dit.py", "diffusion/edm.py", "config.py"), 2):
        change(file)
        assert run(*arguments) == 0 and len(upscaler.calls) == 2 * count, file


def test_other_versions_of_packages_are_other_code(monkeypatch):
    def digest() -> str:
        return source.digest_of_source(source.SAMPLING, source.SAMPLING_PACKAGES)

    first = digest()
    assert first == digest()
    monkeypatch.setattr(source.importlib.metadata, "version", lambda package: "0.0")
    assert digest() != first


def test_other_data_in_the_same_folder_do_not_mix(script, upscaler, images, network, tmp_path):
    out, fixed = tmp_path / "out", ("--network", network, "--metrics", "psnr_y", "--no-sheets")
    assert run(script, images, out, *fixed) == 0
    first = report(out)
    assert run(script, images, out, *fixed, "--scale", 2) == 0
    assert report(out)["runs"][1]["mean"] != first["runs"][1]["mean"]
    assert upscaler.calls[-1]["size"] == (70, 66)  # 2 × (35, 33): nothing is cut at scale 2
    upscaler.calls.clear()
    assert run(script, images, out, *fixed, "--metrics", "psnr_y,ssim_y") == 0 and not upscaler.calls
    assert report(out)["runs"][3]["mean"]["psnr_y"] == first["runs"][3]["mean"]["psnr_y"]


def test_networks_with_other_blocks_compare(script, upscaler, images, network, tmp_path):
    other = tmp_path / "large.safetensors"
    other.write_text("16")
    out = tmp_path / "out"
    both = ("--network", network, "--network", other)
    assert run(script, images, out, *both, "--metrics", "block_grid", "--no-sheets") == 0
    for r in report(out)["runs"]:
        assert {"block_grid_16", "block_grid_32"} <= set(r["mean"])
    by_title = {r["title"]: r["mean"]["block_grid_16"] for r in report(out)["runs"]}
    assert by_title["small"] == by_title["large"]  # the same pixels: found by the last pass for the first of them


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "psnr_y,fid"], "unknown metric fid: the known metrics are psnr_y, ssim_y"),
        (["--setting", "steps=3"], "unknown key 'steps'; the known keys are preset, seed, sampler, num_steps"),
        (["--setting", "num_steps=few"], "num_steps='few' is not of type int"),
        (["--metrics", "psnr_y", "--bar", "psnr_y=30"], "bar 'psnr_y=30': can be set for none of the metrics computed"),
        (["--scale", "1"], "scale 1: must be more than 1"),
        (["--degradation", "mild", "--scale", "2"], "degradation mild at scale 2"),
        (["--network", "/nowhere/x.safetensors"], "/nowhere/x.safetensors: there is no such checkpoint"),
    ],
)
def test_wrong_arguments_are_answered_in_a_sentence(script, images, tmp_path, capsys, arguments, message):
    assert run(script, images, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_usable_pictures_names_them(script, images, tmp_path, capsys):
    for name in ("a", "b"):
        (images / f"{name}.png").unlink()
    assert run(script, images, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "no usable picture among 2 picture files" in error and "small: 40x80" in error and "broken: " in error


def test_an_unknown_sampler_is_told_which_there_are(script, capsys):
    with pytest.raises(SystemExit):
        script.build_parser().parse_args(["--images", "x", "--sampler", "ddim"])
    assert "unipc" in capsys.readouterr().err


def test_help_does_not_import_torch():
    code = (
        "import runpy, sys; sys.argv = ['evaluate.py', '--help']\n"
        "try: runpy.run_path(sys.argv_path, run_name='__main__')\n"
        "except SystemExit: print('heavy', sorted({'torch', 'sat', 'skimage'} & set(sys.modules)))"
    ).replace("sys.argv_path", repr(str(SCRIPT)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "--degradation" in done.stdout and done.stdout.rstrip().endswith("heavy []")
