"""Tiny random pairs of every family, saved as folders that from_pretrained takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from lvspec_cli.models.families import FAMILIES as FAMILY_TABLE
from lvspec_cli.models.mtp import PredictionLayer
from lvspec_cli.types import Clip
from tests.tiny_families import TINY, TinyShape

# Positions of three axes and plain ones: where the family makes no difference, these two stand for all.
FAMILIES = ("qwen2_5_vl", "llava_onevision")


def randomise(model: torch.nn.Module, shape: TinyShape, seed: int) -> None:
    """Weights large enough that the argmax depends on the context."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0.0, shape.scale if "visual" not in name else 0.1, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)


def save_model(
    folder: Path,
    family: str,
    *,
    shape: TinyShape | None = None,
    seed: int = 0,
    noise: tuple[Path, float] | None = None,
    generation: dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write one tiny model. ``noise``: copy the weights of that folder and disturb them by that share."""
    shape, tiny = shape or TinyShape(), TINY[family]
    tokenizer = tokenizer or tiny.tokenizer()
    config = tiny.config(tokenizer, shape)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = shape.tied
    # Some values, LLaVA's newline among them, are the library's own draw: the same in any order of tests.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    randomise(model, shape, seed)
    with torch.no_grad():
        # No answer holds a place for an image or video: a pass over all of it would look for one more.
        unanswered = tokenizer.convert_tokens_to_ids(list(tiny.unanswered))
        model.lm_head.weight[[token for token in unanswered if token is not None]] = 0.0
    if noise is not None:
        source = AutoModelForImageTextToText.from_pretrained(noise[0])
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for weight, origin in zip(model.parameters(), source.parameters(), strict=True):
                if weight.shape[1:] != origin.shape[1:]:
                    continue  # sees the video in another way
                rows = min(len(weight), len(origin))
                change = torch.randn(origin[:rows].shape, generator=generator) * origin[:rows].std(
                    correction=0
                )
                weight[:rows] = origin[:rows] + noise[1] * change
    ends = tokenizer.convert_tokens_to_ids(list(tiny.ends))
    model.generation_config = GenerationConfig(
        **{"eos_token_id": ends, "pad_token_id": ends[1], **(generation or {})}
    )
    model.save_pretrained(folder)
    tiny.processor(tokenizer, shape).save_pretrained(folder)
    return folder


def add_prediction_layer(folder: Path, seed: int = 3) -> Path:
    """Put random weights of a prediction layer into a saved qwen3_5 model, with the hub's names."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    layer = PredictionLayer(FAMILY_TABLE["qwen3_5"], model.config, model)
    randomise(layer, TinyShape(), seed)
    write_prediction_layer(folder, layer.state_dict())
    return folder


def write_prediction_layer(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Add these weights, named as in the layer, to the file of a saved model, or replace those there."""
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("mtp.")}
    tensors |= {f"mtp.{name}": weight.detach().clone() for name, weight in weights.items()}
    save_file(tensors, file, metadata={"format": "pt"})


def save_pair(
    folder: Path,
    family: str,
    *,
    noise: float = 0.01,
    generation: dict[str, Any] | None = None,
    draft_padding: int = 24,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> tuple[Path, Path]:
    """A target and a draft that often agrees with it, so that rounds of every length occur."""
    target = save_model(folder / "target", family, generation=generation, seed=seed, tokenizer=tokenizer)
    shape = TinyShape(extra_vocabulary=draft_padding)
    draft = save_model(
        folder / "draft", family, shape=shape, noise=(target, noise), seed=seed, tokenizer=tokenizer
    )
    return target, draft


def set_generation(folder: Path, **values: Any) -> None:
    """Change values of a saved generation_config."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def spoil_weights(folder: Path) -> None:
    """Every weight of a saved model becomes NaN: its file keeps its header and its length."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    file.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))


def never_end(folder: Path) -> None:
    """A saved model whose answers end with a token that it hardly ever says."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    set_generation(folder, eos_token_id=[tokenizer.get_vocab()["<video>"]], repetition_penalty=1.3)
    set_positions(folder, 2**20)


def set_positions(folder: Path, count: int) -> None:
    """Change how many tokens a saved model says that it was made for."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = count
    path.write_text(json.dumps(config))


def make_clip(
    frames: int = 6, *, seed: int = 0, spacing: float = 0.5, size: int = 60, width: int | None = None
) -> Clip:
    """A clip of noise with real times, as the decoder would give it; square unless it has a ``width``."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (frames, size, width or size, 3), dtype=np.uint8)
    return Clip(
        path=Path("noise.mp4"),
        frames=pixels,
        timestamps=tuple(index * spacing for index in range(frames)),
        frame_rate=24.0,
        duration=frames * spacing,
        start=0.0,
        end=None,
        source_width=width or size,
        source_height=size,
        frames_expected=frames,
        decoder="pyav",
        decode_seconds=0.0,
    )
