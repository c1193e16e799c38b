"""Lists of videos with their captions, as trainers read them: VideoFolder and musubi-tuner."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lvspec_cli.output.exports.captions import Caption, Videos
from lvspec_cli.output.exports.types import Skipped

Row = dict[str, Any]


def videofolder_rows(videos: Videos, folder: str) -> Iterator[Row | Skipped]:
    """Rows of ``metadata.jsonl``: ``file_name`` and ``text``, and times and prompt where they differ.

    :param folder: of the videos, relative to that of the file, with a slash at its end or empty.
    """
    spots = [spot for video in videos.values() for spot in video]
    parts = any(spot.start > 0 or spot.end is not None for spot in spots)
    prompts = any(spot.number > 1 for spot in spots)
    for name, caption in _each(videos):
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
    """Rows with ``video_path`` (absolute) and ``caption``: one a video, as musubi takes whole videos."""
    root = folder.absolute()
    done = set()
    for name, caption in _each(videos):
        if caption.is_part:
            yield Skipped(name, "a caption of a part of it: musubi takes whole videos")
        elif name in done:
            yield Skipped(name, "musubi takes one caption a video: that of the first prompt")
        else:
            done.add(name)
            yield {"video_path": str(root / os.fsdecode(name)), "caption": caption.text}


def write_rows(rows: list[Row], stream: IO[bytes]) -> None:
    """JSON lines. A byte of a path that is not UTF-8 becomes an escape, which Python's json reads back."""
    for row in rows:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        stream.write(line.encode("utf-8", "backslashreplace"))


def _each(videos: Videos) -> Iterator[tuple[bytes, Caption]]:
    for name, spots in videos.items():
        for spot in spots:
            if spot.caption is not None:
                yield name, spot.caption
