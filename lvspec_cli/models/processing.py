"""Calls a model's own processor: text and frames with their real times -> tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging
from transformers.video_utils import VideoMetadata

from lvspec_cli.errors import VideoError
from lvspec_cli.escape import visible_line
from lvspec_cli.types import Clip

_TICKS = 90_000  # a second: MPEG's clock, in which every usual frame time is a whole number
# Results of processors that are not tensors of the video.
_TEXT_KEYS = frozenset({"input_ids", "attention_mask", "mm_token_type_ids"})


def process(processor: Any, text: str, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
    """Token ids (1, length) with the video's placeholders, and the video's tensors."""
    features = features_of(processor, text, clip)
    video = {name: torch.as_tensor(value) for name, value in features.items() if name not in _TEXT_KEYS}
    return features["input_ids"], video


def features_of(processor: Any, text: str, clip: Clip) -> Any:
    """The processor's results for one text and clip, in the form that ``generate`` expects.

    All frames are used: none is selected or dropped.

    :raises VideoError: the processor does not accept the frames' size.
    """
    with _as_video_error(clip):
        return _features(processor, [text], [clip])


def batch_features_of(processor: Any, texts: Sequence[str], clips: Sequence[Clip]) -> Any:
    """As ``features_of``, for several clips at once: shorter prompts are padded on the left."""
    return _features(processor, texts, clips, padding=True, padding_side="left")


def _features(processor: Any, texts: Sequence[str], clips: Sequence[Clip], **padding: Any) -> Any:
    with quiet():
        features = processor(
            text=list(texts),
            # nested, because early releases of transformers 5 need it for SmolVLM2
            videos=[[_frames_for(processor, clip)] for clip in clips],
            video_metadata=[video_metadata(clip) for clip in clips],
            do_sample_frames=False,
            return_tensors="pt",
            **_uncapped(processor),
            **padding,
        )
    features.pop("video_metadata", None)
    return features


def _frames_for(processor: Any, clip: Clip) -> Tensor:
    """The frames (count, 3, height, width), at least as many as the processor takes."""
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    # Qwen3-VL rejects a single frame. Where frames are used in pairs, an odd one is repeated anyway.
    missing = getattr(processor.video_processor, "temporal_patch_size", 1) - len(frames)
    if missing > 0:
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    return frames


def makes_the_same(processor: Any, other: Any) -> bool:
    """Whether two processors make the same tensors of any text and clip, if their tokenizers agree.

    They are of one class with the same settings: of frames, patches and what stands in the text for them.
    """
    return type(processor) is type(other) and processor.to_dict() == other.to_dict()


@contextlib.contextmanager
def _as_video_error(clip: Clip) -> Iterator[None]:
    """Turns a processor's ValueError into a VideoError. Frames may be too narrow for it, for example."""
    try:
        yield
    except ValueError as error:
        name = f": {visible_line(str(clip.path))}" if clip.path.name else ""
        raise VideoError(
            f"the model takes no frames of {clip.width}x{clip.height} pixels ({error}){name}",
            "crop or scale the video first",
        ) from error


def _uncapped(processor: Any) -> dict[str, bool]:
    """Arguments that switch off the processor's own limit on pixels (see ``VideoRequest.max_pixels``)."""
    arguments = processor.video_processor.valid_kwargs.__annotations__
    return {"cap_pixels_per_frame": False} if "cap_pixels_per_frame" in arguments else {}


def video_metadata(clip: Clip) -> VideoMetadata:
    """Metadata with the times of frames that were sampled before.

    Frame numbers count ticks of a fine clock, so that ``timestamps`` are the real times and ``sampled_fps``
    is the real mean rate, (frames - 1) / (last - first), whether the times are regular or not. Without
    metadata transformers assumes 24 frames a second.
    """
    count, times = len(clip.timestamps), clip.timestamps
    # A single frame has no spacing. No family reads the second that is used instead.
    spacing = (times[-1] - times[0]) / (count - 1) if count > 1 else 1.0
    return VideoMetadata(
        total_num_frames=max(1, round(count * spacing * _TICKS)),
        fps=float(_TICKS),
        frames_indices=[round(time * _TICKS) for time in times],
        width=clip.width,
        height=clip.height,
        duration=clip.duration,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the library's messages on the terminal. Errors are still raised."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
