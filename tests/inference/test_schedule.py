"""Schedules are whole numbers: all of their promises are checked by brute force over small grids."""

from __future__ import annotations

import itertools
import math

import pytest

from sat_sr.inference.schedule import Schedule

GRIDS = list(itertools.product(range(1, 6), repeat=2))
GROUPS = [(1, 1), (2, 2), (3, 3), (1, 2), (2, 1), (3, 2), (9, 9)]


def schedules(grid):
    """All schedules of a grid: whole, and cut into parts in every place."""
    side = max(grid)
    for group in GROUPS:
        for start, stop in itertools.combinations(range(side + 1), 2):
            yield Schedule(grid, group, "block", range(start, stop))


def blocks_of(group):
    return list(itertools.product(group.rows, group.cols))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_block_once_and_after_its_neighbours(grid):
    for schedule in schedules(grid):
        across = 1 if schedule.by_columns else 0
        computed = {b for b in itertools.product(*map(range, grid)) if b[across] < schedule.part.start}
        others = len(computed)
        for group in schedule.groups():
            inside = set(blocks_of(group))
            assert not inside & computed
            for i, j in inside:
                neighbours = {(i - 1, j - 1), (i, j - 1), (i - 1, j)}
                assert {n for n in neighbours if min(n) >= 0} <= computed | inside
            computed |= inside
        assert computed == {b for b in itertools.product(*map(range, grid)) if b[across] < schedule.part.stop}
        assert schedule.blocks == len(computed) - others


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_groups_are_at_most_as_large_as_asked_and_no_more_than_that_takes(grid):
    for asked in GROUPS:
        for start, stop in itertools.combinations(range(max(grid) + 1), 2):
            schedule = Schedule(grid, asked, "block", range(start, stop))
            groups = list(schedule.groups())
            extent = (grid[0], stop - start) if grid[1] > grid[0] else (stop - start, grid[1])
            bands = [math.ceil(length / side) for length, side in zip(extent, asked, strict=True)]
            assert len(groups) == schedule.num_groups == bands[0] * bands[1]
            for n, name in enumerate(("rows", "cols")):
                sides = {len(getattr(group, name)) for group in groups}
                assert max(sides) == schedule.group[n] <= asked[n]
                assert len(sides) <= 2  # but for the last all are alike


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_kept_is_as_long_as_the_shorter_side(grid):
    """At any time the computed blocks that are still needed fit into `line + thickness` slots."""
    for group in GROUPS:
        schedule = Schedule(grid, group, "block")
        assert schedule.line == min(grid)
        computed: set[tuple[int, int]] = set()
        for g in schedule.groups():
            computed |= set(blocks_of(g))
            missing = set(itertools.product(*map(range, grid))) - computed
            needed = {n for i, j in missing for n in ((i - 1, j - 1), (i, j - 1), (i - 1, j))} & computed
            assert len(needed) <= schedule.line + schedule.thickness


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((0, 3), (1, 1), "block"), "at least 1"),
        (((3, 3), (0, 1), "block"), "at least 1"),
        (((3, 3), (1, 1), "raster"), "'layer' or 'block'"),
        (((3, 3), (1, 1), "block", range(2, 4)), "within the longer side"),
        (((3, 3), (1, 1), "block", range(2, 2)), "not empty"),
    ],
)
def test_what_cannot_be_is_said(arguments, said):
    with pytest.raises(ValueError, match=said):
        Schedule(*arguments)


@pytest.mark.parametrize(("length", "side", "taken"), [(17, 8, 6), (9, 4, 3), (16, 4, 4), (17, 4, 4), (3, 5, 3)])
def test_groups_are_no_larger_than_their_number_takes(length, side, taken):
    asked, balanced = -(-length // side), Schedule((length, length), (side, side), "layer")
    assert balanced.group == (taken, taken) and balanced.num_groups == asked**2
