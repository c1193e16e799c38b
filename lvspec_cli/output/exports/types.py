"""What is asked of an export, and what came of it. Imports nothing slow: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class ExportFormat(StrEnum):
    """Formats of captions."""

    TXT = "txt"  # one file a caption
    SRT = "srt"  # one file a video, a cue a stretch
    VTT = "vtt"
    CSV = "csv"
    PARQUET = "parquet"
    VIDEOFOLDER = "videofolder"  # metadata.jsonl of a Hugging Face VideoFolder
    MUSUBI = "musubi"  # JSONL of musubi-tuner

    @property
    def is_sidecar(self) -> bool:
        """Whether it gives each video files of its own."""
        return self in (ExportFormat.TXT, ExportFormat.SRT, ExportFormat.VTT)

    @property
    def file_name(self) -> str:
        """Of the one file of a format that has one, where only its folder is said."""
        names = {ExportFormat.VIDEOFOLDER: "metadata.jsonl", ExportFormat.MUSUBI: "musubi.jsonl"}
        return names.get(self, f"captions.{self}")

    def beside(self, records: Path) -> Path | None:
        """The one file where nothing at all is said: named as the records, in their folder.

        None for formats whose place is with the videos.
        """
        if self.is_sidecar or self is ExportFormat.VIDEOFOLDER:
            return None
        suffix = ".musubi.jsonl" if self is ExportFormat.MUSUBI else f".{self}"
        return records.with_name(records.stem + suffix)


@dataclass(frozen=True)
class ExportPlaces:
    """Where an export goes; what a format does not need may be None.

    ``videos``: the folder that the records' file names are relative to. ``out_dir``: where files are made,
    sidecars as in ``videos``. ``out``: the one file of a format that has one.
    """

    videos: Path | None = None
    out_dir: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Skipped:
    """A caption that the format or the place has no room for."""

    name: bytes  # of the video
    reason: str


@dataclass(frozen=True)
class ExportReport:
    """What an export did. ``foreign``: files there that lvspec did not write, or that were changed since."""

    written: tuple[Path, ...]
    unchanged: tuple[Path, ...]  # they held the very same already
    foreign: tuple[Path, ...]  # left as they are
    skipped: tuple[Skipped, ...]
    captions: int  # that the files hold
    failed: int  # clips and prompts without a caption
    superseded: int  # captions that gave way to a later one of the same clip and prompt
