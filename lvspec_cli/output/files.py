"""Files on disk: written atomically, locked, and replaced only if lvspec wrote them."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from lvspec_cli.errors import OutputError
from lvspec_cli.system import REPLACES_OPEN_FILES, is_of_another_user, lock_file, open_file

LEAST_FREE: Final = 8 * 2**20  # bytes of disk, below which no run begins
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DRAFT = re.compile(r"\.lvspec-[0-9a-f]{12}\.tmp")


def unwritable(path: Path, error: OSError) -> OutputError:
    """The OutputError for an OSError, with a remedy."""
    if isinstance(error, FileNotFoundError):
        return OutputError(f"{path.parent}: there is no such folder", "make it first, or name another")
    full = error.errno in _NO_ROOM
    remedy = "make room, then run the same again" if full else "name a file that can be written"
    return OutputError(f"{path}: {error.strerror or error}", remedy)


def make_folder(folder: Path) -> None:
    """Creates a folder for results if it does not exist.

    :raises OutputError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "name a folder that can be written"
        raise OutputError(f"{folder}: {error.strerror or error}", remedy) from error


def check_folder(folder: Path) -> None:
    """Checks that files can be written to a folder, which may not exist yet, before anything slow starts.

    :raises OutputError: there is no permission, or hardly any room.
    """
    existing = _existing(folder)
    if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing}: no permission to write there", "name a folder that can be written")
    check_room(folder)


def check_room(folder: Path) -> None:
    """:raises OutputError: the disk of a folder, which may not exist yet, has hardly any room."""
    try:
        free = shutil.disk_usage(_existing(folder)).free
    except OSError:
        return  # writing will say what is wrong
    if free < LEAST_FREE:
        raise OutputError(f"{folder}: the disk is full ({free // 2**20} MiB free)", "make room")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)


def lacks_room(error: OutputError) -> bool:
    """Whether the disk or the quota is full, so that further files cannot be written either."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM


def real_path(path: Path, remedy: str) -> Path:
    """The path of a file of records with links resolved, so that all of its names share one lock.

    :raises OutputError: it exists and is not a regular file, but a folder or a pipe, for example.
    """
    try:
        if path.exists() and not path.is_file():  # checked before resolving: a link to a pipe has no path
            raise OutputError(f"{path}: not a regular file", remedy)
        return Path(os.path.realpath(path))
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content replaces ``path`` when the block ends without an exception.

    The old file's permissions are kept. Readers of ``path`` see either the old file or the new one.

    :param sync: wait until the file is safe against a power cut. For many files one ``os.sync`` at the end is
        far faster.
    :raises OutputError: it cannot be written.
    """
    try:
        with ExitStack() as stack:
            draft, stream = _draft_for(path)
            stack.callback(draft.unlink, missing_ok=True)
            stack.enter_context(stream)
            if path.exists():
                file = stream.fileno() if os.chmod in os.supports_fd else draft
                os.chmod(file, stat.S_IMODE(path.stat().st_mode))  # noqa: PTH101
            yield stream
            stream.flush()
            if sync:
                sync_open(stream.fileno())
            if not REPLACES_OPEN_FILES:
                stream.close()
            draft.replace(path)  # before closing: another process may remove an unlocked draft
            if sync:
                sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def _draft_for(path: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file in the same folder, which is locked as long as it is open."""
    while True:
        # The name does not contain the file's own, which may be as long as the file system allows.
        draft = path.with_name(f".lvspec-{secrets.token_hex(6)}.tmp")
        created = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        stream = os.fdopen(open_file(draft, created), "ab")
        with suppress(OSError):  # a disk without locks: there no drafts are removed
            lock_file(stream.fileno(), wait=True)  # a concurrent ``sweep`` may have it locked
        if is_still(draft, stream.fileno()):
            return draft, stream
        stream.close()  # removed before it was locked


def sweep(folder: Path) -> None:
    """Removes temporary files that killed processes left in a folder. Those in use are locked, and stay."""
    with suppress(OSError), os.scandir(folder) as entries:
        drafts = [Path(entry) for entry in entries if _DRAFT.fullmatch(entry.name)]
        for draft in drafts:
            with suppress(OSError):
                _sweep_one(draft)


def _sweep_one(draft: Path) -> None:
    descriptor = open_file(draft, os.O_RDWR, "O_NOFOLLOW", "O_NONBLOCK")
    try:
        lock_file(descriptor)
        if is_still(draft, descriptor):
            draft.unlink()
    finally:
        os.close(descriptor)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether ``path`` is still the open file, which may have been removed, moved or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_still(path: Path, descriptor: int) -> None:
    """:raises OutputError: ``path`` is not the open file any more."""
    if is_still(path, descriptor):
        return
    if os.fstat(descriptor).st_nlink == 0:
        raise OutputError(
            f"{path} was deleted or replaced while it was written, and what it held is lost",
            "run the same again: what is missing is done again",
        )
    raise OutputError(
        f"{path} was moved while it was written{_now_at(descriptor)}",
        "move it back, then run the same again: what is missing is done again",
    )


def _now_at(descriptor: int) -> str:
    """The path of the open file now, for a message, if the system knows it."""
    with suppress(OSError):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if not path.endswith(" (deleted)"):  # deleted: another name exists, but it is unknown
            return f": what it held is in {path}"
    return ", and what it held with it"


def check_replaceable(path: Path) -> None:
    """:raises OutputError: this system cannot replace a file that this process holds open."""
    if not REPLACES_OPEN_FILES:
        raise OutputError(f"{path}: Windows does not replace a file that is open", "name a new file")


def sync_folder(path: Path) -> None:
    """Makes a folder's entries safe against a power cut, if the system supports that."""
    if not REPLACES_OPEN_FILES:
        return  # Windows cannot open folders
    descriptor = open_file(path, os.O_RDONLY)
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_all() -> None:
    """Makes all files on all disks safe against a power cut, if the system supports that."""
    if hasattr(os, "sync"):
        os.sync()


def sync_open(descriptor: int) -> None:
    """Makes an open file's content safe against a power cut, if the file system supports that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_all(descriptor: int, data: bytes) -> None:
    """Writes to an open file, and makes it safe against a power cut."""
    while data:
        data = data[os.write(descriptor, data) :]
    sync_open(descriptor)


_HEAD: Final = 4096  # bytes at the beginning of a file that are searched for its mark


def check_ours(path: Path, mark: bytes, remedy: str) -> None:
    """Checks that ``path`` may be replaced: there is no file, or it is empty or written by lvspec.

    :param mark: bytes at or near the beginning of all files of this kind.
    :raises OutputError: lvspec did not write the file, or it cannot be read.
    """
    try:
        is_foreign = path.is_file() and not _may_replace(path, mark)
    except OSError as error:
        raise unwritable(path, error) from error
    if is_foreign:
        raise OutputError(f"{path} was not written by lvspec, and is left alone", remedy)


def check_all_ours(folder: Path, marks: Mapping[str, bytes]) -> None:
    """The same check for all files that a command will write to one folder."""
    for name, mark in marks.items():
        check_ours(folder / name, mark, "name another folder with --out, or move that file away")


def has_mark(path: Path, mark: bytes) -> bool:
    """Whether ``path`` is a file with the mark."""
    return path.is_file() and mark in _head(path)


def _may_replace(path: Path, mark: bytes) -> bool:
    head = _head(path).strip(b"\0\n")
    return mark in head or mark.startswith(head)  # the second: empty, or truncated within the mark


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD)


# --- locks: the system releases them when the process ends, in whatever way ---------------


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
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return _open_and_lock(path, lambda file: open_file(file, flags), path, _unknown_holder)


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
