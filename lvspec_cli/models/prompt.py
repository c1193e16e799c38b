"""Clip and question -> the inputs of target and draft, each through its own processor.

How many tokens a video takes is known from the processor alone, before any weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvspec_cli.errors import UsageError
from lvspec_cli.models.families import family_of
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.processing import process
from lvspec_cli.models.prompt_length import Limit
from lvspec_cli.models.read import chat_text, read_config, read_processor
from lvspec_cli.types import Clip, PairPrompts, Prompt


def build_prompts(
    pair: LoadedPair,
    clip: Clip,
    question: str,
    *,
    system: str | None = None,
    earlier: PairPrompts | None = None,
    new_tokens: int = 0,
) -> PairPrompts:
    """Build both models' inputs; UsageError when the text holds one of the tokenizer's special tokens, or
    when one of them has not the positions for the prompt and an answer of ``new_tokens``.

    ``earlier``: prompts of another question about the same clip. Their video's tensors are taken
    over, which saves going through the frames again.
    """
    limits = [(pair.target, Limit(pair.target.positions, new_tokens))]
    if pair.draft is not None:
        limits.append((pair.draft, Limit(pair.draft.positions, new_tokens, "draft")))
    for loaded, limit in limits:
        _check_alone(loaded, limit, question, system)
    prompts: list[Prompt] = []
    for (loaded, limit), before in zip(limits, _of_both(earlier), strict=False):
        prompts.append(build_prompt(loaded, clip, question, system=system, earlier=before))
        limit.check_prompt(prompts[-1].length, prompts[-1].visual_tokens)
    target, *draft = prompts
    return PairPrompts(target, draft[0] if draft else None)


def _of_both(earlier: PairPrompts | None) -> tuple[Prompt | None, Prompt | None]:
    return (earlier.target, earlier.draft) if earlier else (None, None)


def _check_alone(loaded: LoadedModel, limit: Limit, question: str, system: str | None) -> None:
    """The text without the video: the frames have not been looked at."""
    limit.check_text(question + (system or ""), "the prompt")
    for text in (question, system or ""):
        check_text(loaded.processor, text)
    text = chat_text(loaded.processor, question, system, loaded.name)
    if not limit.may_fit(text):
        limit.check_tokens(len(loaded.tokenizer(text)["input_ids"]), "the prompt")


def build_prompt(
    loaded: LoadedModel,
    clip: Clip,
    question: str,
    *,
    system: str | None = None,
    earlier: Prompt | None = None,
) -> Prompt:
    """One model's inputs: its chat template around the video and the question, real frame times."""
    text = chat_text(loaded.processor, question, system, loaded.name)
    ids = _expanded(loaded.processor, text, earlier) if earlier else None
    if ids is None or earlier is None:
        ids, video_inputs = process(loaded.processor, text, clip)
    else:
        video_inputs = dict(earlier.video_inputs)
    video = ids[0] == loaded.family.video_token(loaded.model)
    positions = loaded.family.position_ids(loaded.model, ids, video_inputs)
    return Prompt(
        text=text,
        input_ids=ids,
        position_ids=positions,
        # As generate counts: from the prompt's last token on, also where a long video's times go further.
        next_position=int(positions[..., -1].max()) + 1,
        video_mask=video,
        prefix_length=int(video.nonzero()[-1]) + 1,
        video_inputs=video_inputs,
    )


def _expanded(processor: Any, text: str, earlier: Prompt) -> Tensor | None:
    """Token ids of a conversation about the video of an earlier one, without going through its frames.

    What stands for the video is found in the earlier tokens. None where they do not decode to the text
    that they were made of.
    """
    tokenizer, placeholder = processor.tokenizer, processor.video_token
    head, tail = earlier.text.split(placeholder)
    whole = tokenizer.decode(earlier.input_ids[0], clean_up_tokenization_spaces=False)
    video = whole[whole.find(head) + len(head) : len(whole) - len(tail)]

    def tokens(conversation: str) -> Tensor:
        return tokenizer([conversation.replace(placeholder, video)], return_tensors="pt")["input_ids"]

    return tokens(text) if torch.equal(tokens(earlier.text), earlier.input_ids) else None


def check_text(processor: Any, text: str) -> None:
    """UsageError when ``text`` holds one of the special tokens, or what stands for an image or a video."""
    tokenizer = processor.tokenizer
    special = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
    found = next(
        (token for token in (*special, processor.image_token, processor.video_token) if token in text), None
    )
    if found is not None:
        raise UsageError(f"the text holds {found!r}, which the model reads as a command", "leave it out")


Counter = Callable[[tuple[float, ...], int, int], int]


def visual_token_counter(folder: Path) -> Counter:
    """A function of frame times (seconds), width and height (pixels); it remembers what it has counted."""
    config, processor = read_config(folder), read_processor(folder)
    token = family_of(config.model_type, str(folder)).video_token(SimpleNamespace(config=config))
    text = chat_text(processor, "", None)
    known: dict[tuple[int, int, int], int] = {}

    def count(timestamps: tuple[float, ...], width: int, height: int) -> int:
        size = (len(timestamps), width, height)
        if size not in known:
            ids, _ = process(processor, text, _grey_clip(timestamps, width, height))
            known[size] = int((ids[0] == token).sum())
        return known[size]

    return count


def _grey_clip(timestamps: tuple[float, ...], width: int, height: int) -> Clip:
    frames = np.full((len(timestamps), height, width, 3), 127, np.uint8)
    return Clip(
        path=Path(),
        frames=frames,
        timestamps=timestamps,
        frame_rate=None,
        duration=None,
        start=0.0,
        end=None,
        source_width=width,
        source_height=height,
        frames_expected=len(timestamps),
        decoder="pyav",
        decode_seconds=0.0,
    )
