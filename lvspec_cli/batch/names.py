"""What records call the files of a batch: paths relative to one folder, so that no two files share a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def names_of(places: Sequence[Place]) -> list[bytes]:
    """One name a place, relative to the deepest folder that holds all roots."""
    base = os.path.commonpath({place.root for place in places}) if places else b""
    return [_name_in(base, place.path) for place in places]


def _name_in(base: bytes, path: bytes) -> bytes:
    if path == base:  # a folder that could not be read
        return path.rpartition(b"/")[2] or path
    return path[len(base.rstrip(b"/")) + 1 :]
