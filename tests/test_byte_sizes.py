"""Amounts of memory, written and read."""

from __future__ import annotations

import pytest

from sat_sr.byte_sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1073741824", 1 << 30), ("1GiB", 1 << 30), ("1G", 1 << 30), ("1 gb", 1 << 30), ("0.5GiB", 1 << 29),
        (" 500MiB ", 500 << 20), ("1.5k", 1536), ("2T", 2 << 40), ("640KB", 640 << 10), ("12B", 12),
    ],
)  # fmt: skip
def test_memory_as_people_write_it(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "lots", "0", "0GiB", "-1G", "8XB", "1,5G", "1e9", "80%", "0.3", "nan", "8 Gi B", "9" * 400]
)
def test_memory_that_cannot_be_read_shows_the_forms(text):
    with pytest.raises(ValueError, match=r"write it like 8GiB, 500MiB, 1\.5G or a number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_234_567_890, "1.1 GiB"), (5 << 40, "5.0 TiB")],
)
def test_memory_as_it_is_shown(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize("count", [1023, (1 << 30) + 1, 1_234_567_890, 597_754_112])
def test_what_is_shown_rounded_up_is_enough_when_it_is_typed(count):
    assert 0 <= parse_bytes(format_bytes(count, up=True)) - count < count * 0.1
