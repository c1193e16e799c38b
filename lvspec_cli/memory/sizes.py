"""The size of a model, from its config alone: it is built on torch's ``meta`` device, without memory."""

from __future__ import annotations

import json
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from lvspec_cli.errors import PairError
from lvspec_cli.memory.plan import ModelSize
from lvspec_cli.models.families import family_of
from lvspec_cli.models.mtp import PredictionLayer
from lvspec_cli.models.processing import quiet
from lvspec_cli.models.prompt_length import positions_of
from lvspec_cli.models.read import read_config
from lvspec_cli.pairs.registry import MTP


def size_of(config_file: Path, name: str = "") -> ModelSize:
    """The size of the model that a config.json describes.

    :raises PairError: the model cannot be built, or its family is unknown.
    """
    try:
        config = read_config(config_file)
        family_of(config.model_type, str(config_file))
        with quiet(), torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise PairError(f"{config_file}: {cause}", "check the config, or download it again") from error
    return size_of_model(model, name or str(config_file))


def size_of_model(model: Any, name: str) -> ModelSize:
    """The size of a model on any device."""
    text, family = model.config.get_text_config(), family_of(model.config.model_type, name)
    layers = model.get_decoder().layers
    matrices = [_matrices(layer) for layer in layers]
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelSize(
        name=name,
        parameters=_count(model),
        # Layers of different kinds are planned with their mean.
        layer=ceil(sum(map(_count, layers)) / len(layers)),
        layer_matrices=sum(map(sum, matrices)) // len(layers),
        largest_matrix=max(map(max, matrices)),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        mlp=family.mlp_width(model.config),
        key_width=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vision=family.vision_size(model.config),
        attention_layers=len(family.attention_layers(model.config)),
        state=family.state_bytes(model.config),
        positions=positions_of(text),
    )


def size_of_mtp(config_file: Path, target: ModelSize) -> ModelSize:
    """The size of the prediction layer of a target with this config.json, without the shared embeddings.

    :raises PairError: the target's family has none.
    """
    config = read_config(config_file)
    with quiet(), torch.device("meta"):
        layer = PredictionLayer(family_of(config.model_type, str(config_file)), config)
    matrices = _matrices(layer.layers)
    return replace(
        target,
        name=f"{target.name} ({MTP})",
        parameters=_count(layer),
        layer=_count(layer.layers),
        layer_matrices=sum(matrices),
        largest_matrix=max(matrices),
        layers=1,
        attention_layers=None,
        state=0,
        in_target=True,
    )


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _matrices(module: Any) -> list[int]:
    return [part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear)]
