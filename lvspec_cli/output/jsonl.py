"""A file of records, one a line: it survives kill -9, power cuts and full disks, and resumes.

A row is written, flushed and synced before the next one begins, so that only the last line can be torn.
"""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Self

from pydantic import ValidationError

from lvspec_cli.errors import LvspecError, NoInputError, OutputError
from lvspec_cli.output.files import (
    check_replaceable,
    check_still,
    real_place,
    replacing,
    sync_folder,
    sync_open,
    unwritable,
)
from lvspec_cli.output.lock import locked, open_held
from lvspec_cli.output.records import ODD, SCHEMA, Record, raw_name, read_record, to_line

_HEAD: Final = f'{{"schema": "{SCHEMA}", "key": "'.encode()
LONGEST: Final = 64 * 2**20  # bytes of a line; of a row a few thousand are usual


@dataclass(frozen=True, slots=True)
class Kept:
    """What resuming needs to know of a row that is there."""

    status: str  # ok or error
    error_kind: str | None
    name: bytes  # of the file, raw

    @classmethod
    def of(cls, record: Record) -> Kept:
        kind = record.error.kind if record.error else None
        return cls(record.status, kind, raw_name(record))


@dataclass(frozen=True, slots=True)
class Row:
    """One line as it stands in the file. ``record`` is None for a torn last line."""

    number: int  # from 1
    start: int  # offset in bytes
    raw: bytes  # with its line feed, where it has one
    record: Record | None


class NotARecordError(ValueError):
    """A line that is neither a record nor the torn end of one; the message says which and why."""


def prevails(new: str, old: str) -> bool:
    """Of two rows with one key, whether the later one counts, given the status of both: ok beats error."""
    return new == "ok" or old != "ok"


def read_rows(stream: BinaryIO) -> Iterator[Row]:
    """All rows in order, one in memory at a time; blank lines and a byte order mark are passed over.

    :raises NotARecordError: as soon as a line is met that lvspec did not write.
    """
    start, earlier = 0, 0
    for number, raw in enumerate(iter(partial(stream.readline, LONGEST + 1), b""), start=1):
        if len(raw) > LONGEST:
            raise NotARecordError(f"line {number}: longer than {LONGEST // 2**20} MiB")
        if number == 1 and raw.startswith(BOM_UTF8):
            start, raw = len(BOM_UTF8), raw.removeprefix(BOM_UTF8)
        if raw.strip():
            record = _parsed(raw)
            if record is None and not (_is_torn(raw, earlier) and _is_last(raw, stream)):
                raise NotARecordError(f"line {number}: not a record of lvspec ({_reason(raw)})")
            yield Row(number, start, raw, record)
            earlier += 1
        start += len(raw)


def read_records(path: Path, warn: Callable[[str], None] = lambda message: None) -> Iterator[Record]:
    """The records of a file that may still be growing. A torn last line is passed over, and ``warn`` told.

    :raises NoInputError: there is no such file.
    :raises LvspecError: it cannot be read, or a line is not a record.
    """
    for row in rows_of(path):
        if row.record is None:
            warn(f"{path}, line {row.number}: cut off in its middle, left out")
        else:
            yield row.record


def rows_of(path: Path) -> Iterator[Row]:
    """All rows of a file, the torn one too; raises as ``read_records`` does."""
    try:
        with path.open("rb") as stream:
            yield from read_rows(stream)
    except FileNotFoundError as error:
        raise NoInputError(f"{path}: no such file", "name a file of records") from error
    except OSError as error:
        raise LvspecError(f"{path}: {error.strerror or error}", "name a file of records") from error
    except NotARecordError as error:
        raise LvspecError(f"{path}, {error}", "mend or remove that line") from error


class RecordFile:
    """A file of records that this process alone appends to. Close it, or use it as a context manager.

    ``kept`` has one entry a key. Of two rows with one key the ok one counts, else the later.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.kept: dict[str, Kept] = {}
        self._descriptor = descriptor  # appends, wherever the end is
        self._torn_at: int | None = None  # where a write began that has not ended well
        self._held = ExitStack()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Locks the file, makes it where there is none, mends its end and reads what it holds.

        A torn last line is cut off. A whole one that only lacks its line feed gets it.

        :raises OutputError: it is locked, is not a file of records (the cause names the line), cannot be
            written, or its folder is not there.
        """
        # A rewrite leaves a link in place.
        path = real_place(path, "name a file, or send the records to stdout with --out -")
        with ExitStack() as held, _explained(path):
            held.enter_context(locked(path, and_itself=True))
            file = cls(path, open_held(path))
            held.callback(lambda: os.close(file._descriptor))
            file._load()
            sync_folder(path.parent)
            file._held = held.pop_all()
            return file

    def append(self, record: Record) -> None:
        """Writes one row, which is on the disk when this returns.

        :raises OutputError: it could not be written; the rows before it stand. Or the file has gone.
        """
        with _explained(self.path):
            check_still(self.path, self._descriptor)
            try:
                self._cut()
                self._torn_at = os.fstat(self._descriptor).st_size
                self._write(to_line(record).encode() + b"\n")
            except OSError:
                with suppress(OSError):
                    self._cut()
                raise
        self._torn_at = None
        self._keep(record)

    def remove(self, keys: Collection[str]) -> None:
        """Takes out every row with one of these keys by one atomic rewrite; the others stay byte for byte.

        :raises OutputError: it cannot be rewritten; the file is as it was.
        """
        gone = self.kept.keys() & set(keys)
        if not gone:
            return
        with _explained(self.path), ExitStack() as undo:
            check_still(self.path, self._descriptor)
            check_replaceable(self.path)
            with replacing(self.path) as copy, self.path.open("rb") as stream:
                for row in read_rows(stream):
                    if row.record is not None and row.record.key not in gone:
                        copy.write(row.raw)
                new = os.dup(copy.fileno())  # the copy is held, and stays so under its new name
                undo.callback(os.close, new)
            undo.pop_all()
            old, self._descriptor = self._descriptor, new
        os.close(old)
        for key in gone:
            del self.kept[key]

    def check(self) -> None:
        """:raises OutputError: the file was removed, moved or replaced, and the rows with it."""
        with _explained(self.path):
            check_still(self.path, self._descriptor)

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _load(self) -> None:
        last, end = b"\n", 0
        with self.path.open("rb") as stream:
            for row in read_rows(stream):
                if row.record is not None:
                    self._keep(row.record)
                    last, end = row.raw, row.start + len(row.raw)
        if end < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, end)
        self._write(b"" if last.endswith(b"\n") else b"\n")

    def _keep(self, record: Record) -> None:
        old = self.kept.get(record.key)
        if old is None or prevails(record.status, old.status):
            self.kept[record.key] = Kept.of(record)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
        sync_open(self._descriptor)

    def _cut(self) -> None:
        if self._torn_at is not None:
            os.ftruncate(self._descriptor, self._torn_at)
            self._torn_at = None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except NotARecordError as error:
        raise OutputError(f"{path}, {error}", "name another file, or mend that line") from error
    except OSError as error:
        raise unwritable(path, error) from error


def _parsed(raw: bytes) -> Record | None:
    try:
        return read_record(raw)
    except ValidationError:
        return None


def _reason(raw: bytes) -> str:
    """In a few words why the line is no record."""
    if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "UTF-16, not UTF-8"
    try:
        read_record(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        words = {"json_invalid": "not JSON", "model_type": "not an object", "missing": f"no {place}"}
        said = f"{place} {first['msg']}" if first["type"] == ODD else f"{place}: {first['msg']}"
        return words.get(first["type"], said)
    return ""


def _is_torn(raw: bytes, earlier: int) -> bool:
    """Whether the line is what an interrupted write leaves: a row's beginning, or NULs after a power cut.

    :param earlier: how many rows came before; after the first the file is known to be one of records.
    """
    unfinished = b"\0" in raw or not raw.endswith(b"\n")
    ours = earlier > 0 or _HEAD.startswith(raw.strip(b"\0\r\n")[: len(_HEAD)])
    return unfinished and ours and not _is_json(raw)


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _is_last(raw: bytes, stream: BinaryIO) -> bool:
    """A line without its end is the last, even where the file has grown since it was read."""
    return not raw.endswith(b"\n") or not stream.read(1)
