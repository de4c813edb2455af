"""convert_checkpoint.py and init_checkpoint.py, called as commands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sat_sr.checkpoint import load
from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import parameter_shapes

SCRIPTS = Path(__file__).parents[2] / "scripts"
CONFIG = InfDiTConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, image_block_size=32, image_size=64, vector_dim=24
)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script's main: exit code, what it printed, what it complained about."""

    def run(script: str, *args: object) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr("sys.argv", [f"{script}.py", *map(str, args)])
        try:
            code = module.main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def official(tmp_path):
    """A bf16 file as the release lays it out, with everything that it may hold."""
    generator = torch.Generator().manual_seed(0)
    module = {n: torch.randn(s, generator=generator).bfloat16() for n, s in parameter_shapes(CONFIG).items()}
    shape = (CONFIG.rope_period, CONFIG.rope_period, CONFIG.head_dim)
    rope = {f"mixins.adaln_layer.rope.freqs_{part}": torch.zeros(shape) for part in ("cos", "sin")}
    clip = {"image_encoder.model.visual.proj": torch.randn(64, 24).bfloat16()}
    leftovers = {"image_encoder.model.logit_scale": torch.zeros(())}
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": module | rope | clip | leftovers}, path)
    return path, module | clip


def assert_same(found, wanted, dtype):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], tensor.to(dtype)), name


@pytest.mark.parametrize("dtype", ["keep", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_official_to_each_format_and_back_keeps_every_value(run, official, tmp_path, ending, dtype):
    path, tensors = official
    target = tmp_path / f"converted.{ending}"
    code, out, err = run("convert_checkpoint", path, target, "--dtype", dtype)
    assert (code, err) == (0, "")
    wanted = {"keep": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    if ending == "pt":
        written = torch.load(target, weights_only=True)["module"]
    else:
        written = safetensors.torch.load_file(target)
    assert_same(written, tensors, wanted)

    parameters = sum(t.numel() for n, t in tensors.items() if not n.startswith("image_encoder."))
    read, wrote = out.split("wrote ")
    assert f"{parameters:,} parameters in {len(tensors) - 1} tensors, bfloat16" in read
    assert "2 rotary tables in the file not used" in read
    assert "1 leftovers of CLIP's text tower ignored" in read
    assert f"{parameters:,} parameters in {len(tensors) - 1} tensors, {str(wanted).removeprefix('torch.')}" in wrote
    assert f"{target.stat().st_size / 1e6:,.1f} MB" in wrote
    assert load(target).config == CONFIG  # image_size was in the rotary tables, which are gone

    back = tmp_path / ("back.pt" if ending == "safetensors" else "back.safetensors")
    assert run("convert_checkpoint", target, back, "--dtype", "bf16")[0] == 0
    assert_same(load(back).tensors, {n: t for n, t in tensors.items() if n in parameter_shapes(CONFIG)}, torch.bfloat16)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, target.name, back.name}


def test_sampler_defaults_are_set_kept_and_removed(run, official, tmp_path):
    first, second, third = (tmp_path / name for name in ("1.safetensors", "2.pt", "3.safetensors"))
    defaults = '{"name": "dpmpp_2m", "num_steps": 8, "fast": {"num_steps": 3}}'
    run("convert_checkpoint", official[0], first, "--sampler-defaults", defaults)
    run("convert_checkpoint", first, second)
    assert load(second).sampler_defaults == {"name": "dpmpp_2m", "num_steps": 8, "fast": {"num_steps": 3}}
    run("convert_checkpoint", second, third, "--sampler-defaults", "{}")
    assert load(third).sampler_defaults == {}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none.pt", "a.pt"], 1, "none.pt: no such checkpoint"),
        (["mp_rank_00_model_states.pt", "a.bin"], 2, "must end in .safetensors or .pt"),
        (["mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt"], 1, "is what is read: give OUT another name"),
        (["mp_rank_00_model_states.pt", "no/folder/a.pt"], 1, "there is no folder no/folder"),
        (["mp_rank_00_model_states.pt", "a.pt", "--sampler-defaults", "{"], 2, "--sampler-defaults is not JSON"),
        (
            ["mp_rank_00_model_states.pt", "a.pt", "--sampler-defaults", "[]"],
            2,
            "--sampler-defaults []: must be an object",
        ),
        (["mp_rank_00_model_states.pt", "a.pt", "--sampler-defaults", "null"], 2, "null: must be an object"),
        (["mp_rank_00_model_states.pt", "a.pt", "--sampler-defaults", '{"name": 1}'], 1, "unknown sampler 1"),
        (["mp_rank_00_model_states.pt", "a.pt", "--dtype", "int4"], 2, "invalid choice: 'int4'"),
    ],
)
def test_mistakes_are_one_sentence(run, official, tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    found, _, err = run("convert_checkpoint", *args)
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["mp_rank_00_model_states.pt"]


def test_init_checkpoint_writes_the_initialised_network(run, tmp_path):
    sizes = ["--preset=mini", "--num-layers=2", "--hidden-size=48", "--num-attention-heads=4", "--vector-dim=24"]
    code, out, _ = run("init_checkpoint", tmp_path / "a.pt", *sizes, "--seed", 3)
    assert code == 0
    assert "num_layers=2 hidden_size=48" in out
    run("init_checkpoint", tmp_path / "b.safetensors", *sizes, "--seed", 3)
    run("init_checkpoint", tmp_path / "c.pt", *sizes, "--seed", 4)
    a, b, c = (load(tmp_path / name) for name in ("a.pt", "b.safetensors", "c.pt"))
    assert a.config == InfDiTConfig(2, 48, 4, 4, 32, 128, 24)
    assert_same(b.tensors, a.tensors, torch.float32)
    assert not torch.equal(c.tensors["mixins.patch_embed.proj.weight"], a.tensors["mixins.patch_embed.proj.weight"])
    # The training recipe: zeros in the last Linear of every adaLN head, N(0, 0.02) in qkv.
    assert a.tensors["mixins.adaln_layer.adaLN_modulations.1.1.weight"].abs().max() == 0
    qkv = a.tensors["transformer.layers.1.attention.query_key_value.weight"]
    assert abs(qkv.std().item() - 0.02) < 0.001

    code, _, err = run("init_checkpoint", tmp_path / "d.pt", "--hidden-size", 50)
    assert code == 2
    assert "hidden_size=50: must be a multiple of 16" in err
