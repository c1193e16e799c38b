"""Models of random weights, from a config alone and straight on a device: to measure with, not to answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from lvspec_cli.errors import PairError
from lvspec_cli.memory.plan import ModelSize
from lvspec_cli.memory.sizes import size_of_model
from lvspec_cli.models.attention import register
from lvspec_cli.models.families import family_of
from lvspec_cli.models.generation import GenerationRules
from lvspec_cli.models.kernels.cpu_linear import replace_linear_layers
from lvspec_cli.models.kernels.fused import packed_product
from lvspec_cli.models.kernels.packed import pack_linear_layers
from lvspec_cli.models.kernels.patches import multiply_patches
from lvspec_cli.models.kernels.windows import join_windows
from lvspec_cli.models.load import LoadedModel, choose_dtype, fused_layers, install_kernels
from lvspec_cli.models.processing import quiet
from lvspec_cli.models.quantise import packed_kind, torchao_format
from lvspec_cli.models.read import read_config
from lvspec_cli.models.steps import workspace_for
from lvspec_cli.pairs.files import known_config
from lvspec_cli.types import Quantisation

_ATTENTION = {"": "sdpa", "text_config": register()}


def real_config(repo: str) -> Any:
    """The config that the package brings of a hub's repository.

    :raises PairError: it brings none.
    """
    path = known_config(repo)
    if path is None:
        raise PairError(f"no config of {repo} is known", "name another model")
    return read_config(path)


def size_of_config(config: Any, name: str) -> ModelSize:
    """What ``models.memory`` plans with."""
    with torch.device("meta"), quiet():
        return size_of_model(AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16), name)


def fabricate(
    config: Any,
    name: str,
    quantisation: Quantisation,
    device: torch.device,
    *,
    captured: bool = True,
    by_torch: bool = False,
) -> LoadedModel:
    """A model whose decoder layers are made and packed one by one: never more than one is there unpacked.

    It has no processor and no tokenizer. ``quantisation``: none, bf16, nf4, int4, fp8 or torchao-int4. With
    ``by_torch`` products in float32 on a CPU are torch's own.
    """
    family = family_of(config.model_type, name)
    dtype = choose_dtype("auto", device, quantisation, float16_is_safe=family.float16_is_safe)
    few = deepcopy(config)
    few.get_text_config().num_hidden_layers = 1
    if kinds := getattr(few.get_text_config(), "layer_types", None):
        few.get_text_config().layer_types = kinds[:1]
    with quiet(), torch.device(device):
        model = AutoModelForImageTextToText.from_config(few, dtype=dtype, attn_implementation=_ATTENTION)
    layers = family.layers(model)
    text = deepcopy(config.get_text_config())
    text._attn_implementation = _ATTENTION["text_config"]
    layer_kind, packed = type(layers[0]), packed_kind(quantisation)
    multiply = packed_product(packed, device, dtype) if packed else None
    for number in range(text.num_hidden_layers):
        with torch.device(device), _default_dtype(dtype):
            layer = layer_kind(text, number)
        _randomise(layer)
        if quantisation is Quantisation.NF4:
            _pack(layer, dtype)
        elif quantisation is Quantisation.TORCHAO_INT4:
            _pack_by_torchao(layer, device.type)
        elif packed and multiply:
            pack_linear_layers(layer, None, packed, multiply)
        if number:
            layers.append(layer)
        else:
            layers[0] = layer
    model.config = config
    family.prepare(model)
    join_windows(model)
    multiply_patches(model)
    workspace = workspace_for([device], quantisation) if captured else None
    install_kernels(family.language(model), [device], quantisation, captured=workspace is not None)
    if not by_torch:
        replace_linear_layers(model)
    fused = None if workspace is None else fused_layers(family, model, device, quantisation, dtype)
    return LoadedModel(
        name=name,
        model=model.eval().requires_grad_(False),
        processor=None,
        tokenizer=SimpleNamespace(),
        family=family,
        device=device,
        dtype=dtype,
        generation=GenerationRules(),
        vocabulary=model.get_output_embeddings().out_features,
        quantisation=quantisation,
        workspace=workspace,
        fused=fused,
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def _randomise(layer: Any) -> None:
    for part in layer.parameters():
        if part.dim() > 1:
            part.normal_(0.0, 0.02)


@torch.no_grad()
def _pack(layer: Any, dtype: torch.dtype) -> None:
    """Every linear layer in 4 bits, as loading packs it."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, part in list(layer.named_modules()):
        if type(part) is not torch.nn.Linear:
            continue
        with torch.device("meta"):
            packed = Linear4bit(
                part.in_features, part.out_features, part.bias is not None, dtype, quant_type="nf4"
            )
        values = Params4bit(part.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        packed.weight = values.to(part.weight.device)
        packed.bias = part.bias
        layer.set_submodule(name, packed)


def _pack_by_torchao(layer: Any, device_type: str) -> None:
    from torchao.quantization import quantize_

    quantize_(layer, torchao_format(device_type))
