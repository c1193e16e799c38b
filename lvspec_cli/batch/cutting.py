"""Cuts a video into segments of equal length, or at changes of the scene (PySceneDetect).

PySceneDetect's thresholds are made for all frames of a video, so up to 30 frames a second are analysed. In
faster videos a cut lies somewhere between two of them: a scene ends with its last analysed frame, so that it
never contains a frame of another scene. The detector compares each frame with its neighbours, so a frame that
is shown for long, such as a slide, is passed to it several times. Scenes are cached, because detecting them
decodes the whole video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from lvspec_cli.errors import DamagedVideoError, OutputError, UsageError
from lvspec_cli.output.files import replacing
from lvspec_cli.output.records import identify, key_of
from lvspec_cli.text_file import PROMPTS, read_own
from lvspec_cli.types import Clip, VideoRequest

if TYPE_CHECKING:
    import numpy as np
    from scenedetect.detectors import AdaptiveDetector

RATE = 30.0  # the most frames a second that are analysed
SHORTEST = 1.0  # seconds
_PIXELS = 96 * 54
_MOST_REPEATS = 4  # of a frame that is shown for long: more than the neighbours that the detector compares
_CHUNK = 180.0  # seconds read at once, 84 MB: a constant, so that a video's scenes are always the same

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Cut:
    """A change of scene. Seconds of the file's clock."""

    before: float  # end of the old scene's last analysed frame
    after: float  # start of the new scene's first analysed frame


def scene_segments(
    request: VideoRequest, *, shortest: float = SHORTEST, progress: Progress = lambda seconds: None
) -> tuple[Stretch, ...]:
    """The scenes of the requested part of a video: at least one, each of ``shortest`` seconds or more.

    The whole part is decoded at low resolution. The request's ``timeout`` holds for each three minutes.

    :param progress: called with the time that is reached; an exception in it ends the detection.
    :raises UsageError, NoInputError, VideoError: as ``read_clip``.
    """
    limits = replace(request.limits, sampled_frames=round(RATE * _CHUNK) + 1)
    small = replace(request, fps=RATE, max_frames=None, max_pixels=_PIXELS, decoder="pyav", limits=limits)
    finder, duration = _Finder(), None
    begin = start = request.start or 0.0
    is_complete = False
    while not is_complete:
        end = begin + _CHUNK if request.end is None else min(begin + _CHUNK, request.end)
        try:
            duration = finder.read(replace(small, start=begin, end=end), progress)
        except (DamagedVideoError, UsageError):
            if begin == start:
                raise
            break  # damaged from here on
        is_complete = end == request.end or (duration is not None and end >= duration)
        begin = end
    last = last_moment(request.end, duration, finder.analysed_until)
    finder.hold(last)
    return scenes(finder.cuts(), start, last, shortest)


def scenes(cuts: Sequence[Cut], start: float, end: float, shortest: float) -> tuple[Stretch, ...]:
    """The scenes between ``cuts`` from ``start`` to ``end``. Scenes that are too short join a neighbour."""
    used: list[Cut] = []
    for cut in cuts:
        if cut.before - (used[-1].after if used else start) >= shortest:
            used.append(cut)
    while used and end - used[-1].after < shortest:
        used.pop()
    starts = [start, *(cut.after for cut in used)]
    ends = [*(cut.before for cut in used), end]
    return tuple(map(Stretch, starts, ends))


def cut_between(old: float, new: float, shown: float) -> Cut:
    """The cut between analysed frames at ``old`` and ``new``, each shown for ``shown`` seconds.

    If they are further apart than analysed frames usually are, the video has no frame between them.
    """
    before = min(max(old + shown, new - 1 / RATE), new)
    return Cut(round(before, 6), round(new, 6))


def last_moment(end: float | None, duration: float | None, analysed_until: float) -> float:
    """The end of the last scene: at ``end``, but not after the video's end."""
    last = analysed_until if duration is None else duration
    return last if end is None else min(end, last)


@dataclass
class _Finder:
    """Analyses the frames of one video, chunk by chunk."""

    times: list[float] = field(default_factory=list)  # of the analysed frames
    starts: set[int] = field(default_factory=set)  # indices in ``times`` at which a scene begins
    shown: float = 0.0  # seconds for which the source shows a frame
    detector: AdaptiveDetector | None = None
    last: np.ndarray | None = None  # the last analysed frame, (height, width, 3)
    detected: list[int] = field(default_factory=list)  # index in ``times`` of each frame the detector got

    def read(self, chunk: VideoRequest, progress: Progress) -> float | None:
        """Analyses a chunk; returns the stream's duration in seconds. Only the last frame is kept."""
        from lvspec_cli.video.decode import read_clip

        begin = chunk.start or 0.0
        clip = read_clip(chunk, progress=lambda done, expected: progress(begin + done / RATE))
        self.look(clip)
        return clip.duration

    def look(self, clip: Clip) -> None:
        from scenedetect import AdaptiveDetector

        self.shown = 1 / clip.frame_rate if clip.frame_rate else 0.0
        for time, pixels in zip(clip.timestamps, clip.frames, strict=True):
            if self.times and time <= self.times[-1]:  # a chunk without a frame gives the one before it
                continue
            self.hold(time)
            if self.last is None or pixels.shape != self.last.shape:  # another size is another scene
                self.starts.add(len(self.times))
                self.detector = AdaptiveDetector(min_scene_len=0)
            self.times.append(time)
            self.last = pixels[..., ::-1].copy()  # BGR
            self._detect()

    def hold(self, until: float) -> None:
        """Repeats the last frame, which is shown ``until`` that time."""
        if self.times:
            for _ in range(min(_MOST_REPEATS, round((until - self.times[-1]) * RATE) - 1)):
                self._detect()

    def _detect(self) -> None:
        """Passes the last frame to the detector."""
        from scenedetect import FrameTimecode

        assert self.detector is not None and self.last is not None
        cuts = self.detector.process_frame(FrameTimecode(len(self.detected), RATE), self.last)
        self.detected.append(len(self.times) - 1)
        self.starts.update(self.detected[cut.frame_num] for cut in cuts)

    def cuts(self) -> list[Cut]:
        starts = sorted(self.starts - {0})
        return [cut_between(self.times[start - 1], self.times[start], self.shown) for start in starts]

    @property
    def analysed_until(self) -> float:
        """The end of the last analysed frame, in seconds."""
        return self.times[-1] + self.shown


_TICKS = 1_000_000  # a second: whole numbers keep times exact, and short when printed
_SHORTEST, _LONGEST = 0.1, 1e6  # seconds


@dataclass(frozen=True)
class Stretch:
    """Seconds of the file's clock: frames with ``start <= time < end``."""

    start: float
    end: float


def check_lengths(length: float, overlap: float) -> None:
    """:raises UsageError: a length is out of range."""
    if not _SHORTEST <= length <= _LONGEST:
        raise UsageError(f"--segment {length:g} is out of range", f"give {_SHORTEST:g} or more seconds")
    if not 0 <= overlap <= 0.9 * length:
        raise UsageError(
            f"--overlap {overlap:g} is out of range",
            f"give at most {0.9 * length:g} seconds, 0.9 of --segment",
        )


def even_segments(start: float, end: float, length: float, overlap: float = 0.0) -> tuple[Stretch, ...]:
    """Segments of ``length`` seconds from ``start`` to ``end``; none if ``end`` is not after ``start``.

    Each begins ``overlap`` seconds before the previous one ends. The last one ends at ``end``, and its part
    without overlap is at least a tenth of ``length``: a shorter remainder joins the previous segment.

    :raises UsageError: as ``check_lengths``.
    """
    check_lengths(length, overlap)
    if start >= end:
        return ()
    first, segment, step = _ticks(start), _ticks(length), _ticks(length) - _ticks(overlap)
    remaining = _ticks(end) - first - segment  # after the first segment
    count = max(1, (10 * remaining - segment) // (10 * step) + 2)
    starts = [start, *((first + index * step) / _TICKS for index in range(1, count))]
    ends = [*((first + index * step + segment) / _TICKS for index in range(count - 1)), end]
    return tuple(map(Stretch, starts, ends))


def _ticks(seconds: float) -> int:
    return round(seconds * _TICKS)


LOOK = 2  # version of the analysis in ``scene_segments``: cached scenes of another version are not used
Scenes = tuple[Stretch, ...]
_SCENES = TypeAdapter(Scenes)


def known_scenes(
    request: VideoRequest, folder: Path | None, find: Callable[[VideoRequest], Scenes]
) -> Scenes:
    """The scenes of the request, from the cache in ``folder`` or else by ``find``, which are then cached.

    The key is the file's content and the requested part. If the folder cannot be written, nothing is cached;
    broken files in it are replaced. Raises what ``find`` raises.
    """
    if folder is None:
        return find(request)
    try:
        identity = identify(request.path, b"")
    except OSError:
        return find(request)
    by = f"{version('scenedetect-headless')}, {LOOK}"
    facts = {"start": request.start, "end": request.end, "by": by}
    file = folder / f"{key_of(identity, facts)}.json"
    with suppress(OSError, ValueError, UsageError):
        cached = _SCENES.validate_json(read_own(file, PROMPTS))
        if cached and all(0 <= scene.start < scene.end < inf for scene in cached):
            return cached
    scenes = find(request)
    with suppress(OSError, OutputError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file, sync=False) as stream:
            stream.write(_SCENES.dump_json(scenes))
    return scenes
