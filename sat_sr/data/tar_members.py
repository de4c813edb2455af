"""The files in a tar that may be damaged. tarfile takes a header that it cannot read for the end of the archive and
says nothing; here the reading goes on at the next header, and whoever reads is told what lies between."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from enum import Enum
from typing import BinaryIO


class Break(Enum):
    """What stands between two files, or behind the last one, instead of the next file's header."""

    DAMAGE = "files are missing, or a part of one"
    NEXT_ARCHIVE = "the end of an archive, and another behind it: tars joined by cat"


def read_members(stream: BinaryIO) -> Iterator[tuple[str, bytes] | Break]:
    """(name, content) of every regular file of a tar, compressed or not, and a Break wherever it is not whole.

    A header's checksum tells whether it is one, so the content behind a damaged header is not taken for headers. What
    the tar says of a file's size is believed, as it is under that checksum.

    Raises what tarfile and the decompressors raise where nothing can be read any further.
    """
    with _Tar.open(fileobj=stream, mode="r|*", tarinfo=_Header, ignore_zeros=True) as tar:
        while True:
            try:
                member = tar.next()
            except tarfile.ReadError:  # a long name's header, and no header of the file behind it
                if tar.fileobj.tell() <= tar.offset:
                    raise
                tar.offset = tar.fileobj.tell()
                continue
            if member is None:
                break
            if gap := tar.take_gap():
                yield gap
            if member.isreg():
                yield member.name, tar.extractfile(member).read()
            tar.members = []  # else it holds all headers of a shard
        if tar.unreadable or not tar.zeros:  # cut off: the end of an archive is blocks of zeros
            yield Break.DAMAGE


class _Tar(tarfile.TarFile):
    """Counts the blocks since the last file that stood where a header was wanted."""

    zeros = unreadable = 0

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
        except tarfile.HeaderError:
            tar.unreadable += 1
            raise
