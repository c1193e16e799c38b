"""Tiny shapes of every family: the real config, processor and tokenizer classes, no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.tiny_tokenizers import INTERN, QWEN, SMOL, WORDS, build_piece_tokenizer, build_tokenizer

TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA_TURNS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
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
    merge: int = 2  # SmolVLM2: patches a side that become one visual token
    tied: bool = False  # the output head has the embeddings' weights


@dataclass(frozen=True)
class TinyFamily:
    tokenizer: Callable[..., PreTrainedTokenizerFast]  # from the words it is trained on
    ends: tuple[str, str]  # what ends an answer; the second is the padding too
    unanswered: tuple[str, ...]  # tokens of images and videos, which no answer holds
    config: Callable[[PreTrainedTokenizerFast, TinyShape], Any]
    processor: Callable[[PreTrainedTokenizerFast, TinyShape], Any]


def text_values(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> dict[str, Any]:
    """What the text configs of all families have in common."""
    return {
        "vocab_size": len(tokenizer) + shape.extra_vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": 2 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def vision_values(layers: int = 2) -> dict[str, Any]:
    """What most vision configs have in common."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }


def qwen_values(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": shape.width,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def mrope(shape: TinyShape, **values: Any) -> dict[str, Any]:
    """Rotary values of three axes."""
    half = shape.width // shape.heads // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    return {"rope_type": "default", "mrope_section": section, "rope_theta": 10000.0, **values}


def qwen2_5_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> Qwen2_5_VLConfig:
    values = qwen_values(tokenizer, shape)
    values["vision_config"] |= {
        "patch_size": 14,
        "tokens_per_second": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    text = {**text_values(tokenizer, shape), "rope_parameters": mrope(shape)}
    return Qwen2_5_VLConfig(text_config=text, **values)


def qwen3_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> Qwen3VLConfig:
    values = qwen_values(tokenizer, shape)
    values["vision_config"] |= {
        "depth": 3,
        "patch_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {
        **text_values(tokenizer, shape),
        "head_dim": shape.width // shape.heads,
        "rope_parameters": mrope(shape, mrope_interleaved=True),
    }
    return Qwen3VLConfig(text_config=text, **values)


def qwen3_5_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> Qwen3_5Config:
    values = qwen_values(tokenizer, shape)
    values["vision_config"] |= {"depth": 3, "patch_size": 16, "num_position_embeddings": 16}
    rotary = mrope(shape, mrope_interleaved=True, partial_rotary_factor=0.5)
    third = max(1, shape.width // shape.heads // 12)
    rotary["mrope_section"] = [shape.width // shape.heads // 4 - 2 * third, third, third]
    text = {
        **text_values(tokenizer, shape),
        "num_hidden_layers": 4 * max(1, shape.layers - 1),  # of every four the last one attends
        "head_dim": shape.width // shape.heads,
        "rope_parameters": rotary,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 8,
    }
    return Qwen3_5Config(text_config=text, **values)


def qwen3_5_moe_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> Qwen3_5MoeConfig:
    dense = qwen3_5_config(tokenizer, shape).to_dict()
    own = ("model_type", "dtype", "transformers_version", "architectures")
    text, vision = (
        {name: value for name, value in dense[part].items() if name not in own}
        for part in ("text_config", "vision_config")
    )
    del text["intermediate_size"]
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text |= {**experts, "shared_expert_intermediate_size": 32}
    values = {**qwen_values(tokenizer, shape), "vision_config": vision}
    return Qwen3_5MoeConfig(text_config=text, **values)


def llava_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> LlavaOnevisionConfig:
    ids = tokenizer.convert_tokens_to_ids
    return LlavaOnevisionConfig(
        text_config={**text_values(tokenizer, shape), "model_type": "qwen2"},
        vision_config={
            **vision_values(),
            "model_type": "siglip_vision_model",
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


def llava_next_video_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> LlavaNextVideoConfig:
    ids = tokenizer.convert_tokens_to_ids
    vision = {**vision_values(3), "model_type": "clip_vision_model", "image_size": 56, "patch_size": 14}
    return LlavaNextVideoConfig(
        text_config={**text_values(tokenizer, shape), "model_type": "llama"},
        vision_config=vision,
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        image_grid_pinpoints=[[56, 56]],
        tie_word_embeddings=False,
    )


def smol_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> SmolVLMConfig:
    return SmolVLMConfig(
        text_config={**text_values(tokenizer, shape), "model_type": "llama"},
        vision_config={**vision_values(), "image_size": 32, "patch_size": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=shape.merge,
        tie_word_embeddings=False,
    )


def intern_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> InternVLConfig:
    return InternVLConfig(
        text_config={**text_values(tokenizer, shape), "model_type": "qwen2"},
        vision_config={**vision_values(), "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def intern3_5_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> InternVLConfig:
    """InternVL3.5: Qwen3 inside, and a tower that normalises queries and keys, as that of the 38B."""
    config = intern_config(tokenizer, shape)
    tower = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
    text = {"model_type": "qwen3", "head_dim": 2 * shape.width // shape.heads}
    return InternVLConfig(
        text_config={**text_values(tokenizer, shape), **text},
        vision_config={**vision_values(), "image_size": [56, 56], "patch_size": [14, 14], **tower},
        image_token_id=config.image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def qwen2_5_processor(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> Qwen2_5_VLProcessor:
    size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=TURNS.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"),
    )


def qwen3_processor(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> Qwen3VLProcessor:
    # Pixels of all the frames together.
    size = {"shortest_edge": 2 * 32 * 32, "longest_edge": 32 * 32 * 768}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size),
        chat_template=TURNS.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"),
    )


def llava_processor(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> LlavaOnevisionProcessor:
    size = {"height": 42, "width": 42}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[42, 42]]),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=TURNS.replace("VIDEO", "<video>\n"),
    )


def llava_next_video_processor(
    tokenizer: PreTrainedTokenizerFast, shape: TinyShape
) -> LlavaNextVideoProcessor:
    sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    return LlavaNextVideoProcessor(
        image_processor=LlavaNextImageProcessor(image_grid_pinpoints=[[56, 56]], **sizes),
        tokenizer=tokenizer,
        video_processor=LlavaNextVideoVideoProcessor(**sizes),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TURNS,
    )


def smol_processor(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> SmolVLMProcessor:
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    # It brings a template of its own for conversations with a video.
    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**sizes),
        image_seq_len=(4 // shape.merge) ** 2,
    )


def intern_processor(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> InternVLProcessor:
    size = {"height": 56, "width": 56}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=TURNS.replace("VIDEO", "<video>\n"),
    )


def smol_tokenizer(words: str = WORDS) -> PreTrainedTokenizerFast:
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    return build_tokenizer(words, SMOL, **tokens)


def intern_tokenizer(words: str = WORDS) -> PreTrainedTokenizerFast:
    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    named |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    return build_tokenizer(words, INTERN, extra_special_tokens=named)


_CHAT = ("<|im_end|>", "<|endoftext|>")
_qwen = partial(TinyFamily, build_tokenizer, _CHAT, QWEN[3:])
TINY = {
    "qwen2_5_vl": _qwen(qwen2_5_config, qwen2_5_processor),
    "qwen3_vl": _qwen(qwen3_config, qwen3_processor),
    "qwen3_5": _qwen(qwen3_5_config, qwen3_processor),
    "qwen3_5_moe": _qwen(qwen3_5_moe_config, qwen3_processor),
    "llava_onevision": _qwen(llava_config, llava_processor),
    "llava_next_video": TinyFamily(
        build_piece_tokenizer,
        ("</s>", "<pad>"),
        ("<image>", "<video>"),
        llava_next_video_config,
        llava_next_video_processor,
    ),
    "smolvlm": TinyFamily(
        smol_tokenizer, ("<end_of_utterance>", "<|im_end|>"), SMOL[4:], smol_config, smol_processor
    ),
    "internvl": TinyFamily(intern_tokenizer, _CHAT, INTERN[3:], intern_config, intern_processor),
    "internvl3_5": TinyFamily(intern_tokenizer, _CHAT, INTERN[3:], intern3_5_config, intern_processor),
}
