"""From a folder or a hub id to a model that is ready, or one clear line that says why not."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from transformers import AutoModelForImageTextToText
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from lvspec_cli.errors import LvspecError, NoRoomError, PairError, UsageError
from lvspec_cli.models.attention import register
from lvspec_cli.models.families import family_of
from lvspec_cli.models.families.base import Family
from lvspec_cli.models.generation import GenerationRules, first_difference, read_generation
from lvspec_cli.models.kernels import few_rows
from lvspec_cli.models.kernels.norms import fuse_norms
from lvspec_cli.models.processing import quiet
from lvspec_cli.models.prompt_length import positions_of
from lvspec_cli.models.quantise import (
    agreed,
    check_usable,
    compute_dtype,
    held_as,
    import_kernels,
    is_row_by_row,
    keep_inputs,
    kept_modules,
    quantisation_of_files,
    quantiser,
    read_as,
)
from lvspec_cli.models.read import LOCAL, read_config, read_processor, unreadable
from lvspec_cli.models.steps import Workspace, workspace_for
from lvspec_cli.models.words import TokenSets, token_sets
from lvspec_cli.pairs.files import folder_of, tensor_sizes
from lvspec_cli.types import Quantisation, Share

Progress = Callable[[int, int], None]  # bytes read, of how many


@dataclass(frozen=True)
class LoadedModel:
    """One model, in evaluation mode on its device, with what belongs to it."""

    name: str  # as the user gave it: folder or hub id
    model: Any
    processor: Any
    tokenizer: Any
    family: Family
    device: torch.device  # of its inputs and logits; some decoder layers may be on others
    dtype: torch.dtype  # that it computes in
    generation: GenerationRules
    vocabulary: int  # rows of the output head, padding included
    quantisation: Quantisation = Quantisation.NONE
    workspace: Workspace | None = None  # what captured passes need; without one every pass is run anew

    @property
    def positions(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        return positions_of(self.model.config.get_text_config())

    @property
    def full_precision(self) -> bool:
        """Whether a row's logits do not depend on the rows beside it, but for float32's rounding."""
        return self.dtype == torch.float32 and is_row_by_row(self.quantisation, self.device.type)


@dataclass(frozen=True)
class LoadedPair:
    """A target and its draft; no draft in mode ar."""

    target: LoadedModel
    draft: LoadedModel | None
    words: TokenSets

    @property
    def shared_vocabulary(self) -> int:
        return shared_vocabulary(self.target, self.draft)

    def release(self) -> None:
        """Give back what is kept of the last clip between clips: memory is short."""
        for loaded in (self.target, self.draft):
            if loaded is not None and loaded.workspace is not None:
                loaded.workspace.release()


def shared_vocabulary(target: LoadedModel, draft: LoadedModel | None) -> int:
    """Ids below this exist in both models and in their tokenizer; above are rows of padding."""
    models = [target] if draft is None else [target, draft]
    return min(len(target.tokenizer), *(model.vocabulary for model in models))


@dataclass(frozen=True)
class ModelRequest:
    """One model to load, and how.

    ``device`` auto: a GPU where there is one. ``dtype`` auto: float32 on a CPU, bfloat16 on a GPU that has
    it, on others float16 where the family bears it, else float32.
    ``shares``: which devices get how many decoder layers, in order; the first has all the rest, too. They
    replace ``device``. ``captured``: passes of an answer are captured as CUDA graphs where that works.
    """

    source: str | Path
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantisation: Quantisation = Quantisation.NONE
    shares: tuple[Share, ...] = ()
    captured: bool = True


def load_pair(
    target_source: str | Path,
    draft_source: str | Path | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> LoadedPair:
    """Load a target and its draft (``None``: target only) onto one device, as their files are."""
    draft = None if draft_source is None else ModelRequest(draft_source, device=device, dtype=dtype)
    return load_models(ModelRequest(target_source, device=device, dtype=dtype), draft, progress=progress)


def load_models(
    target: ModelRequest, draft: ModelRequest | None, *, progress: Progress | None = None
) -> LoadedPair:
    """Load a target and its draft (``None``: target only).

    ``progress`` is called with the bytes read of the two together. PairError when one cannot be had, is of
    an unknown family, does not fit, or when the two do not share a tokenizer.
    """
    report = progress or _ignore
    sizes = [_bytes_of(request) for request in (target, draft) if request is not None]
    total = sum(sizes)
    one = load_model(target, progress=lambda done, _: report(done, total))
    other = None
    if draft is not None:
        other = load_model(draft, progress=lambda done, _: report(sizes[0] + done, total))
        check_tokenizers(one, other)
    return LoadedPair(one, other, token_sets(one.tokenizer, one.generation.end_ids))


def load_model(
    request: ModelRequest | str | Path, *, progress: Progress | None = None, **how: Any
) -> LoadedModel:
    """Load one model from a local folder or, by its hub id, from the local cache; nothing is downloaded.

    ``how``: fields of a ModelRequest, for a source. Only safetensors are read and no code that comes with a
    model is run. PairError with cause and remedy when the model cannot be had or used; UsageError on an
    unknown device or dtype, or one that the quantisation excludes.
    """
    if not isinstance(request, ModelRequest):
        request = ModelRequest(request, **how)
    name = str(request.source)
    places = [choose_device(share.device) for share in request.shares] or [choose_device(request.device)]
    folder = folder_of(request.source, request.revision)
    with _explained(name, folder):
        config = read_config(folder)
        family = family_of(getattr(config, "model_type", ""), name)
        _check_attention(config, family, name)
        values = getattr(config, "quantization_config", None)
        files = quantisation_of_files(values, name)
        quantisation = held_as(agreed(request.quantisation, files, name), files, places[0].type)
        check_usable(quantisation, places[0], files)
        dtype = choose_dtype(request.dtype, places[0], quantisation, float16_is_safe=family.float16_is_safe)
        processor = read_processor(folder)
        check_words(processor.tokenizer, config.get_text_config().vocab_size, name)
        how = _placed(
            config, family, request.shares, places, dtype, Quantisation.NONE if files else quantisation
        )
        if files is not None:
            import_kernels(files)
            blocks = _skeleton(config, family)
            config.quantization_config, read = read_as(files, values, places[0].type, *blocks)
            how |= {"quantization_config": read} if read else {}
        with _reported(tensor_sizes(folder, name), progress or _ignore):
            model = _weights(folder, name, config, dtype, how)
        if files is Quantisation.FP8 and quantisation is Quantisation.NONE:
            model = model.to(dtype)  # it is unpacked in the type of its scales
        if places[0].type == "cpu" and quantisation in (Quantisation.NF4, Quantisation.INT8):
            keep_inputs(model, dtype)
        workspace = workspace_for(places, quantisation) if request.captured else None
        family.prepare(model)
        take_kernels(family.language(model), places, quantisation, captured=workspace is not None)
        generation = read_generation(model.generation_config, name)
    return LoadedModel(
        name=name,
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        family=family,
        device=places[0],
        dtype=dtype,
        generation=generation,
        vocabulary=model.get_output_embeddings().out_features,
        quantisation=quantisation,
        workspace=workspace,
    )


def take_kernels(
    language: Any, places: Sequence[torch.device], quantisation: Quantisation, *, captured: bool
) -> None:
    """Puts what is faster on a GPU in the place of parts of a language model that is whole on one."""
    if len(places) != 1 or places[0].type != "cuda":
        return
    fuse_norms(language)
    # Launched one by one these kernels would cost the host more than they save.
    if captured and quantisation is Quantisation.NF4 and few_rows.is_usable(places[0]):
        few_rows.take_few_rows(language)


def _placed(
    config: Any,
    family: Family,
    shares: Sequence[Share],
    places: Sequence[torch.device],
    dtype: torch.dtype,
    quantisation: Quantisation,
) -> dict[str, Any]:
    """Where and in what weights are put as they are read, as ``from_pretrained`` takes it.

    ``quantisation``: what is still to be done to the files.
    """
    whole = {"device_map": {"": str(places[0])}}
    if len(places) == 1 and quantisation in (Quantisation.NONE, Quantisation.BF16):
        return whole
    name, kept = _skeleton(config, family)
    if len(places) > 1:
        whole = {"device_map": device_map(kept, name, shares)}
    return {**whole, "quantization_config": quantiser(quantisation, dtype, kept, places[0].type)}


def _skeleton(config: Any, family: Family) -> tuple[str, list[str]]:
    """The name of the language model's blocks, and those of all that lies beside them."""
    with torch.device("meta"), quiet():
        model = AutoModelForImageTextToText.from_config(config)
    layers = family.layers(model)
    name = next(name for name, module in model.named_modules() if module is layers)
    return name, kept_modules(model, layers)


def _weights(folder: Path, name: str, config: Any, dtype: torch.dtype, how: Mapping[str, Any]) -> Any:
    flash = is_flash_attn_2_available() and dtype != torch.float32
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation={
            "": tower_attention(how["device_map"].values(), flash),
            "text_config": register(),
        },
        output_loading_info=True,
        **how,
        **LOCAL,
    )
    _check_weights(info, name)
    # Between devices the decoder itself moves what goes from layer to layer, once and not at every module.
    remove_hook_from_submodules(model)
    return model.eval()


def tower_attention(devices: Any, flash: bool) -> str:
    """The video tower's attention: flash attention's own package where all is on GPUs and it is installed.

    The language model's is torch's, which takes the flash kernels of its own where it can.
    """
    return "flash_attention_2" if flash and all(str(each).startswith("cuda") for each in devices) else "sdpa"


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


def choose_dtype(
    name: str,
    device: torch.device,
    quantisation: Quantisation = Quantisation.NONE,
    *,
    float16_is_safe: bool = False,
) -> torch.dtype:
    """What is computed in on a device: see :func:`lvspec_cli.models.quantise.compute_dtype`."""
    has_bfloat16 = device.type != "cuda" or _has_bfloat16(device)
    return compute_dtype(
        name, quantisation, device.type, has_bfloat16=has_bfloat16, float16_is_safe=float16_is_safe
    )


def _has_bfloat16(device: torch.device) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def check_tokenizers(target: LoadedModel, draft: LoadedModel) -> None:
    """PairError, with the first token in question, when the two disagree on a shared id."""
    theirs = draft.tokenizer.get_vocab()
    if found := first_difference(target.tokenizer.get_vocab(), theirs):
        index, our_token, their_token = found
        raise PairError(
            f"{target.name} and {draft.name} do not share a tokenizer: token {index} is"
            f" {our_token!r} in the target and {their_token!r} in the draft",
            "choose a draft of the target's family",
        )
    known = set(theirs.values())
    missing = next((index for index in target.generation.end_ids if index not in known), None)
    if missing is not None:
        raise PairError(
            f"{draft.name} has no token {missing}, which ends an answer of {target.name}",
            "choose a draft of the target's family",
        )


def check_words(tokenizer: Any, rows: int, name: str) -> None:
    """PairError when a tokenizer has tokens that the model has no row for."""
    most = max(tokenizer.get_vocab().values(), default=0)
    if most >= rows:
        raise PairError(
            f"the tokenizer of {name} has a token {most}, and the model has {rows}",
            "copy or download the folder again",
        )


def _check_attention(config: Any, family: Family, name: str) -> None:
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    known = {"full_attention", "linear_attention"} if family.has_states else {"full_attention"}
    # Mistral says by its window alone what others say layer by layer.
    windowed = bool(set(kinds) - known) if kinds else getattr(text, "sliding_window", None)
    if windowed:
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


def _bytes_of(request: ModelRequest) -> int:
    folder = folder_of(request.source, request.revision)
    return sum(tensor_sizes(folder, str(request.source)).values())


@contextlib.contextmanager
def _explained(name: str, folder: Path) -> Iterator[None]:
    """Turn what the libraries raise into one line of cause and one of remedy."""
    try:
        yield
        return
    except LvspecError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        traceback.clear_frames(error.__traceback__)  # they hold what was loaded
    except Exception as error:
        raise unreadable(name, folder, error) from error
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise NoRoomError(f"{name} does not fit into the device's memory", "choose a smaller pair") from None


@contextlib.contextmanager
def _reported(sizes: Mapping[str, int], progress: Progress) -> Iterator[None]:
    """Report the library's own progress bar in bytes, and keep bar and notes off the terminal."""
    total = sum(sizes.values())

    def bar(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bar:
        return _Bar(args[0] if args else kwargs.get("iterable"), sizes, progress)

    hook = transformers_logging.set_tqdm_hook(bar)
    try:
        progress(0, total)
        with quiet():
            yield
        progress(total, total)
    finally:
        transformers_logging.set_tqdm_hook(hook)


class _Bar:
    """As much of a tqdm bar as loading weights calls, over weights' names and where they come from."""

    def __init__(self, items: Any, sizes: Mapping[str, int], progress: Progress) -> None:
        self._items = items
        self._sizes = sizes
        self._progress = progress

    def __iter__(self) -> Iterator[Any]:
        done, total = 0, sum(self._sizes.values())
        for item in self._items:
            read = self._bytes_of(item)
            yield item
            done += read
            self._progress(min(done, total), total)

    def _bytes_of(self, item: Any) -> int:
        """Of the tensors that a weight is made of: a bar over anything else counts nothing."""
        if not (isinstance(item, tuple) and len(item) == 2):
            return 0
        sources = getattr(item[1], "collected_tensors", None) or (item[0],)
        return sum(self._sizes.get(str(source), 0) for source in sources)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _ignore


def _ignore(*_: Any, **__: Any) -> None:
    return


def device_map(kept: Sequence[str], layers: str, shares: Sequence[Share]) -> dict[str, str]:
    """Devices of a model's parts by their full names: all but the later shares' layers goes to the first.

    ``kept``: what lies beside the decoder layers; ``layers``: the name of their list.
    """
    found = dict.fromkeys(kept, shares[0].device)
    devices = [share.device for share in shares for _ in range(share.layers)]
    return found | {f"{layers}.{number}": device for number, device in enumerate(devices)}
