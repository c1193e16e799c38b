"""Videos that were joined end to end (``cat a.mkv b.mkv``): where in the file each of them lies.

FFmpeg reads the first one only, or takes the second one's frames for the first one's. Formats without a
header of their own (MPEG-TS, MPEG-PS) are one part: there only times tell where a second video begins.
"""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from lvspec_cli.video.source import container_of, head_of

_EBML = b"\x1aE\xdf\xa3"
_SEGMENT = b"\x18S\x80g"
_FLV_HEADER = re.compile(rb"FLV\x01[\x00-\x05]\x00\x00\x00\x09\x00\x00\x00\x00")
_MOST_BOXES = 1_000_000  # of a file: each is some bytes at least, but a header may lie


@dataclass(frozen=True)
class Part:
    """Bytes of a file, from ``begin`` to before ``end``, that are a video file of their own."""

    begin: int
    end: int


class Slice(io.RawIOBase):
    """The bytes of one part of ``file``, as a file of their own."""

    def __init__(self, file: io.FileIO, part: Part) -> None:
        self._file = file
        self._part = part
        self._place = 0
        self.name = ""  # PyAV asks for one

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._part.end - self._part.begin}
        self._place = max(0, base[whence] + offset)
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._part.end - self._part.begin - self._place)
        self._file.seek(self._part.begin + self._place)
        data = self._file.read(left if size < 0 else min(size, left)) or b""
        self._place += len(data)
        return data


def parts_of(file: io.FileIO) -> tuple[Part, ...]:
    """The videos that ``file`` holds one after the other, nearly always one. It is left at its start."""
    size = file.seek(0, io.SEEK_END)
    begins = _BEGINS.get(container_of(head_of(file)) or "")
    try:
        found = sorted({0, *(place for place in begins(file, size) if place < size)}) if begins else [0]
    finally:
        file.seek(0)
    return tuple(Part(*bounds) for bounds in pairwise([*found, size]))


def _mov_begins(file: io.FileIO, size: int) -> Iterator[int]:
    """A second ``ftyp`` after a movie's header begins another file."""
    has_movie = False
    for place, kind in _boxes(file, size):
        if kind == b"ftyp" and has_movie:
            yield place
            has_movie = False
        has_movie |= kind == b"moov"


def _boxes(file: io.FileIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Places and kinds of the boxes of ISO/IEC 14496-12, as far as their sizes can be."""
    place = 0
    for _ in range(_MOST_BOXES):
        head = _at(file, place, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a size of 64 bits follows
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or length < 8 or place + length > size:
            if len(head) >= 8:
                yield place, head[4:8]
            return
        yield place, head[4:8]
        place += length


def _avi_begins(file: io.FileIO, size: int) -> Iterator[int]:
    """A RIFF of kind ``AVI``; those of kind ``AVIX`` go on with the file before."""
    place = 0
    for _ in range(_MOST_BOXES):
        head = _at(file, place, 12)
        if len(head) < 12 or head[:4] != b"RIFF":
            return
        if head[8:] == b"AVI ":
            yield place
        length = int.from_bytes(head[4:8], "little")
        place += 8 + length + length % 2


def _matroska_begins(file: io.FileIO, size: int) -> Iterator[int]:
    """Each header of EBML. A segment of unknown length (a live recording) is looked through for the next."""
    place = 0
    while _at(file, place, 4) == _EBML:
        yield place
        segment = _ebml_end(file, place)
        if segment is None or segment > size or _at(file, segment, 4) != _SEGMENT:
            return
        end = _ebml_end(file, segment)
        if end is not None and end > size:
            return
        if end is None:
            yield from _matches(
                file, size, re.compile(re.escape(_EBML) + rb".{5,64}?(?:matroska|webm)", re.DOTALL)
            )
            return
        place = end


def _ebml_end(file: io.FileIO, place: int) -> int | None:
    """Where the element at ``place``, whose ID has four bytes, ends; None where it does not say."""
    length = _at(file, place + 4, 8)
    if not length or not length[0]:
        return None
    width = 9 - length[0].bit_length()
    value = int.from_bytes(length[:width], "big") & ((1 << 7 * width) - 1)
    is_unknown = value == (1 << 7 * width) - 1
    return None if is_unknown else place + 4 + width + value


def _flv_begins(file: io.FileIO, size: int) -> Iterator[int]:
    return _matches(file, size, _FLV_HEADER)


def _matches(file: io.FileIO, size: int, pattern: re.Pattern[bytes]) -> Iterator[int]:
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        yield from [match.start() for match in pattern.finditer(content)]


def _at(file: io.FileIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count) or b""


_BEGINS: dict[str, Callable[[io.FileIO, int], Iterator[int]]] = {
    "mov": _mov_begins,
    "avi": _avi_begins,
    "matroska": _matroska_begins,
    "flv": _flv_begins,
}
