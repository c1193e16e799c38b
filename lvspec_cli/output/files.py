"""Files that are there whole or not at all, and what to say where one cannot be written."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lvspec_cli.errors import OutputError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def unwritable(path: Path, error: OSError) -> OutputError:
    """The same failure in the user's terms."""
    if isinstance(error, FileNotFoundError):
        return OutputError(f"{path.parent}: there is no such folder", "make it first, or name another")
    full = error.errno in _NO_ROOM
    remedy = "make room, then run the same again" if full else "name a file that can be written"
    return OutputError(f"{path}: {error.strerror or error}", remedy)


def lacks_room(error: OutputError) -> bool:
    """Whether the disk or a quota is full, so that the next file cannot be written either."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM


def real_place(path: Path, remedy: str) -> Path:
    """Where a file of records lies or will lie, links followed: its two names share one lock.

    :raises OutputError: there is something else than a regular file, such as a folder or a pipe.
    """
    try:
        if path.exists() and not path.is_file():  # asked here: followed, a link to a pipe leads nowhere
            raise OutputError(f"{path}: not a regular file", remedy)
        return Path(os.path.realpath(path))
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose bytes take the place of ``path`` when the block ends well, and are dropped when not.

    The old file's permissions stay. Whoever reads ``path`` meanwhile sees the old file or the new one.

    :param sync: wait until it outlasts a power cut. For many files one ``os.sync`` at the end is far quicker.
    :raises OutputError: it cannot be written.
    """
    # The name does not grow with the file's own, which may be as long as the file system allows.
    draft = path.with_name(f".lvspec-{secrets.token_hex(6)}.tmp")
    try:
        with draft.open("xb") as stream:
            if path.exists():
                os.fchmod(stream.fileno(), stat.S_IMODE(path.stat().st_mode))
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        draft.replace(path)
        if sync:
            sync_path(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Makes a file, or the entries of a folder, outlast a power cut, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
