"""The one local file that is opened: how it is named to people, its container, and the videos joined in it.

FFmpeg reads only the first of several videos in a file (``cat a.mkv b.mkv``), or mixes up their frames. Files
in formats without a header (MPEG-TS, MPEG-PS) are one part: there only the times show where a second video
begins.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shlex import quote

from lvspec_cli.errors import DamagedVideoError, NoInputError, NotAVideoError, VideoError, check_machine
from lvspec_cli.escape import visible_line
from lvspec_cli.system import open_file

_HEAD_BYTES = 4096
_STARTS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"GIF8": "gif",
    b"FLV": "flv",
    b"OggS": "ogg",
    b"\x00\x00\x01\xba": "mpeg",
    b"\xff\xd8\xff": "jpeg_pipe",
    b"\x89PNG": "png_pipe",
}
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")


def is_picture(path: Path) -> bool:
    """Whether a file is named as a picture, which is a clip of one frame."""
    return path.suffix.lower() in _PICTURES


def shown(path: Path) -> str:
    """``path`` on one line, safe for a terminal."""
    return visible_line(str(path))


def open_local(path: Path) -> int:
    """A file descriptor to read the regular file ``path``, or one of the errors of the tree.

    What is no regular file is refused before it is opened: opening a pipe waits, opening a device acts.
    """
    name = shown(path)
    try:
        _check_regular(path.stat().st_mode, name)
        descriptor = open_file(path, os.O_RDONLY, "O_NONBLOCK", "O_NOCTTY")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        if is_url(str(path)):
            raise web_address(str(path)) from error
        raise NoInputError(f"no such file: {name}", "check the name and the folder") from error
    except OSError as error:
        check_machine(error, f"{name} cannot be opened")
        raise _unreadable(error, name) from error
    try:
        status = os.fstat(descriptor)
        _check_regular(status.st_mode, name)
        if status.st_size == 0:
            raise NotAVideoError(f"the file is empty: {name}", "copy or download it again")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?=[^/])", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether it has the form of a URL, also of one that was made a path and so lost a slash."""
    return _URL.match(text) is not None


def web_address(text: str) -> NoInputError:
    """The error for a URL where a file was expected."""
    address = visible_line(_URL.sub(r"\g<scheme>://", text, count=1))
    if address.startswith("file://"):
        return NoInputError(f"a web address, not a file: {address}", f"name the file: /{address[7:]}")
    return NoInputError(
        f"a web address, not a file: {address}", f"download it first: yt-dlp {quote(address)}"
    )


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the video container that a file's first bytes announce, None for others."""
    if head[4:8] in _BOXES:
        return "mov"
    if head[:4] == b"RIFF":
        return {b"AVI ": "avi", b"WEBP": "webp_pipe"}.get(head[8:12])
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "mpegts"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def head_of(file: io.RawIOBase) -> bytes:
    """The first bytes of ``file``, which is left at its start."""
    file.seek(0)
    head = file.read(_HEAD_BYTES) or b""
    file.seek(0)
    return head


def unopenable(head: bytes, path: Path) -> VideoError:
    """Why FFmpeg found nothing to read in a file that begins with ``head``."""
    if container_of(head) is None:
        return NotAVideoError(
            f"not a video that can be read: {shown(path)}",
            "give an MP4, MKV, WebM, MOV, AVI, TS or GIF file, or a picture",
        )
    return damaged("cut off or damaged before its first frame", path)


def damaged(what: str, path: Path) -> DamagedVideoError:
    return DamagedVideoError(f"{what}: {shown(path)}", "copy or download it again")


def _check_regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise NoInputError(f"a folder, not a file: {name}", "name one video file in it")
    if not stat.S_ISREG(mode):
        raise NotAVideoError(f"a pipe or device, not a file: {name}", "save the video to a file first")


def _unreadable(error: OSError, name: str) -> VideoError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return VideoError(f"no permission to read: {name}", "change the file's permissions (chmod u+r)")
    return VideoError(f"cannot be read ({error.strerror}): {name}", "check the path and the disk")


# --- the parts of a file ------------------------------------------------------------------

_EBML = b"\x1aE\xdf\xa3"
_SEGMENT = b"\x18S\x80g"
_FLV_HEADER = re.compile(rb"FLV\x01[\x00-\x05]\x00\x00\x00\x09\x00\x00\x00\x00")
_MOST_BOXES = 1_000_000  # in a file, as a limit for broken headers


@dataclass(frozen=True)
class Part:
    """A byte range of a file, ``begin <= offset < end``, that is a complete video file."""

    begin: int
    end: int


class Slice(io.RawIOBase):
    """The bytes of one part of ``file``, as a file of their own."""

    def __init__(self, file: io.FileIO, part: Part) -> None:
        self._file = file
        self._part = part
        self._position = 0
        self.name = ""  # PyAV needs one

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._part.end - self._part.begin}
        self._position = max(0, base[whence] + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        remaining = max(0, self._part.end - self._part.begin - self._position)
        self._file.seek(self._part.begin + self._position)
        data = self._file.read(remaining if size < 0 else min(size, remaining)) or b""
        self._position += len(data)
        return data


def parts_of(file: io.FileIO) -> tuple[Part, ...]:
    """The videos in ``file``, one after the other; nearly always one. The file is left at its start."""
    size = file.seek(0, io.SEEK_END)
    begins = _BEGINS.get(container_of(head_of(file)) or "")
    try:
        starts = sorted({0, *(offset for offset in begins(file, size) if offset < size)}) if begins else [0]
    finally:
        file.seek(0)
    return tuple(Part(*bounds) for bounds in pairwise([*starts, size]))


def _mov_begins(file: io.FileIO, size: int) -> Iterator[int]:
    """A second ``ftyp`` after a movie's header begins another file."""
    has_movie = False
    for offset, kind in _boxes(file, size):
        if kind == b"ftyp" and has_movie:
            yield offset
            has_movie = False
        has_movie |= kind == b"moov"


def _boxes(file: io.FileIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Offsets and types of the boxes of ISO/IEC 14496-12, up to the first with an impossible size."""
    offset = 0
    for _ in range(_MOST_BOXES):
        head = _at(file, offset, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a size of 64 bits follows
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or length < 8 or offset + length > size:
            if len(head) >= 8:
                yield offset, head[4:8]
            return
        yield offset, head[4:8]
        offset += length


def _avi_begins(file: io.FileIO, size: int) -> Iterator[int]:
    """Each RIFF of type ``AVI``. Those of type ``AVIX`` continue the file before."""
    offset = 0
    for _ in range(_MOST_BOXES):
        head = _at(file, offset, 12)
        if len(head) < 12 or head[:4] != b"RIFF":
            return
        if head[8:] == b"AVI ":
            yield offset
        length = int.from_bytes(head[4:8], "little")
        offset += 8 + length + length % 2


def _matroska_begins(file: io.FileIO, size: int) -> Iterator[int]:
    """Each EBML header. A segment of unknown length (a live recording) is searched for the next header."""
    offset = 0
    while _at(file, offset, 4) == _EBML:
        yield offset
        segment = _ebml_end(file, offset)
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
        offset = end


def _ebml_end(file: io.FileIO, offset: int) -> int | None:
    """The end of the element at ``offset``, whose ID has four bytes; None if its length is unknown."""
    length = _at(file, offset + 4, 8)
    if not length or not length[0]:
        return None
    width = 9 - length[0].bit_length()
    value = int.from_bytes(length[:width], "big") & ((1 << 7 * width) - 1)
    is_unknown = value == (1 << 7 * width) - 1
    return None if is_unknown else offset + 4 + width + value


def _matches(file: io.FileIO, size: int, pattern: re.Pattern[bytes]) -> Iterator[int]:
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        yield from [match.start() for match in pattern.finditer(content)]


def _at(file: io.FileIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count) or b""


_BEGINS: dict[str, Callable[[io.FileIO, int], Iterator[int]]] = {
    "mov": _mov_begins,
    "avi": _avi_begins,
    "matroska": _matroska_begins,
    "flv": lambda file, size: _matches(file, size, _FLV_HEADER),
}
