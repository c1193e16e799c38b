"""A file of records, one a line, that survives kill -9, power cuts and full disks, and can be resumed.

Each row is written and synced before the next one, so that only the last line can be incomplete ("torn").
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
    locked,
    open_locked,
    real_path,
    replacing,
    sync_folder,
    unwritable,
    write_all,
)
from lvspec_cli.output.records import ODD, SCHEMA, Record, raw_name, read_record, to_line

_HEAD: Final = f'{{"schema": "{SCHEMA}", "key": "'.encode()
LONGEST: Final = 64 * 2**20  # bytes of a line; usual rows have a few thousand


@dataclass(frozen=True, slots=True)
class RowInfo:
    """The part of an existing row that resuming needs."""

    status: str  # ok or error
    error_kind: str | None
    name: bytes  # of the file, raw

    @classmethod
    def of(cls, record: Record) -> RowInfo:
        kind = record.error.kind if record.error else None
        return cls(record.status, kind, raw_name(record))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file. ``record`` is None for a torn last line."""

    number: int  # from 1
    start: int  # offset in bytes
    raw: bytes  # with its line feed, if it has one
    record: Record | None


class NotARecordError(ValueError):
    """A line is neither a record nor the beginning of one; the message names the line and the reason."""


def prevails(new: str, old: str) -> bool:
    """Whether the later of two rows with the same key counts, by their status: ok wins over error."""
    return new == "ok" or old != "ok"


def read_rows(stream: BinaryIO) -> Iterator[Row]:
    """All rows in order, with one in memory at a time. Blank lines and a byte order mark are skipped.

    :raises NotARecordError: at the first line that lvspec did not write.
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
    """The records of a file, which may be growing. ``warn`` is called for a torn last line, which is skipped.

    :raises NoInputError: there is no such file.
    :raises LvspecError: it cannot be read, or a line is not a record.
    """
    for row in rows_of(path):
        if row.record is None:
            warn(f"{path}, line {row.number}: cut off in its middle, left out")
        else:
            yield row.record


def rows_of(path: Path) -> Iterator[Row]:
    """All rows of a file, including a torn last one; raises as ``read_records`` does."""
    try:
        with path.open("rb") as stream:
            yield from read_rows(stream)
    except FileNotFoundError as error:
        raise NoInputError(f"{path}: no such file", "name a file of records") from error
    except OSError as error:
        raise LvspecError(f"{path}: {error.strerror or error}", "name a file of records") from error
    except NotARecordError as error:
        raise LvspecError(f"{path}, {error}", "name a file of records, or fix that line") from error


class RecordFile:
    """A file of records that only this process writes to. Close it, or use it as a context manager.

    ``existing`` has one entry for each key. Of two rows with the same key the ok one counts, else the later.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.existing: dict[str, RowInfo] = {}
        self._descriptor = descriptor  # opened for appending
        self._torn_at: int | None = None  # offset of a write that has not succeeded
        self._resources = ExitStack()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Locks the file, creates it if necessary, repairs its end and reads its rows.

        A torn last line is removed. A complete one that only lacks its line feed gets it.

        :raises OutputError: it is locked, is not a file of records (the cause names the line), cannot be
            written, or its folder does not exist.
        """
        # Links are resolved, so that a rewrite does not replace a link.
        path = real_path(path, "name a file, or send the records to stdout with --out -")
        with ExitStack() as stack, _as_output_error(path):
            stack.enter_context(locked(path, and_itself=True))
            file = cls(path, open_locked(path))
            stack.callback(lambda: os.close(file._descriptor))
            file._load()
            sync_folder(path.parent)
            file._resources = stack.pop_all()
            return file

    def append(self, record: Record) -> None:
        """Writes one row, and returns when it is on the disk.

        :raises OutputError: it cannot be written (earlier rows are safe), or the file was removed or moved.
        """
        with _as_output_error(self.path):
            check_still(self.path, self._descriptor)
            try:
                self._cut()
                self._torn_at = os.fstat(self._descriptor).st_size
                write_all(self._descriptor, to_line(record).encode() + b"\n")
            except OSError:
                with suppress(OSError):
                    self._cut()
                raise
        self._torn_at = None
        self._add(record)

    def remove(self, keys: Collection[str]) -> None:
        """Removes the rows with these keys by one atomic rewrite. Other rows stay byte for byte.

        :raises OutputError: it cannot be rewritten; the file is unchanged.
        """
        removed = self.existing.keys() & set(keys)
        if not removed:
            return
        with _as_output_error(self.path), ExitStack() as undo:
            check_still(self.path, self._descriptor)
            check_replaceable(self.path)
            with replacing(self.path) as copy, self.path.open("rb") as stream:
                for row in read_rows(stream):
                    if row.record is not None and row.record.key not in removed:
                        copy.write(row.raw)
                new = os.dup(copy.fileno())  # the copy is locked, and the lock stays under its new name
                undo.callback(os.close, new)
            undo.pop_all()
            old, self._descriptor = self._descriptor, new
        os.close(old)
        for key in removed:
            del self.existing[key]

    def check(self) -> None:
        """:raises OutputError: the file was removed, moved or replaced."""
        with _as_output_error(self.path):
            check_still(self.path, self._descriptor)

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _load(self) -> None:
        last, end = b"\n", 0
        with self.path.open("rb") as stream:
            for row in read_rows(stream):
                if row.record is not None:
                    self._add(row.record)
                    last, end = row.raw, row.start + len(row.raw)
        if end < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, end)
        write_all(self._descriptor, b"" if last.endswith(b"\n") else b"\n")

    def _add(self, record: Record) -> None:
        old = self.existing.get(record.key)
        if old is None or prevails(record.status, old.status):
            self.existing[record.key] = RowInfo.of(record)

    def _cut(self) -> None:
        if self._torn_at is not None:
            os.ftruncate(self._descriptor, self._torn_at)
            self._torn_at = None


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except NotARecordError as error:
        raise OutputError(f"{path}, {error}", "name another file, or fix that line") from error
    except OSError as error:
        raise unwritable(path, error) from error


def _parsed(raw: bytes) -> Record | None:
    try:
        return read_record(raw)
    except ValidationError:
        return None


def _reason(raw: bytes) -> str:
    """The reason why the line is not a record, in a few words."""
    if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "UTF-16, not UTF-8"
    try:
        read_record(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        reasons = {"json_invalid": "not JSON", "model_type": "not an object", "missing": f"no {field}"}
        reason = f"{field} {first['msg']}" if first["type"] == ODD else f"{field}: {first['msg']}"
        return reasons.get(first["type"], reason)
    return ""


def _is_torn(raw: bytes, earlier: int) -> bool:
    """Whether the line is the result of an interrupted write: the beginning of a row, or NULs after a power
    cut.

    :param earlier: the number of earlier rows; with at least one, it is certain that this is a file of
        records.
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
    """Whether the line is the last one. A line without a line feed was, even if the file has grown since."""
    return not raw.endswith(b"\n") or not stream.read(1)
