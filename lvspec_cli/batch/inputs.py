"""The inputs of a batch, from files, folders and lists of jobs: in a fixed order, each once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvspec_cli.batch.lists import is_jobs_file, read_jobs
from lvspec_cli.batch.names import (
    VIDEO_SUFFIXES,
    Collected,
    Input,
    Location,
    Problem,
    absolute,
    location_in,
    names_of,
    reading_error,
    selection_by,
    walk,
)
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.video.source import is_picture, shown


def collect(sources: Sequence[Path], *, recursive: bool = True, glob: str | None = None) -> Collected:
    """The videos of ``sources``, in their order. A folder's videos are sorted by the bytes of their paths.

    A source is a file with any suffix, a folder, or a CSV, TSV or JSONL file of jobs. A folder gives its
    files with the suffix of a video, else those with the suffix of a picture, or those that match ``glob``,
    but not hidden files and only regular ones. A file that occurs twice is one input, unless stretch, prompts
    or id differ.

    :raises NoInputError: there is no video, or a file of jobs is missing.
    :raises UsageError: a file of jobs is not valid.
    """
    entries = _unique(entry for source in sources for entry in _entries(source, recursive, glob))
    names = names_of([entry.location for entry in entries])
    items = [replace(entry.item, name=name) for entry, name in zip(entries, names, strict=True)]
    inputs = tuple(item for item in items if isinstance(item, Input))
    problems = tuple(item for item in items if isinstance(item, Problem))
    if not inputs and all(isinstance(problem.error, NoInputError) for problem in problems):
        raise _no_input(sources, problems, recursive, glob)
    return Collected(inputs, problems)


@dataclass(frozen=True)
class _Entry:
    item: Input | Problem  # with a name that is not final
    location: Location
    real: bytes  # the path with links resolved


def _entries(source: Path, recursive: bool, glob: str | None) -> Iterator[_Entry]:
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the name
        mode = 0
    if stat.S_ISDIR(mode):
        yield from _in_folder(source, recursive, glob)
    elif is_jobs_file(source):
        yield from _jobs(source)
    else:
        error = None if stat.S_ISREG(mode) else reading_error(source)
        path = absolute(source)
        location = location_in(path, os.path.dirname(path))
        yield _Entry(_item(source, error), location, os.path.realpath(path))


def _in_folder(folder: Path, recursive: bool, glob: str | None) -> Iterator[_Entry]:
    """Its videos, or its pictures if there are no videos: beside videos they are mostly previews of them."""
    root = absolute(folder)
    entries = walk(folder, recursive=recursive, selects=selection_by(glob))
    if glob is None:
        videos = [entry for entry in entries if not is_picture(Path(os.fsdecode(entry.relative)))]
        entries = videos if any(entry.error is None for entry in videos) else entries
    for entry in entries:
        path = os.path.join(root, entry.relative) if entry.relative else root
        item = _item(folder / os.fsdecode(entry.relative), entry.error)
        yield _Entry(item, Location(path, root), entry.real)


def _jobs(file: Path) -> Iterator[_Entry]:
    folder = absolute(file.parent)
    for job in read_jobs(file):
        path = absolute(job.path)
        yield _Entry(job, location_in(path, folder), os.path.realpath(path))


def _item(path: Path, error: LvspecError | None) -> Input | Problem:
    return Input(path, b"") if error is None else Problem(path, b"", error)


def _unique(entries: Iterable[_Entry]) -> list[_Entry]:
    unique: dict[tuple[object, ...], _Entry] = {}
    for entry in entries:
        item = entry.item
        job = (item.start, item.end, item.prompts, item.id) if isinstance(item, Input) else ()
        unique.setdefault((entry.real, *job), entry)
    return list(unique.values())


def _no_input(
    sources: Sequence[Path], problems: Sequence[Problem], recursive: bool, glob: str | None
) -> NoInputError:
    if not sources:
        return NoInputError("no video was named", "name files or folders")
    if problems:
        others = f", nor {len(problems) - 1} more" if len(problems) > 1 else ""
        return NoInputError(problems[0].message + others, problems[0].error.remedy)
    where = shown(sources[0]) + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    if glob is not None:
        cause = f"no file that matches --glob {glob} in {where}"
        remedy = "a pattern without / is held against file names, one with / against paths in the folder"
    else:
        cause = f"no video and no picture in {where}"
        remedy = f"name the files themselves; of a folder these are taken: pictures, {VIDEO_SUFFIXES}"
    if not recursive:
        remedy = "leave out --no-recursive to look into the folders below as well"
    return NoInputError(cause, remedy)
