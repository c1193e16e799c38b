"""Which videos a batch takes: files, folders and lists of jobs, in a fixed order, each once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvspec_cli.batch.lists import is_jobs_file, read_jobs
from lvspec_cli.batch.names import (
    VIDEO_SUFFIXES,
    Place,
    Taken,
    absolute,
    names_of,
    place_in,
    refusal,
    taken_by,
    walk,
)
from lvspec_cli.batch.names import Collected as Collected
from lvspec_cli.batch.names import Input as Input
from lvspec_cli.batch.names import Problem as Problem
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.video.source import shown


def collect(sources: Sequence[Path], *, recursive: bool = True, glob: str | None = None) -> Collected:
    """The videos that ``sources`` name, in their order; a folder's in the order of their paths' bytes.

    A source is a file, whatever its suffix, a folder, or a CSV, TSV or JSONL file of jobs. In folders files
    with a video's suffix are taken, or those that ``glob`` matches; hidden ones are not, nor what is no
    regular file. A file met twice is one input, unless its stretch, prompts or id differ.

    :raises NoInputError: nothing was found at all, or a file of jobs is not there.
    :raises UsageError: a file of jobs is wrong.
    """
    takes = taken_by(glob)
    found = _once(each for source in sources for each in _found(source, recursive, takes))
    names = names_of([each.place for each in found])
    items = [replace(each.item, name=name) for each, name in zip(found, names, strict=True)]
    inputs = tuple(item for item in items if isinstance(item, Input))
    problems = tuple(item for item in items if isinstance(item, Problem))
    if not inputs and all(isinstance(problem.error, NoInputError) for problem in problems):
        raise _nothing(sources, problems, recursive, glob)
    return Collected(inputs, problems)


@dataclass(frozen=True)
class _Found:
    item: Input | Problem  # under a name that only holds among its source's
    place: Place
    real: bytes  # its path without links


def _found(source: Path, recursive: bool, takes: Taken) -> Iterator[_Found]:
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the name
        mode = 0
    if stat.S_ISDIR(mode):
        yield from _in_folder(source, recursive, takes)
    elif is_jobs_file(source):
        yield from _jobs(source)
    else:
        error = None if stat.S_ISREG(mode) else refusal(source)
        where = absolute(source)
        yield _Found(_item(source, error), place_in(where, os.path.dirname(where)), os.path.realpath(where))


def _in_folder(folder: Path, recursive: bool, takes: Taken) -> Iterator[_Found]:
    root = absolute(folder)
    for met in walk(folder, recursive=recursive, takes=takes):
        where = os.path.join(root, met.relative) if met.relative else root
        item = _item(folder / os.fsdecode(met.relative), met.error)
        yield _Found(item, Place(where, root), met.real)


def _jobs(file: Path) -> Iterator[_Found]:
    folder = absolute(file.parent)
    for job in read_jobs(file):
        where = absolute(job.path)
        yield _Found(job, place_in(where, folder), os.path.realpath(where))


def _item(path: Path, error: LvspecError | None) -> Input | Problem:
    return Input(path, b"") if error is None else Problem(path, b"", error)


def _once(found: Iterable[_Found]) -> list[_Found]:
    kept: dict[tuple[object, ...], _Found] = {}
    for each in found:
        item = each.item
        job = (item.start, item.end, item.prompts, item.id) if isinstance(item, Input) else ()
        kept.setdefault((each.real, *job), each)
    return list(kept.values())


def _nothing(
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
        cause = f"no video in {where}"
        remedy = f"name the files, or take others with --glob than {VIDEO_SUFFIXES}"
    if not recursive:
        remedy = "leave out --no-recursive to look into the folders below as well"
    return NoInputError(cause, remedy)
