"""A map over several processes."""

from __future__ import annotations

import operator

import pytest

from sat_sr.data.processes import AHEAD, map_over


def test_results_keep_their_order_and_few_are_made_ahead():
    handed_out = 0

    def numbers():
        nonlocal handed_out
        for number in range(100):
            handed_out += 1
            yield number

    with map_over(2) as map_in_order:
        for taken, (number, result) in enumerate(
            zip(range(100), map_in_order(operator.neg, numbers()), strict=True), 1
        ):
            assert result == -number
            assert handed_out <= taken + 2 * AHEAD
    assert handed_out == 100


@pytest.mark.parametrize("jobs", [1, 2])
def test_several_lists_go_together_and_an_error_is_the_caller_s(jobs):
    with map_over(jobs) as map_in_order:
        assert list(map_in_order(operator.add, [1, 2, 3], [10, 20, 30])) == [11, 22, 33]
        with pytest.raises(ZeroDivisionError):
            list(map_in_order(operator.truediv, [1, 1, 1], [1, 0, 1]))
