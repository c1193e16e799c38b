"""What a batch has to do: stretches of videos with their prompts, less what the output file already has.

A key is a hash of what was asked, the file's name included. ``caption d1`` calls a clip ``a.mp4``,
``caption d1 d2`` calls it ``d1/a.mp4``: under a row's own name the work must get that row's key, then the
row is that work's.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice

from lvspec_cli.errors import LvspecError, UsageError
from lvspec_cli.output.jsonl import Kept
from lvspec_cli.output.records import FileIdentity, record_key
from lvspec_cli.pipeline import identify_video
from lvspec_cli.request import AskRequest, LoadPlan


@dataclass(frozen=True)
class Work:
    """One stretch of one video: one pass over its frames, however many prompts are asked.

    ``numbers`` are the prompts still to be answered, counted from 1; ``keys`` are those of all prompts.
    ``error`` is known where the video cannot be read at all.
    """

    request: AskRequest
    identity: FileIdentity
    numbers: tuple[int, ...]
    keys: tuple[str, ...] = field(repr=False)
    error: LvspecError | None = None

    @property
    def name(self) -> bytes:
        return self.identity.name

    def keys_as(self, plan: LoadPlan, name: bytes) -> tuple[str, ...]:
        """The keys that it would have if the file were called ``name``."""
        return _keys(plan, self.request, replace(self.identity, name=name))

    def only(self, keys: frozenset[str]) -> Work:
        """The same stretch with those prompts alone whose key is among ``keys``."""
        return replace(self, numbers=tuple(n for n in self.numbers if self.keys[n - 1] in keys))


def make_work(plan: LoadPlan, request: AskRequest) -> Work:
    """All of the request's prompts, with the keys that their records by that pair will have."""
    identity = identify_video(request)
    numbers = tuple(range(1, len(request.questions) + 1))
    return Work(request, identity, numbers, _keys(plan, request, identity))


def _keys(plan: LoadPlan, request: AskRequest, identity: FileIdentity) -> tuple[str, ...]:
    return tuple(record_key(plan, request, identity, n) for n in range(1, len(request.questions) + 1))


INTERRUPTED = "interrupted"


class Again(StrEnum):
    """Which rows are done again. Those of an interruption are in any case."""

    NOTHING = "nothing"
    ERRORS = "errors"
    ALL = "all"


@dataclass(frozen=True)
class Outstanding:
    """Counts are of rows: one a prompt and stretch."""

    works: tuple[Work, ...]  # what is to be done, in order
    taken_out: frozenset[str]  # keys of rows that are to be done again
    done: int
    failed: int  # rows that say an input failed, and stay
    others: int  # rows of these videos made with other settings, or of an earlier content
    moved: Mapping[str, Moved]  # by the work's key: those done and failed whose row has another name

    @property
    def count(self) -> int:
        return sum(len(work.numbers) for work in self.works)


def outstanding(plan: LoadPlan, works: Sequence[Work], kept: Mapping[str, Kept], again: Again) -> Outstanding:
    """Each key is done once, also where two works share it, or where its row stands under another name."""
    planned = {key for work in works for key in work.keys}
    moved = moved_rows(plan, works, kept, planned)
    rows = {key: key for key in planned if key in kept}  # of works -> of their rows
    rows |= {key: each.row for key, each in moved.items()}
    taken_out = frozenset(row for row in rows.values() if _is_redone(kept[row], again))
    stays = {key: row for key, row in rows.items() if row not in taken_out}
    return Outstanding(
        works=tuple(_unique(works, stays)),
        taken_out=taken_out,
        done=sum(kept[row].status == "ok" for row in stays.values()),
        failed=sum(kept[row].status == "error" for row in stays.values()),
        others=_others(works, kept, planned.union(rows.values())),
        moved={key: each for key, each in moved.items() if key in stays},
    )


def _is_redone(row: Kept, again: Again) -> bool:
    if again is Again.ALL or row.error_kind == INTERRUPTED:
        return True
    return again is Again.ERRORS and row.status == "error"


def _unique(works: Sequence[Work], stays: Collection[str]) -> list[Work]:
    seen, found = set(stays), []
    for work in works:
        left = work.only(frozenset(work.keys) - seen)
        seen.update(work.keys)
        if left.numbers:
            found.append(left)
    return found


def _others(works: Sequence[Work], kept: Mapping[str, Kept], these: Collection[str]) -> int:
    names = {work.name for work in works}
    return sum(row.name in names for key, row in kept.items() if key not in these)


@dataclass(frozen=True)
class Shard:
    """The share ``index`` of ``count``, counted from 1."""

    index: int
    count: int

    def holds(self, name: bytes) -> bool:
        """Whether the input called ``name`` is in this share: in one of ``count``, whatever else there is."""
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


TRIED = 8  # names with the same ending: thousands of folders may each have their video.mp4


@dataclass(frozen=True, slots=True)
class Moved:
    """A row of the same content, asked the same, under another name."""

    row: str  # its key
    old: bytes  # what it calls the file
    new: bytes  # what this command calls it


def moved_rows(
    plan: LoadPlan, works: Sequence[Work], kept: Mapping[str, Kept], planned: Collection[str]
) -> dict[str, Moved]:
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
            for key, row in zip(work.keys, work.keys_as(plan, name), strict=True):
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
