"""The inputs of a batch, and what records call their files: paths relative to one folder, each name once."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvspec_cli.errors import LvspecError, MachineError, VideoError, check_machine
from lvspec_cli.video.source import open_local, shown


@dataclass(frozen=True)
class Place:
    """Where a file lies. Both are absolute, and ``path`` is ``root`` or in it."""

    path: bytes
    root: bytes  # the folder that it would be named from were it alone


def absolute(path: Path) -> bytes:
    """``path`` from the root folder on, links kept as people wrote them."""
    raw = os.fsencode(path)
    if ".." in path.parts:  # what comes before it may be a link: only the file system knows its parent
        return os.path.realpath(raw)
    return os.path.normpath(os.path.join(os.getcwdb(), raw))


def place_in(path: bytes, folder: bytes) -> Place:
    """Named from ``folder`` where ``path`` lies in it, else from its own folder. Both absolute."""
    return Place(path, folder if is_in(path, folder) else os.path.dirname(path))


def is_in(path: bytes, folder: bytes) -> bool:
    """Whether ``path`` is ``folder`` or lies in it. Both absolute."""
    return path == folder or path.startswith(os.path.join(folder, b""))


def names_of(places: Sequence[Place]) -> list[bytes]:
    """One name a place, relative to the deepest folder that holds all roots."""
    try:
        base = os.path.commonpath({place.root for place in places})
    except ValueError:  # none at all, or on Windows on several disks
        base = b""
    return [_name_in(base, place.path) for place in places]


def _name_in(base: bytes, path: bytes) -> bytes:
    if path == base:  # a folder that could not be read
        return os.path.basename(path) or path
    within = os.path.join(base, b"")
    return path.removeprefix(within).replace(os.fsencode(os.sep), b"/")


@dataclass(frozen=True)
class Input:
    """One video to caption, or a stretch of one. Times in seconds of the file's clock."""

    path: Path
    name: bytes  # what records call it: raw bytes, "/" between folders
    start: float | None = None
    end: float | None = None
    prompts: tuple[str, ...] = ()  # a job's own, in place of --prompt
    id: str | None = None
    origin: str = field(default="", compare=False)  # the line of a file of jobs that asks for it


@dataclass(frozen=True)
class Problem:
    """What was named, or met in a folder, and cannot be taken."""

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


Taken = Callable[[bytes], bool]  # whether a file is taken, by its path in the folder


def taken_by(glob: str | None) -> Taken:
    """By suffix, or by ``glob``: held against the file's name, with a slash in it against the whole path."""
    if glob is None:
        suffixes = frozenset(os.fsencode(VIDEO_SUFFIXES).split())
        return lambda relative: os.path.splitext(relative)[1].lower() in suffixes
    from wcmatch.glob import BRACE, GLOBSTAR, MATCHBASE, globmatch

    pattern, flags = os.fsencode(glob), BRACE | GLOBSTAR | MATCHBASE
    return lambda relative: bool(globmatch(relative, pattern, flags=flags))


@dataclass(frozen=True)
class Met:
    """A file, or what cannot be read and why."""

    relative: bytes  # its path in the folder
    real: bytes  # its path without links
    error: LvspecError | None = None


def walk(folder: Path, *, recursive: bool, takes: Taken) -> list[Met]:
    """The regular files that ``takes`` wants, sorted by the bytes of their paths, hidden ones left out.

    Links are followed, but for those to a folder that they lie in. Each file and folder is met once: by its
    own path where that is in ``folder``, else by the first link to it.
    """
    walking = _Walk(os.fsencode(folder), recursive, takes)
    walking.run()
    return sorted(walking.met.values(), key=lambda met: met.relative)


def refusal(path: Path) -> LvspecError | None:
    """Why the file ``path`` cannot be read, None when it can."""
    try:
        os.close(open_local(path))
    except MachineError:
        raise
    except LvspecError as error:
        return error
    return None


@dataclass
class _Walk:
    """A walk in progress: first all that lies in the folder itself, then what links lead to, one by one."""

    root: bytes
    recursive: bool
    takes: Taken
    met: dict[bytes, Met] = field(default_factory=dict)  # by real path
    visited: set[bytes] = field(default_factory=set)  # real paths of folders
    links: list[bytes] = field(default_factory=list)  # a heap of paths in the folder

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
        """Takes a folder's files and links, and gives the folders in it."""
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
                        self._take(child, entry.path)
        except OSError as error:
            path = os.fsdecode(os.path.join(self.root, relative) if relative else self.root)
            check_machine(error, f"the folder cannot be read: {shown(Path(path))}")
            self.met[real] = Met(relative, real, _unreadable(Path(path), error))
        return folders if self.recursive else []

    def _follow(self, relative: bytes) -> None:
        path = os.path.join(self.root, relative)
        real = os.path.realpath(path)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            self._take(relative, real, refusal(Path(os.fsdecode(path))))
            return
        if stat.S_ISREG(mode):
            self._take(relative, real)
        is_loop = is_in(os.path.realpath(os.path.dirname(path)), real)
        if stat.S_ISDIR(mode) and self.recursive and not is_loop:
            self._visit(relative, real)

    def _take(self, relative: bytes, real: bytes, error: LvspecError | None = None) -> None:
        if self.takes(relative):
            self.met.setdefault(real, Met(relative, real, error))


def _unreadable(folder: Path, error: OSError) -> VideoError:
    return VideoError(
        f"the folder cannot be read ({error.strerror}): {shown(folder)}",
        "change its permissions (chmod u+rx), or leave it out",
    )
