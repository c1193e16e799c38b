"""Clip and question -> the inputs of target and draft, each by its own processor.

The processor alone tells the number of a video's tokens, before any weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    """Build both models' inputs.

    The target's chat template writes the conversation for both, unless the draft is of a family that writes
    the place of the video in another way.

    A prediction layer reads the target's prompt.

    :param earlier: prompts of another question about the same clip. Their video tensors are reused, so that
        the frames are not processed again.
    :raises UsageError: the text contains a special token, or a model has too few positions for the prompt and
        an answer of ``new_tokens``.
    """
    if pair.draft is not None and pair.draft.is_prediction_layer:
        alone = replace(pair, draft=None)
        only = build_prompts(alone, clip, question, system=system, earlier=earlier, new_tokens=new_tokens)
        return PairPrompts(only.target, only.target)
    limits = [(pair.target, Limit(pair.target.positions, new_tokens))]
    if pair.draft is not None:
        limits.append((pair.draft, Limit(pair.draft.positions, new_tokens, "draft")))
    texts = [chat_text(pair.target.processor, question, system, pair.target.name)]
    if pair.draft is not None:
        is_shared = pair.draft.processor.video_token == pair.target.processor.video_token
        own = texts[0] if is_shared else chat_text(pair.draft.processor, question, system, pair.draft.name)
        texts.append(own)
    for (loaded, limit), text in zip(limits, texts, strict=True):
        _check_without_video(loaded, limit, text, question, system)
    prompts: list[Prompt] = []
    earlier_prompts = (earlier.target, earlier.draft) if earlier else (None, None)
    for (loaded, limit), text, earlier_prompt in zip(limits, texts, earlier_prompts, strict=False):
        prompts.append(build_prompt(loaded, clip, text, earlier=earlier_prompt))
        limit.check_prompt(prompts[-1].length, prompts[-1].visual_tokens)
    target, *draft = prompts
    return PairPrompts(target, draft[0] if draft else None)


def _check_without_video(
    loaded: LoadedModel, limit: Limit, text: str, question: str, system: str | None
) -> None:
    """Checks the text, and the parts that users wrote, before the frames are processed."""
    limit.check_text(question + (system or ""), "the prompt")
    for part in (question, system or ""):
        check_text(loaded.processor, part)
    if not limit.may_fit(text):
        limit.check_tokens(len(loaded.tokenizer(text)["input_ids"]), "the prompt")


def build_prompt(loaded: LoadedModel, clip: Clip, text: str, *, earlier: Prompt | None = None) -> Prompt:
    """One model's inputs: a conversation (``chat_text``) as tokens, and the frames at their real times."""
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
        # As ``generate`` counts: after the prompt's last token, even if a long video has higher positions.
        next_position=int(positions[..., -1].max()) + 1,
        video_mask=video,
        prefix_length=int(video.nonzero()[-1]) + 1,
        video_inputs=video_inputs,
    )


def _expanded(processor: Any, text: str, earlier: Prompt) -> Tensor | None:
    """Token ids of a conversation about the video of an earlier prompt, without processing its frames.

    The text for the video is taken from the earlier tokens. None if these do not decode to the text that they
    were made from.
    """
    tokenizer, placeholder = processor.tokenizer, processor.video_token
    head, tail = earlier.text.split(placeholder)
    decoded = tokenizer.decode(earlier.input_ids[0], clean_up_tokenization_spaces=False)
    video = decoded[decoded.find(head) + len(head) : len(decoded) - len(tail)]

    def tokens(conversation: str) -> Tensor:
        return tokenizer([conversation.replace(placeholder, video)], return_tensors="pt")["input_ids"]

    return tokens(text) if torch.equal(tokens(earlier.text), earlier.input_ids) else None


def check_text(processor: Any, text: str) -> None:
    """
    :raises UsageError: ``text`` contains a special token, or the placeholder of an image or a video.
    """
    tokenizer = processor.tokenizer
    special = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
    for token in (*special, processor.image_token, processor.video_token):
        if token in text:
            raise UsageError(f"the text holds {token!r}, which the model reads as a command", "leave it out")


Counter = Callable[[tuple[float, ...], int, int], int]


def visual_token_counter(folder: Path) -> Counter:
    """A function of frame times (seconds), width and height (pixels). It caches its results."""
    config, processor = read_config(folder), read_processor(folder)
    token = family_of(config.model_type, str(folder)).video_token(SimpleNamespace(config=config))
    text = chat_text(processor, "", None)
    counts: dict[tuple[int, int, int], int] = {}

    def count(timestamps: tuple[float, ...], width: int, height: int) -> int:
        size = (len(timestamps), width, height)
        if size not in counts:
            ids, _ = process(processor, text, _grey_clip(timestamps, width, height))
            counts[size] = int((ids[0] == token).sum())
        return counts[size]

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
