"""Finished measurements on the disk, so that a run that was interrupted goes on where it was.

``measurements.jsonl``: a first line that says what is measured, then a line for each clip that was looked at
and each block that is done. A block is written whole, so that its ratios are of one process and one time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvspec_cli.bench.results import BenchSettings, Block, Environment, Item
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.output.files import sync_path, unwritable
from lvspec_cli.output.lock import locked

SCHEMA: Final = "lvspec.measurements.1"
FILE_NAME: Final = "measurements.jsonl"


class Header(BaseModel):
    """What decides whether measurements can be mixed: all that was asked for, of what, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["lvspec.measurements.1"] = Field(default=SCHEMA, alias="schema")
    settings: BenchSettings
    environment: Environment
    inputs: str  # a digest of the items and the files they are about


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    item: Item | None = None
    block: Block | None = None


def digest_of(facts: Sequence[Any]) -> str:
    """What tells one list of inputs from another, 32 hexadecimal digits."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """The file while a run goes on: what it held, and what is added."""

    def __init__(self, path: Path, descriptor: int, items: Sequence[Item], blocks: Sequence[Block]) -> None:
        self.path = path
        self.items = {item.id: item for item in items}
        self.blocks = {(block.item, block.repeat): block for block in blocks}
        self._descriptor = descriptor

    def add_item(self, item: Item) -> None:
        """Keeps what became known of an item when its clip was decoded.

        :raises OutputError: it cannot be written.
        """
        if self.items.get(item.id) != item:
            self._write(_Line(item=item))
            self.items[item.id] = item

    def add_block(self, block: Block) -> None:
        """Keeps a block; it is on the disk when this returns.

        :raises OutputError: it cannot be written.
        """
        self._write(_Line(block=block))
        self.blocks[block.item, block.repeat] = block

    def _write(self, line: BaseModel) -> None:
        try:
            _append(self._descriptor, line)
        except OSError as error:
            raise unwritable(self.path, error) from error


@contextmanager
def journal(folder: Path, header: Header, *, redo: bool = False) -> Iterator[Journal]:
    """Opens the folder's journal for this process alone, and makes it where there is none.

    :param redo: forget what it holds.
    :raises OutputError: another process is writing it, or it cannot be written.
    :raises UsageError: it is of another run, and ``redo`` is not set.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}", "name a folder that can be written"
        ) from error
    with locked(path):
        kept = _kept(path, header, redo)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            # A torn last line, and all of another run, goes.
            whole = b"".join(raw for raw, _ in kept)
            os.ftruncate(descriptor, len(whole))
            if not kept:
                _append(descriptor, header)
            sync_path(folder)
            lines = [line for _, line in kept if isinstance(line, _Line)]
            items = [line.item for line in lines if line.item]
            yield Journal(path, descriptor, items, [line.block for line in lines if line.block])
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            os.close(descriptor)


def _kept(path: Path, header: Header, redo: bool) -> list[tuple[bytes, Header | _Line]]:
    """The lines that stay, each with its bytes."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unwritable(path, error) from error
    lines = raw.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if redo or not lines:
        return []
    try:
        found = Header.model_validate_json(lines[0])
        kept = [(line, _Line.model_validate_json(line)) for line in lines[1:]]
    except ValidationError:
        raise UsageError(f"{path}: not measurements of this version", _REMEDY) from None
    difference = _difference(found, header)
    if difference:
        raise UsageError(f"{path} is of another run: {difference}", _REMEDY)
    return [(lines[0], found), *kept]


_REMEDY = "name another folder with --out, or add --redo to measure again"


def _difference(found: Header, wanted: Header) -> str:
    """The first fact in which two headers differ, in words; empty where they do not."""
    if found.inputs != wanted.inputs:
        return "its clips or questions differ"
    for part in ("settings", "environment"):
        old, new = (getattr(each, part).model_dump(mode="json") for each in (found, wanted))
        for name, value in new.items():
            if old[name] != value:
                return f"{name} was {json.dumps(old[name])}, is {json.dumps(value)}"
    return ""


def _append(descriptor: int, line: BaseModel) -> None:
    data = line.model_dump_json(by_alias=True, exclude_defaults=not isinstance(line, Header)).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
