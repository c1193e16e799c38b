"""A lock on an output file that dies with the process that holds it, however that ends."""

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
    """Holds ``path`` for this process alone, through a lock on ``<name>.lock`` beside it.

    A lock file that a killed process left is no obstacle: the system freed its lock. Its drafts are removed.

    :param and_itself: the file is there or will be made, and the caller holds it, too, before it reads or
        writes: then another user's lock file that cannot be opened is left alone, and that lock decides.
    :raises OutputError: another process holds it (the cause says which), or it cannot be locked.
    """
    beside = path.with_name(path.name + ".lock")
    descriptor: int | None = None
    try:
        descriptor = _held(beside, _open_lock, path, _holder)
    except OSError as error:
        if not (and_itself and isinstance(error, PermissionError) and _is_of_another(beside)):
            raise unwritable(beside, error) from error
    try:
        if descriptor is not None:
            with suppress(OSError):  # a full disk, another's file: the lock holds without a name on it
                _sign(descriptor)
        sweep(path.parent)
        yield
    finally:
        if descriptor is not None:
            # Removed before it is freed: whoever opened the old file finds that it has gone, and tries again.
            with suppress(OSError):  # in another's folder: it stays, and is no obstacle
                beside.unlink()
            os.close(descriptor)


def open_held(path: Path) -> int:
    """Opens a file to append to, makes it where there is none, and holds it itself for this process alone.

    That goes beyond ``locked`` where the file has a second name, or its lock file was removed.

    :raises OSError: it cannot be opened.
    :raises OutputError: another process holds it, or it cannot be locked.
    """
    return _held(path, _open_output, path, _other)


@contextmanager
def present_held(path: Path) -> Iterator[None]:
    """Holds a file that is there, and is to be replaced, for this process alone; raises as ``open_held``."""
    check_replaceable(path)
    try:
        descriptor = _held(path, _open_present, path, _other)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _other(descriptor: int) -> str:
    return "another process, maybe under another name"


def _held(file: Path, opening: Callable[[Path], int], path: Path, holder: Callable[[int], str]) -> int:
    """``file``, opened and locked, for the sake of ``path``."""
    while True:
        descriptor = opening(file)
        try:
            lock_file(descriptor)
            if is_still(file, descriptor):
                return descriptor
        except BlockingIOError:
            said = holder(descriptor)
            os.close(descriptor)
            raise OutputError(
                f"{path} is being written by {said}", "wait for its end, or name another file"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise OutputError(
                f"{file} cannot be locked: {error.strerror}", "write to a disk that can lock files"
            ) from error
        os.close(descriptor)


def _open_output(path: Path) -> int:
    return open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _open_present(path: Path) -> int:
    """To lock it is enough to be allowed to read it, though not on every network's disk."""
    with suppress(PermissionError):
        return open_file(path, os.O_WRONLY)
    return open_file(path, os.O_RDONLY)


def _open_lock(beside: Path) -> int:
    try:
        return open_file(beside, os.O_RDWR | os.O_CREAT, "O_NOFOLLOW")
    except PermissionError:
        with suppress(OSError):  # left by another user: what can be read can be locked
            return open_file(beside, os.O_RDONLY, "O_NOFOLLOW")
        raise


def _is_of_another(beside: Path) -> bool:
    try:
        found = beside.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and is_of_another_user(found)


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
        return "another process"  # which has not signed yet
