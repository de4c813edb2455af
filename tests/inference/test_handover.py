"""When lines of keys and values change hands: ranks work in a pipeline, none waits for a whole canvas."""

from __future__ import annotations

import pytest

from sat_sr.inference.denoiser import Denoiser
from sat_sr.inference.planner import Plan
from sat_sr.inference.schedule import Schedule


class Recorder:
    """The ranks before and behind; notes when a line is wanted and when it is handed on, by layer."""

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
