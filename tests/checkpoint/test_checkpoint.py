"""Reading, checking and writing checkpoints: against files made by torch and safetensors, and files that are none."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sat_sr.checkpoint import (
    checkpoint_hash,
    load,
    load_image_encoder,
    load_model,
    save_pt,
    save_safetensors,
)
from sat_sr.checkpoint.tensor_files import convert
from sat_sr.config import InfDiTConfig
from sat_sr.model.layout import parameter_shapes

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = InfDiTConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, image_block_size=32, image_size=64, vector_dim=24
)
ROPE = "mixins.adaln_layer.rope.freqs_"


def make_weights(config: InfDiTConfig = CONFIG, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(shape, generator=generator).to(dtype) for n, shape in parameter_shapes(config).items()}


def rope_tables(config: InfDiTConfig = CONFIG) -> dict[str, torch.Tensor]:
    shape = (config.rope_period, config.rope_period, config.head_dim)
    return {ROPE + part: torch.zeros(shape) for part in ("cos", "sin")}


@pytest.fixture(scope="module")
def tower() -> dict[str, torch.Tensor]:
    """The recorded tiny CLIP tower, with OpenCLIP's names and leftovers of its text tower."""
    recorded = safetensors.torch.load_file(GOLDEN / "clip_image_encoder.safetensors")
    prefix = "weights.image_encoder.model."
    return {name.removeprefix(prefix): tensor for name, tensor in recorded.items() if name.startswith(prefix)}


def assert_same(found, wanted, dtype=None):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.to(dtype or tensor.dtype)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("with_clip", [True, False])
@pytest.mark.parametrize("with_rope", [True, False])
def test_reads_the_release_layout(tmp_path, tower, dtype, with_clip, with_rope):
    weights = make_weights(dtype=dtype)
    module = dict(weights)
    if with_clip:
        module |= {f"image_encoder.model.{name}": tensor.to(dtype) for name, tensor in tower.items()}
    if with_rope:
        module |= rope_tables()
    torch.save({"module": module, "iteration": 7}, tmp_path / "a.pt")

    checkpoint = load(tmp_path / "a.pt")
    assert_same(checkpoint.tensors, weights)
    assert checkpoint.dtype == dtype
    # image_size is told by the rotary tables alone; without them, the official one is assumed, and said to be.
    assert checkpoint.config == InfDiTConfig(**(CONFIG.to_dict() | {"image_size": 64 if with_rope else 512}))
    report = "\n".join(checkpoint.report())
    assert ("image_size 512, which is assumed" in report) == (not with_rope)
    assert ("2 rotary tables in the file not used" in report) == with_rope
    assert ("4 leftovers of CLIP's text tower ignored" in report) == with_clip
    assert str(dtype).removeprefix("torch.") in report
    if with_clip:
        assert_same(checkpoint.clip_tensors, {n: t.to(dtype) for n, t in tower.items() if n.startswith("visual.")})
    else:
        assert checkpoint.clip_tensors is None
        assert "CLIP image tower: none in the file" in report


class DynamicLossScaler:  # what DeepSpeed pickles with fp16
    pass


@pytest.mark.parametrize("numpy_core", ["numpy.core", "numpy._core"])
def test_reads_what_training_saves_beside_the_weights(tmp_path, monkeypatch, numpy_core):
    monkeypatch.setattr(DynamicLossScaler, "__module__", "deepspeed.runtime.fp16.loss_scaler")
    monkeypatch.setattr("deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler", DynamicLossScaler)
    scaler = DynamicLossScaler()
    scaler.cur_scale = 65536.0
    weights = make_weights()
    extra = {
        "np_rng_state": np.random.get_state(),
        "random_rng_state": random.getstate(),
        "torch_rng_state": torch.get_rng_state(),
        "client_lr_scheduler": {"warmup": np.float64(0.01), "step": np.int64(3)},
        "args": argparse.Namespace(num_layers=2),
        "optimizer": {"loss_scaler": scaler},
        "sparse_tensor_module_names": set(),
        "param_shapes": [{name: tensor.shape for name, tensor in weights.items()}],
    }
    torch.save({"module": weights, **extra}, tmp_path / "raw.pt")
    # The release was saved with NumPy 1, whose pickles name numpy.core.
    here = "numpy._core" if int(np.__version__.partition(".")[0]) > 1 else "numpy.core"
    with zipfile.ZipFile(tmp_path / "raw.pt") as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert f"c{here}.multiarray\n".encode() in content
                content = content.replace(f"c{here}.".encode(), f"c{numpy_core}.".encode())
            new.writestr(entry, content)
    assert_same(load(tmp_path / "a.pt").tensors, weights)


def test_a_plain_state_dict_is_read_too(tmp_path):
    torch.save(make_weights(), tmp_path / "a.pt")
    assert_same(load(tmp_path / "a.pt").tensors, make_weights())


def training_folder(tmp_path, tag="200"):
    (tmp_path / tag).mkdir()
    (tmp_path / "latest").write_text(tag + "\n")
    torch.save({"module": make_weights(dtype=torch.bfloat16)}, tmp_path / tag / "mp_rank_00_model_states.pt")
    return tmp_path


def test_reads_a_training_folder_and_prefers_its_averaged_weights(tmp_path):
    run = training_folder(tmp_path)
    (run / "config.json").write_text(CONFIG.to_json())
    raw = load(run)
    assert_same(raw.tensors, make_weights(), torch.bfloat16)
    assert raw.config == CONFIG  # image_size 64 is not in the shapes: it comes from config.json
    assert "mp_rank_00_model_states.pt was taken: it has no ema.safetensors" in "\n".join(raw.report())
    assert_same(load(run / "200").tensors, raw.tensors)
    assert load(run / "200").config == load(run / "200" / "mp_rank_00_model_states.pt").config == CONFIG

    averaged = {name: tensor / 2 for name, tensor in make_weights().items()}
    save_safetensors(run / "200" / "ema.safetensors", averaged, CONFIG)
    checkpoint = load(run)
    assert_same(checkpoint.tensors, averaged)
    assert "the averaged weights (EMA) were taken" in "\n".join(checkpoint.report())
    assert_same(load(run / "200").tensors, averaged)
    assert checkpoint_hash(run) == checkpoint_hash(run / "200" / "ema.safetensors")


def test_safetensors_are_those_of_the_library(tmp_path, tower):
    weights = make_weights() | {"time_embed.mlp.0.bias": torch.randn(32).bfloat16()}  # mixed: alignment matters
    visual = {name: tensor for name, tensor in tower.items() if name.startswith("visual.")}
    defaults = {"name": "dpmpp_2m", "num_steps": 6, "fast": {"name": "euler", "num_steps": 2}}
    path = tmp_path / "a.safetensors"
    save_safetensors(path, weights, CONFIG, {"trained_on": "photos"}, visual, sampler_defaults=defaults)

    assert_same(safetensors.torch.load_file(path), weights | {f"image_encoder.model.{n}": t for n, t in visual.items()})
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "sat_sr"
    assert json.loads(metadata["config"]) == CONFIG.to_dict()

    checkpoint = load(path)
    assert_same(checkpoint.tensors, weights)
    assert_same(checkpoint.clip_tensors, visual)
    assert checkpoint.config == CONFIG
    assert checkpoint.dtype == torch.float32
    assert checkpoint.sampler_defaults == defaults
    assert checkpoint.metadata["trained_on"] == "photos"
    assert list(tmp_path.iterdir()) == [path]


def test_reads_safetensors_that_others_wrote(tmp_path):
    safetensors.torch.save_file(make_weights(), tmp_path / "a.safetensors", {"format": "pt"})
    checkpoint = load(tmp_path / "a.safetensors")
    assert_same(checkpoint.tensors, make_weights())
    assert "follows from the shapes" in "\n".join(checkpoint.report())


def test_pt_keeps_config_and_sampler_and_has_the_key_module(tmp_path):
    save_pt(tmp_path / "a.pt", make_weights(), CONFIG, sampler_defaults={"num_steps": 5}, dtype=torch.bfloat16)
    assert_same(torch.load(tmp_path / "a.pt", weights_only=True)["module"], make_weights(), torch.bfloat16)
    checkpoint = load(tmp_path / "a.pt")
    assert checkpoint.config == CONFIG
    assert checkpoint.sampler_defaults == {"num_steps": 5}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    too_large = make_weights()
    too_large["time_embed.mlp.2.bias"][3] = 1e6
    with pytest.raises(ValueError, match=r"time_embed\.mlp\.2\.bias reaches 1e\+06, more than fp16 holds"):
        save_safetensors(path, too_large, CONFIG, dtype=torch.float16)
    with pytest.raises(ValueError, match="1 missing"):
        save_safetensors(path, {n: t for n, t in make_weights().items() if n != "time_embed.mlp.2.bias"}, CONFIG)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_safetensors(tmp_path / "none" / "a.safetensors", make_weights(), CONFIG)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
def test_converting_takes_the_source_in_memory_but_not_the_result(tmp_path):
    def megabytes(field: str) -> float:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field))
        return int(line.split()[1]) / 1024

    config = InfDiTConfig(num_layers=1, hidden_size=1536, num_attention_heads=16, image_block_size=32, vector_dim=0)
    weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in parameter_shapes(config).items()}
    save_pt(tmp_path / "a.pt", weights, config)
    source = (tmp_path / "a.pt").stat().st_size / 2**20
    del weights
    checkpoint = load(tmp_path / "a.pt")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = megabytes("VmRSS")
    save_safetensors(tmp_path / "a.safetensors", checkpoint.tensors, config, dtype=torch.float32)
    assert source > 90
    assert megabytes("VmHWM") - before < 2.2 * source  # all at once would be three times the source


def test_load_model_has_the_weights_and_the_recorded_ones(tmp_path):
    recorded = safetensors.torch.load_file(GOLDEN / "denoise_batch_vector.safetensors")
    weights = {n.removeprefix("weights."): t for n, t in recorded.items() if n.startswith("weights.")}
    torch.save({"module": weights}, tmp_path / "a.pt")
    model = load_model(tmp_path / "a.pt")
    assert_same(model.state_dict(), weights)
    assert (model.dtype, model.config.vector_dim) == (torch.float32, 24)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())

    half = load_model(load(tmp_path / "a.pt"), dtype=torch.bfloat16)
    assert_same(half.state_dict(), weights, torch.bfloat16)
    with torch.no_grad():  # the file is mapped privately: training on never writes into it
        model.time_embed.mlp[0].weight.zero_()
    assert_same(load(tmp_path / "a.pt").tensors, weights)


def test_the_checkpoints_own_tower_comes_first_and_must_fit(tmp_path, tower):
    visual = {name: tensor for name, tensor in tower.items() if name.startswith("visual.")}
    save_safetensors(tmp_path / "own.safetensors", make_weights(), CONFIG, clip=visual)
    encoder = load_image_encoder(load(tmp_path / "own.safetensors"), "no/such/tower", dtype=torch.bfloat16)
    assert torch.equal(encoder.tower.visual_projection.weight, visual["visual.proj"].t().bfloat16())

    save_safetensors(tmp_path / "none.safetensors", make_weights(), CONFIG)
    folder = tmp_path / "clip"
    folder.mkdir()
    safetensors.torch.save_file(tower, folder / "open_clip_model.safetensors")
    other = load_image_encoder(load(tmp_path / "none.safetensors"), folder)
    assert torch.equal(other.tower.visual_projection.weight, visual["visual.proj"].t())

    wide = InfDiTConfig(**(CONFIG.to_dict() | {"vector_dim": 32}))
    save_safetensors(tmp_path / "wide.safetensors", make_weights(wide), wide)
    with pytest.raises(ValueError, match="embeddings of 24 numbers, the model takes 32"):
        load_image_encoder(load(tmp_path / "wide.safetensors"), folder)
    assert load_image_encoder(CONFIG, folder).embedding_dim == 24  # of a network that is yet to be trained
    with pytest.raises(ValueError, match=r"the model takes 32: .*--clip-model, or its width by --vector-dim"):
        load_image_encoder(wide, folder)

    blind = InfDiTConfig(**(CONFIG.to_dict() | {"vector_dim": 0}))
    save_safetensors(tmp_path / "blind.safetensors", make_weights(blind), blind)
    assert load_image_encoder(load(tmp_path / "blind.safetensors"), "no/such/tower") is None


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("where", ["beside", "inside", "bare"])
def test_a_pickle_with_code_is_refused_and_did_not_run(tmp_path, where):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    if where == "beside":
        torch.save({"module": make_weights(), "iteration": Evil(marker)}, path)
    elif where == "inside":
        torch.save({"module": make_weights() | {"mixins.x": Evil(marker)}}, path)
    else:
        path.write_bytes(pickle.dumps({"module": Evil(marker)}))
    with pytest.raises(
        ValueError, match="bare pickle" if where == "bare" else r"nothing in it was run.*mkdir"
    ) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert not marker.exists()
    # The file is a working trap: torch without its guard springs it.
    if where != "bare":
        torch.load(path, weights_only=False)
        assert marker.exists()


def write_zip(path: Path, names: list[str], **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}q\x00." * 50)


def cut(path: Path, fraction: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def damage_pickle(path: Path) -> None:
    torch.save({"module": make_weights()}, path)
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
        pickled = archive.read(entry)
    content = path.read_bytes()
    path.write_bytes(content.replace(pickled, pickled[:200] + b"\x00" * 50 + pickled[250:]))


def save_module(path: Path, weights: dict) -> None:
    torch.save({"module": weights}, path)


def make_bad(path: Path, kind: str) -> None:
    weights = make_weights()
    name = "transformer.layers.1.mlp.dense_h_to_4h.bias"
    if kind == "cut off .pt":
        save_module(path, weights)
        cut(path)
    elif kind == "cut off safetensors":
        save_safetensors(path, weights, CONFIG)
        cut(path)
    elif kind == "damaged pickle":
        damage_pickle(path)
    elif kind == "zip of pictures":
        write_zip(path, ["cat.png", "dog.png"])
    elif kind == "compressed":
        write_zip(path, ["archive/data.pkl", "archive/data/0"], compression=zipfile.ZIP_DEFLATED)
    elif kind == "TorchScript":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    elif kind == "web page":
        path.write_text("\n<!DOCTYPE html><html><head><title>Inf-DiT weights</title></head></html>")
    elif kind == "git-lfs pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    elif kind == "empty":
        path.touch()
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "Real-ESRGAN":
        torch.save({"params_ema": {"conv_first.weight": torch.zeros(64, 3, 3, 3)}}, path)
    elif kind == "other network":
        save_module(path, {"conv_in.weight": torch.zeros(4), "conv_out.weight": torch.zeros(4)})
    elif kind == "missing and unexpected":
        missing = [n for n in weights if n.startswith("transformer.layers.1.")]
        save_module(path, {n: t for n, t in weights.items() if n not in missing} | {"lora.a": torch.zeros(1)})
    elif kind == "misshapen":
        save_module(path, weights | {name: torch.zeros(7)})
    elif kind == "integers":
        save_module(path, weights | {name: torch.zeros(128, dtype=torch.int8)})
    elif kind == "impossible sizes":
        save_module(path, weights | {"mixins.adaln_layer.re_pos_embed": torch.zeros(2, 4, 4, 7)})
    elif kind == "no latest":
        path.mkdir()
    elif kind == "latest without its folder":
        path.mkdir()
        (path / "latest").write_text("900")
        (path / "100").mkdir()
    elif kind == "latest that leads away":
        path.mkdir()
        (path / "latest").write_text("../../etc")
    elif kind == "broken config.json":
        path.mkdir()
        training_folder(path)
        (path / "config.json").write_text('{"num_layers": ')
    elif kind == "foreign config":
        path.mkdir()
        training_folder(path)
        (path / "config.json").write_text('{"model_type": "clip"}')
    elif kind == "incomplete tag":
        (path / "5").mkdir(parents=True)
        (path / "latest").write_text("5")


BAD = {
    "nothing": r"no such checkpoint",
    "cut off .pt": r"is cut off or damaged",
    "cut off safetensors": r"is cut off or damaged",
    "damaged pickle": r"damaged|refused",
    "zip of pictures": r"zip but no checkpoint \(inside: cat\.png, dog\.png\)",
    "compressed": r"packed again with compression",
    "TorchScript": r"TorchScript program",
    "web page": r"web page.*download the file itself",
    "git-lfs pointer": r"git lfs pull",
    "empty": r"is empty",
    "picture": r"is not a checkpoint: neither",
    "Real-ESRGAN": r"no state dict under the key 'module' \(it has: params_ema\)",
    "other network": r"another architecture \(there is no mixins\..*2 tensors named conv_in\.weight, conv_out\.weight",
    "missing and unexpected": r"8 missing: transformer\.layers\.1\.[\w.]+(, [\w.]+){3}, …; 1 unexpected: lora\.a\)",
    "misshapen": r"1 misshapen: transformer\.layers\.1\.mlp\.dense_h_to_4h\.bias 7 instead of 128",
    "integers": r"dense_h_to_4h\.bias is torch\.int8",
    "impossible sizes": r"another architecture \(hidden_size=28 .*heads of 7",
    "no latest": r"without the file 'latest'",
    "latest without its folder": r"names '900', which is not there: name one of 100",
    "latest that leads away": r"latest holds '\.\./\.\./etc'",
    "broken config.json": r"config in it is not JSON",
    "foreign config": r"configuration in it is not valid \(unknown configuration key model_type",
    "incomplete tag": r"has no mp_rank_00_model_states\.pt \(inside: nothing\)",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoints_get_one_sentence(tmp_path, kind):
    path = tmp_path / "ckpt.pt"
    make_bad(path, kind)
    with pytest.raises((ValueError, FileNotFoundError), match=BAD[kind]) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["pt", "safetensors", "folder"])
def test_damage_anywhere_gets_one_sentence_and_never_other_weights(tmp_path, kind):
    """Flipped bits, overwritten bytes and cuts: in values, the pickle, the zip's directory, headers, `latest`."""
    run = path = tmp_path / f"a.{kind}"
    if kind == "pt":
        save_pt(path, make_weights(), CONFIG, sampler_defaults={"num_steps": 5})
    elif kind == "safetensors":
        save_safetensors(path, make_weights(), CONFIG)
    else:
        run.mkdir()
        training_folder(run)
        path = run / "200" / "mp_rank_00_model_states.pt"
    whole, rng = path.read_bytes(), random.Random(0)
    wanted = {name: tensor.clone() for name, tensor in load(run).tensors.items()}
    loaded = 0
    for number in range(250):
        content, at = bytearray(whole), rng.randrange(len(whole))
        if number % 2:  # most is values: one in two elsewhere
            at = rng.choice([*range(5000), *range(len(whole) - 9000, len(whole))])
        damage = rng.choice(["flip", "flip", "overwrite", "cut"])
        if damage == "flip":
            content[at] ^= 1 << rng.randrange(8)
        elif damage == "overwrite":
            content[at : at + 64] = rng.randbytes(min(64, len(whole) - at))
        else:
            del content[at:]
        path.write_bytes(content)
        try:
            checkpoint = load(run)
            checkpoint.check_values()
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        loaded += 1
        if kind != "safetensors":  # no checksums
            assert_same(checkpoint.tensors, wanted)
    assert loaded < 200


def test_a_damaged_pickle_with_the_right_checksum_gets_one_sentence(tmp_path):
    """As a hostile file would have, or one from before checksums."""
    save_pt(tmp_path / "a.pt", make_weights(), CONFIG)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (pickled,) = (name for name in entries if name.endswith("data.pkl"))
    rng, failed = random.Random(0), 0
    for _ in range(150):
        content = bytearray(entries[pickled])
        content[rng.randrange(len(content))] = rng.choice(b".(0\x85\x86hqrRtbcuseJKM}])Q\x99")
        with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, bytes(content) if name == pickled else data)
        try:
            load(tmp_path / "b.pt")
        except ValueError as error:
            assert "b.pt" in str(error) and "PyTorch 2.6" not in str(error)
            failed += 1
    assert failed > 100


def test_weights_are_read_with_their_checksums_and_files_without_any_are_read(tmp_path):
    torch.save({"module": make_weights()}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt is damaged \(Bad CRC-32 for file '.+/data/\d+'\): fetch it again"):
        load_model(tmp_path / "a.pt")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"module": make_weights()}, tmp_path / "b.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(load_model(tmp_path / "b.pt").state_dict(), make_weights())


def test_fp16_overflow_is_told_from_an_infinity_that_was_there():
    assert convert("w", torch.tensor([1.0, float("inf")]), torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match=r"w reaches 7\.01e\+04"):
        convert("w", torch.tensor([-7e4], dtype=torch.bfloat16), torch.float16)


def test_hash_tells_small_files_by_any_byte_and_large_ones_by_samples(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"a" * 1000)
    first = checkpoint_hash(path)
    assert len(first) == 12
    assert int(first, 16) >= 0
    path.write_bytes(b"a" * 999 + b"b")
    assert checkpoint_hash(path) != first

    size = 200 << 20

    def sparse(change_at: int | None, size: int = size) -> str:
        with open(path, "wb") as file:
            file.truncate(size)
            if change_at is not None:
                file.seek(change_at)
                file.write(b"\x01" * (2 << 20))  # less than any Linear of the official model
        return checkpoint_hash(path)

    hashes = [sparse(None), sparse(None, size + 1), sparse(0), sparse(size - (2 << 20))]
    hashes += [sparse(at) for at in (5 << 20, 77_777_777, 150 << 20)]
    assert len(set(hashes)) == len(hashes)
    assert sparse(None) == hashes[0]
