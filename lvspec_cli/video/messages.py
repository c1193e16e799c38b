"""What parent and child say to each other about one video, pickled over a socket pair.

The parent sends one Job. The child answers with a VideoInfo (task ``probe``), or with Opened, then for each
frame its time (a float) and its bytes, then Finished. Either may be cut short by an LvspecError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lvspec_cli.types import DecoderName, VideoRequest


@dataclass(frozen=True)
class Job:
    task: Literal["read", "probe"]
    request: VideoRequest


@dataclass(frozen=True)
class Opened:
    """What is coming: at most ``expected`` frames of height * width * 3 bytes."""

    expected: int
    width: int
    height: int
    source_width: int  # pixels, upright
    source_height: int


@dataclass(frozen=True)
class Finished:
    frame_rate: float | None
    duration: float | None  # seconds
    decoder: DecoderName
    warnings: tuple[str, ...]
