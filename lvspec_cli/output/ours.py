"""Which files may be written over unasked: those that say themselves that lvspec wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lvspec_cli.errors import OutputError
from lvspec_cli.output.files import unwritable

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
