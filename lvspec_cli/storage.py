"""Where a model's files are on this machine, and whether all of them are there. Nothing is downloaded."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lvspec_cli.errors import PairError
from lvspec_cli.registry import Source

Place = Literal["bundled", "folder", "cached", "not here"]
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
# What is taken of a repository: no pickles, no code, nothing in its folders.
TAKEN = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
LEFT = ("*/*", "consolidated*")


@dataclass(frozen=True)
class Stored:
    """What is known of one model's files. ``size`` in bytes; None where nothing is here."""

    place: Place
    folder: Path | None
    size: int | None = None
    parameters: int | None = None


def locate(source: Source) -> Stored:
    """Looks in the package, the folder, or the hub's local cache."""
    folder = source.path or _cached(source)
    if folder is None or missing_files(folder):
        return Stored("not here", None)
    files = sorted(folder.glob("*.safetensors"))
    place: Place = "bundled" if source.bundled else "folder" if source.folder else "cached"
    return Stored(
        place,
        folder,
        sum(file.stat().st_size for file in files),
        sum(count_parameters(file) for file in files),
    )


def require(source: Source, pair: str | None = None) -> Path:
    """The folder that holds the model; ``pair`` as the remedy is to name it.

    :raises PairError: not all of it is here; the remedy says how to get it.
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
        f"there is no folder {folder}", "mend its path in models.yaml, or choose another pair with --pair"
    )


def pinned(source: Source, folder: Path) -> Source:
    """The source with the revision that ``folder`` holds: a snapshot of the hub is named by its commit."""
    return source.model_copy(update={"revision": folder.name}) if source.repo else source


def missing_files(folder: Path) -> list[str]:
    """Which of the files that loading needs are not in the folder. An index may name no pickles."""
    missing = [name for name in ("config.json",) if not (folder / name).is_file()]
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        shards = {WEIGHTS}
    pickles = sorted(name for name in shards if not str(name).endswith(".safetensors"))
    missing += [f"safetensors in place of {name}" for name in pickles]
    return missing + sorted(name for name in shards.difference(pickles) if not (folder / name).is_file())


def count_parameters(file: Path) -> int:
    """Elements of all tensors of a safetensors file, from its header alone (0 where that is broken)."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
    except (OSError, ValueError, struct.error):
        return 0
    tensors = (entry for name, entry in header.items() if name != "__metadata__")
    return sum(math.prod(entry["shape"]) for entry in tensors)


def cached_snapshot(repo: str, revision: str | None = None) -> Path | None:
    """The folder of a repository's commit in the hub's local cache; None where there is none."""
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}").is_dir():
        return None  # without what the rest imports
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo,
            revision=revision,
            local_files_only=True,
            allow_patterns=list(TAKEN),
            ignore_patterns=list(LEFT),
        )
    except (LocalEntryNotFoundError, FileNotFoundError, ValueError):
        return None
    return Path(found)


def _cached(source: Source) -> Path | None:
    return cached_snapshot(source.repo or "", source.revision)
