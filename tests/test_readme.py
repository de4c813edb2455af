"""Every command of README.md and every example of docs/api.md and docs/memory.md; links and flags of all pages.

bash runs the lines as they stand, in a folder with the project's files and tiny pictures by the examples' names. What
would take long is replaced: `python` and the launchers write down how they were called, and the calls are then made in
this process, with tiny random weights and one step. `bash scripts/test.sh` is these tests: its syntax is checked.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat_sr.checkpoint import save_safetensors
from sat_sr.config import InfDiTConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "ckpt/README.md", "examples/README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = InfDiTConfig(
    num_layers=1, hidden_size=16, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
)

# Writes down folder, arguments and, for a list on standard input, what is read. Asked whether sat_sr imports: yes.
STUB = """#!/usr/bin/env bash
[ "$1" = -c ] && exit 0
stdin=
for argument; do [ "$argument" != - ] || stdin=$(base64 -w0); done
{stub_python} - "$0" "$@" 3<<<"$stdin" <<'END' >> {log}
import base64, json, os, sys
stdin = base64.b64decode(os.fdopen(3).read()).decode()  # the shell's variables hold no zero bytes
print(json.dumps({{"name": os.path.basename(sys.argv[1]), "arguments": sys.argv[2:], "stdin": stdin}}))
END
{then}
"""


def blocks(file: str, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall((ROOT / file).read_text(encoding="utf-8")) if kind == language]


def commands(file: str) -> list[str]:
    lines = [line for block in blocks(file, "bash") for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    from sat_sr.model.inf_dit import InfDiT

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    fast = {"fast": {"name": "euler", "num_steps": 1}}
    save_safetensors(path, InfDiT(TINY).state_dict(), TINY, sampler_defaults=fast | {"num_steps": 2, "sigma_max": 1.0})
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The project as its users see it, with small pictures."""
    for name in ("generate_sr_big.py", "generate_sr_big_cli.sh", "scripts", "setup.py", "sat_sr"):
        (tmp_path / name).symlink_to(ROOT / name)
    pictures = [path.name for path in (ROOT / "examples").glob("*.png")]
    for name in (*(f"examples/{name}" for name in pictures), "photos/a.jpg", "photos/deep/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("# two pictures\nexamples/flower.png\nexamples/bee.png\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(folder, weights, monkeypatch):
    """call(arguments, stdin, environment) -> exit code of the program, called in this process."""
    from sat_sr.cli.main import main

    given_by_size = {"--fast", "--num-steps", "--estimate", "--from-picture"}

    def call(arguments: list[str], stdin: str = "", **environment: str) -> int:
        few = [] if given_by_size & set(arguments) else ["--num-steps", "1"]
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            answers = itertools.chain(["examples/bee.png"])
            patch.setattr("builtins.input", lambda prompt: next_or_end(answers))
            patch.setattr("sys.stdin", StandardInput(stdin))
            return main([*arguments, *few, f"--network={weights}", "--device=cpu"])

    return call


def next_or_end(answers) -> str:
    try:
        return next(answers)
    except StopIteration:
        raise EOFError from None


class StandardInput:
    def __init__(self, text: str) -> None:
        self.text = text

    def read(self) -> bytes:
        return self.text.encode()


@pytest.fixture
def bash(folder, tmp_path_factory):
    """bash(line) -> the calls of python, sat-sr, torchrun and srun in it."""
    bin, log = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("log") / "calls"
    # srun starts its command once; how often it would have is replayed.
    then = {"srun": 'while [[ "$1" = -* ]]; do shift 2; done; "$@"'}
    for name in ("python", "python3", "sat-sr", "torchrun", "srun"):
        stub = STUB.format(log=shlex.quote(str(log)), stub_python=shlex.quote(sys.executable), then=then.get(name, ""))
        (bin / name).write_text(stub)
        (bin / name).chmod(0o755)

    def bash(line: str) -> list[dict]:
        log.write_text("")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SLURM"))}
        result = subprocess.run(
            ["bash", "-c", line], env=environment | {"PATH": f"{bin}:{os.environ['PATH']}"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return [json.loads(call) for call in log.read_text().splitlines()]

    return bash


@pytest.mark.parametrize("line", commands("README.md"))
def test_the_readmes_commands_run(line, bash, call, folder, tmp_path_factory):
    if line.startswith("bash scripts/test.sh"):
        subprocess.run(["bash", "-n", "scripts/test.sh"], check=True)
        assert "scripts/test.sh" in (ROOT / ".ci/run").read_text()
        return
    if line.startswith("pip install"):
        assert line == "pip install ."
        check_installation(tmp_path_factory.mktemp("site"))
        return
    if "--from-picture samples/flower_sr.png" in line:
        call(["examples/flower.png", "--seed", "3"])
    calls = bash(line)
    ranks = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_NTASKS")}
    launcher = next((entry["name"] for entry in calls if entry["name"] in ranks), None)
    runs = [entry for entry in calls if any(a.endswith("generate_sr_big.py") for a in entry["arguments"])]
    runs = [entry for entry in runs if entry["name"] != "srun"] or [e for e in calls if e["name"] == "sat-sr"]
    assert len(runs) == 1, f"{line!r} called {calls}"
    arguments = runs[0]["arguments"]
    program = next((i for i, a in enumerate(arguments) if a.endswith("generate_sr_big.py")), -1)
    arguments = arguments[program + 1 :]
    before = set(folder.rglob("*_sr*"))
    # Ranks that share a picture wait for one another, which one process cannot play: a single one, then.
    count = 2 if launcher and "--split-picture" not in arguments else 1
    for rank in range(count):
        environment = dict(zip(ranks.get(launcher, ()), (str(rank), str(count)), strict=False))
        assert call(arguments, runs[0]["stdin"], **environment) == 0
    made = {path.relative_to(folder) for path in {*folder.rglob("*_sr*"), *folder.glob("flower.*")} - before}
    assert bool(made) == ("--estimate" not in line), f"{line!r} made {made}"
    if launcher:
        assert {path.name for path in made} == {"flower_sr.png", "bee_sr.png"}


def check_installation(site: Path) -> None:
    """The package as pip would install it, without what it depends on."""
    source = site / "source"
    source.mkdir()
    for name in ("sat_sr", "ckpt", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    # An environment of its own, which sees what the tests' environment has.
    venv.create(site / "own", with_pip=False)
    (packages,) = site.glob("own/lib/python3.*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [site / "own/bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--no-index", str(source)],
        check=True, timeout=120,
    )  # fmt: skip
    shutil.rmtree(source)
    assert (packages / "sat_sr/cli/run.py").exists()
    assert (packages / "sat_sr/py.typed").exists()
    assert not [path.name for path in packages.glob("*.py")], "no module of ours beside the package"
    empty = site / "empty"
    empty.mkdir()

    def program(name: str, *arguments: str) -> str:
        command = [site / "own/bin" / name, *arguments]
        return subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=120, check=True).stdout

    for name in ("sat-sr", "sat-sr-train"):
        assert program(name, "--help").startswith(f"usage: {name} ")
    settled = program("sat-sr-train", "--dry-run", "--device", "cpu")
    assert json.loads(settled[settled.index("{") :])["deepspeed"]["zero_optimization"]["stage"] == 1
    told = program("sat-sr", str(ROOT / "examples/flower.png"), "--estimate")
    assert told.startswith(f"network {packages / 'sat_sr/ckpt/mini.safetensors'} ")
    (metadata,) = packages.glob("sat_sr-*.dist-info/METADATA")
    fields = [line.partition(": ")[::2] for line in metadata.read_text().partition("\n\n")[0].splitlines()]
    assert ("Requires-Python", ">=3.10") in fields
    assert {value for field, value in fields if field == "Provides-Extra"} == {"train", "eval", "dev"}
    required = {re.split(r"[^\w-]", value)[0] for field, value in fields if field == "Requires-Dist"}
    assert {"torch", "tensorboardX"} <= required and not required & {"torchvision", "flash-attn", "flash_attn", "apex"}


@pytest.mark.parametrize("file", ["README.md", "docs/api.md"])
def test_python_examples_run(file, folder, weights, monkeypatch):
    (folder / "ckpt").mkdir()
    (folder / "ckpt/mini.safetensors").symlink_to(weights)
    session = {"WEIGHTS": str(weights), "__name__": file}
    code = blocks(file, "python")
    assert code
    for block in code:
        exec(compile(block, file, "exec"), session)  # of this repository
    if file == "README.md":
        assert Image.open("flower_large.png").size == (28, 20)


@pytest.mark.parametrize("side", [4096, 16384])
def test_the_memory_of_the_official_model_is_what_the_page_computes(side, capsys, monkeypatch):
    """docs/memory.md: what its program prints is in the table, for 16384 in the sentence after it."""
    monkeypatch.setattr("sat_sr.inference.memory.CANVASES_HELD", 0)  # Python 3.11 or newer, as the page says
    (code,) = blocks("docs/memory.md", "python")
    assert code.count(" 4096\n") == 1
    exec(compile(code.replace(" 4096\n", f" {side}\n"), "docs/memory.md", "exec"), {})  # of this repository
    printed = [line.split(" ", 7) for line in capsys.readouterr().out.splitlines()]
    page = (ROOT / "docs/memory.md").read_text(encoding="utf-8").split("## Worked example")[1]
    if side == 4096:
        rows = re.findall(r"^\| `(\w+).*?` .*?\| (\w+) \| (\d)×(\d), (.*?) \| (.*) \|$", page, re.MULTILINE)
        table = [
            [mode, offload, *numbers.split(" | "), f"{order}, groups of {i}x{j} blocks along rows"]
            for mode, offload, i, j, order, numbers in rows
        ]
        assert table == printed
    else:
        (sentence,) = re.findall(r"With `side` 16384\b(.*?)\n\n", page, re.DOTALL)
        device = {(mode, offload): column for mode, offload, _, _, _, column, *_ in printed}
        cases = [("full", "none"), ("full", "state"), ("full", "all"), ("ar", "none"), ("ar", "state")]
        assert re.findall(r"\d+\.\d+", sentence) == [device[case] for case in cases]


@pytest.mark.parametrize("file", PAGES)
def test_links_lead_somewhere(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not ((ROOT / file).parent / link).exists()]
    assert not missing
    named = re.findall(r"`((?:sat_sr|tests|scripts|docs)/[\w/.]*)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]


def documented_calls() -> Iterator[tuple[str, str]]:
    """(page, command) of every call of a Python program of this project, in a fence or between backticks."""
    for file in PAGES:
        text = (ROOT / file).read_text(encoding="utf-8")
        lines: list[str] = []
        for _, code in ANY_FENCE.findall(text):
            for line in code.replace("\\\n", " ").splitlines():
                if lines and not closed(lines[-1]):
                    lines[-1] += " " + line  # within quotes
                else:
                    lines.append(line)
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", ANY_FENCE.sub("", text))]
        for line in lines:
            call = re.search(r"(?:^|\s)((?:\w+/)*\w+\.py) ", line)
            if call and (ROOT / call[1]).exists() and "--help" not in line and not line.lstrip().startswith("#"):
                yield file, line[call.start(1) :]


def closed(line: str) -> bool:
    """No quotation mark waits for its other one."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


class Parsed(Exception):
    """Flags were understood; what follows is not done."""


@pytest.mark.parametrize(("file", "line"), documented_calls())
def test_documented_flags_are_understood(file, line, monkeypatch):
    """By the program's own parser, with the placeholders of the page replaced; nothing is done."""
    for placeholder, value in {"MODE": "ar", "SECONDS": "5"}.items():
        line = re.sub(rf"\b{placeholder}\b", value, line)
    program, *arguments = shlex.split(re.sub(r"\[(--[^]]+)\]", r"\1", line), comments=True)
    arguments = arguments[: next((i for i, a in enumerate(arguments) if a in ("|", ">", "&&", "&")), None)]
    real = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    parse = {
        "generate_sr_big.py": "sat_sr.cli.arguments:parse_arguments",
        "train_text2image_sr.py": "sat_sr.training.arguments:parse_arguments",
    }.get(program)
    with pytest.raises(Parsed):
        if parse:
            module, _, function = parse.partition(":")
            getattr(importlib.import_module(module), function)(arguments)
        else:
            runpy.run_path(str(ROOT / program), run_name="__main__")
