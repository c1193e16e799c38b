"""What parent and child say to each other, over a socket pair.

The parent sends a Job, then the descriptor of its file, and the next one when that is done. The child
answers with Taken, then with a VideoInfo (task ``probe``), or with Opened, then for each frame its time
(a float) and its bytes as they are, then Finished. Either may be cut short by an LvspecError in place of a
message. All but the bytes is pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lvspec_cli.errors import LvspecError
from lvspec_cli.types import DecoderName, VideoInfo, VideoRequest


@dataclass(frozen=True)
class Job:
    task: Literal["read", "probe"]
    request: VideoRequest
    threads: int | None = None  # of FFmpeg's at most; None: one a core


@dataclass(frozen=True)
class Taken:
    """The child has all that it needs: from here on what goes wrong is of the file."""


@dataclass(frozen=True)
class Opened:
    """What is coming: at most ``expected`` frames of height * width * 3 bytes."""

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


LAST = (VideoInfo, Finished, LvspecError)  # after one of these the child waits for its next job
