"""When lines of keys and values change hands: ranks work in a pipeline, none waits for a whole canvas."""

from __future__ import annotations

import itertools

import pytest
import torch

from sat_sr.inference import ranks as ranks_module
from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.frontier import LINES_SHARED
from sat_sr.inference.planner import Plan
from sat_sr.inference.ranks import LineExchange
from sat_sr.inference.schedule import Schedule


class Recorder:
    """The ranks before and after; notes when a line is wanted and when it is sent on, by layer."""

    def __init__(self):
        self.events = []

    def receive(self, layer, layers, lines):
        lines[layer % len(lines)].zero_()
        self.events.append(("receive", layer))

    def send(self, layer, lines):
        self.events.append(("send", layer))


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def events_of_two_calls(model, make_inputs, order):
    """Of the middle rank of three: two of six block rows of two blocks, one block at a time."""
    schedule = Schedule((6, 2), (1, 1), order, range(2, 4))
    x, lr, lr_upsampled, clip = make_inputs(model.config, schedule.grid)
    here, ranks = schedule.pixels(model.config.image_block_size), Recorder()
    denoiser = Denoiser(
        model, Plan(schedule, "merge", "cpu", "none", 0, 0), lr, lr_upsampled[here], clip,
        lambda done, total: ranks.events.append(("done", done)), neighbours=ranks,
    )  # fmt: skip
    for _ in range(2):
        denoiser(x[here], 1.7)
    return ranks.events


def test_layer_major_a_line_leaves_before_the_next_layer_begins(model, make_inputs):
    """A layer of four groups: its line is asked for when it begins, and goes with the last of them."""
    call = []
    for layer in range(model.config.num_layers):
        first = 4 * layer
        call += [("receive", layer), *(("done", first + group) for group in (1, 2, 3))]
        call += [("send", layer), ("done", first + 4)]
    assert events_of_two_calls(model, make_inputs, "layer") == 2 * call


def test_block_major_all_lines_leave_with_the_last_group(model, make_inputs):
    layers = range(model.config.num_layers)
    call = [*(("receive", layer) for layer in layers), *(("done", group) for group in (1, 2, 3))]
    call += [*(("send", layer) for layer in layers), ("done", 4)]
    assert events_of_two_calls(model, make_inputs, "block") == 2 * call


def test_what_a_layer_waits_for_was_sent_a_layer_ago(monkeypatch):
    """Of the middle rank of three: to wait for what has just been sent would put the sending before the computing."""
    events = []

    class Work:
        def __init__(self, what):
            self.what = what
            events.append(("start", what))

        def wait(self):
            events.append(("wait", self.what))

    sent, asked = itertools.count(), itertools.count()
    monkeypatch.setattr(ranks_module.dist, "isend", lambda line, dst: Work(f"send {next(sent)}"))
    monkeypatch.setattr(ranks_module.dist, "irecv", lambda line, src: Work(f"receive {next(asked)}"))
    exchange, lines, layers = LineExchange(1, 3), [torch.empty(1) for _ in range(LINES_SHARED)], 8
    for layer in range(layers):
        exchange.receive(layer, layers, lines)
        events.append(("compute", layer))
        exchange.send(layer, lines)
    for layer in range(layers):
        assert events.index(("wait", f"receive {layer}")) < events.index(("compute", layer))
        if layer:
            assert events.index(("start", f"receive {layer}")) < events.index(("compute", layer - 1)), "asked ahead"
        if 2 <= layer < layers - 1:
            waited = events.index(("wait", f"send {layer - 2}"))
            assert events.index(("compute", layer - 1)) < waited < events.index(("compute", layer))
