"""No flag is parsed in vain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sat_sr.cli import main
from sat_sr.cli.arguments import SETTLED, SIZE_FLAGS, make_parser


def test_no_flag_is_parsed_in_vain(cli, picture, monkeypatch):
    """Every flag is looked at by something beyond the parser when the program runs."""
    read: set[str] = set()

    class Recording:
        def __init__(self, namespace):
            self.__dict__["namespace"] = namespace

        def __getattr__(self, name):
            read.add(name)
            return getattr(self.namespace, name)

    parse = main.parse_arguments
    monkeypatch.setattr(main, "parse_arguments", lambda *args: Recording(parse(*args)))
    path = picture("a.png")
    cli(path, "-o", "a.jpg", "--from-picture", path)
    cli(path, "--size", "30x20")
    cli(path, "--estimate")
    cli(path, load=True)
    # The parser itself turns these into others.
    settled_by_the_parser = {"input_type", "input_path", "version", "help", *SIZE_FLAGS}
    settled_by_the_parser |= {*SETTLED, "num_layers", "hidden_size", "num_attention_heads", "patch_size",
                              "image_block_size", "image_size", "vector_dim"}  # fmt: skip
    flags = {action.dest for action in make_parser()._actions}
    assert flags - read - settled_by_the_parser == set()


@pytest.mark.parametrize(
    ("flag", "other"),
    [
        ("--sampler", "dpmpp_2m"), ("--num-steps", "5"), ("--sigma-max", "1"), ("--sigma-min", "0.5"),
        ("--strength", "0.3"), ("--no-init-noise", None), ("--color-fix", "mean"), ("--seed", "2"), ("--fast", None),
        ("--bf16", None),
    ],
)  # fmt: skip
def test_sampling_flags_change_the_picture(cli, picture, flag, other, pixels):
    path = picture("a.png")
    cli(path, "--seed", "1", "--num-steps", "3", "-o", "plain.png")
    plain = [] if flag == "--fast" else ["--num-steps", "3"]
    given = [flag] if other is None else [flag, other]
    # dtype is decided at loading: take the weights from their file.
    assert cli(path, "--seed", "1", *plain, *given, "-o", "changed.png", load=flag == "--bf16").code == 0
    assert not np.array_equal(pixels("plain.png"), pixels("changed.png"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--device", "tpu"], "device 'tpu'"),
        (["--device", "meta"], "device 'meta' is not used: use --device auto, cpu, cuda or mps"),
        (["--device", "cuda:7"], "device 'cuda:7' is not available"),
        (["--kernel", "flash"], "kernel 'flash' needs"),
        (["--offload", "all"], "offload all needs a CUDA device: cpu shares the host's memory"),
        (["--max-pixels", "10"], "6x5 px, 30 pixels where 10 are allowed"),
        (["--memory", "1KiB"], "1.0 KiB may be used"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what a machine without a GPU has not")
def test_flags_about_the_machine_act(cli, picture, flags, sentence):
    outcome = cli(picture("a.png"), *flags)
    assert outcome.code in (1, 2) and sentence in outcome.err
