"""Times as people write them."""

from __future__ import annotations

import re

from lvspec_cli.errors import UsageError

_TIME = re.compile(
    r"(?:(?:(?P<hours>\d{1,9}):)?(?P<minutes>\d{1,9}):)?(?P<seconds>\d{1,15}(?:\.\d*)?|\.\d+)", re.ASCII
)
LATEST = 1e6  # seconds


def parse_time(text: str) -> float:
    """Seconds from ``90``, ``1:30`` or ``0:01:30.5``. Raises UsageError for anything else.

    Below an hour or a minute that is written out, minutes and seconds stay under 60.
    """
    match = _TIME.fullmatch(text.strip())
    if match:
        hours, minutes = float(match["hours"] or 0), float(match["minutes"] or 0)
        seconds = float(match["seconds"])
        if (match["hours"] is None or minutes < 60) and (match["minutes"] is None or seconds < 60):
            total = 60 * (60 * hours + minutes) + seconds
            if total > LATEST:
                raise UsageError(
                    f"{total:g} s is later than a video lasts", "give less than a million seconds"
                )
            return total
    raise UsageError(f"{text!r} is not a time", "write it as 90, 1:30 or 0:01:30.5")


def format_time(seconds: float) -> str:
    """``M:SS.s`` or ``H:MM:SS.s``, tenths cut off when they are zero."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    whole, tenth = divmod(tenths, 10)
    clock = f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
    return f"{clock}.{tenth}" if tenth else clock
