"""Computes when each frame of a stream is shown, from the metadata of its packets, without decoding.

The file's clock starts at 0 where its first stream starts, sound or picture, as in players. In files that
were joined or spliced, time stamps go back or jump; here they are mapped to one clock that only increases.
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
UNKNOWN = np.iinfo(np.int64).min  # stands for a tick or a byte position that the container does not give
REORDERED = 16  # at most so many packets after a frame's own are shown before it (the encoders' limit)
_BACK = Fraction(1, 4)  # seconds that time stamps may go back: demuxers estimate those of MPEG-PS
_AHEAD = Fraction(10)  # seconds that time stamps may jump ahead where streams can be spliced
_NEAR = 4  # packets; an incomplete packet this close to a join of two streams is not damage
_JITTER = Fraction(1, 4)  # seconds by which estimated time stamps may differ from a constant rate


@dataclass(frozen=True)
class Packets:
    """The metadata of a stream's packets, in decoding order. Times are in ticks."""

    pts: Ticks
    dts: Ticks
    sizes: Ticks  # bytes
    positions: Ticks  # byte position of the packet, or of the last one before it whose position is known
    keys: Ticks  # indices of the packets that begin a group of pictures
    corrupt: Ticks  # indices of the packets that the container marks as incomplete
    duration: int  # ticks for which the last frame is shown, 0 if unknown


@dataclass(frozen=True)
class StreamClock:
    """How the time stamps of a stream have to be interpreted, given its container."""

    time_base: Fraction  # seconds per tick
    rate: Fraction  # frames per second
    begins: int | None  # tick at which the first stream of the file begins, None if unknown
    stamped: bool = True  # the container stores presentation times, for some packets at least
    indexed: bool = False  # times come from an index; decoding times may be estimates
    spliced: bool = False  # the format allows a recording to be spliced from several
    fields: bool = False  # a packet may hold one field of a frame; the second field then has no time

    @property
    def step(self) -> Fraction:
        """Ticks per frame."""
        return self.time_base.denominator / (self.rate * self.time_base.numerator)


@dataclass(frozen=True)
class KeyFrame:
    """A packet at which decoding can start: all frames shown at ``tick`` or later are then decodable."""

    index: int  # of the packet, in decoding order
    tick: int
    pts: int  # as stored in the container, or UNKNOWN
    dts: int
    size: int  # bytes
    position: int  # bytes into the file, or UNKNOWN


@dataclass(frozen=True)
class Timeline:
    """Presentation times of a stream's frames, or of those in a time range.

    If ``by_count``, the packets do not say when their frames are shown. ``stamps`` then holds packet indices,
    and the n-th frame that the decoder returns is shown at the n-th tick.
    """

    ticks: Ticks  # (frames,) ascending, in units of the time base
    stamps: Ticks  # (packets,) identifies the frame of each packet, in decoding order
    time_base: Fraction  # seconds per tick
    origin: int  # tick at which the file's clock begins
    by_count: bool
    restamped: bool  # each packet needs its stamp as pts before it is decoded
    key_frames: tuple[KeyFrame, ...]  # ascending
    random_access: bool  # all groups are closed: no frame needs data from an earlier group
    step: Fraction  # ticks for which the last frame is shown
    pieces: int = 1  # sections in which the container's times are continuous
    error: str | None = None  # what stopped the scan; None if it reached its end
    whole: bool = True  # False for a time range
    from_first: bool = True  # starts with the stream's first packet
    skipped: int = 0  # undecodable packets before the first key frame: the recording began inside a group
    broken: tuple[tuple[int, int], ...] = ()  # [begin, end) in ticks where frames may look wrong

    @property
    def times(self) -> Times:
        """(frames,) seconds on the file's clock, ascending."""
        since = (self.ticks - self.origin).astype(np.float64)
        return since * self.time_base.numerator / self.time_base.denominator

    @property
    def begins(self) -> float:
        """Seconds on the file's clock at which the first frame is shown."""
        return seconds_between(self.origin, int(self.ticks[0]), self.time_base)

    @property
    def duration(self) -> float:
        """Seconds on the file's clock at which the last frame ends."""
        return seconds_between(self.origin, int(self.ticks[-1]) + self.step, self.time_base)

    @property
    def frame_rate(self) -> float | None:
        span = float(self.times[-1] - self.times[0])
        return (len(self.ticks) - 1) / span if span > 0 else None


def seconds_between(begin: int, end: int | Fraction, time_base: Fraction) -> float:
    """Seconds between two ticks, rounded to microseconds, so that scans of different ranges agree."""
    return round(float((end - begin) * time_base), 6)


def timeline_of(packets: Packets, clock: StreamClock, *, at_start: bool = True) -> Timeline:
    """The timeline of ``packets``, at least one. ``at_start``: they start with the stream's first packet."""
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
        ticks = ticks[ticks >= keys[0].tick]  # frames before it need the skipped packets
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
    """Tick ranges from each incomplete packet to the next key frame: frames in them may look wrong.

    At a join of two streams packets only appear to be missing, so those are left out.
    """
    ranges = []
    for index in packets.corrupt.tolist():
        if np.abs(joints - index).min(initial=_NEAR) >= _NEAR and shown[index] != UNKNOWN:
            after = int(np.searchsorted(packets.keys, index, side="right"))
            ends = after < len(packets.keys)
            ranges.append((int(shown[index]), int(shown[packets.keys[after]]) if ends else _LAST))
    return tuple(ranges)


def _tells_times(packets: Packets, known: NDArray[np.bool_], joints: Ticks, clock: StreamClock) -> bool:
    """Whether the packets' time stamps tell when their frames are shown."""
    if clock.fields and known.any():
        return True
    shares = clock.stamped and not clock.indexed and len(np.unique(packets.pts)) < len(packets.pts)
    return bool(known.all()) and (bool(joints.size) or not shares)


def closed_key_frames(pts: Ticks, key_frames: list[int]) -> list[int]:
    """The indices in ``key_frames`` whose group of pictures is closed, judged by presentation times.

    A group is closed if every frame decoded before its key frame is shown before it, and every frame decoded
    after it is shown after it. ``pts``: (frames,) presentation times in decoding order.
    """
    keys = np.asarray(key_frames, dtype=np.int64)
    smallest_after = np.minimum.accumulate(pts[::-1])[::-1]
    largest_before = np.concatenate([[UNKNOWN], np.maximum.accumulate(pts)[:-1]])
    is_closed = (smallest_after[keys] == pts[keys]) & (largest_before[keys] < pts[keys])
    return [int(key) for key in keys[is_closed]]


def _decoding_times(packets: Packets, step: Fraction) -> Ticks:
    """(packets,) decoding times; interpolated where the container gives none."""
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
    """Indices of packets where the times go back, or jump ahead in a stream that may be spliced."""
    if clock.indexed or (packets.dts == UNKNOWN).all():  # only key frames are in order of decoding
        shown = packets.pts[packets.keys]
        return packets.keys[1:][np.diff(shown) < 0] if (shown != UNKNOWN).all() else packets.keys[:0]
    steps = np.diff(decoding)
    breaks = steps < -float(_BACK / clock.time_base)
    if clock.spliced:
        breaks |= steps > float(_AHEAD / clock.time_base)
    return np.flatnonzero(breaks) + 1


def _offsets(times: Ticks, joints: Ticks, step: Fraction) -> Ticks:
    """(packets,) what to add to each time so that every section directly follows the one before."""
    offsets = np.zeros(len(times), dtype=np.int64)
    end = 0
    for begin, after in pairwise([0, *joints.tolist(), len(times)]):
        if begin:
            offsets[begin:after] = end + round(step) - int(times[begin:after].min())
        end = int((times + offsets)[begin:after].max())
    return offsets


def _even(times: Ticks, step: Fraction, time_base: Fraction) -> tuple[Ticks, Fraction]:
    """Estimated times, on a constant grid if the stream's or the mean rate fits; and ticks per frame."""
    index = np.arange(len(times))
    mean = Fraction(int(times[-1] - times[0]), max(1, len(times) - 1))
    for pace in (step, mean):
        off = times - index * float(pace)
        middle = np.median(off)
        if pace > 0 and np.abs(off - middle).max() <= float(_JITTER / time_base):
            return np.round(middle + index * float(pace)).astype(np.int64), pace
    return np.maximum.accumulate(times - index) + index, mean  # each at least one tick after the one before


def _delay(packets: Packets, decoding: Ticks, clock: StreamClock) -> int:
    """Ticks between decoding and showing a frame; 0 unless the container stores the first frame's time."""
    first = int(packets.pts[0])
    if not clock.stamped or first == UNKNOWN:
        return 0
    second_key = int(packets.keys[1]) if len(packets.keys) > 1 else len(packets.pts)
    known = packets.pts[: len(packets.keys) and second_key]
    return int(known[known != UNKNOWN].min() - decoding[0])


def _key_frames(packets: Packets, shown: Ticks) -> tuple[KeyFrame, ...]:
    columns = (
        packets.keys,
        *(
            values[packets.keys]
            for values in (shown, packets.pts, packets.dts, packets.sizes, packets.positions)
        ),
    )
    return tuple(KeyFrame(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def _last_step(packets: Packets, ticks: Ticks, step: Fraction, by_count: bool) -> Fraction:
    if by_count:
        return step
    if packets.duration:
        return Fraction(packets.duration)
    return Fraction(int(ticks[-1] - ticks[-2]) if len(ticks) > 1 else 0)
