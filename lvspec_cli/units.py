"""Bytes, times and counts as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes: ``66.9 GB``, ``16.7 MB``."""
    return gigabytes(count) if count >= 1e9 else f"{count / 1e6:.1f} MB"


def gigabytes(count: float) -> str:
    """Bytes beside others that may be many more: ``0.2 GB``."""
    return f"{count / 1e9:.1f} GB"


def clock(seconds: float, *, digits: int = 0, whole: bool = False) -> str:
    """Seconds as ``3:05``, ``2:03:05``, or ``45 s`` below a minute.

    :param digits: of a second's fraction.
    :param whole: hours, minutes and seconds whatever they are: ``00:00:45``.
    """
    parts = round(seconds * 10**digits)
    minutes, parts = divmod(parts, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    second, fraction = divmod(parts, 10**digits)
    point = f".{fraction:0{digits}}" if digits else ""
    if whole:
        return f"{hours:02}:{minutes:02}:{second:02}{point}"
    if hours:
        return f"{hours}:{minutes:02}:{second:02}{point}"
    return f"{minutes}:{second:02}{point}" if minutes else f"{second}{point} s"


def counted(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
