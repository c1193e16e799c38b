"""Clip and question -> the inputs of target and draft, each by its own processor.

The processor alone tells the number of a video's tokens, before any weights are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lvspec_cli.errors import UsageError
from lvspec_cli.models.families import family_of
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.processing import process
from lvspec_cli.models.prompt_length import TEMPLATE, Limit, Role, frames_within, positions_of
from lvspec_cli.models.read import chat_text, read_config, read_processor
from lvspec_cli.types import WHOLE, Clip, DraftView, PairPrompts, Prompt, Turn


def build_prompts(
    pair: LoadedPair,
    clip: Clip,
    question: str,
    *,
    system: str | None = None,
    earlier: PairPrompts | None = None,
    new_tokens: int = 0,
    think: bool = False,
    draft_view: DraftView = WHOLE,
    history: Sequence[Turn] = (),
) -> PairPrompts:
    """Build both models' inputs.

    The target's chat template writes the conversation for both, unless the draft is of a family that writes
    the place of the video in another way.

    A prediction layer reads the target's prompt. Where both processors make the same tensors, frames are
    processed once for both models.

    :param earlier: prompts of another question about the same clip. Their video tensors are reused, so that
        the frames are not processed again.
    :param think: whether the target is to think before it answers (``thinking_of``).
    :param draft_view: how much of the clip the draft is shown.
    :param history: earlier turns about the clip, which the question follows.
    :raises UsageError: the text contains a special token.
    :raises ContextError: a model has too few positions for the prompt and an answer of ``new_tokens``.
    """
    if pair.draft is not None and pair.draft.is_prediction_layer:
        alone = replace(pair, draft=None)
        only = build_prompts(
            alone,
            clip,
            question,
            system=system,
            earlier=earlier,
            new_tokens=new_tokens,
            think=think,
            history=history,
        )
        return PairPrompts(only.target, only.target)
    models = [pair.target] if pair.draft is None else [pair.target, pair.draft]
    parts = _parts(
        [
            _Reader(loaded.processor, loaded.family.video_token(loaded.model), loaded.positions, loaded.name)
            for loaded in models
        ],
        question,
        system,
        new_tokens,
        think=think,
        draft_view=draft_view,
        history=history,
    )
    prompts: list[Prompt] = []
    earlier_prompts = (earlier.target, earlier.draft) if earlier else (None, None)
    for loaded, part, earlier_prompt in zip(models, parts, earlier_prompts, strict=False):
        is_whole = not leaves_out(clip, part.view)
        if prompts and is_whole and pair.processes_once and earlier_prompt is None:
            earlier_prompt = prompts[0]
        prompt = build_prompt(loaded, clip, part.text, earlier=earlier_prompt, view=part.view)
        part.limit.check_prompt(
            prompt.length,
            prompt.visual_tokens,
            lambda: None if history else _frames_that_fit(parts, clip),  # it can be shortened, too
        )
        prompts.append(prompt)
    target, *draft = prompts
    return PairPrompts(target, draft[0] if draft else None)


def check_clip(
    folders: Sequence[Path],
    clip: Clip,
    question: str,
    *,
    system: str | None = None,
    new_tokens: int = 0,
    think: bool = False,
    draft_view: DraftView = WHOLE,
) -> None:
    """The checks of ``build_prompts`` before the models are loaded, unless the clip is short by the configs.

    :param folders: of the target and of the draft, if there is one.
    """
    configs = [read_config(folder) for folder in folders]
    text_bytes = len((question + (system or "")).encode())
    views = (WHOLE, draft_view)
    if all(
        _is_short(config, clip, view, text_bytes + new_tokens)
        for config, view in zip(configs, views, strict=False)
    ):
        return
    readers = [
        _Reader(
            read_processor(folder),
            family_of(config.model_type, str(folder)).video_token(SimpleNamespace(config=config)),
            positions_of(config.get_text_config()),
            str(folder),
        )
        for folder, config in zip(folders, configs, strict=True)
    ]
    parts = _parts(readers, question, system, new_tokens, think=think, draft_view=draft_view)
    for part in parts:
        part.limit.check_prompt(*part.size(clip, len(clip.timestamps)), lambda: _frames_that_fit(parts, clip))


def _is_short(config: Any, clip: Clip, view: DraftView, other_tokens: int) -> bool:
    """Whether a prompt certainly fits: processors round the sizes of frames, by far less than half."""
    vision, pixels = family_of(config.model_type, "").vision_size(config), clip.width * clip.height
    frames = min(len(clip.timestamps), view.frames or len(clip.timestamps))
    planned = vision.tokens(frames, min(pixels, view.pixels or pixels)) + frames * vision.text_a_frame
    return 2 * (planned + TEMPLATE) + other_tokens <= positions_of(config.get_text_config())


@dataclass(frozen=True)
class _Reader:
    """What a prompt's length depends on of one model."""

    processor: Any
    video_token: int
    positions: int
    name: str


@dataclass(frozen=True)
class _Part:
    """One model's part of a pair's prompts: its conversation, and how long that may be."""

    reader: _Reader
    limit: Limit
    text: str
    view: DraftView = WHOLE

    def size(self, clip: Clip, frames: int) -> tuple[int, int]:
        """Tokens of the prompt with so many of the clip's frames, evenly spread, and those of the video."""
        seen = shown(shown(clip, DraftView(frames)), self.view)
        ids = process(self.reader.processor, self.text, seen)[0][0]
        return len(ids), int((ids == self.reader.video_token).sum())

    def length(self, clip: Clip, frames: int) -> int:
        return self.size(clip, frames)[0]


def _parts(
    readers: Sequence[_Reader],
    question: str,
    system: str | None,
    new_tokens: int,
    *,
    think: bool,
    draft_view: DraftView,
    history: Sequence[Turn] = (),
) -> list[_Part]:
    """The parts of the target and of the draft, if there is one. Their texts are checked."""
    roles: tuple[Role, ...] = ("target", "draft")
    parts: list[_Part] = []
    for role, reader in zip(roles, readers, strict=False):
        is_shared = parts and reader.processor.video_token == parts[0].reader.processor.video_token
        text = (
            parts[0].text
            if is_shared
            else chat_text(reader.processor, question, system, reader.name, think=think, history=history)
        )
        view = draft_view if role == "draft" else WHOLE
        parts.append(_Part(reader, Limit(reader.positions, new_tokens, role), text, view))
    written = [question, system or "", *(text for turn in history for text in (turn.question, turn.answer))]
    for part in parts:
        _check_without_video(part, written)
    return parts


def leaves_out(clip: Clip, view: DraftView) -> bool:
    """Whether a draft is shown less than the whole clip."""
    count, pixels = len(clip.timestamps), clip.width * clip.height
    return (view.frames or count) < count or (view.pixels or pixels) < pixels


def shown(clip: Clip, view: DraftView) -> Clip:
    """A clip as a draft is shown it; the clip itself where nothing of it is left out.

    Frames are evenly spread: two or more include the first and the last. Smaller ones keep their shape.
    """
    count, pixels = len(clip.timestamps), clip.width * clip.height
    if view.frames is not None and view.frames < count:
        chosen = _spread(count, view.frames)
        times = tuple(clip.timestamps[index] for index in chosen)
        clip = replace(clip, frames=clip.frames[chosen], timestamps=times)
    if view.pixels is not None and view.pixels < pixels:
        scale = math.sqrt(view.pixels / pixels)
        width = max(1, math.floor(clip.width * scale))
        height = max(1, min(math.floor(clip.height * scale), view.pixels // width))
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        smaller = interpolate(frames, (height, width), mode="bicubic", antialias=True)
        clip = replace(clip, frames=smaller.permute(0, 2, 3, 1).contiguous().numpy())
    return clip


def _spread(count: int, chosen: int) -> list[int]:
    """Indices of so many of ``count`` items, evenly spread."""
    return [int(place) for place in np.linspace(0, count - 1, chosen).round()]


def _frames_that_fit(parts: Sequence[_Part], clip: Clip) -> int | None:
    """The most frames of a clip with which both models' prompts fit; None if none do."""
    frames: int | None = len(clip.timestamps)
    for part in parts:
        if frames is not None:
            frames = frames_within(partial(part.length, clip), frames, part.limit.room)
    return frames


def _check_without_video(part: _Part, written: Sequence[str]) -> None:
    """Checks the text, and what was written of it, before the frames are processed."""
    processor = part.reader.processor
    part.limit.check_text("".join(written), "the prompt")
    for text in written:
        check_text(processor, text)
    if not part.limit.may_fit(part.text):
        part.limit.check_tokens(len(processor.tokenizer(part.text)["input_ids"]), "the prompt")


def build_prompt(
    loaded: LoadedModel,
    clip: Clip,
    text: str,
    *,
    earlier: Prompt | None = None,
    view: DraftView = WHOLE,
) -> Prompt:
    """One model's inputs: a conversation (``chat_text``) as tokens, and the frames at their real times.

    :param earlier: a prompt about the same clip, of this model or of one whose processor makes the same.
    :param view: how much of the clip the model is shown.
    """
    ids = _expanded(loaded.processor, text, earlier) if earlier else None
    if ids is None or earlier is None:
        ids, video_inputs = process(loaded.processor, text, shown(clip, view))
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


class PromptSizes:
    """The sizes of one model's prompts by its processor and config alone. They are cached.

    Frames are given by their times (seconds), and their width and height (pixels). With a ``view`` they are
    those of a draft.
    """

    def __init__(self, folder: Path, new_tokens: int = 0, view: DraftView = WHOLE) -> None:
        config, self._processor = read_config(folder), read_processor(folder)
        self._token = family_of(config.model_type, str(folder)).video_token(SimpleNamespace(config=config))
        self._room = Limit(positions_of(config.get_text_config()), new_tokens).room
        self._text, self._view = chat_text(self._processor, "", None), view
        self._sizes: dict[tuple[int, int, int], tuple[int, int]] = {}

    def visual_tokens(self, times: Sequence[float], width: int, height: int) -> int:
        return self._size(times, width, height)[0]

    def frames_that_fit(
        self, text: str, times: Sequence[float], width: int, height: int, frames: int
    ) -> int | None:
        """The most of the frames, and at most ``frames``, that fit with a text and the answer; None if none.

        :param text: the question and the system prompt.
        """
        words = len(self._processor.tokenizer(text)["input_ids"])

        def tokens(count: int) -> int:
            fewer = [times[index] for index in _spread(len(times), count)]
            return words + self._size(fewer, width, height)[1]

        return frames_within(tokens, frames, self._room)

    def _size(self, times: Sequence[float], width: int, height: int) -> tuple[int, int]:
        """The tokens of the video, and of a whole prompt without a question."""
        key = (len(times), width, height)
        if key not in self._sizes:
            clip = shown(_grey_clip(tuple(times), width, height), self._view)
            ids, _ = process(self._processor, self._text, clip)
            self._sizes[key] = int((ids[0] == self._token).sum()), ids.shape[1]
        return self._sizes[key]


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
