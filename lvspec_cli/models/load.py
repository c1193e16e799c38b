"""From a folder or a hub id to a model that is ready, or one clear line that says why not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from lvspec_cli.errors import LvspecError, PairError, UsageError
from lvspec_cli.models.attention import register
from lvspec_cli.models.families import family_of
from lvspec_cli.models.families.base import Family
from lvspec_cli.models.generation import GenerationRules, read_generation
from lvspec_cli.models.processing import quiet
from lvspec_cli.models.words import TokenSets, token_sets

Progress = Callable[[float], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """One model, in evaluation mode on its device, with what belongs to it."""

    name: str  # as the user gave it: folder or hub id
    model: Any
    processor: Any
    tokenizer: Any
    family: Family
    device: torch.device
    dtype: torch.dtype
    generation: GenerationRules
    vocabulary: int  # rows of the output head, padding included


@dataclass(frozen=True)
class LoadedPair:
    """A target and its draft; no draft in mode ar."""

    target: LoadedModel
    draft: LoadedModel | None
    words: TokenSets

    @property
    def shared_vocabulary(self) -> int:
        """Ids below this exist in both models and in their tokenizer; above are rows of padding."""
        models = [self.target] if self.draft is None else [self.target, self.draft]
        return min(len(self.target.tokenizer), *(model.vocabulary for model in models))


def load_pair(
    target_source: str | Path,
    draft_source: str | Path | None,
    *,
    target_revision: str | None = None,
    draft_revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> LoadedPair:
    """Load a target and its draft (``None``: target only).

    ``progress`` is called with a share from 0 to 1 of the two together. PairError when one cannot
    be had, is of an unknown family, or when the two do not share a tokenizer.
    """
    report = progress or _ignore
    end = 1.0 if draft_source is None else 0.8
    target = load_model(
        target_source,
        revision=target_revision,
        device=device,
        dtype=dtype,
        progress=lambda share: report(share * end),
    )
    draft = None
    if draft_source is not None:
        draft = load_model(
            draft_source,
            revision=draft_revision,
            device=device,
            dtype=dtype,
            progress=lambda share: report(end + share * (1 - end)),
        )
        check_tokenizers(target, draft)
    return LoadedPair(target, draft, token_sets(target.tokenizer, target.generation.end_ids))


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> LoadedModel:
    """Load one model from a local folder or, by its hub id, from the local cache; nothing is downloaded.

    Only safetensors are read and no code that comes with a model is run. ``device`` auto: a GPU
    where there is one. ``dtype`` auto: bfloat16 on a GPU, float32 on a CPU. PairError with cause
    and remedy when the model cannot be had or used; UsageError on an unknown device or dtype.
    """
    name = str(source)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    local = {"revision": revision, "local_files_only": True, "trust_remote_code": False}
    _check_source(source)
    with _explained(name), _reported(progress or _ignore):
        config = AutoConfig.from_pretrained(name, **local)
        family = family_of(getattr(config, "model_type", ""), name)
        _check_attention(config, name)
        processor = AutoProcessor.from_pretrained(name, **local)
        model, info = AutoModelForImageTextToText.from_pretrained(
            name,
            config=config,
            dtype=kind,
            use_safetensors=True,
            attn_implementation={"": "sdpa", "text_config": register()},
            output_loading_info=True,
            **local,
        )
        _check_weights(info, name)
        model = model.to(place).eval()
        generation = read_generation(model.generation_config, name)
    return LoadedModel(
        name=name,
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        family=family,
        device=place,
        dtype=kind,
        generation=generation,
        vocabulary=model.get_output_embeddings().weight.shape[0],
    )


def choose_device(name: str) -> torch.device:
    """``auto`` or a name that torch knows; UsageError when it is not one or not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used: {cause}", "use auto, cpu or cuda") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` or one of float32, bfloat16, float16."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        return DTYPES[name]
    except KeyError:
        raise UsageError(f"unknown dtype {name!r}", f"use auto, {', '.join(DTYPES)}") from None


def check_tokenizers(target: LoadedModel, draft: LoadedModel) -> None:
    """PairError, with the first token in question, when the two disagree on a shared id."""
    first, second = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    if first == second:
        return
    ours = {index: token for token, index in first.items()}
    theirs = {index: token for token, index in second.items()}
    for index in sorted(ours.keys() & theirs.keys()):
        if ours[index] != theirs[index]:
            raise PairError(
                f"{target.name} and {draft.name} do not share a tokenizer: token {index} is"
                f" {ours[index]!r} in the target and {theirs[index]!r} in the draft",
                "choose a draft of the target's family",
            )
    missing = next((index for index in target.generation.end_ids if index not in theirs), None)
    if missing is not None:
        raise PairError(
            f"{draft.name} has no token {missing}, which ends an answer of {target.name}",
            "choose a draft of the target's family",
        )


def _check_source(source: str | Path) -> None:
    path, text = Path(source), str(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PairError(f"{source} holds no config.json", "name the folder of a saved model")
        return
    is_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    if path.exists() or is_path:
        raise PairError(f"{source} is not a folder", "name a saved model's folder or a hub id, owner/name")


def _check_attention(config: Any, name: str) -> None:
    text = config.get_text_config()
    if any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or ()):
        raise PairError(
            f"{name} uses windowed attention, which is not supported", "choose a pair with full attention"
        )


def _check_weights(info: dict[str, Any], name: str) -> None:
    """A weight that is not in the files would be left random."""
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(kind) or ())
        if keys:
            raise PairError(
                f"{name} is incomplete: {len(keys)} weights are missing or of another shape ({keys[0]})",
                "download it again",
            )


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the libraries raise into one line of cause and one of remedy."""
    try:
        yield
    except LvspecError:
        raise
    except torch.OutOfMemoryError as error:
        raise PairError(f"{name} does not fit into the device's memory", "choose a smaller pair") from error
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        if not Path(name).is_dir():
            raise PairError(
                f"{name} is not in the local cache", f"download it with: hf download {name}"
            ) from error
        raise PairError(f"{name} cannot be loaded: {cause}", "check or download the folder again") from error


@contextlib.contextmanager
def _reported(progress: Progress) -> Iterator[None]:
    """Report the library's own progress bar as a share, and keep bar and notes off the terminal."""

    def bar(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bar:
        return _Bar(args[0] if args else kwargs.get("iterable"), kwargs.get("total"), progress)

    hook = transformers_logging.set_tqdm_hook(bar)
    try:
        progress(0.0)
        with quiet():
            yield
        progress(1.0)
    finally:
        transformers_logging.set_tqdm_hook(hook)


class _Bar:
    """As much of a tqdm bar as loading weights calls."""

    def __init__(self, items: Any, total: int | None, progress: Progress) -> None:
        self._items = items
        self._total = total or (len(items) if hasattr(items, "__len__") else 0)
        self._progress = progress

    def __iter__(self) -> Iterator[Any]:
        for count, item in enumerate(self._items, 1):
            yield item
            if self._total:
                self._progress(min(0.99, count / self._total))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _ignore


def _ignore(*_: Any, **__: Any) -> None:
    return
