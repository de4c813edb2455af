"""Flags of the release that no longer decide anything, and its spelling of flags, for both programs.

Such a flag has one value that is true of this network: other values contradict it. None: any value goes.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Mapping

# Name -> the one value, and why there is no other.
Settled = Mapping[str, tuple[object, str]]

NETWORK: Settled = {
    "vocab_size": (1, "pixels come in, there is no vocabulary"),
    "nogate": (True, "the network has no gates"),
    "no_crossmask": (True, "there is no cross-attention mask"),
    "input_time": ("adaln", "the noise level acts through adaLN"),
    "hidden_dropout": (0.0, "the network has no dropout"),
    "attention_dropout": (0.0, "the network has no dropout"),
    "in_channels": (6, "noisy canvas and upsampled low-resolution image"),
    "out_channels": (3, "RGB"),
    "config_path": (None, "there are no configuration files of the network"),
    "max_sequence_length": (256, "the table it sizes is never used"),
    "layernorm_epsilon": (1e-6, "it is part of the network"),
    "layernorm_order": ("pre", "it is part of the network"),
    "model_parallel_size": (1, "the model fits one device"),
    "tokenizer_type": ("fake", "there is no text"),
    "qk_ln": (True, "queries and keys are always normalised"),
    "image_condition": (True, "the CLIP input is there if the network has one"),
    "re_position": (True, "the relation embedding is always there"),
    "cross_lr": (True, "the cross-attention to the low-resolution image is always there"),
    "sr_scale": (4, "the low-resolution image has a quarter of the canvas"),
    "local_rank": (None, "the launcher's environment variables name the ranks"),
}


def with_dashes(argument: str) -> str:
    """--infer_sr_scale=2 -> --infer-sr-scale=2; what is not a flag stays as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return flag(name[2:]) + equals + value


def flag(name: str) -> str:
    """infer_sr_scale -> --infer-sr-scale"""
    return "--" + name.replace("_", "-")


def spelt(names: Iterable[str]) -> str:
    """For a sentence: num-layers, hidden-size, …"""
    return ", ".join(flag(name)[2:] for name in names)


class _Help(argparse.HelpFormatter):
    """Does not break the names of flags at their hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


def help_layout(prog: str) -> argparse.HelpFormatter:
    """--help in 79 columns, however wide the terminal."""
    return _Help(prog, max_help_position=27, width=79)


def add_settled(group: argparse._ArgumentGroup, settled: Settled) -> None:
    """Have argparse take the flags, without a word in --help."""
    for name, (only, _) in settled.items():
        if isinstance(only, bool):
            group.add_argument(flag(name), action="store_true", default=None, help=argparse.SUPPRESS)
        else:
            group.add_argument(flag(name), type=str if only is None else type(only), help=argparse.SUPPRESS)


def take_settled(args: argparse.Namespace, settled: Settled) -> tuple[list[str], dict[str, object]]:
    """Take the flags out of args: the names of those that were given, and the values that contradict the network."""
    given = {name: value for name in settled if (value := vars(args).pop(name)) is not None}
    wrong = {name: value for name, value in given.items() if settled[name][0] not in (None, value)}
    return list(given), wrong
