"""Where a video is cut into segments of equal length: decisions on numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from lvspec_cli.errors import UsageError

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
