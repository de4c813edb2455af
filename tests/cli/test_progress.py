"""Bars and the time left: for the picture, for the list, without a terminal."""

from __future__ import annotations

import contextlib
import io
import re
import time

import numpy as np
import pytest
from torch.backends import mkldnn
from torch.utils.flop_counter import FlopCounterMode

from sat_sr.checkpoint import save_safetensors
from sat_sr.cli.console import Console
from sat_sr.cli.time_left import TimeLeft
from sat_sr.config import InfDiTConfig

ONE_BLOCK = ["--inference_type", "ar2", "--block_batch", "1"]  # at a time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def to_terminal(monkeypatch):
    """to_terminal() -> what standard error is from now on. (pytest sets its own between fixture and test.)"""

    def to_terminal() -> Terminal:
        monkeypatch.setattr("sys.stderr", terminal := Terminal())
        return terminal

    return to_terminal


def test_progress_grows_evenly_to_the_end(cli, picture, monkeypatch):
    """Shares are of equal work, over passes as well."""
    shares = []

    @contextlib.contextmanager
    def record(self, name):
        yield shares.append

    monkeypatch.setattr("sat_sr.cli.console.Console.picture_progress", record)
    assert cli(picture("a.png", (12, 12)), "--infer_sr_scale", "8", *ONE_BLOCK).code == 0
    # 3x3 blocks, then 6x6, two network calls each; one report a block.
    assert np.allclose(shares, np.arange(1, 2 * (9 + 36) + 1) / 90)


@pytest.fixture(scope="module")
def deep_network(tmp_path_factory, make_model):
    config = InfDiTConfig(
        num_layers=12, hidden_size=32, num_attention_heads=2, image_block_size=16, image_size=64, vector_dim=0
    )
    path = tmp_path_factory.mktemp("weights") / "deep.safetensors"
    save_safetensors(path, make_model(config).state_dict(), config)
    return path


@pytest.mark.parametrize(
    "flags",
    [
        ["--inference_type", "full"], ["--inference_type", "auto"], ONE_BLOCK,
        ["--inference_type", "ar2", "--block_batch", "2"], ["--inference_type", "full", "--infer_sr_scale", "6"],
        ["--inference_type", "full", "--sampler", "dpmpp_2m", "--num-steps", "4"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_time_left_is_right_within_a_fifth_after_the_first_tenth(cli, picture, deep_network, monkeypatch, flags):
    """On a clock that counts the products that have been computed: it knows no other programs on the machine."""
    told = []

    monkeypatch.setattr(mkldnn, "enabled", False)  # its products are not counted
    with FlopCounterMode(display=False) as counter:

        @contextlib.contextmanager
        def record(self, name):
            left = TimeLeft(counter.get_total_flops)
            yield lambda share: told.append((share, left.at(share), counter.get_total_flops()))

        monkeypatch.setattr("sat_sr.cli.console.Console.picture_progress", record)
        plain = ["--sampler", "heun", "--num-steps", "3"]
        outcome = cli(picture("a.png", (16, 14)), *plain, *flags, "--network", deep_network, load=True)
    assert outcome.code == 0
    total = counter.get_total_flops()
    checked = [(seconds, total - now) for share, seconds, now in told if 0.1 <= share <= 0.95]
    assert len(checked) > 15 and total > 1e8
    assert all(abs(seconds - wanted) <= 0.2 * wanted for seconds, wanted in checked)


def test_bars_show_list_picture_and_time_left(to_terminal, monkeypatch):
    terminal = to_terminal()
    clock = iter([0, 100, 130, 160, 190]).__next__  # the list begins with its first picture, like that
    monkeypatch.setattr("sat_sr.cli.bars.TimeLeft", lambda: TimeLeft(clock))
    console = Console()
    with console.list_progress(2, [1, 3]) as advance:
        with console.picture_progress("a.png") as progress:
            time.sleep(0.15)  # tqdm redraws ten times a second
            progress(0.5)
        advance()
    # The picture: half of it in 30 seconds. The list: an eighth of all work in the last 30.
    assert re.search(r"a\.png  50 %\|.*\| 00:00 < 00:30 left", terminal.getvalue())
    assert re.search(r"0 of 2 pictures \|", terminal.getvalue())
    assert re.search(r"1 of 2 pictures \|.*\| 00:00 < 03:00 left", terminal.getvalue())


def test_a_large_picture_of_the_list_counts_for_more(to_terminal, monkeypatch):
    terminal = to_terminal()

    class Clock:
        now = 0.0

    monkeypatch.setattr("sat_sr.cli.bars.TimeLeft", lambda: TimeLeft(lambda: Clock.now))
    console = Console()
    with console.list_progress(4, [0, 10, 30, 20]) as advance:
        Clock.now = 1000.0  # reading lists and loading weights is no work on pictures
        advance()  # skipped
        for number, seconds in enumerate((10, 30, 20), start=2):
            with console.picture_progress("a.png") as progress:
                Clock.now += seconds / 2
                progress(0.5)
                Clock.now += seconds / 2
                progress(1.0)
            advance()
            left = {2: "00:50", 3: "00:20", 4: "00:00"}[number]
            assert re.search(rf"{number} of 4 pictures \|.*\| 00:00 < {left} left", terminal.getvalue())


def test_the_work_of_a_picture_is_told_from_its_header(cli, picture, monkeypatch):
    told = []

    @contextlib.contextmanager
    def record(self, pictures, costs):
        told.append((pictures, list(costs)))
        yield lambda: None

    monkeypatch.setattr("sat_sr.cli.console.Console.list_progress", record)
    small, large = picture("small.png", (6, 5)), picture("large.png", (12, 12))
    cli(small, "nothere.png", large, "--infer_sr_scale", "8")
    # Two passes: to 17x14 and 48x40, to 34x34 and 96x96; in blocks of 16 px.
    assert told == [(3, [16 * 16 * (2 * 1 + 3 * 3), 0, 16 * 16 * (3 * 3 + 6 * 6)])]
    cli(small, large, "--infer_sr_scale", "8", "--skip-existing")
    assert told[1] == (2, [0, 0])


def test_a_long_name_leaves_room_for_the_bar(to_terminal, monkeypatch):
    terminal = to_terminal()
    monkeypatch.setenv("COLUMNS", "60")
    with Console().picture_progress("folder/" * 20 + "name.png") as progress:
        time.sleep(0.15)
        progress(0.25)
    assert re.search(r"…\S*/name\.png  25 %\|.*\| 00:00 < 00:00 left", terminal.getvalue())


def test_no_bars_in_a_log_file_but_a_line_a_minute(monkeypatch, capsys):
    class Clock:
        now = 0.0

    monkeypatch.setattr("sat_sr.cli.console.time.monotonic", lambda: Clock.now)
    monkeypatch.setattr("sat_sr.cli.console.TimeLeft", lambda: TimeLeft(lambda: Clock.now))
    console = Console()
    with console.list_progress(2, [1, 1]), console.picture_progress("a.png") as progress:
        for Clock.now, share in ((24, 0.1), (48, 0.2), (60, 0.25), (96, 0.4), (120, 0.5)):
            progress(share)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == ["a.png: 25%, 03:00 left", "a.png: 50%, 02:00 left"]


@pytest.mark.parametrize("options", [{"quiet": True}, {"json": True}, {"bars": False}], ids=str)
def test_no_bars_for_scripts(to_terminal, options):
    terminal = to_terminal()
    console = Console(**options)
    with console.list_progress(2, [1, 1]) as advance:
        with console.picture_progress("a.png") as progress:
            progress(0.5)
        advance()
    assert terminal.getvalue() == ""
