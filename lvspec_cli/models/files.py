"""A model's files: where they are, how large each tensor is, and which of them is broken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.storage import cached_snapshot, missing_files
from lvspec_cli.text_file import LISTS, read_own


def folder_of(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a local model, or of a hub id's snapshot in the local cache: the network is not asked.

    :raises PairError: it is not there, or not all of it.
    """
    path, text = Path(source), str(source)
    if not path.is_dir():
        is_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
        if path.exists() or is_path:
            raise PairError(
                f"{source} is not a folder", "name a saved model's folder or a hub id, owner/name"
            )
        found = cached_snapshot(text, revision)
        if found is None:
            raise PairError(f"{text} is not in the local cache", _again(text))
        path = found
    if missing := missing_files(path):
        remedy = "name the folder of a saved model" if path == Path(source) else _again(text)
        raise PairError(f"{source} holds no {missing[0]}", remedy)
    return path


def tensor_sizes(folder: Path, name: str) -> dict[str, int]:
    """Bytes of every tensor in a folder's safetensors files, from their headers.

    :raises PairError: a file is cut short or is no safetensors file; it is named.
    """
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "np"):
                pass  # it compares what the header promises with the file's length
            sizes |= _sizes_of(file)
        except (
            SafetensorError,
            OSError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            RecursionError,
        ) as error:
            cause = " ".join(str(error).split())
            raise PairError(f"{file} is broken or cut short: {cause}", _again(name)) from error
    return sizes


def broken_file(folder: Path) -> Path | None:
    """The first of a folder's JSON files that is no JSON: for an error's message."""
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(read_own(file, LISTS))
        except (OSError, ValueError, RecursionError, UsageError):
            return file
    return None


def _sizes_of(file: Path) -> Mapping[str, int]:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    tensors = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: end - begin for name, (begin, end) in tensors.items()}


def _again(name: str) -> str:
    """How a file that is missing or broken is had."""
    if Path(name).is_dir():
        return "copy or download the folder again"
    return f"download it with: hf download {name}"
