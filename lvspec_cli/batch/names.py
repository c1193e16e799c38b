"""The inputs of a batch, and what records call their files: paths relative to one folder, each name once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvspec_cli.errors import LvspecError


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
