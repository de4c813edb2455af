"""The blocks that files are made of: where each begins and ends, by its format's name for it.

Everything here comes from untrusted files: a walk ends where a block reaches beyond the file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class Block(NamedTuple):
    """kind, and where the contents start and stop in the file."""

    kind: bytes
    start: int
    stop: int


def part(file: BinaryIO, start: int, stop: int, end: int) -> bytes:
    """The bytes from start to stop; none, if they reach beyond `end`."""
    if stop > end:
        return b""
    file.seek(start)
    return file.read(stop - start)


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[Block]:
    """The boxes of JPEG 2000 (T.800 I.4) or AVIF between two places in the file."""
    while end - start >= 8:
        length, kind = struct.unpack(">I4s", part(file, start, start + 8, end))
        head = 8
        if length == 1 and end - start >= 16:
            head, length = 16, *struct.unpack(">Q", part(file, start + 8, start + 16, end))
        elif length == 0:  # to the end of the file
            length = end - start
        if not head <= length <= end - start:
            return
        yield Block(kind, start + head, start + length)
        start += length


def png_chunks(file: BinaryIO, end: int) -> Iterator[Block]:
    """The chunks of a PNG up to IEND (ISO/IEC 15948, 5.3)."""
    start = 8
    while len(header := part(file, start, start + 8, end)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND" or start + 8 + length > end:
            return
        yield Block(kind, start + 8, start + 8 + length)
        start += 12 + length


def webp_chunks(file: BinaryIO, end: int) -> Iterator[Block]:
    """The chunks of a WebP (RFC 9649, 2.3)."""
    start = 12
    while len(header := part(file, start, start + 8, end)) == 8:
        kind, length = struct.unpack("<4sI", header)
        if start + 8 + length > end:
            return
        yield Block(kind, start + 8, start + 8 + length)
        start += 8 + length + length % 2


def gif_extensions(file: BinaryIO, end: int) -> Iterator[Block]:
    """The extensions of a GIF (GIF89a, 23 to 26) by label, one byte; those of applications by their names of eleven.
    The contents are sub-blocks, the empty one behind them included."""
    head = part(file, 0, 13, end)
    start = 13 + _color_table(head[10:11])
    while True:
        introducer = part(file, start, start + 1, end)
        if introducer == b"\x2c":  # a picture: its descriptor, colours and code size stand before the sub-blocks
            start += 11 + _color_table(part(file, start + 9, start + 10, end))
            kind = None
        elif introducer == b"\x21":
            kind = part(file, start + 1, start + 2, end)
            start += 2
            if kind == b"\xff" and (name := part(file, start, start + 12, end)).startswith(b"\x0b"):
                kind, start = name[1:], start + 12
        else:
            return
        stop = start
        while length := part(file, stop, stop + 1, end):
            stop += 1 + length[0]
            if not length[0]:
                break
        if not length or stop > end:
            return
        if kind:
            yield Block(kind, start, stop)
        start = stop


def _color_table(flags: bytes) -> int:
    """Bytes of the colour table that the flags of a GIF's screen or picture announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def blocks(file: BinaryIO, format: str) -> Iterator[Block]:
    """Of a file of a format, Pillow's name; none for those that are not walked through here."""
    end = file.seek(0, io.SEEK_END)
    if format in ("JPEG2000", "AVIF"):
        return boxes(file, 0, end)
    walks = {"PNG": png_chunks, "WEBP": webp_chunks, "GIF": gif_extensions}
    return walks[format](file, end) if format in walks else iter(())
