"""What is left to do: the works of this command against the rows that the output file has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lvspec_cli.batch.moved import Moved, moved_rows
from lvspec_cli.batch.work import Work
from lvspec_cli.output.jsonl import Kept

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


def outstanding(works: Sequence[Work], kept: Mapping[str, Kept], again: Again) -> Outstanding:
    """Each key is done once, also where two works share it, or where its row stands under another name."""
    planned = {key for work in works for key in work.keys}
    moved = moved_rows(works, kept, planned)
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
