"""The works of a batch: stretches of videos with their prompts, without those that the output file has.

A row's key is a hash of the request, including the file's name. But names depend on the command:
``caption d1`` calls a clip ``a.mp4``, ``caption d1 d2`` calls it ``d1/a.mp4``. A row under another name
belongs to a work if the work would have the row's key under this name.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice

from lvspec_cli.errors import UNREADABLE, LvspecError, UsageError
from lvspec_cli.output.jsonl import RowInfo
from lvspec_cli.output.records import FileIdentity, record_key
from lvspec_cli.pipeline import identify_video
from lvspec_cli.request import AskRequest, LoadPlan


@dataclass(frozen=True)
class Work:
    """One stretch of one video, which is decoded once for all of its prompts.

    ``numbers``: the prompts that are still to be answered, counted from 1. ``keys``: one for each prompt.
    ``error``: set if it is known that the video cannot be read. ``alone``: nothing else is to be answered at
    the same time, because it may be the reason that a worker has died.
    """

    request: AskRequest
    identity: FileIdentity
    numbers: tuple[int, ...]
    keys: tuple[str, ...] = field(repr=False)
    error: LvspecError | None = None
    alone: bool = False

    @property
    def name(self) -> bytes:
        return self.identity.name

    def keys_as(self, plan: LoadPlan, name: bytes) -> tuple[str, ...]:
        """The keys that the work would have if the file's name were ``name``."""
        return _keys(plan, self.request, replace(self.identity, name=name))

    def only(self, keys: frozenset[str]) -> Work:
        """The same stretch with only the prompts whose keys are in ``keys``."""
        return replace(self, numbers=tuple(n for n in self.numbers if self.keys[n - 1] in keys))


def make_work(plan: LoadPlan, request: AskRequest) -> Work:
    """The work with all of the request's prompts, and the keys of their records."""
    identity = identify_video(request)
    numbers = tuple(range(1, len(request.questions) + 1))
    return Work(request, identity, numbers, _keys(plan, request, identity))


def _keys(plan: LoadPlan, request: AskRequest, identity: FileIdentity) -> tuple[str, ...]:
    return tuple(record_key(plan, request, identity, n) for n in range(1, len(request.questions) + 1))


INTERRUPTED = "interrupted"


class Again(StrEnum):
    """Which rows are done again. Interrupted ones always are."""

    NOTHING = "nothing"
    ERRORS = "errors"
    ALL = "all"


@dataclass(frozen=True)
class Outstanding:
    """The works that are still to be done. Counts are of rows: one for each prompt and stretch."""

    works: tuple[Work, ...]  # in order
    removed: frozenset[str]  # keys of rows that are removed, because they are done again
    done: int
    failed: int  # rows of failures that stay
    others: int  # rows of these videos with other settings, or of an earlier content
    moved: Mapping[str, Moved]  # rows under another name that stay, by the work's key
    retryable: int = 0  # of the failures that stay, those that another try may mend

    @property
    def count(self) -> int:
        return sum(len(work.numbers) for work in self.works)


def outstanding(
    plan: LoadPlan, works: Sequence[Work], existing: Mapping[str, RowInfo], again: Again
) -> Outstanding:
    """The works that are still to be done, given the rows that exist.

    Each key is done once, even if two works have it, or if its row is under another name.
    """
    planned = {key for work in works for key in work.keys}
    moved = moved_rows(plan, works, existing, planned)
    rows = {key: key for key in planned if key in existing}  # keys of works -> keys of their rows
    rows |= {key: move.row for key, move in moved.items()}
    removed = frozenset(row for row in rows.values() if _is_redone(existing[row], again))
    remaining = {key: row for key, row in rows.items() if row not in removed}
    return Outstanding(
        works=tuple(_unique(works, remaining)),
        removed=removed,
        done=sum(existing[row].status == "ok" for row in remaining.values()),
        failed=sum(existing[row].status == "error" for row in remaining.values()),
        others=_others(works, existing, planned.union(rows.values())),
        moved={key: move for key, move in moved.items() if key in remaining},
        retryable=sum(
            existing[row].status == "error" and existing[row].error_kind not in UNREADABLE
            for row in remaining.values()
        ),
    )


def _is_redone(row: RowInfo, again: Again) -> bool:
    if again is Again.ALL or row.error_kind == INTERRUPTED:
        return True
    return again is Again.ERRORS and row.status == "error"


def _unique(works: Sequence[Work], done: Collection[str]) -> list[Work]:
    """The works with each key only once, and without the keys in ``done``."""
    known, unique = set(done), []
    for work in works:
        new = work.only(frozenset(work.keys) - known)
        known.update(work.keys)
        if new.numbers:
            unique.append(new)
    return unique


def _others(works: Sequence[Work], existing: Mapping[str, RowInfo], own: Collection[str]) -> int:
    """The number of rows of the works' files whose keys are not in ``own``."""
    names = {work.name for work in works}
    return sum(row.name in names for key, row in existing.items() if key not in own)


@dataclass(frozen=True)
class Shard:
    """Share ``index`` (from 1) of ``count`` shares of the inputs."""

    index: int
    count: int

    def holds(self, name: bytes) -> bool:
        """Whether the input ``name`` is in this share. It is in exactly one, independent of other inputs."""
        digest = hashlib.sha256(name).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


def parse_shard(text: str) -> Shard:
    """``3/16`` as a Shard.

    :raises UsageError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return Shard(int(match[1]), int(match[2]))
    raise UsageError(f"--shard {text!r} is not a share", "write 3/16 for the third of sixteen, 1/16 to 16/16")


TRIED = 8  # names with the same ending that are tried: thousands of folders may have a video.mp4


@dataclass(frozen=True, slots=True)
class Moved:
    """A row of the same content and request under another name."""

    row: str  # its key
    old: bytes  # the file's name in the row
    new: bytes  # the file's name in this command


def moved_rows(
    plan: LoadPlan, works: Sequence[Work], existing: Mapping[str, RowInfo], planned: Collection[str]
) -> dict[str, Moved]:
    """For keys of works without a row: their rows under another name.

    Only the folders in the names may differ. A row is used for the first matching work only, and not at all
    if its key is that of another work. A file that cannot be read is never recognised.

    :param planned: the keys of all works.
    """
    incomplete = [work for work in works if work.identity.sample and not existing.keys() >= set(work.keys)]
    if not incomplete:
        return {}
    file_names = {_file_name(work.name) for work in incomplete}
    unplanned = {row.name for key, row in existing.items() if key not in planned}
    names = {name for name in unplanned if _file_name(name) in file_names}
    by_ending = _by_ending(names - {work.name for work in works})
    moved: dict[str, Moved] = {}
    used: set[str] = set()
    for work in incomplete:
        for name in _candidates(work.name, names, by_ending):
            for key, row in zip(work.keys, work.keys_as(plan, name), strict=True):
                is_free = row in existing and row not in planned and row not in used
                if is_free and key not in existing and key not in moved:
                    moved[key] = Moved(row, name, work.name)
                    used.add(row)
    return moved


def _file_name(name: bytes) -> bytes:
    return name.rpartition(b"/")[2]


def _endings(name: bytes) -> Iterator[bytes]:
    """``a/b/c.mp4``, ``b/c.mp4``, ``c.mp4``."""
    while name:
        yield name
        name = name.partition(b"/")[2]


def _by_ending(names: Iterable[bytes]) -> Mapping[bytes, Sequence[bytes]]:
    """Names by each of their endings, sorted by length and then by bytes."""
    by_ending = defaultdict(list)
    for name in sorted(names, key=lambda name: (len(name), name)):
        for ending in _endings(name):
            by_ending[ending].append(name)
    return by_ending


def _candidates(
    name: bytes, names: Collection[bytes], by_ending: Mapping[bytes, Sequence[bytes]]
) -> Iterable[bytes]:
    """Other names with the same ending. Names that share more folders come first.

    A name that this command also gives to a file counts only if it is an ending of ``name``: another
    ``a.mp4`` may be in the common folder now.
    """
    endings = list(_endings(name))
    shorter = [ending for ending in endings[1:] if ending in names]
    others = (other for ending in endings for other in islice(by_ending.get(ending, ()), TRIED))
    return dict.fromkeys((*shorter, *others))
