"""Files that are there whole or not at all, and that replace only what lvspec wrote itself."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from lvspec_cli.errors import OutputError
from lvspec_cli.system import REPLACES_OPEN_FILES, lock_file, open_file

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DRAFT = re.compile(r"\.lvspec-[0-9a-f]{12}\.tmp")


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
    try:
        with ExitStack() as held:
            draft, stream = _draft_beside(path)
            held.callback(draft.unlink, missing_ok=True)
            held.enter_context(stream)
            if path.exists():
                file = stream.fileno() if os.chmod in os.supports_fd else draft
                os.chmod(file, stat.S_IMODE(path.stat().st_mode))  # noqa: PTH101
            yield stream
            stream.flush()
            if sync:
                sync_open(stream.fileno())
            if not REPLACES_OPEN_FILES:
                stream.close()
            draft.replace(path)  # before it is closed: a draft that nobody holds is swept
            if sync:
                sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def _draft_beside(path: Path) -> tuple[Path, BinaryIO]:
    """A new file in the same folder, held as long as it is open."""
    while True:
        # The name does not grow with the file's own, which may be as long as the file system allows.
        draft = path.with_name(f".lvspec-{secrets.token_hex(6)}.tmp")
        created = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        stream = os.fdopen(open_file(draft, created), "ab")
        with suppress(OSError):  # a disk that cannot lock: there nothing is swept
            lock_file(stream.fileno(), wait=True)  # for a sweep to have looked
        if is_still(draft, stream.fileno()):
            return draft, stream
        stream.close()  # swept before it was held


def sweep(folder: Path) -> None:
    """Removes the drafts of ``replacing`` that killed processes left; one that is being written is held."""
    with suppress(OSError), os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if _DRAFT.fullmatch(entry.name)]
        for draft in left:
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
    """Whether the open file still has this name: it may have been removed, moved or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_still(path: Path, descriptor: int) -> None:
    """:raises OutputError: what was written to the open file is not to be found under its name any more."""
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
    """Where the open file is now, on systems that tell."""
    with suppress(OSError):
        place = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if not place.endswith(" (deleted)"):  # a second name is left, and which is not told
            return f": what it held is in {place}"
    return ", and what it held with it"


def check_replaceable(path: Path) -> None:
    """:raises OutputError: this system cannot replace a file that this process holds open."""
    if not REPLACES_OPEN_FILES:
        raise OutputError(f"{path}: Windows does not replace a file that is open", "name a new file")


def sync_folder(path: Path) -> None:
    """Makes the entries of a folder outlast a power cut, where the system can."""
    if not REPLACES_OPEN_FILES:
        return  # Windows opens no folder
    descriptor = open_file(path, os.O_RDONLY)
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_all() -> None:
    """The same of every file on every disk, where the system can."""
    if hasattr(os, "sync"):
        os.sync()


def sync_open(descriptor: int) -> None:
    """Makes what was written to an open file outlast a power cut, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


_HEAD: Final = 4096  # bytes in which a file has to say so


def check_ours(path: Path, mark: bytes, remedy: str) -> None:
    """Passes where nothing of somebody else is lost: no file, an empty one, or one that is ours.

    :param mark: what files of the kind begin with, or have near their beginning.
    :raises OutputError: it is another's, or cannot be read.
    """
    try:
        other = path.is_file() and not _may_go(path, mark)
    except OSError as error:
        raise unwritable(path, error) from error
    if other:
        raise OutputError(f"{path} was not written by lvspec, and is left alone", remedy)


def check_all_ours(folder: Path, marks: Mapping[str, bytes]) -> None:
    """The same for the files that a command writes to one folder: asked before anything slow begins."""
    for name, mark in marks.items():
        check_ours(folder / name, mark, "name another folder with --out, or move that file away")


def says(path: Path, mark: bytes) -> bool:
    """Whether it is a file with the mark."""
    return path.is_file() and mark in _head(path)


def _may_go(path: Path, mark: bytes) -> bool:
    head = _head(path).strip(b"\0\n")
    return mark in head or mark.startswith(head)  # empty, or torn in its first words


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD)
