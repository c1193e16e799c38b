"""Rows that stand under another name: files are named from a folder that another command may place elsewhere.

``caption d1`` calls a clip ``a.mp4``, ``caption d1 d2`` calls it ``d1/a.mp4``. A key is a hash of the name,
too, so the names of rows are put to the test: under a row's name the work must get that row's key.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from lvspec_cli.batch.work import Work
from lvspec_cli.output.jsonl import Kept

TRIED = 8  # names with the same ending: thousands of folders may each have their video.mp4


@dataclass(frozen=True, slots=True)
class Moved:
    """A row of the same content, asked the same, under another name."""

    row: str  # its key
    old: bytes  # what it calls the file
    new: bytes  # what this command calls it


def moved_rows(works: Sequence[Work], kept: Mapping[str, Kept], planned: Collection[str]) -> dict[str, Moved]:
    """By the keys of works that have no row: the row under another name.

    The file's own name is the same, its folders differ. A row stands for one work only, the first, and never
    for one when it is another's by its key. A file that cannot be read is never recognised.

    :param planned: the keys of all works.
    """
    lacking = [work for work in works if work.identity.sample and not kept.keys() >= set(work.keys)]
    if not lacking:
        return {}
    last_parts = {_last(work.name) for work in lacking}
    names = {row.name for key, row in kept.items() if _last(row.name) in last_parts and key not in planned}
    by_ending = _by_ending(names - {work.name for work in works})
    found: dict[str, Moved] = {}
    taken: set[str] = set()
    for work in lacking:
        for name in _candidates(work.name, names, by_ending):
            for key, row in zip(work.keys, work.keys_as(name), strict=True):
                is_free = row in kept and row not in planned and row not in taken
                if is_free and key not in kept and key not in found:
                    found[key] = Moved(row, name, work.name)
                    taken.add(row)
    return found


def _last(name: bytes) -> bytes:
    return name.rpartition(b"/")[2]


def _endings(name: bytes) -> Iterator[bytes]:
    """``a/b/c.mp4``, ``b/c.mp4``, ``c.mp4``."""
    while name:
        yield name
        name = name.partition(b"/")[2]


def _by_ending(names: Iterable[bytes]) -> Mapping[bytes, Sequence[bytes]]:
    """Names by each of their endings, the shortest first, and of one length in the order of their bytes."""
    found = defaultdict(list)
    for name in sorted(names, key=lambda name: (len(name), name)):
        for ending in _endings(name):
            found[ending].append(name)
    return found


def _candidates(
    name: bytes, names: Collection[bytes], by_ending: Mapping[bytes, Sequence[bytes]]
) -> Iterable[bytes]:
    """Other names with the same ending, those first that agree in more folders.

    Names that this command gives as well count only where they are an ending of ``name``: another ``a.mp4``
    may lie in the common folder now.
    """
    endings = list(_endings(name))
    shorter = [ending for ending in endings[1:] if ending in names]
    others = (other for ending in endings for other in islice(by_ending.get(ending, ()), TRIED))
    return dict.fromkeys((*shorter, *others))
