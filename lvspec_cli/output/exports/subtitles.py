"""SubRip and WebVTT: one cue a stretch of the video."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lvspec_cli.output.exports.captions import Caption

LONGEST = 359_999.999  # seconds that a clock of two digits an hour shows
SHORTEST = 1.0  # seconds that a cue is shown whose end nobody knows, or lies before the picture


def srt(captions: Sequence[Caption]) -> str:
    """SubRip of captions in the order of time. Those without text are left out; ``-->`` becomes ``->``."""
    cues = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_without_arrows(text)}\n"
        for number, (start, end, text) in enumerate(_cues(captions), start=1)
    ]
    return "\n".join(cues)


def vtt(captions: Sequence[Caption]) -> str:
    """WebVTT of the same. What would be markup in a cue is escaped."""
    cues = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n"
        for start, end, text in _cues(captions)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cues(captions: Sequence[Caption]) -> list[tuple[float, float, str]]:
    """Start, end and text. A blank line would end a cue, so text has none."""
    timed = [(_start(caption), _end(caption), _lines(caption.text)) for caption in captions]
    return [(start, end, text) for start, end, text in timed if text]


def _start(caption: Caption) -> float:
    """Where what was asked about begins to be seen: the sound may begin before the picture."""
    return max(caption.start, caption.begins or 0.0)


def _end(caption: Caption) -> float:
    """The end of what was asked about. Old records do not hold the video's: there the last frame tells."""
    ends = [time for time in (caption.end, caption.duration) if time is not None]
    end = min(ends) if ends else max(caption.last_frame or 0.0, caption.start + SHORTEST)
    # Of a stretch before the picture the first frame was taken.
    return end if end > _start(caption) else _start(caption) + SHORTEST


def _without_arrows(text: str) -> str:
    """SubRip has no escapes, and readers take any line with an arrow between times for a cue."""
    return re.sub("-{2,}>", "->", text)


def _lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    thousandths = round(min(max(seconds, 0.0), LONGEST) * 1000)
    minutes, thousandths = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, thousandths = divmod(thousandths, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{thousandths:03}"
