"""Finished measurements on disk, so that an interrupted run can be continued.

``measurements.jsonl`` starts with a header (what is measured, and where). A line follows for each item whose
clip was read or failed, and for each finished block. A block is written whole: it is of one process and time.
With ``--throughput`` there is a line for each run over all clips in place of the blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvspec_cli import __version__
from lvspec_cli.bench.results import BenchSettings, Environment, differing_fields
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import Block, Item
from lvspec_cli.figures.throughput import Run
from lvspec_cli.host import usable_cores
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.output.files import (
    check_all_ours,
    check_still,
    locked,
    make_folder,
    open_locked,
    sync_folder,
    unwritable,
    write_all,
)
from lvspec_cli.text_file import RECORDS, read_own
from lvspec_cli.types import Quantisation

SCHEMA: Final = "lvspec.measurements.1"
MARK: Final = b'{"schema":"lvspec.'  # the first bytes of such a file
FILE_NAME: Final = "measurements.jsonl"

H = TypeVar("H", bound=BaseModel)  # the header of a file
L = TypeVar("L", bound=BaseModel)  # its other lines


class Header(BaseModel):
    """Measurements can be mixed only if this is equal: the settings, the inputs, and the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["lvspec.measurements.1"] = Field(default=SCHEMA, alias="schema")
    settings: BenchSettings
    environment: Environment
    inputs: str  # a digest of the items and their files


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    item: Item | None = None
    block: Block | None = None
    run: Run | None = None


def digest_of(facts: Sequence[Any]) -> str:
    """A digest that identifies a list of inputs, 32 hexadecimal digits."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class JournalContent:
    """The content of a journal, read without opening it for writing."""

    header: Header
    items: Mapping[str, Item]  # by id
    blocks: tuple[Block, ...]


def read_journal(folder: Path) -> JournalContent | None:
    """The content of the folder's journal; None if there is no journal.

    :raises OutputError: it cannot be read.
    :raises UsageError: it was written by another version, or is too large.
    """
    path = folder / FILE_NAME
    _, header, lines = _read(path, Header, _Line)
    if header is None:
        return None
    items = {line.item.id: line.item for line in lines if line.item}
    return JournalContent(header, items, tuple(line.block for line in lines if line.block))


class LineFile(Generic[L]):
    """A JSONL file with a header, open for appending. ``stored``: its lines when it was opened."""

    def __init__(self, path: Path, descriptor: int, stored: Sequence[L]) -> None:
        self.path = path
        self.stored = tuple(stored)
        self._descriptor = descriptor

    def add(self, line: L) -> None:
        """Appends a line; it is on disk when this returns.

        :raises OutputError: it cannot be written, or the file was removed.
        """
        try:
            check_still(self.path, self._descriptor)
            _append(self._descriptor, line)
        except OSError as error:
            raise unwritable(self.path, error) from error


class Journal:
    """The measurements of a bench run, open for appending."""

    def __init__(self, lines: LineFile[_Line]) -> None:
        self.path = lines.path
        self.items = {line.item.id: line.item for line in lines.stored if line.item}
        blocks = (line.block for line in lines.stored if line.block)
        self.blocks = {(block.item, block.repeat): block for block in blocks}
        runs = (line.run for line in lines.stored if line.run)
        self.runs = {(run.mode, run.slots, run.repeat): run for run in runs}
        self._lines = lines

    def add_item(self, item: Item) -> None:
        """Stores an item with what decoding its clip has shown.

        :raises OutputError: it cannot be written.
        """
        if self.items.get(item.id) != item:
            self._lines.add(_Line(item=item))
            self.items[item.id] = item

    def add_block(self, block: Block) -> None:
        """Stores a block; it is on disk when this returns.

        :raises OutputError: it cannot be written.
        """
        self._lines.add(_Line(block=block))
        self.blocks[block.item, block.repeat] = block

    def add_run(self, run: Run) -> None:
        """Stores a run; it is on disk when this returns.

        :raises OutputError: it cannot be written.
        """
        self._lines.add(_Line(run=run))
        self.runs[run.mode, run.slots, run.repeat] = run


@contextmanager
def open_journal(folder: Path, header: Header, *, redo: bool = False) -> Iterator[Journal]:
    """Opens the folder's journal with an exclusive lock; creates it if there is none.

    :param redo: discard its content.
    :raises OutputError: another process is writing it, lvspec did not write it, or it cannot be written.
    :raises UsageError: it belongs to another run, and ``redo`` is not set.
    """
    with open_lines(folder / FILE_NAME, header, _Line, redo=redo) as lines:
        yield Journal(lines)


@contextmanager
def open_lines(path: Path, header: H, line: type[L], *, redo: bool = False) -> Iterator[LineFile[L]]:
    """Opens a JSONL file with a header to continue it; raises as ``open_journal`` does.

    :param line: the model of its lines.
    """
    folder = path.parent
    make_folder(folder)
    with locked(path):
        check_all_ours(folder, {path.name: MARK})
        whole, stored = _stored_lines(path, header, line, redo)
        try:
            descriptor = open_locked(path)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            os.ftruncate(descriptor, len(whole))  # drops an incomplete last line; with redo, everything
            if not whole:
                _append(descriptor, header, exclude_defaults=False)
            sync_folder(folder)
            yield LineFile(path, descriptor, stored)
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            os.close(descriptor)


def _stored_lines(path: Path, header: H, line: type[L], redo: bool) -> tuple[bytes, list[L]]:
    """The bytes to keep, and the lines after the header."""
    if redo:
        return b"", []
    raw, stored_header, stored = _read(path, type(header), line)
    if stored_header is not None and (differs := _difference(stored_header, header)):
        raise UsageError(f"{path} is of another run: {differs}", _REMEDY)
    return raw, stored


def _read(path: Path, header: type[H], line: type[L]) -> tuple[bytes, H | None, list[L]]:
    """A file's bytes up to its last complete line, its header and its other lines; empty without a file."""
    try:
        raw = read_own(path, RECORDS)
    except FileNotFoundError:
        return b"", None, []
    except OSError as error:
        raise unwritable(path, error) from error
    raw = raw[: raw.rfind(b"\n") + 1]
    if not raw:
        return b"", None, []
    first, *others = raw.splitlines()
    try:
        return raw, header.model_validate_json(first), [line.model_validate_json(text) for text in others]
    except ValidationError:
        raise UsageError(f"{path}: not measurements of this version", _REMEDY) from None


_REMEDY = "name another folder with --out, or add --redo to measure again"


def _difference(earlier: BaseModel, header: BaseModel) -> str:
    """The first difference between two headers, in words; empty if they are equal."""
    old, new = (side.model_dump(mode="json") for side in (earlier, header))
    if old.get("inputs") != new.get("inputs"):
        return "its clips or questions differ"
    for part in ("settings", "environment"):
        for name, before, after in differing_fields(old[part], new[part]):
            return f"{name} was {json.dumps(before)}, is {json.dumps(after)}"
    return ""


def _append(descriptor: int, line: BaseModel, *, exclude_defaults: bool = True) -> None:
    text = line.model_dump_json(by_alias=True, exclude_defaults=exclude_defaults)
    write_all(descriptor, text.encode() + b"\n")


# Packages that affect speed: with scikit-learn, generate() chooses the proposal length differently.
_PACKAGES = ("torch", "transformers", "bitsandbytes", "av", "numpy", "scikit-learn")


def environment_of(pair: LoadedPair) -> Environment:
    """The machine and the libraries of this process."""
    device = pair.target.device
    versions = {"lvspec": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda and device.type == "cuda":
        versions["cuda"] = torch.version.cuda
    return Environment(
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        target_dtype=_dtype(pair.target),
        draft_dtype=_dtype(pair.draft) if pair.draft else None,
        platform=f"{platform.system()} {platform.machine()}",
        versions=versions,
    )


def _dtype(loaded: LoadedModel) -> str:
    """The dtype of the computation, and the storage of the weights if it differs."""
    name = str(loaded.dtype).removeprefix("torch.")
    storage = loaded.quantisation
    return name if storage in (Quantisation.NONE, Quantisation.BF16) else f"{name} ({storage})"


def _processor() -> str:
    """The processor's name: from /proc/cpuinfo on Linux, elsewhere from ``platform``."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name") and (name := line.partition(":")[2].strip()):
                return name
    return platform.processor() or platform.machine()
