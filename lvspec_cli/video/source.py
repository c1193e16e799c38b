"""The one local file that is opened, and how it is named to people."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

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
}
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")


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


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the video container that a file's first bytes announce, None for others."""
    if head[4:8] in _BOXES:
        return "mov"
    if head[:4] == b"RIFF":
        return "avi" if head[8:12] == b"AVI " else None
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
            f"not a video that can be read: {shown(path)}", "give an MP4, MKV, WebM, MOV, AVI, TS or GIF file"
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
