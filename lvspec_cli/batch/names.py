"""The inputs of a batch, and the names of their files in records: unique paths relative to one folder."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvspec_cli.errors import LvspecError, MachineError, VideoError, check_machine
from lvspec_cli.video.source import is_picture, open_local, shown


@dataclass(frozen=True)
class Location:
    """The location of a file. Both paths are absolute, and ``path`` is ``root`` or in it."""

    path: bytes
    root: bytes  # the folder to which its name would be relative if it were the only file


def absolute(path: Path) -> bytes:
    """``path`` as an absolute path. Links are not resolved."""
    raw = os.fsencode(path)
    if ".." in path.parts:  # the part before it may be a link, whose parent only the file system knows
        return os.path.realpath(raw)
    return os.path.normpath(os.path.join(os.getcwdb(), raw))


def location_in(path: bytes, folder: bytes) -> Location:
    """The location with root ``folder`` if ``path`` is in it, else with its own folder. Both absolute."""
    return Location(path, folder if is_in(path, folder) else os.path.dirname(path))


def is_in(path: bytes, folder: bytes) -> bool:
    """Whether ``path`` is ``folder`` or in it. Both are absolute."""
    return path == folder or path.startswith(os.path.join(folder, b""))


def names_of(locations: Sequence[Location]) -> list[bytes]:
    """One name for each location, relative to the deepest folder that contains all roots."""
    try:
        base = os.path.commonpath({location.root for location in locations})
    except ValueError:  # there are no locations, or (on Windows) they are on several disks
        base = b""
    return [_name_in(base, location.path) for location in locations]


def _name_in(base: bytes, path: bytes) -> bytes:
    if path == base:  # a folder that could not be read
        return os.path.basename(path) or path
    within = os.path.join(base, b"")
    return path.removeprefix(within).replace(os.fsencode(os.sep), b"/")


@dataclass(frozen=True)
class Input:
    """One video to caption, or a stretch of one. Times in seconds of the file's clock."""

    path: Path
    name: bytes  # its name in records: raw bytes, "/" between folders
    start: float | None = None
    end: float | None = None
    prompts: tuple[str, ...] = ()  # a job's own prompts, which replace --prompt
    id: str | None = None
    origin: str = field(default="", compare=False)  # the file of jobs and its line


@dataclass(frozen=True)
class Problem:
    """A file or folder that was named, or is in a named folder, and cannot be read."""

    path: Path
    name: bytes
    error: LvspecError

    @property
    def message(self) -> str:
        return self.error.cause


@dataclass(frozen=True)
class Collected:
    inputs: tuple[Input, ...]
    problems: tuple[Problem, ...] = ()


VIDEO_SUFFIXES = (
    ".3gp .asf .avi .flv .gif .ivf .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv"
)


Selects = Callable[[bytes], bool]  # whether a file is an input, by its path in the folder


def selection_by(glob: str | None) -> Selects:
    """Selects videos and pictures by suffix, or files by ``glob``, which is matched with the name, or with
    the path if it has a slash."""
    if glob is None:
        suffixes = frozenset(os.fsencode(VIDEO_SUFFIXES).split())
        return lambda relative: (
            os.path.splitext(relative)[1].lower() in suffixes or is_picture(Path(os.fsdecode(relative)))
        )
    from wcmatch.glob import BRACE, GLOBSTAR, MATCHBASE, globmatch

    pattern, flags = os.fsencode(glob), BRACE | GLOBSTAR | MATCHBASE
    return lambda relative: bool(globmatch(relative, pattern, flags=flags))


@dataclass(frozen=True)
class WalkEntry:
    """A file, or a file or folder that cannot be read and the reason."""

    relative: bytes  # the path in the folder
    real: bytes  # the path with links resolved
    error: LvspecError | None = None


def walk(folder: Path, *, recursive: bool, selects: Selects) -> list[WalkEntry]:
    """The regular files that ``selects`` accepts, sorted by the bytes of their paths, without hidden files.

    Links are followed, except links to a folder that contains them. Each file and folder is visited once: by
    its own path if that is in ``folder``, else by the first link to it.
    """
    walking = _Walk(os.fsencode(folder), recursive, selects)
    walking.run()
    return sorted(walking.entries.values(), key=lambda entry: entry.relative)


def reading_error(path: Path) -> LvspecError | None:
    """The reason why the file ``path`` cannot be read; None if it can be."""
    try:
        os.close(open_local(path))
    except MachineError:
        raise
    except LvspecError as error:
        return error
    return None


@dataclass
class _Walk:
    """A walk in progress. It visits the folder itself first, then the targets of links one by one."""

    root: bytes
    recursive: bool
    selects: Selects
    entries: dict[bytes, WalkEntry] = field(default_factory=dict)  # by real path
    visited: set[bytes] = field(default_factory=set)  # real paths of folders
    links: list[bytes] = field(default_factory=list)  # heap of paths in the folder

    def run(self) -> None:
        self._visit(b"", os.path.realpath(self.root))
        while self.links:
            self._follow(heapq.heappop(self.links))

    def _visit(self, relative: bytes, real: bytes) -> None:
        folders = [(relative, real)]
        while folders:
            relative, real = folders.pop()
            if real not in self.visited:
                self.visited.add(real)
                folders += self._read(relative, real)

    def _read(self, relative: bytes, real: bytes) -> list[tuple[bytes, bytes]]:
        """Adds a folder's files and links; returns its subfolders if the walk is recursive."""
        folders = []
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    child = os.path.join(relative, entry.name)
                    if entry.name.startswith(b"."):
                        continue
                    if entry.is_symlink():
                        heapq.heappush(self.links, child)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append((child, entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        self._add(child, entry.path)
        except OSError as error:
            name = shown(Path(os.fsdecode(os.path.join(self.root, relative) if relative else self.root)))
            check_machine(error, f"the folder cannot be read: {name}")
            cause = f"the folder cannot be read ({error.strerror}): {name}"
            unreadable = VideoError(cause, "change its permissions (chmod u+rx), or leave it out")
            self.entries[real] = WalkEntry(relative, real, unreadable)
        return folders if self.recursive else []

    def _follow(self, relative: bytes) -> None:
        path = os.path.join(self.root, relative)
        real = os.path.realpath(path)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            self._add(relative, real, reading_error(Path(os.fsdecode(path))))
            return
        if stat.S_ISREG(mode):
            self._add(relative, real)
        is_loop = is_in(os.path.realpath(os.path.dirname(path)), real)
        if stat.S_ISDIR(mode) and self.recursive and not is_loop:
            self._visit(relative, real)

    def _add(self, relative: bytes, real: bytes, error: LvspecError | None = None) -> None:
        if self.selects(relative):
            self.entries.setdefault(real, WalkEntry(relative, real, error))
