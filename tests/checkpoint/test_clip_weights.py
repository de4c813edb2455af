"""Where the CLIP tower comes from: files, folders and the hub's cache, and what is said when it is nowhere."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sat_sr.checkpoint.clip_weights import load_clip

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "clip_image_encoder.safetensors"


@pytest.fixture(scope="module")
def tower() -> dict[str, torch.Tensor]:
    """The recorded tiny CLIP tower, with OpenCLIP's names and leftovers of its text tower."""
    recorded = safetensors.torch.load_file(GOLDEN)
    prefix = "weights.image_encoder.model."
    return {name.removeprefix(prefix): tensor for name, tensor in recorded.items() if name.startswith(prefix)}


TINY = {"model_cfg": {"embed_dim": 24, "vision_cfg": {"width": 64, "head_width": 16}}}


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty Hugging Face cache, and a failure for whoever tries the network."""

    def refuse(*args, **kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def check_tower(encoder):
    recorded = safetensors.torch.load_file(GOLDEN)
    torch.testing.assert_close(encoder(recorded["image_1"]), recorded["embedding_1"], rtol=0, atol=5e-6)


def test_clip_from_an_openclip_folder(tmp_path, tower):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(TINY))
    torch.save(tower, tmp_path / "open_clip_pytorch_model.bin")
    check_tower(load_clip(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**TINY["model_cfg"], "quick_gelu": True}})
    )
    with pytest.raises(ValueError, match="quick GELU"):
        load_clip(tmp_path)


def test_clip_from_a_transformers_folder(tmp_path, tower):
    from sat_sr.model.clip import CLIPImageEncoder

    CLIPImageEncoder.from_openclip(tower, head_width=16).tower.save_pretrained(tmp_path)
    check_tower(load_clip(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config}))  # CLIPModel's
    check_tower(load_clip(tmp_path))


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "mine.safetensors"])
def test_clip_from_a_file_is_told_by_the_configuration_beside_it(tmp_path, tower, name):
    safetensors.torch.save_file(tower, tmp_path / name)
    # Heads of 64, by default, would be one in this tower of 64: another embedding, from the same weights.
    assumed = load_clip(tmp_path / name)
    assert assumed.tower.config.num_attention_heads == 1
    (note,) = assumed.notes
    assert note == f"{tmp_path / name} has no open_clip_config.json beside it: attention heads of 64 are assumed"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(TINY))
    told = load_clip(tmp_path / name)
    check_tower(told)
    assert told.notes == ()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True, "vision_cfg": {}}}))
    with pytest.raises(ValueError, match="quick GELU"):
        load_clip(tmp_path / name)


def test_clip_from_the_hub_cache_asks_no_network(no_network, tower):
    repository = no_network / "models--someone--tiny-clip"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    safetensors.torch.save_file(tower, snapshot / "open_clip_model.safetensors")
    (snapshot / "open_clip_config.json").write_text(json.dumps(TINY))
    check_tower(load_clip("someone/tiny-clip"))


@pytest.mark.parametrize("source", [["nobody/no-such-clip"], []], ids=["named", "default"])
def test_clip_offline_says_what_to_fetch_and_where_to_put_it(no_network, monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        load_clip(*source)
    repository = source[0] if source else "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"  # the release's
    for part in ("open_clip_pytorch_model.bin", f"https://huggingface.co/{repository}", "--clip-model"):
        assert part in str(error.value)


@contextlib.contextmanager
def hub_that_is_down():
    """Its address, and the requests that it has refused so far."""
    asked = []

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.parametrize(("down", "reason"), [(True, "the hub answered 503"), (False, "the hub cannot be reached")])
def test_a_hub_that_does_not_answer_is_asked_once_and_all_that_is_said_is_the_sentence(tmp_path, down, reason):
    code = "from sat_sr.checkpoint.clip_weights import load_clip as load; load('nobody/no-such-clip')"
    with hub_that_is_down() as (address, asked):
        environment = {**os.environ, "HF_ENDPOINT": address if down else "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
        environment.pop("HF_HUB_OFFLINE", None)
        run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert len(asked) == int(down)
    before, _, said = run.stderr.rpartition("FileNotFoundError: ")
    assert reason in said and "--clip-model" in said
    assert before.startswith("Traceback") and "Retry" not in run.stderr and "thrown" not in run.stderr
    assert run.stdout == ""


def test_clip_weights_with_a_flipped_bit_are_refused(tmp_path, tower):
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(tower, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"open_clip_pytorch_model\.bin is damaged \(Bad CRC-32"):
        load_clip(tmp_path)


@pytest.mark.parametrize("source", ["clip/of/mine", "./clip", "/nowhere/clip", "clip", "a b/c"])
def test_clip_path_that_does_not_exist(no_network, source):
    with pytest.raises(FileNotFoundError, match="no such file or folder, and no hub id"):
        load_clip(source)


def test_clip_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no CLIP weights: one of open_clip_model\.safetensors"):
        load_clip(tmp_path)
