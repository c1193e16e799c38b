"""The two halves of the bundled pair: configs, tokenizer and processor, as folders that any pair has."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lvspec_cli.demo.scenes import sample_scene
from lvspec_cli.demo.texts import CAPTION_PROMPTS, caption, questions

HalfName = Literal["target", "draft"]
FRAME_PIXELS = 24_000  # what the processor makes of a frame: 4 to 7 tokens a side
CLIP_FRAMES = 8
TOKENS_PER_SECOND = 2  # positions of time a second
# Pairs of rotary dimensions for time, rows and columns, the fastest first. Columns get the slow rest, which
# looks past positions at what stands there; with Qwen's own shares a column differs from the next by half
# a thousandth of a turn here at base 10,000, and places are not learnt.
ROTARY_SHARES = (2, 2, 28)
ROTARY_BASE = 100_000.0
SYSTEM_PROMPT = "You are a helpful assistant."
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

# Qwen's chat markup: turns between <|im_start|> and <|im_end|>, media between the vision marks.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}\n
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>\n{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant\n{% endif -%}
"""


@dataclass(frozen=True)
class HalfSize:
    """Widths are multiples of 64, so that bitsandbytes' 4-bit layers work on a CPU too."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_feed_forward: int


SIZES = {
    "target": HalfSize(192, 22, 3, 1, 512, 128, 4, 2, 256),
    "draft": HalfSize(128, 2, 2, 1, 256, 128, 4, 2, 256),
}


def train_tokenizer(*, texts: int = 3000, vocabulary: int = 1010, seed: int = 7) -> Qwen2Tokenizer:
    """A byte-level BPE of the demo world's language, with Qwen's special tokens after the learned ones."""
    rng = random.Random(seed)
    plain = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(_tokenizer_texts(rng, texts), trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=32768,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _tokenizer_texts(rng: random.Random, count: int) -> Iterator[str]:
    yield from [SYSTEM_PROMPT, "system\n", "user\n", "assistant\n", *CAPTION_PROMPTS] * 20
    for _ in range(count):
        scene = sample_scene(rng)
        yield caption(scene, rng)
        for question in questions(scene, rng):
            yield question.question
            yield question.answer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's own processor at the demo's frame size."""
    size = {"shortest_edge": 56 * 56, "longest_edge": FRAME_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(half: HalfName, tokenizer: Qwen2Tokenizer, layers: int | None = None) -> Qwen2_5_VLConfig:
    """The half's config, with ``layers`` text layers where its final number is not wanted yet."""
    size = SIZES[half]
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.width,
            "intermediate_size": size.feed_forward,
            "num_hidden_layers": layers or size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_value_heads,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": list(ROTARY_SHARES),
                "rope_theta": ROTARY_BASE,
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_feed_forward,
            "num_heads": size.vision_heads,
            "out_hidden_size": size.width,
            "fullatt_block_indexes": list(range(size.vision_layers)),
            "tokens_per_second": TOKENS_PER_SECOND,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(
    half: HalfName, tokenizer: Qwen2Tokenizer, seed: int, layers: int | None = None
) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random weights, float32."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(half, tokenizer, layers))
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[
            tokenizer.convert_tokens_to_ids("<|im_end|>"),
            tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        ],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


@torch.no_grad()
def copy_vision(
    source: Qwen2_5_VLForConditionalGeneration, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    """Give ``model`` the vision tower of ``source``, but for what has another width."""
    own = model.model.visual.state_dict()
    taken = {k: v for k, v in source.model.visual.state_dict().items() if own[k].shape == v.shape}
    model.model.visual.load_state_dict(taken, strict=False)


@torch.no_grad()
def copy_into(small: Qwen2_5_VLForConditionalGeneration, large: Qwen2_5_VLForConditionalGeneration) -> None:
    """Give ``large``, of as many text layers or more, the weights of ``small``: both then compute the same.

    The small model's layers are spread over the large one's, the last at the end; those between start as
    copies that add nothing to the residual stream (block expansion, LLaMA Pro, arXiv 2401.02415). Of layers
    that were spread before only those that add something count.

    :raises ValueError: ``large`` has fewer.
    """
    state = {k: v for k, v in small.state_dict().items() if ".layers." not in k or "visual" in k}
    large.load_state_dict(state, strict=False)
    old, new = _adding(small.model.language_model.layers), large.model.language_model.layers
    if len(old) > len(new):
        raise ValueError(f"{len(old)} layers do not go into {len(new)}")
    homes = [round((index + 1) * len(new) / len(old)) - 1 for index in range(len(old))]
    for index, layer in enumerate(new):
        source = next(number for number, home in enumerate(homes) if home >= index)
        layer.load_state_dict(old[source].state_dict())
        if homes[source] != index:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


def _adding(layers: Iterable[Any]) -> list[Any]:
    """Those that add something to the residual stream."""
    return [
        layer for layer in layers if layer.self_attn.o_proj.weight.any() or layer.mlp.down_proj.weight.any()
    ]


def save_half(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path
) -> None:
    """Write what ``from_pretrained`` reads: bf16 safetensors, configs, processor, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    clone = Qwen2_5_VLForConditionalGeneration(model.config).to(torch.bfloat16)
    clone.load_state_dict(state)
    clone.generation_config = model.generation_config
    clone.save_pretrained(folder)
    processor.save_pretrained(folder)
