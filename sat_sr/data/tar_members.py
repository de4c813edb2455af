"""The files in a tar that may be damaged. tarfile takes a header that it cannot read for the end of the archive and
says nothing; here the reading continues at the next header, and what lies between is reported."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from enum import Enum
from typing import BinaryIO


class Break(Enum):
    """What stands between two files, or after the last one, instead of the next file's header."""

    DAMAGE = "files are missing, or a part of one"
    NEXT_ARCHIVE = "the end of an archive, and something after it: tars joined by cat"
    NO_END = "nothing, where the end of the archive should be: it may have been cut off between two files"


def read_members(stream: BinaryIO) -> Iterator[tuple[str, bytes] | Break]:
    """(name, content) of every regular file of a tar, compressed or not, and a Break wherever it is not whole.

    A header's checksum tells whether it is one, so the content after a damaged header is not taken for headers. What
    the tar says of a file's size is believed, as it is under that checksum.

    Raises what tarfile and the decompressors raise where nothing can be read any further.
    """
    stream, mode = _decompressed(stream)
    with _Tar.open(fileobj=stream, mode=mode, tarinfo=_Header, ignore_zeros=True) as tar:
        while True:
            try:
                member = tar.next()
            except Exception:
                if tar.zeros >= 2 and not tar.unreadable:  # what comes after the end takes nothing from before it
                    yield Break.NEXT_ARCHIVE
                raise
            if member is None:
                break
            if gap := tar.take_gap():
                yield gap
            if member.isreg():
                yield member.name, tar.extractfile(member).read()
            tar.members = []  # else it holds all headers of a shard
        if tar.unreadable or (tar.rest and tar.zeros < 2):
            yield Break.DAMAGE
        elif not tar.zeros:
            yield Break.NO_END


class _Tar(tarfile.TarFile):
    """Counts the blocks since the last file that stood where a header was wanted.

    zeros       of zeros only
    unreadable  others that are not a header
    rest        less than a block, at the end of the stream
    """

    zeros = unreadable = rest = 0

    def next(self) -> tarfile.TarInfo | None:
        """The next header that can be read. Called by tarfile itself for the first one, when the tar is opened."""
        while True:
            try:
                return super().next()
            except tarfile.ReadError:
                at = self.fileobj.tell()
                if 0 < at < self.offset:  # it ends in the padding after a file, which has been read
                    return None
                if at == self.offset:
                    raise
                self.offset = at  # a long name's header, and no header of the file after it

    def take_gap(self) -> Break | None:
        zeros, unreadable = self.zeros, self.unreadable
        self.zeros = self.unreadable = 0
        if not zeros and not unreadable:
            return None
        # Two blocks of zeros end an archive. One alone was a header once.
        return Break.DAMAGE if unreadable or zeros < 2 else Break.NEXT_ARCHIVE


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tar: _Tar) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EmptyHeaderError:  # the end of the file, not of the archive
            raise
        except tarfile.EOFHeaderError:
            tar.zeros += 1
            raise
        except tarfile.TruncatedHeaderError:
            tar.rest += 1
            raise
        except tarfile.HeaderError:
            tar.unreadable += 1
            raise


def _decompressed(stream: BinaryIO) -> tuple[_Readable, str]:
    """The stream and tarfile's mode for it. Of a gzip that has several members, as `cat a.tar.gz b.tar.gz` and bgzip
    make them, tarfile itself reads the first one and says nothing; GzipFile reads all."""
    start = stream.read(2)
    whole = _Readable(stream.read, start)
    if start != b"\x1f\x8b":
        return whole, "r|*"
    # read1 gives what there is before it fails; read would lose that in a file that breaks off.
    return _Readable(gzip.GzipFile(fileobj=whole, mode="rb").read1), "r|"


class _Readable:
    """What tarfile wants of a stream: `read`. `start` comes first."""

    def __init__(self, read: Callable[[int], bytes], start: bytes = b"") -> None:
        self._read, self._start = read, start

    def read(self, size: int) -> bytes:
        start, self._start = self._start[:size], self._start[size:]
        return start + self._read(size - len(start)) if size > len(start) else start
