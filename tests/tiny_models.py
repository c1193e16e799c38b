"""Tiny random pairs of both families, saved as folders that from_pretrained takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lvspec_cli.types import Clip

FAMILIES = ("qwen2_5_vl", "llava_onevision")
WORDS = """a the red blue green ball cube moves slowly to the left right up down and then it leaves
one two three four not no never now there is are some small large bright of in on with
The Two Not clip shows video object stays what how many which colour describe while beside"""
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
)
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a tiny model: enough to differ between target and draft."""

    width: int = 64
    layers: int = 3
    heads: int = 4
    key_heads: int = 2
    extra_vocabulary: int = 8  # rows of padding above the tokenizer's size
    scale: float = 0.35  # standard deviation of the weights: large enough that answers do not collapse


def build_tokenizer(words: str = WORDS) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([words] * 4, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=8192
    )


def text_values(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> dict[str, Any]:
    """What the text configs of both families have in common."""
    ids = tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": len(tokenizer) + shape.extra_vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": 2 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }


def qwen_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> Qwen2_5_VLConfig:
    ids = tokenizer.convert_tokens_to_ids
    third = shape.width // shape.heads // 2 // 3
    section = [shape.width // shape.heads // 2 - 2 * third, third, third]
    return Qwen2_5_VLConfig(
        text_config={
            **text_values(tokenizer, shape),
            "rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": shape.width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def llava_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> LlavaOnevisionConfig:
    ids = tokenizer.convert_tokens_to_ids
    return LlavaOnevisionConfig(
        text_config={
            **text_values(tokenizer, shape),
            "model_type": "qwen2",
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 42,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_id=ids("<image>"),
        video_token_id=ids("<video>"),
        image_grid_pinpoints=[[42, 42]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def build_processor(family: str, tokenizer: PreTrainedTokenizerFast):
    if family == "qwen2_5_vl":
        size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=size),
            chat_template=TURNS.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"),
        )
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": 42, "width": 42}, image_grid_pinpoints=[[42, 42]]
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": 42, "width": 42}),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=TURNS.replace("VIDEO", "<video>\n"),
    )


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
    shape = shape or TinyShape()
    tokenizer = tokenizer or build_tokenizer()
    config = qwen_config(tokenizer, shape) if family == "qwen2_5_vl" else llava_config(tokenizer, shape)
    # Some values, LLaVA's newline among them, are the library's own draw: the same in any order of tests.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    randomise(model, shape, seed)
    with torch.no_grad():
        # No answer holds a place for an image or video: a pass over all of it would look for one more.
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(list(SPECIAL[3:]))] = 0.0
    if noise is not None:
        source = AutoModelForImageTextToText.from_pretrained(noise[0])
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for weight, origin in zip(model.parameters(), source.parameters(), strict=True):
                rows = min(len(weight), len(origin))
                change = torch.randn(origin[:rows].shape, generator=generator) * origin[:rows].std(
                    correction=0
                )
                weight[:rows] = origin[:rows] + noise[1] * change
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(
        **{"eos_token_id": ends, "pad_token_id": ends[1], **(generation or {})}
    )
    model.save_pretrained(folder)
    build_processor(family, tokenizer).save_pretrained(folder)
    return folder


def save_pair(
    folder: Path,
    family: str,
    *,
    noise: float = 0.01,
    generation: dict[str, Any] | None = None,
    draft_padding: int = 24,
    seed: int = 0,
) -> tuple[Path, Path]:
    """A target and a draft that often agrees with it, so that rounds of every length occur."""
    target = save_model(folder / "target", family, generation=generation, seed=seed)
    shape = TinyShape(extra_vocabulary=draft_padding)
    draft = save_model(folder / "draft", family, shape=shape, noise=(target, noise), seed=seed)
    return target, draft


def set_generation(folder: Path, **values: Any) -> None:
    """Change values of a saved generation_config."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def make_clip(frames: int = 6, *, seed: int = 0, spacing: float = 0.5, size: int = 60) -> Clip:
    """A clip of noise with real times, as the decoder would give it."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    return Clip(
        path=Path("noise.mp4"),
        frames=pixels,
        timestamps=tuple(index * spacing for index in range(frames)),
        frame_rate=24.0,
        duration=frames * spacing,
        start=0.0,
        end=None,
        source_width=size,
        source_height=size,
        frames_expected=frames,
        decoder="pyav",
        decode_seconds=0.0,
    )
