"""The messages between parent and child, over a socket pair.

The parent sends a Job and the descriptor of its file, and the next Job when this one is done. The child
answers with Taken, then, for task ``probe``, with a VideoInfo, and for task ``subtitles`` with Subtitles. For
task ``read`` it sends Opened, then for each frame its time (a float) and its raw bytes, then Finished. An
LvspecError may replace any of its messages. Everything except the bytes is pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lvspec_cli.errors import LvspecError
from lvspec_cli.types import DecoderName, VideoInfo, VideoRequest


@dataclass(frozen=True)
class Job:
    task: Literal["read", "probe", "subtitles"]
    request: VideoRequest
    threads: int | None = None  # of FFmpeg's at most; None: one a core


@dataclass(frozen=True)
class Taken:
    """The child has all resources that it needs: later failures are caused by the file."""


@dataclass(frozen=True)
class Opened:
    """Announces at most ``expected`` frames of height * width * 3 bytes."""

    expected: int
    width: int
    height: int
    source_width: int  # pixels, upright
    source_height: int

    @property
    def frame_bytes(self) -> int:
        return self.height * self.width * 3


@dataclass(frozen=True)
class Finished:
    frame_rate: float | None
    duration: float  # seconds
    begins: float  # seconds at which the picture begins
    decoder: DecoderName
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Cue:
    """What is said in a stretch of a video, on one line. Seconds of the file's clock."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Subtitles:
    cues: tuple[Cue, ...]  # in order of time


LAST = (VideoInfo, Subtitles, Finished, LvspecError)  # after one of these the child waits for its next job
