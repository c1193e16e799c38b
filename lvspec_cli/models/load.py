"""Loads models from a folder or by a hub id, and turns failures into errors with cause and remedy."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from lvspec_cli.errors import LvspecError, NoRoomError, PairError, UsageError
from lvspec_cli.models.attention import register
from lvspec_cli.models.constraint import tokens_for_grammars
from lvspec_cli.models.families import family_of
from lvspec_cli.models.families.base import Family
from lvspec_cli.models.generation import GenerationRules, first_difference, read_generation
from lvspec_cli.models.kernels import small_batch
from lvspec_cli.models.kernels.cpu_linear import replace_linear_layers
from lvspec_cli.models.kernels.fused import FusedLayers, fuse_layers, packed_product, triton_operations
from lvspec_cli.models.kernels.norms import fuse_norms
from lvspec_cli.models.kernels.packed import pack_linear_layers
from lvspec_cli.models.kernels.patches import multiply_patches
from lvspec_cli.models.kernels.windows import join_windows
from lvspec_cli.models.processing import makes_the_same, quiet
from lvspec_cli.models.prompt_length import positions_of
from lvspec_cli.models.quantise import (
    check_usable,
    compute_dtype,
    config_of_files,
    effective_quantisation,
    import_kernels,
    in_memory_quantisation,
    is_row_by_row,
    keep_inputs,
    packed_kind,
    quantisation_of_files,
    quantiser,
    unconverted_modules,
)
from lvspec_cli.models.read import LOCAL, read_config, read_processor, unreadable
from lvspec_cli.models.steps import Workspace, workspace_for
from lvspec_cli.models.words import TokenSets, token_sets
from lvspec_cli.pairs.files import folder_of, tensor_sizes
from lvspec_cli.types import Quantisation, Share

Progress = Callable[[int, int], None]  # bytes read, bytes in total


@dataclass(frozen=True)
class LoadedModel:
    """One model, in evaluation mode on its device, with its processor, tokenizer and generation rules."""

    name: str  # as the user gave it: folder or hub id
    model: Any
    processor: Any
    tokenizer: Any
    family: Family
    device: torch.device  # of its inputs and logits; some decoder layers may be on other devices
    dtype: torch.dtype  # the compute dtype
    generation: GenerationRules
    vocabulary: int  # rows of the output head as it is in the files, padding included
    quantisation: Quantisation = Quantisation.NONE
    workspace: Workspace | None = None  # memory of captured passes; without it every pass runs eagerly
    fused: FusedLayers | None = None  # its decoder layers, for captured passes of few rows
    proposes: int | None = None  # as a draft, only ids below: its head computes no others
    is_prediction_layer: bool = False  # of the target, see ``models.mtp``; all else here is the target's

    @cached_property
    def grammar_tokens(self) -> Any:
        """The tokenizer for grammars of constrained answers, made at the first of them."""
        return tokens_for_grammars(self.tokenizer, self.generation.end_ids)

    @property
    def positions(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return positions_of(self.model.config.get_text_config())

    @property
    def reads_in_8_bits(self) -> bool:
        """Whether a pass over a clip may round its inputs to 8 bits, which no pass of fewer rows does: see
        ``models.kernels.fp8``."""
        return self.quantisation is Quantisation.FP8 and self.device.type == "cuda"

    @property
    def keeps_rows_apart(self) -> bool:
        """Whether rows of several answers in one pass are what they are in passes of their own."""
        if self.full_precision:
            return True
        fused = self.fused
        captures = self.workspace is not None and self.workspace.captures_together
        return captures and fused is not None and fused.joins > 0 and fused.rows_stand_alone

    @property
    def full_precision(self) -> bool:
        """Whether a row's logits do not depend on the pass's other rows, except for rounding of float32."""
        return self.dtype == torch.float32 and is_row_by_row(self.quantisation, self.device.type)


@dataclass(frozen=True)
class LoadedPair:
    """A target and its draft, which is None in mode ar."""

    target: LoadedModel
    draft: LoadedModel | None
    words: TokenSets

    @property
    def shared_vocabulary(self) -> int:
        return shared_vocabulary(self.target, self.draft)

    @cached_property
    def processes_once(self) -> bool:
        """Whether target and draft take the same tensors of a clip."""
        return self.draft is not None and makes_the_same(self.draft.processor, self.target.processor)

    def release(self) -> None:
        """Free the memory that is kept from the last clip. Called when memory is short."""
        for loaded in (self.target, self.draft):
            if loaded is not None and loaded.workspace is not None:
                loaded.workspace.release()


def shared_vocabulary(target: LoadedModel, draft: LoadedModel | None) -> int:
    """The ids below this number exist in both models and in their tokenizer. Higher ids are padding."""
    models = [target] if draft is None else [target, draft]
    return min(len(target.tokenizer), *(model.vocabulary for model in models))


def proposed_vocabulary(target: LoadedModel, draft: LoadedModel | None) -> int:
    """Of the ids that exist in both models, the draft proposes those below this number."""
    shared = shared_vocabulary(target, draft)
    return shared if draft is None or draft.proposes is None else min(shared, draft.proposes)


@dataclass(frozen=True)
class ModelRequest:
    """One model to load, and how.

    ``device`` auto: a GPU if there is one. ``dtype`` auto: float32 on a CPU, bfloat16 on a GPU that has it;
    on other GPUs float16 if it is safe for the family, else float32.
    ``shares``: devices and their numbers of decoder layers, in order. The first device also gets everything
    that is not a decoder layer. Shares replace ``device``.
    ``captured``: passes of an answer are captured as CUDA graphs if that works.
    ``proposes``: as a draft, only ids below this one; None: all.
    """

    source: str | Path
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantisation: Quantisation = Quantisation.NONE
    shares: tuple[Share, ...] = ()
    captured: bool = True
    proposes: int | None = None


def load_pair(
    target_source: str | Path,
    draft_source: str | Path | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> LoadedPair:
    """Load a target and its draft (``None``: target only) onto one device, with their files' quantisation."""
    draft = None if draft_source is None else ModelRequest(draft_source, device=device, dtype=dtype)
    return load_models(ModelRequest(target_source, device=device, dtype=dtype), draft, progress=progress)


def load_models(
    target: ModelRequest,
    draft: ModelRequest | None,
    *,
    contraries: Sequence[str] = (),
    progress: Progress | None = None,
) -> LoadedPair:
    """Load a target and its draft (``None``: target only).

    :param contraries: words that must not replace each other, as :func:`token_sets` takes them.
    :param progress: called with the bytes read of both models together.
    :raises PairError: a model is missing, is of an unknown family or does not fit, or the two do not share a
        tokenizer.
    """
    report = progress or _ignore
    requests = [request for request in (target, draft) if request is not None]
    sizes = [_bytes_of(request) for request in requests]
    total = sum(sizes)
    files = [_read_files(request) for request in requests]  # both, before weights are read for minutes
    loaded_target, loaded_draft = _load(files[0], lambda done, _: report(done, total)), None
    if draft is not None:
        loaded_draft = _load(files[1], lambda done, _: report(sizes[0] + done, total))
        check_tokenizers(loaded_target, loaded_draft)
    words = token_sets(loaded_target.tokenizer, loaded_target.generation.end_ids, contraries)
    return LoadedPair(loaded_target, loaded_draft, words)


def load_model(
    request: ModelRequest | str | Path, *, progress: Progress | None = None, **options: Any
) -> LoadedModel:
    """Load one model from a local folder or, by its hub id, from the local cache. Nothing is downloaded.

    Only safetensors are read, and code in a model's folder is not run.

    :param options: if ``request`` is a source, the other fields of its ModelRequest.
    :raises PairError: the model is missing or cannot be used.
    :raises UsageError: the device or the dtype is unknown, or the quantisation excludes it.
    """
    if not isinstance(request, ModelRequest):
        request = ModelRequest(request, **options)
    return _load(_read_files(request), progress or _ignore)


@dataclass(frozen=True)
class _Files:
    """What is read of a model before its weights."""

    request: ModelRequest
    name: str
    folder: Path
    config: Any
    family: Family
    processor: Any


def _read_files(request: ModelRequest) -> _Files:
    """Reads a model's config, processor, tokenizer and template; raises as ``load_model`` does."""
    name, folder = str(request.source), folder_of(request.source, request.revision)
    with _as_pair_error(name, folder):
        config = read_config(folder)
        family = family_of(getattr(config, "model_type", ""), name)
        _check_attention(config, family, name)
        processor = read_processor(folder)
        check_vocabulary(processor.tokenizer, config.get_text_config().vocab_size, name)
    return _Files(request, name, folder, config, family, processor)


def _load(read: _Files, progress: Progress) -> LoadedModel:
    """Loads the model of these files."""
    with _as_pair_error(read.name, read.folder):
        how = _Setup.of(read)
        model = _weights(read, how, progress)
        read.family.prepare(model)
        return _loaded(read, how, model)


@dataclass(frozen=True)
class _Setup:
    """Where a model goes, and in what its weights are kept and computed."""

    devices: Sequence[torch.device]
    files: Quantisation | None  # how the files are quantised
    quantisation: Quantisation  # in memory
    dtype: torch.dtype

    @classmethod
    def of(cls, read: _Files) -> _Setup:
        request, config = read.request, read.config
        devices = [choose_device(share.device) for share in request.shares] or [choose_device(request.device)]
        files = quantisation_of_files(getattr(config, "quantization_config", None), read.name)
        quantisation = effective_quantisation(request.quantisation, files, read.name)
        quantisation = in_memory_quantisation(quantisation, files, devices[0].type)
        check_usable(quantisation, devices[0], files)
        safe = read.family.float16_is_safe
        dtype = choose_dtype(request.dtype, devices[0], quantisation, float16_is_safe=safe)
        return cls(devices, files, quantisation, dtype)

    @property
    def at_load(self) -> Quantisation:
        """What weights are quantised to as they are read: nothing, if they are already in the files."""
        return Quantisation.NONE if self.files else self.quantisation

    @property
    def by_hub_kernels(self) -> bool:
        """Whether its products are kernels of a hub, which were not made to be captured."""
        return self.files is self.quantisation is Quantisation.FP8


def _weights(read: _Files, how: _Setup, progress: Progress) -> Any:
    """The model with its weights, as transformers makes it but for those that lvspec packs."""
    config, family, (device, *others) = read.config, read.family, how.devices
    options = _loading_options(config, family, read.request.shares, how.devices, how.dtype, how.at_load)
    if how.files is not None:
        import_kernels(how.files)
        values, blocks = config.quantization_config, _language_blocks(config, family)
        config.quantization_config, override = config_of_files(how.files, values, device.type, *blocks)
        options |= {"quantization_config": override} if override else {}
    with _reporting_progress(tensor_sizes(read.folder, read.name), progress):
        model = _read_weights(read.folder, read.name, config, how.dtype, options)
    if how.files is Quantisation.FP8 and how.quantisation is Quantisation.NONE:
        model = model.to(how.dtype)  # dequantised weights have the dtype of their scales
    kind = packed_kind(how.quantisation, how.files)
    if kind is not None:
        there, product = None if others else device, packed_product(kind, device, how.dtype)
        pack_linear_layers(family.layers(model), there, kind, product)
        model = model if there is None else model.to(there)
    if device.type == "cpu" and how.quantisation in (Quantisation.NF4, Quantisation.INT8):
        keep_inputs(model, how.dtype)
    return model


def _loaded(read: _Files, how: _Setup, model: Any) -> LoadedModel:
    """The model with parts of it replaced by faster ones that compute the same, but for rounding."""
    request, family, device = read.request, read.family, how.devices[0]
    can_capture = request.captured and not family.waits_for_host and not how.by_hub_kernels
    workspace = workspace_for(how.devices, how.quantisation) if can_capture else None
    join_windows(model)
    multiply_patches(model)
    install_kernels(family.language(model), how.devices, how.quantisation, captured=workspace is not None)
    vocabulary = model.get_output_embeddings().out_features
    if request.proposes is not None:
        cut_head(model, request.proposes)
    replace_linear_layers(model)
    fused = None
    if workspace is not None:
        fused = fused_layers(family, model, device, how.quantisation, how.dtype)
    return LoadedModel(
        name=read.name,
        model=model,
        processor=read.processor,
        tokenizer=read.processor.tokenizer,
        family=family,
        device=device,
        dtype=how.dtype,
        generation=read_generation(model.generation_config, read.name),
        vocabulary=vocabulary,
        quantisation=how.quantisation,
        workspace=workspace,
        fused=fused,
        proposes=request.proposes,
    )


def cut_head(model: Any, count: int) -> None:
    """Leave a model the logits of the first ids only, in place; the weights are shared.

    The ids of tokenizers trained by byte-pair encoding are in the order of how frequent their parts were, so
    that a draft rarely needs the late ones, and reads a part of its head (Zhao et al. 2025, FR-Spec, arXiv
    2502.14856, where the ids are chosen by frequency).
    """
    head = model.lm_head
    if count >= head.out_features:
        return
    first = nn.Linear(head.in_features, count, bias=head.bias is not None, device="meta")
    first.weight = nn.Parameter(head.weight[:count], requires_grad=False)
    if head.bias is not None:
        first.bias = nn.Parameter(head.bias[:count], requires_grad=False)
    model.lm_head = first


def install_kernels(
    language: Any, devices: Sequence[torch.device], quantisation: Quantisation, *, captured: bool
) -> None:
    """Replaces parts of a language model by faster ones, if it is as a whole on one GPU."""
    if len(devices) != 1 or devices[0].type != "cuda":
        return
    fuse_norms(language)
    # Without a CUDA graph, launching these kernels costs the host more time than they save.
    if captured and quantisation is Quantisation.NF4 and small_batch.is_usable(devices[0]):
        small_batch.use_small_batch_kernels(language)


def fused_layers(
    family: Family, model: Any, device: torch.device, quantisation: Quantisation, dtype: torch.dtype
) -> FusedLayers | None:
    """The language model in few kernels, if they read its weights and the device has them."""
    if quantisation not in (Quantisation.NONE, Quantisation.BF16, Quantisation.INT4, Quantisation.FP8):
        return None
    operations = triton_operations(device, dtype)
    return fuse_layers(family.layers(model), family.language(model).norm, model.lm_head, operations)


def _loading_options(
    config: Any,
    family: Family,
    shares: Sequence[Share],
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    quantisation: Quantisation,
) -> dict[str, Any]:
    """The ``device_map`` and the ``quantization_config`` for ``from_pretrained``.

    ``quantisation``: how weights are quantised as they are read; NONE if the files are quantised already.
    """
    # Packed by ourselves, matrix by matrix, so that a GPU never holds all of them unpacked.
    kind = packed_kind(quantisation)
    options = {"device_map": {"": str(devices[0]) if kind is None else "cpu"}}
    if len(devices) == 1 and (kind or quantisation in (Quantisation.NONE, Quantisation.BF16)):
        return options
    blocks, unconverted = _language_blocks(config, family)
    if len(devices) > 1:
        options = {"device_map": device_map(unconverted, blocks, shares)}
    return {**options, "quantization_config": quantiser(quantisation, dtype, unconverted, devices[0].type)}


def _language_blocks(config: Any, family: Family) -> tuple[str, list[str]]:
    """The name of the list of the language model's blocks, and the names of all modules outside it."""
    with torch.device("meta"), quiet():
        model = AutoModelForImageTextToText.from_config(config)
    layers = family.layers(model)
    name = next(name for name, module in model.named_modules() if module is layers)
    return name, unconverted_modules(model, layers)


def _read_weights(
    folder: Path, name: str, config: Any, dtype: torch.dtype, options: Mapping[str, Any]
) -> Any:
    flash = is_flash_attn_2_available() and dtype != torch.float32
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation={
            "": tower_attention(options["device_map"].values(), flash),
            "text_config": register(),
        },
        output_loading_info=True,
        **options,
        **LOCAL,
    )
    _check_weights(info, name)
    # The decoder itself moves hidden states between devices, only where the device changes.
    remove_hook_from_submodules(model)
    return model.eval()


def tower_attention(devices: Any, flash: bool) -> str:
    """The attention of the video tower: the package flash-attn if it is usable and all devices are GPUs.

    The language model uses torch's attention, which has flash kernels of its own.
    """
    on_gpus = all(str(device).startswith("cuda") for device in devices)
    return "flash_attention_2" if flash and on_gpus else "sdpa"


def choose_device(name: str) -> torch.device:
    """The device of that name, which is ``auto`` or one of torch's.

    :raises UsageError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise UsageError(
            f"device {name!r} cannot be used: {cause}", "use cpu; `lvspec doctor` says what torch sees"
        ) from error
    return device


def choose_dtype(
    name: str,
    device: torch.device,
    quantisation: Quantisation = Quantisation.NONE,
    *,
    float16_is_safe: bool = False,
) -> torch.dtype:
    """The compute dtype on a device: see :func:`lvspec_cli.models.quantise.compute_dtype`."""
    has_bfloat16 = device.type != "cuda" or _has_bfloat16(device)
    return compute_dtype(
        name, quantisation, device.type, has_bfloat16=has_bfloat16, float16_is_safe=float16_is_safe
    )


def _has_bfloat16(device: torch.device) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def check_tokenizers(target: LoadedModel, draft: LoadedModel) -> None:
    """
    :raises PairError: the two have different tokens under one id; the cause names the first of them.
    """
    draft_vocabulary = draft.tokenizer.get_vocab()
    if difference := first_difference(target.tokenizer.get_vocab(), draft_vocabulary):
        index, target_token, draft_token = difference
        raise PairError(
            f"{target.name} and {draft.name} do not share a tokenizer: token {index} is"
            f" {target_token!r} in the target and {draft_token!r} in the draft",
            "choose a draft of the target's family",
        )
    draft_ids = set(draft_vocabulary.values())
    missing = next((index for index in target.generation.end_ids if index not in draft_ids), None)
    if missing is not None:
        raise PairError(
            f"{draft.name} has no token {missing}, which ends an answer of {target.name}",
            "choose a draft of the target's family",
        )


def check_vocabulary(tokenizer: Any, rows: int, name: str) -> None:
    """
    :raises PairError: the tokenizer has ids for which the model has no embedding.
    """
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
    # Mistral's config gives only the window, others give a type for each layer.
    windowed = bool(set(kinds) - known) if kinds else getattr(text, "sliding_window", None)
    if windowed:
        raise PairError(
            f"{name} uses windowed attention, which is not supported", "choose a pair with full attention"
        )


def _check_weights(info: dict[str, Any], name: str) -> None:
    """
    :raises PairError: the files lack a weight, which would otherwise stay random.
    """
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
def _as_pair_error(name: str, folder: Path) -> Iterator[None]:
    """Turn what the libraries raise into a PairError."""
    try:
        yield
        return
    except LvspecError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        traceback.clear_frames(error.__traceback__)  # the frames refer to the loaded weights
    except Exception as error:
        raise unreadable(name, folder, error) from error
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise NoRoomError(f"{name} does not fit into the device's memory", "choose a smaller pair") from None


@contextlib.contextmanager
def _reporting_progress(sizes: Mapping[str, int], progress: Progress) -> Iterator[None]:
    """Report the library's progress in bytes. Its own bar and its messages are not printed."""
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
    """The part of a tqdm bar that loading weights uses. It iterates over weights and their source tensors."""

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
        """Bytes of the tensors that a weight is made of; 0 for a bar over anything else."""
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


def device_map(modules: Sequence[str], layers: str, shares: Sequence[Share]) -> dict[str, str]:
    """The devices of a model's modules by full name.

    :param modules: all modules that are not decoder layers: they go to the first share's device.
    :param layers: the name of the list of decoder layers.
    """
    devices = [share.device for share in shares for _ in range(share.layers)]
    return dict.fromkeys(modules, shares[0].device) | {
        f"{layers}.{number}": device for number, device in enumerate(devices)
    }
