"""A model's files on this machine: their folder, whether they are complete, and the size of each tensor.

Nothing is downloaded. For models that are not on this machine the package contains the configs of the
shipped pairs.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.pairs.registry import Pair, Source
from lvspec_cli.text_file import LISTS, MIB, read_file, read_own

Location = Literal["bundled", "folder", "cached", "not downloaded", "missing"]
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MTP_PREFIX = "mtp."  # of the names of a prediction layer's tensors
# Files that are downloaded from a repository: no pickles, no code, nothing in its subfolders.
ALLOWED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
IGNORED_FILES = ("*/*", "consolidated*")
_JSON = 64 * MIB  # largest config or index that is read
CONFIGS = Path(__file__).parent / "configs"  # of the shipped pairs' hub repositories


@dataclass(frozen=True)
class Stored:
    """The files of one model on this machine. ``size`` in bytes; None if the files are not here."""

    place: Location
    folder: Path | None
    size: int | None = None
    parameters: int | None = None


def locate(source: Source) -> Stored:
    """Looks for a model in the package, in the named folder, or in the hub's local cache."""
    folder = source.path or _cached(source)
    if folder is None or missing_files(folder):
        return Stored("missing" if source.path else "not downloaded", None)
    files = sorted(folder.glob("*.safetensors"))
    location: Location = "bundled" if source.bundled else "folder" if source.folder else "cached"
    return Stored(
        location,
        folder,
        sum(file.stat().st_size for file in files),
        sum(count_parameters(file) for file in files),
    )


def locate_draft(pair: Pair) -> Stored:
    """As ``locate``, for a pair's draft. A prediction layer is where its target is, if that carries one."""
    return locate_mtp(pair.target) if pair.draft.mtp else locate(pair.draft)


def locate_mtp(target: Source) -> Stored:
    """The prediction layer in a target's files: missing if they have none."""
    stored = locate(target)
    if stored.folder is None:
        return stored
    shapes = mtp_tensors(stored.folder)
    if not shapes:
        return Stored("missing", None)
    parameters = sum(math.prod(entry["shape"]) for entry in shapes.values())
    size = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in shapes.values())
    return replace(stored, size=size, parameters=parameters)


def mtp_tensors(folder: Path) -> dict[str, Any]:
    """The prediction layer's tensors in a folder's safetensors files: name -> its entry in the header.

    Only headers are read. A file with a broken header counts as one without such tensors.
    """
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: entry for name, entry in read_header(file).items() if name.startswith(MTP_PREFIX)}
    return found


def require_mtp(target: Source, folder: Path) -> None:
    """
    :param folder: of the target's files.
    :raises PairError: they have no prediction layer.
    """
    if not mtp_tensors(folder):
        tensor_sizes(folder, target.name)  # a broken file is an error of its own
        raise PairError(
            f"{target.name} has no prediction layer: no tensor {MTP_PREFIX}* in the files in {folder}",
            "leave out --draft mtp, or choose a Qwen3.5 pair; copies that were quantised often lack it",
        )


def require(source: Source, pair: str | None = None) -> Path:
    """The folder with the model's files.

    :param pair: the pair's name, for the remedy.
    :raises PairError: files are missing; the remedy says how to get them.
    """
    folder = source.path or _cached(source)
    missing = missing_files(folder) if folder else []
    if folder is not None and not missing:
        return folder
    if source.repo:
        size = f" ({source.size})" if source.size else ""
        absent = f": no {missing[0]}" if missing else ""
        revision = f" --revision {source.revision}" if source.revision else ""
        raise PairError(
            f"{source.repo}{size} is not wholly in the local cache{absent}",
            "download it with: "
            + (f"lvspec models pull {pair}" if pair else f"hf download {source.repo}{revision}"),
        )
    if folder is not None and folder.is_dir():
        raise PairError(f"{folder} holds no {missing[0]}", "name a folder that from_pretrained can read")
    raise PairError(
        f"there is no folder {folder}", "fix its path in models.yaml, or choose another pair with --pair"
    )


def pinned(source: Source, folder: Path) -> Source:
    """The source with the revision in ``folder``: the hub's cache names a snapshot's folder by its commit."""
    return source.model_copy(update={"revision": folder.name}) if source.repo else source


def missing_files(folder: Path) -> list[str]:
    """The files that loading needs and that are not in the folder.

    An index must not name pickles or files outside the folder. Only names are checked, because files in the
    hub's cache are links to another folder.
    """
    missing = [name for name in ("config.json",) if not (folder / name).is_file()]
    try:
        shards = shards_of(read_object(folder / INDEX)) if (folder / INDEX).is_file() else {WEIGHTS}
    except PairError:
        return [*missing, f"{INDEX} that can be read"]
    pickles = {name for name in shards if not name.endswith(".safetensors")}
    outside = {name for name in shards - pickles if "/" in name or "\\" in name}
    missing += [f"safetensors in place of {name}" for name in sorted(pickles)]
    missing += [f"weights of its own in place of {name}" for name in sorted(outside)]
    return missing + sorted(name for name in shards - pickles - outside if not (folder / name).is_file())


def shards_of(index: Mapping[str, Any]) -> set[str]:
    """The files that an index names.

    :raises PairError: it is not an index.
    """
    weights = index.get("weight_map")
    names = list(weights.values()) if isinstance(weights, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise PairError(f"{INDEX} names no files", "download it again")
    return set(names)


def read_object(file: Path) -> dict[str, Any]:
    """The object in one of a model's JSON files.

    :raises PairError: the file cannot be read, or holds no object; the cause names the file.
    """
    try:
        content = json.loads(read_file(file, _JSON))
    except (OSError, ValueError, RecursionError, UsageError) as error:
        cause = " ".join(str(error).split())
        raise PairError(f"{file} is broken or cut short: {cause}", "download or copy it again") from error
    if not isinstance(content, dict):
        raise PairError(f"{file} is broken or cut short: no object", "download or copy it again")
    return content


def count_parameters(file: Path) -> int:
    """Number of elements of a model's tensors in a safetensors file, by its header (0 if that is broken).

    A prediction layer does not count: transformers does not load it, nor does its config tell of it.
    """
    header = read_header(file)
    return sum(math.prod(header[name]["shape"]) for name in header if not name.startswith(MTP_PREFIX))


def read_header(file: Path) -> dict[str, Any]:
    """Shape and place of every tensor in a safetensors file, by its header; empty if the header is broken."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for entry in tensors.values():
            math.prod(entry["shape"])
            _, _ = entry["data_offsets"]
        return tensors
    except (OSError, ValueError, struct.error, RecursionError, AttributeError, TypeError, KeyError):
        return {}


def cached_snapshot(repo: str, revision: str | None = None) -> Path | None:
    """The folder of a repository's commit in the hub's local cache, or None."""
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}").is_dir():
        return None  # before the slow import
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(
            repo,
            revision=revision,
            local_files_only=True,
            allow_patterns=list(ALLOWED_FILES),
            ignore_patterns=list(IGNORED_FILES),
        )
    except (LocalEntryNotFoundError, FileNotFoundError, ValueError):
        return None
    return Path(snapshot)


def _cached(source: Source) -> Path | None:
    return cached_snapshot(source.repo or "", source.revision)


def folder_of(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a local model, or of a hub id's snapshot in the local cache. The network is not used.

    :raises PairError: the folder or some of its files are missing.
    """
    path, text = Path(source), str(source)
    if not path.is_dir():
        is_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
        if path.exists() or is_path:
            raise PairError(
                f"{source} is not a folder", "name a saved model's folder or a hub id, owner/name"
            )
        snapshot = cached_snapshot(text, revision)
        if snapshot is None:
            raise PairError(f"{text} is not in the local cache", _download_remedy(text))
        path = snapshot
    if missing := missing_files(path):
        remedy = "name the folder of a saved model" if path == Path(source) else _download_remedy(text)
        raise PairError(f"{source} holds no {missing[0]}", remedy)
    return path


def tensor_sizes(folder: Path, name: str) -> dict[str, int]:
    """Bytes of every tensor in a folder's safetensors files, by their headers.

    :raises PairError: a file is truncated or is not a safetensors file; the cause names it.
    """
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "np"):
                pass  # opening compares the header with the file's length
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
            raise PairError(f"{file} is broken or cut short: {cause}", _download_remedy(name)) from error
    return sizes


def broken_file(folder: Path) -> Path | None:
    """The first of a folder's JSON files that cannot be read, for an error's message."""
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


def _download_remedy(name: str) -> str:
    """The remedy for a file that is missing or broken."""
    if Path(name).is_dir():
        return "copy or download the folder again"
    return f"download it with: hf download {name}"


def known_config(repo: str) -> Path | None:
    """The config that the package contains for a hub repository: its size is known before the download."""
    path = CONFIGS / f"{repo.replace('/', '--')}.json"
    return path if path.is_file() else None


def config_path(source: Source, folder: Path | None) -> Path:
    """The model's own config if it is on this machine, else the one in the package.

    :raises PairError: neither exists.
    """
    known = known_config(source.repo) if source.repo else None
    for path in (folder / "config.json" if folder else None, known):
        if path is not None and path.is_file():
            return path
    raise PairError(
        f"{source.name} is not on this machine, and its size is not known beforehand",
        "download it, or name a folder with a config.json",
    )
