"""Merges several files of records into one, without duplicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lvspec_cli.errors import LvspecError, OutputError
from lvspec_cli.output.files import locked, locked_existing, real_path, replacing
from lvspec_cli.output.jsonl import prevails, rows_of
from lvspec_cli.output.records import raw_name


@dataclass(frozen=True)
class Shard:
    """Counts of one of the merged files."""

    path: Path
    rows: int
    doubles: int  # rows that were replaced by one with the same key
    errors: int  # used rows that are failures


@dataclass(frozen=True)
class Merged:
    shards: tuple[Shard, ...]
    names: frozenset[bytes]  # of all files with a record, raw

    @property
    def rows(self) -> int:
        return sum(shard.rows - shard.doubles for shard in self.shards)

    @property
    def errors(self) -> int:
        return sum(shard.errors for shard in self.shards)


@dataclass(frozen=True, slots=True)
class _Winner:
    shard: int
    line: int
    status: str


def merge_records(
    shards: Sequence[Path], out: Path, *, force: bool = False, warn: Callable[[str], None]
) -> Merged:
    """Writes the rows of all shards to ``out``, in their order.

    Of several rows with the same key, ok wins over error, and then the later row wins. Rows are copied byte
    for byte. A truncated last line is left out, and ``warn`` is called with a message.

    :raises OutputError: ``out`` exists (unless ``force``), is locked, is not a regular file, or cannot be
        written.
    :raises NoInputError: a shard is missing.
    :raises LvspecError: a shard is not a file of records.
    """
    out = real_path(out, "name a file")
    exists = out.exists()
    with locked(out, and_itself=exists and force), ExitStack() as locks:
        if exists or out.exists():
            if not force:
                raise OutputError(f"{out} is there already", "name another file, or replace it with --force")
            locks.enter_context(locked_existing(out))
        winners, names = _choose(shards, warn)
        with replacing(out) as stream:
            counts = tuple(_copy(index, path, winners, stream) for index, path in enumerate(shards))
    return Merged(counts, names)


def _copy(index: int, path: Path, winners: Mapping[str, _Winner], stream: BinaryIO) -> Shard:
    rows, used, errors = 0, 0, 0
    for row in rows_of(path):
        if row.record is None:
            continue
        rows += 1
        if winners.get(row.record.key) == _Winner(index, row.number, row.record.status):
            used += 1
            errors += row.record.status == "error"
            stream.write(row.raw.rstrip(b"\r\n") + b"\n")
    return Shard(path, rows, rows - used, errors)


def _choose(
    shards: Sequence[Path], warn: Callable[[str], None]
) -> tuple[dict[str, _Winner], frozenset[bytes]]:
    """The row that is used for each key, and the names of all files."""
    winners: dict[str, _Winner] = {}
    names = set()
    for index, path in enumerate(shards):
        if path.exists() and not path.is_file():
            raise LvspecError(f"{path}: not a regular file", "save it first: shards are read twice")
        for row in rows_of(path):
            if row.record is None:
                warn(f"{path}, line {row.number}: cut off in its middle, left out")
                continue
            names.add(raw_name(row.record))
            old = winners.get(row.record.key)
            if old is None or prevails(row.record.status, old.status):
                winners[row.record.key] = _Winner(index, row.number, row.record.status)
    return winners, frozenset(names)
