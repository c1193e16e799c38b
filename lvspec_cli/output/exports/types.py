"""The request and the report of an export. Imports nothing slow, because the command line uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

Fill = Callable[[IO[bytes]], object]  # writes a file's content


class ExportFormat(StrEnum):
    """Formats of captions."""

    TXT = "txt"  # one file for each caption
    SRT = "srt"  # one file for each video, with a cue for each stretch
    VTT = "vtt"
    CSV = "csv"
    PARQUET = "parquet"
    VIDEOFOLDER = "videofolder"  # metadata.jsonl of a Hugging Face VideoFolder
    MUSUBI = "musubi"  # JSONL of musubi-tuner
    DIFFUSION_PIPE = "diffusion-pipe"  # captions.json in each folder of videos
    FINETRAINERS = "finetrainers"  # videos.txt and prompts.txt
    LTX = "ltx"  # dataset.json of the LTX trainer
    DIFFSYNTH = "diffsynth"  # metadata.csv of DiffSynth-Studio
    VIDEOX_FUN = "videox-fun"  # metadata.json of VideoX-Fun
    WEBDATASET = "webdataset"  # shards that hold the videos, too

    @property
    def is_sidecar(self) -> bool:
        """Whether each video gets files of its own."""
        return self in (ExportFormat.TXT, ExportFormat.SRT, ExportFormat.VTT)

    @property
    def is_dataset(self) -> bool:
        """Whether it is files of fixed names in a folder (``exports.trainers``)."""
        return self in (
            ExportFormat.DIFFUSION_PIPE,
            ExportFormat.FINETRAINERS,
            ExportFormat.LTX,
            ExportFormat.DIFFSYNTH,
            ExportFormat.VIDEOX_FUN,
            ExportFormat.WEBDATASET,
        )

    @property
    def file_name(self) -> str:
        """The default name of the single file of a format, in a given folder."""
        names = {ExportFormat.VIDEOFOLDER: "metadata.jsonl", ExportFormat.MUSUBI: "musubi.jsonl"}
        return names.get(self, f"captions.{self}")

    def beside(self, records: Path) -> Path | None:
        """The default path of the single file of a format: in the records' folder, with their name.

        None for formats that are written to a folder.
        """
        if self.is_sidecar or self.is_dataset or self is ExportFormat.VIDEOFOLDER:
            return None
        suffix = ".musubi.jsonl" if self is ExportFormat.MUSUBI else f".{self}"
        return records.with_name(records.stem + suffix)


@dataclass(frozen=True)
class ExportPlaces:
    """The paths of an export. Those that a format does not need may be None.

    ``videos``: the folder to which the records' file names are relative. ``out_dir``: the folder to write to;
    sidecars are in the same subfolders as in ``videos``. ``out``: the single file of a format.
    """

    videos: Path | None = None
    out_dir: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Skipped:
    """A caption that cannot be exported."""

    name: bytes  # of the video
    reason: str


@dataclass(frozen=True)
class ExportReport:
    """The results of an export."""

    written: tuple[Path, ...]
    unchanged: tuple[Path, ...]  # they had the same content already
    foreign: tuple[Path, ...]  # not replaced: lvspec did not write them, or they were changed since
    skipped: tuple[Skipped, ...]
    removed: tuple[Path, ...]  # of an earlier export, which this one does not write any more
    captions: int  # in the files
    failed: int  # clips and prompts without a caption
    superseded: int  # captions that were replaced by a later one of the same clip and prompt
