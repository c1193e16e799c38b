"""A lock on an output file that dies with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lvspec_cli.errors import OutputError
from lvspec_cli.output.files import unwritable


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds ``path`` for this process alone, through a lock on ``<name>.lock`` beside it.

    A lock file that a killed process left is no obstacle: the system freed its lock.

    :raises OutputError: another process holds it (the cause says which), or it cannot be locked.
    """
    beside = path.with_name(path.name + ".lock")
    descriptor = _take(path, beside)
    try:
        yield
    finally:
        # Removed before it is freed: whoever opened the old file finds that it has gone, and tries again.
        beside.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path, beside: Path) -> int:
    while True:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise unwritable(beside, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(beside, descriptor):
                with suppress(OSError):  # a full disk: the lock holds without a name on it
                    _sign(descriptor)
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise OutputError(
                f"{path} is being written by {holder}", "wait for its end, or name another file"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise OutputError(
                f"{beside} cannot be locked: {error.strerror}", "write to a disk that can lock files"
            ) from error
        os.close(descriptor)


def _is_still(beside: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(beside.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": began}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, TypeError, KeyError):
        return "another process"  # which has not signed yet
