"""Finished measurements on the disk, so that a run that was interrupted goes on where it was.

``measurements.jsonl``: a first line that says what is measured where, then a line for each clip that was
looked at and each block that is done. A block is written whole, so that its ratios are of one process and
one time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvspec_cli import __version__
from lvspec_cli.bench.results import BenchSettings, Environment, differing_fields
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.figures.answers import Block, Item
from lvspec_cli.host import usable_cores
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.output.files import check_all_ours, check_still, sync_folder, sync_open, unwritable
from lvspec_cli.output.lock import locked, open_locked
from lvspec_cli.text_file import RECORDS, read_own
from lvspec_cli.types import Quantisation

SCHEMA: Final = "lvspec.measurements.1"
MARK: Final = b'{"schema":"lvspec.'  # what a file of lines begins with
FILE_NAME: Final = "measurements.jsonl"

H = TypeVar("H", bound=BaseModel)  # a file's header
L = TypeVar("L", bound=BaseModel)  # its other lines


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


@dataclass(frozen=True)
class Earlier:
    """All that a journal holds, read without opening it for more."""

    header: Header
    items: Mapping[str, Item]  # by id
    blocks: tuple[Block, ...]


def read_journal(folder: Path) -> Earlier | None:
    """The folder's journal; None where there is none.

    :raises OutputError: it cannot be read.
    :raises UsageError: it is of another version, or larger than any.
    """
    path = folder / FILE_NAME
    _, header, lines = _read(path, Header, _Line)
    if header is None:
        return None
    items = {line.item.id: line.item for line in lines if line.item}
    return Earlier(header, items, tuple(line.block for line in lines if line.block))


class Lines(Generic[L]):
    """A file of lines behind a header while a run goes on: those it held, and what is added."""

    def __init__(self, path: Path, descriptor: int, held: Sequence[L]) -> None:
        self.path = path
        self.held = tuple(held)
        self._descriptor = descriptor

    def add(self, line: L) -> None:
        """Keeps a line; it is on the disk when this returns.

        :raises OutputError: it cannot be written, or the file has gone.
        """
        try:
            check_still(self.path, self._descriptor)
            _append(self._descriptor, line)
        except OSError as error:
            raise unwritable(self.path, error) from error


class Journal:
    """The bench's measurements while a run goes on."""

    def __init__(self, lines: Lines[_Line]) -> None:
        self.path = lines.path
        self.items = {line.item.id: line.item for line in lines.held if line.item}
        blocks = (line.block for line in lines.held if line.block)
        self.blocks = {(block.item, block.repeat): block for block in blocks}
        self._lines = lines

    def add_item(self, item: Item) -> None:
        """Keeps what became known of an item when its clip was decoded.

        :raises OutputError: it cannot be written.
        """
        if self.items.get(item.id) != item:
            self._lines.add(_Line(item=item))
            self.items[item.id] = item

    def add_block(self, block: Block) -> None:
        """Keeps a block; it is on the disk when this returns.

        :raises OutputError: it cannot be written.
        """
        self._lines.add(_Line(block=block))
        self.blocks[block.item, block.repeat] = block


@contextmanager
def journal(folder: Path, header: Header, *, redo: bool = False) -> Iterator[Journal]:
    """Opens the folder's journal for this process alone, and makes it where there is none.

    :param redo: forget what it holds.
    :raises OutputError: another process is writing it, it is another's, or it cannot be written.
    :raises UsageError: it is of another run, and ``redo`` is not set.
    """
    with lines_of(folder / FILE_NAME, header, _Line, redo=redo) as lines:
        yield Journal(lines)


@contextmanager
def lines_of(path: Path, header: H, line: type[L], *, redo: bool = False) -> Iterator[Lines[L]]:
    """Opens a file of lines that go on where an earlier run stopped; raises as ``journal`` does.

    :param line: what its lines are.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}", "name a folder that can be written"
        ) from error
    with locked(path):
        check_all_ours(folder, {path.name: MARK})
        whole, held = _kept(path, header, line, redo)
        try:
            descriptor = open_locked(path)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            os.ftruncate(descriptor, len(whole))  # a torn last line, and all of another run, goes
            if not whole:
                _append(descriptor, header, exclude_defaults=False)
            sync_folder(folder)
            yield Lines(path, descriptor, held)
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            os.close(descriptor)


def _kept(path: Path, header: H, line: type[L], redo: bool) -> tuple[bytes, list[L]]:
    """The bytes that stay, and the lines behind the header."""
    if redo:
        return b"", []
    raw, found, held = _read(path, type(header), line)
    if found is not None and (differs := _difference(found, header)):
        raise UsageError(f"{path} is of another run: {differs}", _REMEDY)
    return raw, held


def _read(path: Path, header: type[H], line: type[L]) -> tuple[bytes, H | None, list[L]]:
    """A file's bytes up to its last whole line, and what they say; nothing where there is no file."""
    try:
        raw = read_own(path, RECORDS)
    except FileNotFoundError:
        return b"", None, []
    except OSError as error:
        raise unwritable(path, error) from error
    raw = raw[: raw.rfind(b"\n") + 1]
    if not raw:
        return b"", None, []
    first, *rest = raw.splitlines()
    try:
        return raw, header.model_validate_json(first), [line.model_validate_json(each) for each in rest]
    except ValidationError:
        raise UsageError(f"{path}: not measurements of this version", _REMEDY) from None


_REMEDY = "name another folder with --out, or add --redo to measure again"


def _difference(earlier: BaseModel, header: BaseModel) -> str:
    """The first fact in which two headers differ, in words; empty where they do not."""
    old, new = (each.model_dump(mode="json") for each in (earlier, header))
    if old.get("inputs") != new.get("inputs"):
        return "its clips or questions differ"
    for part in ("settings", "environment"):
        for name, was, now in differing_fields(old[part], new[part]):
            return f"{name} was {json.dumps(was)}, is {json.dumps(now)}"
    return ""


def _append(descriptor: int, line: BaseModel, *, exclude_defaults: bool = True) -> None:
    data = line.model_dump_json(by_alias=True, exclude_defaults=exclude_defaults).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]
    sync_open(descriptor)


# Those that decide speed: scikit-learn changes how generate() with an assistant proposes.
_PACKAGES = ("torch", "transformers", "bitsandbytes", "av", "numpy", "scikit-learn")


def environment_of(pair: LoadedPair) -> Environment:
    """The machine and the libraries, as this process uses them."""
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
        device_name=_device_name(device),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        target_dtype=_dtype(pair.target),
        draft_dtype=_dtype(pair.draft) if pair.draft else None,
        platform=f"{platform.system()} {platform.machine()}",
        versions=versions,
    )


def _dtype(loaded: LoadedModel) -> str:
    """What is computed in, and what the weights are kept in where that is another."""
    name = str(loaded.dtype).removeprefix("torch.")
    kept = loaded.quantisation
    return name if kept in (Quantisation.NONE, Quantisation.BF16) else f"{name} ({kept})"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() or platform.machine()


def _processor() -> str:
    """The processor's name: Linux says it in a file, other systems through ``platform``."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
