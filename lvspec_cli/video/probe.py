"""What there is to read in a video file, without decoding it."""

from __future__ import annotations

from pathlib import Path

from lvspec_cli.types import VideoInfo, VideoRequest
from lvspec_cli.video.child import decoding_child
from lvspec_cli.video.messages import Job

TIMEOUT = 20.0  # seconds


def probe(path: Path, *, timeout: float = TIMEOUT) -> VideoInfo:
    """Format, size and rate as the header of ``path`` has them, times as its packets do; by a child process.

    Raises NoInputError and VideoError with its kinds.
    """
    with decoding_child(probe_job(path, timeout)) as child:
        info: VideoInfo = child.receive()
        return info


def probe_job(path: Path, timeout: float | None = TIMEOUT) -> Job:
    return Job("probe", VideoRequest(path, timeout=timeout))
