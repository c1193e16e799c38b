"""What a model's folder says of itself: read by transformers, but only after it was looked at.

A folder is not trusted. It may not name code, nor sizes that no model has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig

from lvspec_cli.errors import LvspecError, PairError
from lvspec_cli.models.chat import check_template
from lvspec_cli.models.files import broken_file
from lvspec_cli.storage import read_object

LOCAL: Final[Mapping[str, Any]] = {"local_files_only": True, "trust_remote_code": False}
LAYERS, WIDTH, WORDS, SIDE, AREA = 1000, 2**20, 2**21, 2**14, 2**31  # the most that any model has
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_AT_LEAST_ONE = frozenset(
    {"patch_size", "merge_size", "spatial_merge_size", "temporal_patch_size", "hidden_size", "vocab_size"}
)


def read_config(place: Path) -> Any:
    """A model's config.

    :param place: the model's folder, or the file itself.
    :raises PairError: it is broken, or describes no model that there could be.
    """
    file = place if place.is_file() else place / "config.json"
    check_sizes(read_object(file), file)
    with _named(place):
        config = AutoConfig.from_pretrained(place, **LOCAL)
        leave_kernels(config)
        return config


def read_processor(folder: Path) -> Any:
    """A model's processor, with its tokenizer and its chat template.

    :raises PairError: one of its files is broken or missing, or cannot be meant.
    """
    for file in (folder / name for name in _PROCESSORS):
        if file.is_file():
            check_sizes(read_object(file), file)
    with _named(folder):
        processor = AutoProcessor.from_pretrained(folder, **LOCAL)
        check_template(processor, str(folder))
        return processor


def read_tokenizer(folder: Path) -> Any:
    """A model's tokenizer alone; raises as ``read_processor`` does."""
    with _named(folder):
        return AutoTokenizer.from_pretrained(folder, **LOCAL)


def leave_kernels(config: Any) -> None:
    """A config, and those inside it, may ask for attention or experts by a repository of native code."""
    for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
        if hasattr(config, name):
            setattr(config, name, None)
    for inner in list(vars(config).values()):
        if isinstance(inner, PreTrainedConfig):
            leave_kernels(inner)


def check_sizes(values: Mapping[str, Any], file: Path) -> None:
    """
    :param values: a config's or a processor's, with mappings inside.
    :raises PairError: a number that would make building a model or a frame endless, or divide by 0.
    """
    areas = "merge_size" in values  # such processors count the pixels of a frame, others those of its edge
    for key, value in values.items():
        if isinstance(value, Mapping) and key != "quantization_config":
            check_sizes({"merge_size": 1, **value} if areas and key == "size" else value, file)
        elif isinstance(value, int | float) and not _is_sane(key, value, areas):
            raise PairError(
                f"{file}: {key} is {value:.6g}, which no model has", "copy or download the folder again"
            )


def _is_sane(key: str, value: float, areas: bool) -> bool:
    if key in _AT_LEAST_ONE and value < 1:
        return False
    if key.endswith("layers") or key == "depth":
        return value <= LAYERS
    if key == "vocab_size":
        return value <= WORDS
    if key.endswith("_edge"):
        return value <= (AREA if areas else SIDE)
    if key in ("height", "width", "image_size", "patch_size"):
        return value <= SIDE
    return (
        not key.endswith(("_size", "_dim", "_heads", "_seq_length", "_seq_len", "_tokens")) or value <= WIDTH
    )


@contextlib.contextmanager
def _named(place: Path) -> Iterator[None]:
    try:
        yield
    except (LvspecError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(str(place), place, error) from error


def unreadable(name: str, folder: Path, error: Exception) -> PairError:
    """What a library raised while it read a folder, as one line of cause and one of remedy."""
    broken = broken_file(folder)
    if broken is not None:
        return PairError(f"{broken} is broken or cut short", "download it again")
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    return PairError(f"{name} cannot be loaded: {cause}", "check or download the folder again")
