"""Real frame times, in the form that processors read."""

from __future__ import annotations

from transformers.video_utils import VideoMetadata

from lvspec_cli.types import Clip

_TICKS = 90_000  # a second; the clock of MPEG, which holds every usual frame time exactly


def video_metadata(clip: Clip) -> VideoMetadata:
    """Times of frames that were picked beforehand.

    The frames are numbered on a fine clock, so that ``timestamps`` are the real times and
    ``sampled_fps`` is the real mean rate, (frames - 1) / (last - first), regular or not. Left to
    itself transformers assumes 24 frames a second.
    """
    count, times = len(clip.timestamps), clip.timestamps
    # A single frame has no spacing; one second stands in, and no family reads it.
    spacing = (times[-1] - times[0]) / (count - 1) if count > 1 else 1.0
    return VideoMetadata(
        total_num_frames=max(1, round(count * spacing * _TICKS)),
        fps=float(_TICKS),
        frames_indices=[round(time * _TICKS) for time in times],
        width=clip.width,
        height=clip.height,
        duration=clip.duration,
    )
