"""One picture to do: where its file lies, what it is called. No torch in here."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from sat_sr.image_io.picture import DEFAULT_MAX_PIXELS, PictureError, check_box

if TYPE_CHECKING:
    from sat_sr.image_io.picture import Picture

# What "PATH 1", "PATH 2" mean in the release's lists: the halves of a 1030-px pair sheet, (left, top, right, bottom).
PAIR_BOXES = {"1": (2, 2, 514, 514), "2": (516, 2, 1028, 514)}

HERE = PurePosixPath()
_KNOWN_BY = 1 << 16  # bytes at the start of a file that tell it from others of its name and length


@dataclass(frozen=True)
class Member:
    """A picture inside a tar archive, at a byte range of it."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One picture to do, or one thing that cannot be done (`error`, a sentence).

    source    the picture file, or the archive that holds `member`
    stem      its name without suffix;   folder  the folder below the output folder that its output goes to
    box       (left, top, right, bottom) in pixels of the part that is meant, or None for all of it
    explicit  named by itself, not found in a folder, an archive or by a pattern
    note      to be said once
    """

    source: Path
    stem: str
    folder: PurePosixPath = HERE
    member: Member | None = None
    box: tuple[int, int, int, int] | None = None
    explicit: bool = True
    error: str | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        """How messages call it; always printable."""
        name = f"{self.source}:{self.member.name}" if self.member else str(self.source)
        if self.box:
            name += f" {next((half for half, box in PAIR_BOXES.items() if box == self.box), self.box)}"
        return name.encode("utf-8", "backslashreplace").decode()

    def origin(self) -> dict[str, Any]:
        """What an output's settings say of the picture it was made of: to know it again, wherever it lies.

        OSError if the file cannot be had.
        """
        name = self.member.name if self.member else self.source.name
        with self.open() as file:
            start = file.read(_KNOWN_BY)
        origin = {
            "name": PurePosixPath(name).name.encode("utf-8", "backslashreplace").decode(),
            "bytes": self.member.size if self.member else self.source.stat().st_size,
            "crc32": f"{zlib.crc32(start):08x}",
        }
        return origin if self.box is None else {**origin, "box": list(self.box)}

    def open(self) -> BinaryIO:
        """The bytes of the picture file. OSError if they cannot be had."""
        if self.member is None:
            return open(self.source, "rb")
        with open(self.source, "rb") as archive:
            archive.seek(self.member.offset)
            return io.BytesIO(archive.read(self.member.size))

    def read(self, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
        """The picture, cropped to `box`. PictureError says what is wrong with it."""
        from sat_sr.image_io.reading import read_picture  # late, for torch's sake: names are planned without it

        if self.error:
            raise PictureError(self.error)
        picture = read_picture(self.source if self.member is None else self, max_pixels=max_pixels)
        return picture if self.box is None else picture.crop(self.box)

    def size(self, max_pixels: int | None = None) -> tuple[int, int]:
        """(width, height) of the picture or its crop in pixels, from the file's header. PictureError as in `read`."""
        from sat_sr.image_io.reading import picture_size  # late, as above

        if self.error:
            raise PictureError(self.error)
        size = picture_size(self.source if self.member is None else self, max_pixels=max_pixels)
        if self.box is None:
            return size
        check_box(self.box, size, str(self.source))
        return self.box[2] - self.box[0], self.box[3] - self.box[1]
