"""Where a video is cut: into segments of equal length, or where its scenes change (PySceneDetect).

PySceneDetect's thresholds are made for every frame, so up to 30 a second are looked at. In faster videos
a cut lies somewhere between two of these: a scene ends with the last frame seen of it, and holds none of
another. It holds each frame against its neighbours, so one that stays on show for long, a slide, is given
several times. Scenes that were found are kept, because finding them decodes the whole video.
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

RATE = 30.0  # most frames looked at in a second
SHORTEST = 1.0  # seconds
_PIXELS = 96 * 54
_MOST_REPEATS = 4  # of a frame that stays on show: more than the neighbours that the detector looks at
_CHUNK = 180.0  # seconds read at a time, 84 MB: fixed, so that a video's scenes are the same in every run

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Cut:
    """A change of scene. Seconds of the file's clock."""

    before: float  # when the last frame seen of the old scene ends
    after: float  # when the first frame seen of the new scene begins


def scene_segments(
    request: VideoRequest, *, shortest: float = SHORTEST, progress: Progress = lambda seconds: None
) -> tuple[Stretch, ...]:
    """The scenes of what is asked of a video: one at least, each of ``shortest`` seconds or more.

    All of it is decoded, at low resolution, and ``timeout`` holds for each three minutes.

    :param progress: called with the time that is reached; what it raises ends the work.
    :raises UsageError, NoInputError, VideoError: as ``read_clip``.
    """
    limits = replace(request.limits, sampled_frames=round(RATE * _CHUNK) + 1)
    small = replace(request, fps=RATE, max_frames=None, max_pixels=_PIXELS, decoder="pyav", limits=limits)
    finder, duration = _Finder(), None
    begin = start = request.start or 0.0
    is_whole = False
    while not is_whole:
        end = begin + _CHUNK if request.end is None else min(begin + _CHUNK, request.end)
        try:
            duration = finder.read(replace(small, start=begin, end=end), progress)
        except (DamagedVideoError, UsageError):
            if begin == start:
                raise
            break  # the rest is damaged
        is_whole = end == request.end or (duration is not None and end >= duration)
        begin = end
    last = last_moment(request.end, duration, finder.seen)
    finder.hold(last)
    return scenes(finder.cuts(), start, last, shortest)


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


def cut_between(old: float, new: float, shown: float) -> Cut:
    """The cut between frames seen at ``old`` and ``new``, each shown for ``shown`` seconds.

    Where they are further apart than two that are looked at, no other frame is between them.
    """
    before = min(max(old + shown, new - 1 / RATE), new)
    return Cut(round(before, 6), round(new, 6))


def last_moment(end: float | None, duration: float | None, seen: float) -> float:
    """Where the last scene ends: at ``end`` or with the video, never beyond it."""
    last = seen if duration is None else duration
    return last if end is None else min(end, last)


@dataclass
class _Finder:
    """Looks at the frames of one video, chunk by chunk."""

    times: list[float] = field(default_factory=list)  # of the frames looked at
    starts: set[int] = field(default_factory=set)  # places in ``times`` where a scene begins
    shown: float = 0.0  # seconds for which the source shows a frame
    detector: AdaptiveDetector | None = None
    last: np.ndarray | None = None  # the frame looked at last, (height, width, 3)
    places: list[int] = field(
        default_factory=list
    )  # in ``times``, one for each time the detector was given one

    def read(self, chunk: VideoRequest, progress: Progress) -> float | None:
        """Looks at a chunk, and gives the seconds of the whole stream. No frame outlives the call."""
        from lvspec_cli.video.decode import read_clip

        begin = chunk.start or 0.0
        clip = read_clip(chunk, progress=lambda done, expected: progress(begin + done / RATE))
        self.look(clip)
        return clip.duration

    def look(self, clip: Clip) -> None:
        from scenedetect import AdaptiveDetector

        self.shown = 1 / clip.frame_rate if clip.frame_rate else 0.0
        for time, pixels in zip(clip.timestamps, clip.frames, strict=True):
            if self.times and time <= self.times[-1]:  # a chunk without a frame has the one before
                continue
            self.hold(time)
            if self.last is None or pixels.shape != self.last.shape:  # another size is another scene
                self.starts.add(len(self.times))
                self.detector = AdaptiveDetector(min_scene_len=0)
            self.times.append(time)
            self.last = pixels[..., ::-1].copy()  # blue first
            self._give()

    def hold(self, until: float) -> None:
        """The frame looked at last stays on show ``until`` that time."""
        if self.times:
            for _ in range(min(_MOST_REPEATS, round((until - self.times[-1]) * RATE) - 1)):
                self._give()

    def _give(self) -> None:
        from scenedetect import FrameTimecode

        assert self.detector is not None and self.last is not None
        found = self.detector.process_frame(FrameTimecode(len(self.places), RATE), self.last)
        self.places.append(len(self.times) - 1)
        self.starts.update(self.places[cut.frame_num] for cut in found)

    def cuts(self) -> list[Cut]:
        places = sorted(self.starts - {0})
        return [cut_between(self.times[place - 1], self.times[place], self.shown) for place in places]

    @property
    def seen(self) -> float:
        """Seconds up to which frames were looked at."""
        return self.times[-1] + self.shown


_TICKS = 1_000_000  # a second: whole numbers keep times exact, and short when they are written
_SHORTEST, _LONGEST = 0.1, 1e6  # seconds


@dataclass(frozen=True)
class Stretch:
    """Seconds of the file's clock: frames with ``start <= time < end``."""

    start: float
    end: float


def check_lengths(length: float, overlap: float) -> None:
    """:raises UsageError: no video can be cut into such segments."""
    if not _SHORTEST <= length <= _LONGEST:
        raise UsageError(f"--segment {length:g} is out of range", f"give {_SHORTEST:g} or more seconds")
    if not 0 <= overlap <= 0.9 * length:
        raise UsageError(
            f"--overlap {overlap:g} is out of range",
            f"give at most {0.9 * length:g} seconds, 0.9 of --segment",
        )


def even_segments(start: float, end: float, length: float, overlap: float = 0.0) -> tuple[Stretch, ...]:
    """Segments of ``length`` seconds that cover all from ``start`` to ``end``; none where that is nothing.

    Each begins ``overlap`` seconds before its neighbour ends, and the last one ends at ``end``. What is new
    in that one is at least a tenth of ``length``: a shorter rest joins the segment before.

    :raises UsageError: as ``check_lengths``.
    """
    check_lengths(length, overlap)
    if start >= end:
        return ()
    first, whole, step = _ticks(start), _ticks(length), _ticks(length) - _ticks(overlap)
    rest = _ticks(end) - first - whole  # after the first segment
    count = max(1, (10 * rest - whole) // (10 * step) + 2)
    starts = [start, *((first + place * step) / _TICKS for place in range(1, count))]
    ends = [*((first + place * step + whole) / _TICKS for place in range(count - 1)), end]
    return tuple(map(Stretch, starts, ends))


def _ticks(seconds: float) -> int:
    return round(seconds * _TICKS)


LOOK = 2  # how ``scenes`` shows a video to the detector: another way finds other scenes
Scenes = tuple[Stretch, ...]
_SCENES = TypeAdapter(Scenes)


def known_scenes(
    request: VideoRequest, folder: Path | None, find: Callable[[VideoRequest], Scenes]
) -> Scenes:
    """What ``find`` said of the same content and stretch before, else what it says now, kept in ``folder``.

    A folder that is not there and cannot be written is no failure; what is broken in it is found again.
    Raises what ``find`` does.
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
        if _are_sound(known := _SCENES.validate_json(read_own(file, PROMPTS))):
            return known
    found = find(request)
    with suppress(OSError, OutputError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file, sync=False) as stream:
            stream.write(_SCENES.dump_json(found))
    return found


def _are_sound(scenes: Scenes) -> bool:
    return bool(scenes) and all(0 <= each.start < each.end < inf for each in scenes)
