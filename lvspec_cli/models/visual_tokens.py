"""How many of a prompt's tokens a video takes, from a model's processor alone: no weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lvspec_cli.models.chat import chat_text
from lvspec_cli.models.families import family_of
from lvspec_cli.models.processing import process
from lvspec_cli.models.read import read_config, read_processor
from lvspec_cli.types import Clip

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
