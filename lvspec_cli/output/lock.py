"""A lock on an output file. The system releases it when the process ends, in whatever way."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lvspec_cli.errors import OutputError
from lvspec_cli.output.files import check_replaceable, is_still, sweep, unwritable
from lvspec_cli.system import is_of_another_user, lock_file, open_file


@contextmanager
def locked(path: Path, *, and_itself: bool = False) -> Iterator[None]:
    """Locks ``path`` for this process, by a lock on the file ``<name>.lock`` in the same folder.

    The lock file of a killed process does not matter, because the system released its lock. Temporary files
    of killed processes are removed.

    :param and_itself: the caller also locks ``path`` itself before it reads or writes. Then a lock file that
        belongs to another user and cannot be opened is ignored.
    :raises OutputError: another process has the lock (the cause names it), or it cannot be locked.
    """
    lock_path = path.with_name(path.name + ".lock")
    descriptor: int | None = None
    try:
        descriptor = _open_and_lock(lock_path, _open_lock, path, _holder)
    except OSError as error:
        if not (and_itself and isinstance(error, PermissionError) and _is_of_another(lock_path)):
            raise unwritable(lock_path, error) from error
    try:
        if descriptor is not None:
            with suppress(OSError):  # a full disk, or another user's file: the lock works without a name
                _sign(descriptor)
        sweep(path.parent)
        yield
    finally:
        if descriptor is not None:
            # Removed before the lock is released: a process that opened it notices that, and tries again.
            with suppress(OSError):  # not allowed in another user's folder: the file stays and does no harm
                lock_path.unlink()
            os.close(descriptor)


def open_locked(path: Path) -> int:
    """Opens a file for appending, creates it if necessary, and locks the file itself for this process.

    This is safer than ``locked`` alone if the file has a second name, or if its lock file was removed.

    :raises OSError: it cannot be opened.
    :raises OutputError: another process has the lock, or it cannot be locked.
    """
    return _open_and_lock(path, _open_output, path, _unknown_holder)


@contextmanager
def locked_existing(path: Path) -> Iterator[None]:
    """Locks an existing file that will be replaced; raises as ``open_locked``."""
    check_replaceable(path)
    try:
        descriptor = _open_and_lock(path, _open_existing, path, _unknown_holder)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _unknown_holder(descriptor: int) -> str:
    return "another process, maybe under another name"


def _open_and_lock(
    file: Path, opening: Callable[[Path], int], path: Path, holder: Callable[[int], str]
) -> int:
    """Opens and locks ``file``. Messages name ``path``, and the process that ``holder`` describes."""
    while True:
        descriptor = opening(file)
        try:
            lock_file(descriptor)
            if is_still(file, descriptor):
                return descriptor
        except BlockingIOError:
            writer = holder(descriptor)
            os.close(descriptor)
            raise OutputError(
                f"{path} is being written by {writer}", "wait for its end, or name another file"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise OutputError(
                f"{file} cannot be locked: {error.strerror}", "write to a disk that can lock files"
            ) from error
        os.close(descriptor)


def _open_output(path: Path) -> int:
    return open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _open_existing(path: Path) -> int:
    """Opens a file for locking. Read permission is enough, except on some network file systems."""
    with suppress(PermissionError):
        return open_file(path, os.O_WRONLY)
    return open_file(path, os.O_RDONLY)


def _open_lock(lock_path: Path) -> int:
    try:
        return open_file(lock_path, os.O_RDWR | os.O_CREAT, "O_NOFOLLOW")
    except PermissionError:
        with suppress(OSError):  # another user's file can be locked if it can be read
            return open_file(lock_path, os.O_RDONLY, "O_NOFOLLOW")
        raise


def _is_of_another(lock_path: Path) -> bool:
    try:
        status = lock_path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and is_of_another_user(status)


def _sign(descriptor: int) -> None:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": began}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode() + b"\n")


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.read(descriptor, 4096))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, TypeError, KeyError):
        return "another process"  # it has not written its name yet
