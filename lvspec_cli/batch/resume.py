"""What is left to do: the works of this command against the rows that the output file has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lvspec_cli.batch.work import Work
from lvspec_cli.output.jsonl import Kept
from lvspec_cli.output.records import encode_name

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

    @property
    def count(self) -> int:
        return sum(len(work.numbers) for work in self.works)


def outstanding(works: Sequence[Work], kept: Mapping[str, Kept], again: Again) -> Outstanding:
    """Each key is done once, also where two works share it."""
    planned = {key for work in works for key in work.keys}
    taken_out = frozenset(key for key in planned if key in kept and _is_redone(kept[key], again))
    stays = {key: kept[key] for key in planned if key in kept and key not in taken_out}
    return Outstanding(
        works=tuple(_unique(works, stays)),
        taken_out=taken_out,
        done=sum(row.status == "ok" for row in stays.values()),
        failed=sum(row.status == "error" for row in stays.values()),
        others=_others(works, kept, planned),
    )


def _is_redone(row: Kept, again: Again) -> bool:
    if again is Again.ALL or row.error_kind == INTERRUPTED:
        return True
    return again is Again.ERRORS and row.status == "error"


def _unique(works: Sequence[Work], stays: Mapping[str, Kept]) -> list[Work]:
    seen, found = set(stays), []
    for work in works:
        left = work.only(frozenset(work.keys) - seen)
        seen.update(work.keys)
        if left.numbers:
            found.append(left)
    return found


def _others(works: Sequence[Work], kept: Mapping[str, Kept], planned: Collection[str]) -> int:
    names = {encode_name(work.name)[0] for work in works}
    return sum(row.file_name in names for key, row in kept.items() if key not in planned)
