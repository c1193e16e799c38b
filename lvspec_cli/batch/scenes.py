"""Where a video's scenes change: PySceneDetect, on frames that the decoding child gave.

Frames are looked at a few times a second, so a cut lies somewhere between two of them. A scene ends with the
last frame seen of it, and the next one begins with its first: no scene holds a frame of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lvspec_cli.batch.segments import Stretch
from lvspec_cli.errors import DamagedVideoError, UsageError
from lvspec_cli.types import Clip, VideoRequest

if TYPE_CHECKING:
    from scenedetect.detectors import AdaptiveDetector

RATE = 8.0  # frames looked at in a second
SHORTEST = 1.0  # seconds
_PIXELS = 96 * 54
_CHUNK = 300.0  # seconds read at a time, 37 MB: fixed, so that a video's scenes are the same in every run

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Cut:
    """A change of scene. Seconds from the stream's first frame."""

    before: float  # when the last frame seen of the old scene ends
    after: float  # when the first frame seen of the new scene begins


def scene_segments(
    request: VideoRequest, *, shortest: float = SHORTEST, progress: Progress = lambda seconds: None
) -> tuple[Stretch, ...]:
    """The scenes of what is asked of a video: one at least, each of ``shortest`` seconds or more.

    All of it is decoded, at low resolution, and ``timeout`` holds for each five minutes.

    :param progress: called with the time that is reached; what it raises ends the work.
    :raises UsageError, NoInputError, VideoError: as ``read_clip``.
    """
    limits = replace(request.limits, sampled_frames=round(RATE * _CHUNK) + 1)
    small = replace(request, fps=RATE, max_frames=None, max_pixels=_PIXELS, decoder="pyav", limits=limits)
    finder, duration = _Finder(), None
    for clip in _chunks(small, progress):
        finder.look(clip)
        duration = clip.duration
    last = last_moment(request.end, duration, finder.seen)
    return scenes(finder.cuts(), request.start or 0.0, last, shortest)


def scenes(cuts: Sequence[Cut], start: float, end: float, shortest: float) -> tuple[Stretch, ...]:
    """The scenes that ``cuts`` leave of the time from ``start`` to ``end``; too short ones join others."""
    kept: list[Cut] = []
    for cut in cuts:
        if cut.before - (kept[-1].after if kept else start) >= shortest:
            kept.append(cut)
    while kept and end - kept[-1].after < shortest:
        kept.pop()
    starts = [start, *(cut.after for cut in kept)]
    ends = [*(cut.before for cut in kept), end]
    return tuple(map(Stretch, starts, ends))


def last_moment(end: float | None, duration: float | None, seen: float) -> float:
    """Where the last scene ends: at ``end`` or with the video, whose header may be silent or too short."""
    last = max(duration or 0.0, seen)
    return last if end is None else min(end, last)


def _chunks(request: VideoRequest, progress: Progress) -> Iterator[Clip]:
    from lvspec_cli.video.decode import read_clip

    start, is_first = request.start or 0.0, True
    while True:
        end = start + _CHUNK if request.end is None else min(start + _CHUNK, request.end)
        chunk = replace(request, start=start, end=end)
        try:
            clip = read_clip(chunk, progress=_reached(start, progress))
        except (DamagedVideoError, UsageError):  # the header had promised more
            if is_first:
                raise
            return
        yield clip
        if end == request.end or (clip.duration is not None and end >= clip.duration):
            return
        start, is_first = end, False


def _reached(start: float, progress: Progress) -> Callable[[int, int], None]:
    return lambda done, expected: progress(start + done / RATE)


@dataclass
class _Finder:
    """Looks at the frames of one video, chunk by chunk."""

    times: list[float] = field(default_factory=list)  # of the frames looked at
    starts: set[int] = field(default_factory=set)  # places in ``times`` where a scene begins
    shown: float = 0.0  # seconds for which the source shows a frame
    detector: AdaptiveDetector | None = None
    shape: tuple[int, ...] = ()

    def look(self, clip: Clip) -> None:
        from scenedetect import AdaptiveDetector, FrameTimecode

        self.shown = 1 / clip.frame_rate if clip.frame_rate else 0.0
        for time, pixels in zip(clip.timestamps, clip.frames, strict=True):
            if self.times and time <= self.times[-1]:  # a chunk without a frame has the one before
                continue
            if self.detector is None or pixels.shape != self.shape:  # another size is another scene
                self.starts.add(len(self.times))
                self.detector, self.shape = AdaptiveDetector(min_scene_len=0), pixels.shape
            found = self.detector.process_frame(
                FrameTimecode(len(self.times), RATE), pixels[..., ::-1].copy()
            )
            self.starts.update(cut.frame_num for cut in found)
            self.times.append(time)

    def cuts(self) -> list[Cut]:
        neighbours = [(self.times[place - 1], self.times[place]) for place in sorted(self.starts - {0})]
        return [Cut(round(min(old + self.shown, new), 6), round(new, 6)) for old, new in neighbours]

    @property
    def seen(self) -> float:
        """Seconds up to which frames were looked at."""
        return self.times[-1] + self.shown
