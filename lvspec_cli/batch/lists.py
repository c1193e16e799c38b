"""Lists of inputs: paths, one a line, and jobs in CSV, TSV or JSONL."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lvspec_cli.batch.names import Input, absolute, location_in, names_of
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.text_file import LISTS, lines_of, read_file, text_with_names
from lvspec_cli.video.sample import parse_time
from lvspec_cli.video.source import shown

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_paths(raw: bytes, name: str, *, nul: bool = False) -> tuple[Path, ...]:
    """Reads paths, one a line or separated by NUL. Relative paths are relative to the current folder.

    :param name: the list's name in messages.
    :raises UsageError: there is a NUL in a list of lines.
    """
    paths = raw.split(b"\0") if nul else _lines(raw, name)
    return tuple(Path(os.fsdecode(path)) for path in paths if path)


def _lines(raw: bytes, name: str) -> list[bytes]:
    if b"\0" in raw:  # UTF-16 contains NULs; a file name may begin like UTF-16, but never contains a NUL
        try:
            raw = text_with_names(raw, name).encode("utf-8", "surrogateescape")
        except UsageError as error:
            raise UsageError(
                error.cause, f"add -0 if the paths are separated by NULs, else {error.remedy}"
            ) from None
    end = b"\n" if b"\n" in raw else b"\r"
    return [line.removesuffix(b"\r") for line in raw.removeprefix(BOM_UTF8).split(end) if line.strip()]


def is_jobs_file(path: Path) -> bool:
    """Whether ``path`` is a list of jobs and not a video, by its suffix."""
    return path.suffix.lower() in (".csv", ".tsv", ".jsonl")


def read_jobs(file: Path) -> tuple[Input, ...]:
    """The jobs in a CSV file with a header, or in a JSONL file.

    Each has a ``path``, and may have ``start``, ``end``, ``prompt`` and ``id``. The delimiter of CSV (comma,
    semicolon or tab) is detected from the header.

    Relative paths are relative to the file's folder. Times have the form of ``parse_time``. In JSONL times
    may also be numbers of seconds, and ``prompt`` may be a list.

    :raises NoInputError: the file cannot be read.
    :raises UsageError: a job is not valid; the cause names the line and the column.
    """
    try:
        text = text_with_names(read_file(file, LISTS), shown(file))
    except OSError as error:
        raise NoInputError(
            f"cannot read the jobs in {shown(file)}: {error.strerror}", "check the name and the permissions"
        ) from error
    rows = _json_rows if file.suffix.lower() == ".jsonl" else _csv_rows
    jobs, lines = [], dict[str, int]()
    for line, row in rows(text, file):
        job = _job(row, file, line)
        if job.id is not None and lines.setdefault(job.id, line) != line:
            what = f"id {job.id!r} is also that of line {lines[job.id]}"
            raise _wrong(file, line, what, "give each job its own")
        jobs.append(job)
    folder = absolute(file.parent)
    names = names_of([location_in(absolute(job.path), folder) for job in jobs])
    return tuple(replace(job, name=name) for job, name in zip(jobs, names, strict=True))


def _csv_rows(text: str, file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    delimiter = _delimiter(text, "\t" if file.suffix.lower() == ".tsv" else ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in map(_stripped, reader):
            if cells and not header:
                header = _header(cells, file, line)
            elif len(cells) > len(header):
                what = f"{len(cells)} cells under {len(header)} columns"
                raise _wrong(file, line, what, f'put a cell that has a {_DELIMITERS[delimiter]} in quotes: "')
            elif cells:
                yield line, _row(header, cells, delimiter)
            line = reader.line_num + 1
    except csv.Error as error:
        raise _wrong(file, line, f"not CSV ({error})", "double a quote inside a quoted cell") from None
    if not header:
        raise _wrong(file, 1, "no header", f"name the columns: {', '.join(JobRow.model_fields)}")


def _delimiter(text: str, default: str) -> str:
    """The most frequent delimiter in the header, which is the first line that is not empty."""
    header = next((line for _, line in lines_of(text) if line.strip(' ,;\t\n"')), "")
    return max((default, *_DELIMITERS), key=header.count)


def _stripped(cells: list[str]) -> list[str]:
    """A row without empty cells at its end, which spreadsheets add."""
    while cells and not cells[-1].strip():
        del cells[-1]
    return cells


def _row(header: list[str], cells: list[str], delimiter: str) -> Mapping[str, str]:
    row = {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()}
    if delimiter == ";":  # used in countries with a decimal comma
        row |= {name: row[name].replace(",", ".") for name in ("start", "end") if name in row}
    return row


def _header(cells: list[str], file: Path, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    for name in header:
        _check_field(name, file, line)
        if header.count(name) > 1:
            raise _wrong(file, line, f"column {name!r} twice", "keep one of them")
    if "path" not in header:
        raise _wrong(file, line, "no column path", f"name the columns: {', '.join(JobRow.model_fields)}")
    return header


def _json_rows(text: str, file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, content in lines_of(text):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            position = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            what = f"not JSON ({getattr(error, 'msg', error)}{position})"
            raise _wrong(file, line, what, "write one object a line") from None
        if not isinstance(row, dict):
            raise _wrong(file, line, "not an object", 'write {"path": "clip.mp4"}')
        for name in row:
            _check_field(name, file, line)
        yield line, {name: value for name, value in row.items() if value is not None}


def _check_field(name: str, file: Path, line: int) -> None:
    if name not in JobRow.model_fields:
        raise _wrong(
            file, line, f"unknown column or key {name!r}", f"known ones are {', '.join(JobRow.model_fields)}"
        )


def _job(row: Mapping[str, Any], file: Path, line: int) -> Input:
    if "path" not in row:
        raise _wrong(file, line, "no path", "name the video in path")
    origin = _origin(file, line)
    job = read_row(JobRow, row, origin)
    return Input(file.parent / job.path, b"", job.start, job.end, job.prompt, job.id, origin)


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"{value!r} is not a file's path", "write it as text")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise UsageError(f"{value!r} is not a file's path", "write it in UTF-8") from None
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        return parse_time(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"{value!r} is not a time", "write it as 90, 1:30 or 0:01:30.5")
    return float(value)


def _prompts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, value if isinstance(value, list) else [value]))


def _identifier(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{value!r} is not a text", "write what you mean")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{value!r} is not UTF-8", "save the file as UTF-8") from None
    return value.strip()


class ClipRow(BaseModel):
    """The fields of every list of clips: the file, and the stretch in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    start: float | None = None
    end: float | None = None

    @field_validator("path", "start", "end", "prompt", "id", mode="plain", check_fields=False)
    @classmethod
    def _read(cls, value: Any, field: ValidationInfo) -> Any:
        name = str(field.field_name)
        if value is None and name != "path":
            return None
        try:
            return _READERS[name](value)
        except (UsageError, ValueError, OverflowError) as error:  # the last two: a number has too many digits
            context = {"remedy": getattr(error, "remedy", ""), "cause": str(error)}
            raise PydanticCustomError("unfit", "{cause}", context) from None


class JobRow(ClipRow):
    """A line of a file of jobs."""

    prompt: tuple[str, ...] = ()
    id: str | None = None


_READERS: dict[str, Callable[[Any], Any]] = {
    "path": _file_name, "start": _seconds, "end": _seconds, "prompt": _prompts, "id": _identifier,
}  # fmt: skip
R = TypeVar("R", bound=ClipRow)


def read_row(
    kind: type[R], row: str | Mapping[str, Any], origin: str, late: str = "end: it is not after start"
) -> R:
    """Reads and checks one row of a list.

    :param row: an object as JSON, or its values by field.
    :param origin: the file and the line, for messages.
    :param late: the message if the end is not after the start.
    :raises UsageError: the row is not valid; the cause names the first wrong field.
    """
    try:
        values = kind.model_validate_json(row) if isinstance(row, str) else kind.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = ".".join(map(str, first["loc"])) or "the line"
        remedy = first.get("ctx", {}).get("remedy", f"its keys are {', '.join(kind.model_fields)}")
        raise UsageError(f"{origin}: {what}: {first['msg']}", remedy) from None
    if values.end is not None and values.end <= (values.start or 0.0):
        raise UsageError(f"{origin}: {late}", "choose a later end")
    return values


def _wrong(file: Path, line: int, what: str, remedy: str) -> UsageError:
    return UsageError(f"{_origin(file, line)}: {what}", remedy)


def _origin(file: Path, line: int) -> str:
    return f"{shown(file)}, line {line}"
