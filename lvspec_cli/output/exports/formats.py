"""The export formats: CSV, Parquet, SubRip, WebVTT, and lists for VideoFolder and musubi-tuner."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from itertools import accumulate
from pathlib import Path
from textwrap import wrap
from typing import IO, Any, get_args, get_type_hints

from lvspec_cli.errors import OutputError
from lvspec_cli.host import install_command
from lvspec_cli.output.exports.captions import Caption, Videos
from lvspec_cli.output.exports.types import Skipped
from lvspec_cli.table import clock

COLUMNS = tuple(field.name for field in fields(Caption))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CODED = "file_name_b64"  # base64 may begin with +, but is never a formula
ROWS = 10_000  # in one row group of a Parquet file


def write_csv(captions: Sequence[Caption], stream: IO[bytes]) -> None:
    """CSV by RFC 4180, in UTF-8, with a header. Unknown values are empty.

    A text that a spreadsheet would read as a formula gets an apostrophe before it.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    rows.writerows(map(_harmless, captions))
    text.detach()


def _harmless(caption: Caption) -> list[Any]:
    texts = zip(COLUMNS, astuple(caption), strict=True)
    return [
        f"'{value}" if isinstance(value, str) and name != _CODED and value.startswith(_FORMULA) else value
        for name, value in texts
    ]


def write_parquet(captions: Sequence[Caption], stream: IO[bytes]) -> None:
    """Parquet with a fixed type for each column, which does not depend on the rows.

    :raises OutputError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise OutputError(
            "Parquet is written by pyarrow, which is not installed", install_command("pyarrow")
        ) from error
    types = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_()}
    hints = get_type_hints(Caption)
    schema = pyarrow.schema([(name, types[(get_args(hints[name]) or (hints[name],))[0]]) for name in COLUMNS])
    with parquet.ParquetWriter(stream, schema) as writer:
        for start in range(0, len(captions), ROWS):
            columns = zip(*map(astuple, captions[start : start + ROWS]), strict=True)
            writer.write_table(pyarrow.table(list(map(list, columns)), schema=schema))


LONGEST = 359_999.999  # seconds: the latest time with two digits for hours
SHORTEST = 1.0  # seconds of a cue whose end is unknown, or before the start of the picture
LINE, LINES = 42, 2  # most characters in a line of a subtitle, and lines in a cue, as broadcasters have it


def srt(captions: Sequence[Caption]) -> str:
    """SubRip of captions in order of time. Captions without text are left out; ``-->`` becomes ``->``."""
    cues = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_without_arrows(text)}\n"
        for number, (start, end, text) in enumerate(_cues(captions), start=1)
    ]
    return "\n".join(cues)


def vtt(captions: Sequence[Caption]) -> str:
    """WebVTT of captions in order of time. Markup characters are escaped."""
    cues = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in _cues(captions)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cues(captions: Sequence[Caption]) -> list[tuple[float, float, str]]:
    """Start, end and text of each cue, in order and without overlaps.

    A long caption becomes several cues, each with a share of its time that goes by its length.
    """
    timed = [(_start(caption), _end(caption), blocks(caption.text)) for caption in captions]
    cues: list[tuple[float, float, str]] = []
    for (start, end), parts in zip(
        apart([(start, end) for start, end, parts in timed if parts]),
        [parts for _, _, parts in timed if parts],
        strict=True,
    ):
        lengths = [len(part) for part in parts]
        marks = [start + (end - start) * done / sum(lengths) for done in accumulate(lengths, initial=0)]
        marks[-1] = end
        cues += zip(marks, marks[1:], parts, strict=False)
    return cues


def apart(stretches: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches in order of time, cut where the next one begins, so that none overlaps another.

    One that would be left with nothing is moved behind the one before, and takes ``SHORTEST`` seconds.
    """
    cut: list[tuple[float, float]] = []
    for index, (start, end) in enumerate(stretches):
        following = [later for later, _ in stretches[index + 1 : index + 2] if later > start]
        begin = max(start, cut[-1][1] if cut else start)
        until = min(end, *following) if following else end
        cut.append((begin, until if until > begin else begin + SHORTEST))
    return cut


def blocks(text: str) -> list[str]:
    """The text in blocks of at most LINES lines of LINE characters, without blank lines: they end a cue."""
    lines = [
        line
        for paragraph in text.splitlines()
        for line in wrap(paragraph, LINE, break_on_hyphens=False)
        if line.strip()
    ]
    return ["\n".join(lines[first : first + LINES]) for first in range(0, len(lines), LINES)]


def _start(caption: Caption) -> float:
    """The start of the stretch, but not before the start of the picture."""
    return max(caption.start, caption.begins or 0.0)


def _end(caption: Caption) -> float:
    """The end of the stretch. Old records lack the video's duration: then the last frame decides."""
    ends = [time for time in (caption.end, caption.duration) if time is not None]
    end = min(ends) if ends else max(caption.last_frame or 0.0, caption.start + SHORTEST)
    # A stretch before the start of the picture was sampled as the first frame.
    return end if end > _start(caption) else _start(caption) + SHORTEST


def _without_arrows(text: str) -> str:
    """Shortens arrows: SubRip has no escapes, and a line with two times and an arrow would start a cue."""
    return re.sub("-{2,}>", "->", text)


def _clock(seconds: float, point: str) -> str:
    return clock(min(max(seconds, 0.0), LONGEST), digits=3, whole=True).replace(".", point)


Row = dict[str, Any]


def videofolder_rows(videos: Videos, folder: str) -> Iterator[Row | Skipped]:
    """Rows of ``metadata.jsonl``: ``file_name`` and ``text``, with times and prompt if rows differ in them.

    :param folder: the videos' folder relative to that of the file, with a slash at its end, or empty.
    """
    spots = [spot for video in videos.values() for spot in video]
    parts = any(spot.start > 0 or spot.end is not None for spot in spots)
    prompts = any(spot.number > 1 for spot in spots)
    for name, caption in _captions(videos):
        try:
            readable = folder + name.decode("utf-8")
        except UnicodeDecodeError:
            yield Skipped(name, "its name is not UTF-8, which a VideoFolder cannot hold")
            continue
        if "\\" in readable or "://" in readable:
            yield Skipped(name, "a VideoFolder takes no name with a backslash or ://")
            continue
        row: Row = {"file_name": readable, "text": caption.text}
        times = {"start": caption.start, "end": caption.end} if parts else {}
        yield row | times | ({"prompt": caption.prompt} if prompts else {})


def musubi_rows(videos: Videos, folder: Path) -> Iterator[Row | Skipped]:
    """Rows with ``video_path`` (absolute) and ``caption``, one for each video: musubi uses whole videos."""
    root = folder.absolute()
    done = set()
    for name, caption in _captions(videos):
        if caption.is_part:
            yield Skipped(name, "a caption of a part of it: musubi takes whole videos")
        elif name in done:
            yield Skipped(name, "musubi takes one caption a video: that of the first prompt")
        else:
            done.add(name)
            yield {"video_path": str(root / os.fsdecode(name)), "caption": caption.text}


def write_rows(rows: list[Row], stream: IO[bytes]) -> None:
    """JSON lines. Bytes of a path that are not UTF-8 become escapes, which Python's json reads back."""
    for row in rows:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        stream.write(line.encode("utf-8", "backslashreplace"))


def _captions(videos: Videos) -> Iterator[tuple[bytes, Caption]]:
    for name, spots in videos.items():
        for spot in spots:
            if spot.caption is not None:
                yield name, spot.caption
