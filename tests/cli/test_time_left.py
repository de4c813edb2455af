"""The time left, on clocks that are set by hand."""

from __future__ import annotations

import pytest

from sat_sr.cli.time_left import TimeLeft


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_even_work_is_foreseen_from_its_first_part(clock):
    clock.now = 500.0
    left = TimeLeft(clock)
    assert left.at(0.0) is None
    for percent in (1, 2, 10, 35, 36, 99, 100):
        clock.now = 500 + 2 * percent
        assert left.at(percent / 100) == pytest.approx(2 * (100 - percent))


def test_a_slow_start_is_forgotten(clock):
    """Five percent that take as long as all the rest: what is left is right after the first tenth."""
    left = TimeLeft(clock)
    for percent in range(1, 101):
        clock.now = 20.0 * percent if percent <= 5 else 100.0 + (percent - 5)
        seconds = left.at(percent / 100)
        if percent >= 10:
            assert seconds == pytest.approx(100 - percent)


def test_work_that_grows_cheaper_and_dearer_by_turns(clock):
    """Layers of unequal cost, the same in every network call of twenty."""
    costs = [3.0, 1.0, 1.0, 1.5] * 20
    left, total = TimeLeft(clock), sum(costs)
    for number, cost in enumerate(costs, start=1):
        clock.now += cost
        seconds = left.at(number / len(costs))
        if 0.1 <= number / len(costs) <= 0.9:
            assert abs(seconds - (total - clock.now)) <= 0.2 * (total - clock.now)


def test_work_that_was_lost_takes_its_time(clock):
    left = TimeLeft(clock)
    for clock.now, share in ((10, 0.1), (20, 0.2), (40, 0.1)):
        seconds = left.at(share)
    assert seconds == pytest.approx(0.9 * 40 / 0.1)
    for clock.now, share in ((50, 0.2), (60, 0.3), (70, 0.4)):
        seconds = left.at(share)
    assert seconds == pytest.approx(60)
