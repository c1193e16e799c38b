"""Clip and question -> the inputs of target and draft, each through its own processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.errors import UsageError
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.metadata import video_metadata
from lvspec_cli.types import Clip, PairPrompts, Prompt

# What processors give besides a video's own tensors.
_TEXT_KEYS = frozenset({"input_ids", "attention_mask", "mm_token_type_ids", "video_metadata"})


def build_prompts(pair: LoadedPair, clip: Clip, question: str, *, system: str | None = None) -> PairPrompts:
    """Build both models' inputs. UsageError when the text holds one of the tokenizer's special tokens."""
    for text in (question, system or ""):
        _check_text(pair.target.tokenizer, text)
    return PairPrompts(
        target=build_prompt(pair.target, clip, question, system=system),
        draft=build_prompt(pair.draft, clip, question, system=system) if pair.draft else None,
    )


def build_prompt(loaded: LoadedModel, clip: Clip, question: str, *, system: str | None = None) -> Prompt:
    """One model's inputs: its chat template around the video and the question, real frame times."""
    features = loaded.processor(
        text=[chat_text(loaded.processor, question, system)],
        videos=[torch.from_numpy(clip.frames).permute(0, 3, 1, 2)],
        video_metadata=[video_metadata(clip)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    ids: Tensor = features["input_ids"]
    video_inputs = _video_inputs(features)
    video = ids[0] == loaded.family.video_token(loaded.model)
    positions = loaded.family.position_ids(loaded.model, ids, video_inputs)
    return Prompt(
        input_ids=ids,
        position_ids=positions,
        next_position=int(positions.max()) + 1,
        video_mask=video,
        prefix_length=int(video.nonzero()[-1]) + 1,
        video_inputs=video_inputs,
    )


def chat_text(processor: Any, question: str, system: str | None) -> str:
    """The conversation as text, with one placeholder for the video and the assistant's turn opened."""
    turns: list[dict[str, Any]] = []
    if system:
        turns.append({"role": "system", "content": [{"type": "text", "text": system}]})
    turns.append({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]})
    return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _video_inputs(features: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in features.items() if name not in _TEXT_KEYS}


def _check_text(tokenizer: Any, text: str) -> None:
    found = next((token for token in tokenizer.all_special_tokens if token in text), None)
    if found is None:
        added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        found = next((token for token in added if token in text), None)
    if found is not None:
        raise UsageError(
            f"the text holds {found!r}, which has a meaning of its own for the model", "leave it out"
        )
