"""When each frame of a stream is shown: decisions on what its packets say, without decoding them.

The file's clock begins where the first of its streams does, sound or picture, as players have it. Times of
joined or spliced streams go back or jump; here they become one clock that only grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lvspec_cli.video.sample import Times

Ticks = NDArray[np.int64]

_LAST = np.iinfo(np.int64).max
UNKNOWN = np.iinfo(np.int64).min  # in place of a tick or a position that the container does not give
REORDERED = 16  # packets after a frame's own that may be shown before it, at most: what encoders allow
_BACK = Fraction(1, 4)  # seconds that stamps may go back: demuxers guess those of MPEG-PS
_AHEAD = Fraction(10)  # seconds that stamps may jump ahead in a stream that can be spliced
_NEAR = 4  # packets: so near to where two streams were joined an incomplete one is no damage
_JITTER = Fraction(1, 4)  # seconds by which guessed stamps may miss an even rate


@dataclass(frozen=True)
class Packets:
    """The metadata of a stream's packets, in decoding order. Times are in ticks."""

    pts: Ticks
    dts: Ticks
    sizes: Ticks  # bytes
    positions: Ticks  # of the last packet whose place in the file is known, up to this one
    keys: Ticks  # which packets begin a group
    corrupt: Ticks  # which the container knows to be incomplete
    duration: int  # ticks for which the last frame is shown, 0 when unknown


@dataclass(frozen=True)
class StreamClock:
    """How the times of a stream in its container have to be interpreted."""

    time_base: Fraction  # seconds a tick
    rate: Fraction  # frames per second
    begins: int | None  # tick at which the first stream of the file begins
    stamped: bool = True  # the container stores presentation times, if not of each packet
    indexed: bool = False  # its times come from an index: those of decoding may be guesses
    spliced: bool = False  # a recording may have been cut from several
    fields: bool = False  # a packet may hold one field of two, the second without a time

    @property
    def step(self) -> Fraction:
        """Ticks a frame."""
        return self.time_base.denominator / (self.rate * self.time_base.numerator)


@dataclass(frozen=True)
class KeyFrame:
    """A packet at which reading can begin: all frames shown from ``tick`` on can then be decoded."""

    index: int  # among the packets, in decoding order
    tick: int
    pts: int  # as the container has it, or UNKNOWN
    dts: int
    size: int  # bytes
    position: int  # bytes into the file, or UNKNOWN


@dataclass(frozen=True)
class Timeline:
    """Presentation times of a stream's frames, or of a stretch of them.

    With ``by_count`` packets do not say when their frames are shown: ``stamps`` are their indices, and the
    n-th frame that comes out of the decoder is shown at the n-th tick.
    """

    ticks: Ticks  # (frames,) ascending, in units of the time base
    stamps: Ticks  # (packets,) what identifies a packet's frame, in decoding order
    time_base: Fraction  # seconds a tick
    origin: int  # tick at which the file's clock begins
    by_count: bool
    restamped: bool  # packets have to be given their stamp before they are decoded
    key_frames: tuple[KeyFrame, ...]  # ascending
    random_access: bool  # all groups are closed: no frame needs one before its group
    step: Fraction  # ticks for which the last frame is shown
    pieces: int = 1  # stretches without a break in the container's times
    error: str | None = None  # what stopped the scan, None at the end of the file or of the stretch
    whole: bool = True  # false for a stretch
    from_first: bool = True  # its first packet is the stream's first
    skipped: int = 0  # packets before the first one, which cannot be decoded: a recording that began late
    broken: tuple[tuple[int, int], ...] = ()  # ticks from and until which incomplete packets may show

    @property
    def times(self) -> Times:
        """Seconds on the file's clock, ascending."""
        since = (self.ticks - self.origin).astype(np.float64)
        return since * self.time_base.numerator / self.time_base.denominator

    @property
    def begins(self) -> float:
        """Seconds at which the first frame is shown."""
        return seconds_between(self.origin, int(self.ticks[0]), self.time_base)

    @property
    def duration(self) -> float:
        """Seconds from the clock's beginning to the end of the last frame."""
        return seconds_between(self.origin, int(self.ticks[-1]) + self.step, self.time_base)

    @property
    def frame_rate(self) -> float | None:
        span = float(self.times[-1] - self.times[0])
        return (len(self.ticks) - 1) / span if span > 0 else None


def seconds_between(begin: int, end: int | Fraction, time_base: Fraction) -> float:
    """Seconds between two ticks, to the microsecond: the same however much of the stream was scanned."""
    return round(float((end - begin) * time_base), 6)


def timeline_of(packets: Packets, clock: StreamClock, *, at_start: bool = True) -> Timeline:
    """The timeline that ``packets`` come to: one at least. ``at_start``: the first is the stream's first."""
    skipped = int(packets.keys[0]) if clock.spliced and at_start and len(packets.keys) else 0
    packets = _without(packets, skipped)
    step = clock.step
    known = packets.pts != UNKNOWN
    decoding = _decoding_times(packets, step)
    joints = _joints(packets, decoding, clock)
    by_count = not _tells_times(packets, known, joints, clock)
    offsets = _offsets(decoding if by_count else np.where(known, packets.pts, decoding), joints, step)
    if by_count:
        shown, step = _even(decoding + offsets, step, clock.time_base)
        shown = shown + _delay(packets, decoding, clock)
        ticks, stamps = shown, np.arange(len(shown), dtype=np.int64)
    else:
        shown = stamps = np.where(known, packets.pts + offsets, UNKNOWN)
        ticks = np.unique(shown[known])
    keys = _key_frames(packets, shown)
    if skipped and not by_count:
        ticks = ticks[ticks >= keys[0].tick]  # those before it need what was skipped
    closed = 0 if by_count else len(closed_key_frames(stamps, packets.keys.tolist()))
    return Timeline(
        ticks=ticks,
        stamps=stamps,
        time_base=clock.time_base,
        origin=int(ticks[0]) if clock.begins is None else min(clock.begins, int(ticks[0])),
        by_count=by_count,
        restamped=by_count or bool(joints.size),
        key_frames=keys,
        random_access=0 < closed == len(packets.keys),
        step=_last_step(packets, ticks, step, by_count),
        pieces=1 + len(joints),
        skipped=skipped,
        broken=_broken(packets, shown, joints),
    )


def _without(packets: Packets, count: int) -> Packets:
    """All packets but the first ``count``."""
    if not count:
        return packets
    return Packets(
        pts=packets.pts[count:],
        dts=packets.dts[count:],
        sizes=packets.sizes[count:],
        positions=packets.positions[count:],
        keys=packets.keys - count,
        corrupt=packets.corrupt[packets.corrupt >= count] - count,
        duration=packets.duration,
    )


def _broken(packets: Packets, shown: Ticks, joints: Ticks) -> tuple[tuple[int, int], ...]:
    """The ranges from incomplete packets to the next key frame, in which frames may look wrong.

    Where two streams were joined, packets only seem to be missing.
    """
    ranges = []
    for index in packets.corrupt.tolist():
        if np.abs(joints - index).min(initial=_NEAR) >= _NEAR and shown[index] != UNKNOWN:
            after = int(np.searchsorted(packets.keys, index, side="right"))
            ends = after < len(packets.keys)
            ranges.append((int(shown[index]), int(shown[packets.keys[after]]) if ends else _LAST))
    return tuple(ranges)


def _tells_times(packets: Packets, known: NDArray[np.bool_], joints: Ticks, clock: StreamClock) -> bool:
    """Whether packets say when their frames are shown."""
    if clock.fields and known.any():
        return True
    shares = clock.stamped and not clock.indexed and len(np.unique(packets.pts)) < len(packets.pts)
    return bool(known.all()) and (bool(joints.size) or not shares)


def closed_key_frames(pts: Ticks, key_frames: list[int]) -> list[int]:
    """Those of the indices ``key_frames`` whose group is closed, as far as times show it.

    Frames that are decoded before such a key frame are shown before it, and those decoded later are shown
    later. ``pts`` are those of all frames, in decoding order.
    """
    keys = np.asarray(key_frames, dtype=np.int64)
    smallest_after = np.minimum.accumulate(pts[::-1])[::-1]
    largest_before = np.concatenate([[UNKNOWN], np.maximum.accumulate(pts)[:-1]])
    is_closed = (smallest_after[keys] == pts[keys]) & (largest_before[keys] < pts[keys])
    return [int(key) for key in keys[is_closed]]


def _decoding_times(packets: Packets, step: Fraction) -> Ticks:
    """Decoding times, estimated where the container gives none."""
    known = packets.dts != UNKNOWN
    index = np.arange(len(known))
    if not known.any():
        known, held = packets.pts != UNKNOWN, packets.pts
    else:
        held = packets.dts
    if not known.any():
        return np.round(index * float(step)).astype(np.int64)
    return np.round(np.interp(index, index[known], held[known])).astype(np.int64)


def _joints(packets: Packets, decoding: Ticks, clock: StreamClock) -> Ticks:
    """The packets that begin a piece: times go back there, or jump in a stream that may be spliced."""
    if clock.indexed or (packets.dts == UNKNOWN).all():  # only key frames are shown in the order of decoding
        shown = packets.pts[packets.keys]
        return packets.keys[1:][np.diff(shown) < 0] if (shown != UNKNOWN).all() else packets.keys[:0]
    steps = np.diff(decoding)
    breaks = steps < -float(_BACK / clock.time_base)
    if clock.spliced:
        breaks |= steps > float(_AHEAD / clock.time_base)
    return np.flatnonzero(breaks) + 1


def _offsets(times: Ticks, joints: Ticks, step: Fraction) -> Ticks:
    """The offset of each packet's time with which its piece follows the previous piece."""
    offsets = np.zeros(len(times), dtype=np.int64)
    end = 0
    for begin, after in pairwise([0, *joints.tolist(), len(times)]):
        if begin:
            offsets[begin:after] = end + round(step) - int(times[begin:after].min())
        end = int((times + offsets)[begin:after].max())
    return offsets


def _even(times: Ticks, step: Fraction, time_base: Fraction) -> tuple[Ticks, Fraction]:
    """Estimated times, made even by the stream's rate or the mean rate if one fits; and ticks a frame."""
    index = np.arange(len(times))
    mean = Fraction(int(times[-1] - times[0]), max(1, len(times) - 1))
    for pace in (step, mean):
        off = times - index * float(pace)
        middle = np.median(off)
        if pace > 0 and np.abs(off - middle).max() <= float(_JITTER / time_base):
            return np.round(middle + index * float(pace)).astype(np.int64), pace
    return np.maximum.accumulate(times - index) + index, mean  # each at least a tick after the last


def _delay(packets: Packets, decoding: Ticks, clock: StreamClock) -> int:
    """Ticks from decoding to showing a frame, where the container stores when the first one is shown."""
    first = int(packets.pts[0])
    if not clock.stamped or first == UNKNOWN:
        return 0
    known = packets.pts[: len(packets.keys) and _second_key(packets)]
    return int(known[known != UNKNOWN].min() - decoding[0])


def _second_key(packets: Packets) -> int:
    return int(packets.keys[1]) if len(packets.keys) > 1 else len(packets.pts)


def _key_frames(packets: Packets, shown: Ticks) -> tuple[KeyFrame, ...]:
    return tuple(
        KeyFrame(
            index=index,
            tick=int(shown[index]),
            pts=int(packets.pts[index]),
            dts=int(packets.dts[index]),
            size=int(packets.sizes[index]),
            position=int(packets.positions[index]),
        )
        for index in packets.keys.tolist()
    )


def _last_step(packets: Packets, ticks: Ticks, step: Fraction, by_count: bool) -> Fraction:
    if by_count:
        return step
    if packets.duration:
        return Fraction(packets.duration)
    return Fraction(int(ticks[-1] - ticks[-2]) if len(ticks) > 1 else 0)
