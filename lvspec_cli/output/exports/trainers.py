"""Files that trainers of video models read, in the folder of the videos; and WebDataset shards.

Trainers take whole videos: captions of a stretch are left out. Each format is as its program documents it:
diffusion-pipe (``captions.json``), finetrainers (two files of lines), LTX trainer, DiffSynth-Studio and
VideoX-Fun (lists with their column names).
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lvspec_cli.output.exports.captions import Videos
from lvspec_cli.output.exports.types import ExportFormat, Fill, Skipped
from lvspec_cli.video.source import is_picture

SHARD_NAME = r"captions-\d{6}\.tar"
SHARD_BYTES = 2**30  # a shard takes no further video beyond so many bytes of videos


@dataclass(frozen=True)
class Labelled:
    """A whole video with its captions: one a prompt, in order, each with its prompt."""

    name: str  # relative to the videos' folder
    captions: tuple[tuple[str, str], ...]  # prompt, text

    @property
    def text(self) -> str:
        """The caption of the first prompt."""
        return self.captions[0][1]


def labelled(videos: Videos, to: ExportFormat) -> tuple[list[Labelled], list[Skipped]]:
    """The videos that a format can hold, and what is left out and why."""
    several = to in (ExportFormat.DIFFUSION_PIPE, ExportFormat.WEBDATASET)
    found, skipped = [], []
    for raw, spots in videos.items():
        captions = [spot.caption for spot in spots if spot.caption is not None]
        whole = [caption for caption in captions if not caption.is_part]
        skipped += [Skipped(raw, f"a caption of a part of it: {to} takes whole videos")] * (
            len(captions) - len(whole)
        )
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            skipped += [Skipped(raw, f"its name is not UTF-8, which {to} cannot hold")] * len(whole)
            continue
        if "\n" in name or "\r" in name:
            skipped += [Skipped(raw, f"its name has a line break, which {to} cannot hold")] * len(whole)
            continue
        kept = whole if several else whole[:1]
        skipped += [Skipped(raw, f"{to} takes one caption a video: that of the first prompt")] * (
            len(whole) - len(kept)
        )
        if kept:
            found.append(Labelled(name, tuple((caption.prompt, caption.text) for caption in kept)))
    return found, skipped


def trainer_files(to: ExportFormat, videos: Sequence[Labelled]) -> Iterator[tuple[str, Fill]]:
    """Names of the files of a format, relative to the videos' folder, and what writes each."""
    match to:
        case ExportFormat.DIFFUSION_PIPE:
            yield from _diffusion_pipe(videos)
        case ExportFormat.FINETRAINERS:
            yield "videos.txt", partial(_write_lines, [video.name for video in videos])
            yield "prompts.txt", partial(_write_lines, [_one_line(video.text) for video in videos])
        case ExportFormat.LTX:
            rows = [{"caption": video.text, "media_path": video.name} for video in videos]
            yield "dataset.json", partial(_write_json, rows)
        case ExportFormat.DIFFSYNTH:
            table = [("video", "prompt"), *((video.name, video.text) for video in videos)]
            yield "metadata.csv", partial(_write_table, table)
        case ExportFormat.VIDEOX_FUN:
            rows = [
                {"file_path": video.name, "text": video.text, "type": _kind(video.name)} for video in videos
            ]
            yield "metadata.json", partial(_write_json, rows)


def _kind(name: str) -> str:
    return "image" if is_picture(Path(name)) else "video"


def _diffusion_pipe(videos: Sequence[Labelled]) -> Iterator[tuple[str, Fill]]:
    """One file in each folder, because a directory of its configuration is read without those below it."""
    folders: dict[PurePosixPath, dict[str, list[str]]] = {}
    for video in videos:
        path = PurePosixPath(video.name)
        folders.setdefault(path.parent, {})[path.name] = [text for _, text in video.captions]
    for folder, captions in folders.items():
        yield str(folder / "captions.json"), partial(_write_json, captions)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write_lines(lines: Iterable[str], stream: IO[bytes]) -> None:
    stream.write("".join(line + "\n" for line in lines).encode())


def _write_json(value: Any, stream: IO[bytes]) -> None:
    # ASCII: some programs read it in the encoding of the locale.
    stream.write((json.dumps(value, indent=1) + "\n").encode())


def _write_table(rows: Iterable[tuple[str, ...]], stream: IO[bytes]) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    csv.writer(text).writerows(rows)
    text.detach()


def shards(videos: Sequence[Labelled], folder: Path, most: int = SHARD_BYTES) -> Iterator[tuple[str, Fill]]:
    """WebDataset shards: for each video the file itself, ``.txt`` with a caption and ``.json`` with all.

    :param folder: that of the videos.
    :param most: bytes of videos in a shard, which one that is larger has for itself.
    :raises OSError: a video cannot be read.
    """
    shard: list[tuple[str, Labelled]] = []
    size = number = 0
    for index, video in enumerate(videos):
        own = (folder / video.name).stat().st_size
        if shard and size + own > most:
            yield f"captions-{number:06d}.tar", partial(_write_shard, tuple(shard), folder)
            shard, size, number = [], 0, number + 1
        shard.append((f"{index:08d}", video))
        size += own
    if shard:
        yield f"captions-{number:06d}.tar", partial(_write_shard, tuple(shard), folder)


def _write_shard(videos: Iterable[tuple[str, Labelled]], folder: Path, stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, video in videos:
            path = folder / video.name
            with path.open("rb") as file:
                _add(archive, key + path.suffix.lower(), os.fstat(file.fileno()).st_size, file)
            captions = [{"prompt": prompt, "text": text} for prompt, text in video.captions]
            about = json.dumps({"file_name": video.name, "captions": captions}).encode()
            for suffix, content in ((".txt", video.text.encode()), (".json", about)):
                _add(archive, key + suffix, len(content), io.BytesIO(content))


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)  # without times and owners: the same videos give the same shard
    entry.size = size
    archive.addfile(entry, content)
