"""The flags of ``lvspec caption`` that no other command has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter

from lvspec_cli.cli import options
from lvspec_cli.cli.groups import OptionGroup, flag
from lvspec_cli.output.exports.types import ExportFormat
from lvspec_cli.types import DEFAULT_PROMPT

MOST_WORKERS = 512


def _checked_workers(text: str) -> str:
    if text != "auto" and not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_WORKERS):
        raise BadParameter(f"{text} is neither auto nor a number from 1 to {MOST_WORKERS}")
    return text


def _records_to(path: str) -> str:
    """``-`` for every name of stdout."""
    return "-" if path in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") else path


@dataclass(frozen=True)
class Inputs(OptionGroup):
    """The videos, and how they are cut into clips."""

    section = "The videos"
    common = ("paths", "from_list", "segment")

    paths: Annotated[
        list[str] | None,
        Argument(
            metavar="[PATHS]...",
            help="Videos, folders of videos, CSV, TSV or JSONL files of jobs; - reads paths from stdin.",
        ),
    ] = None
    from_list: Path | None = flag(None, "A file of paths, one per line.", metavar="FILE")
    null: bool = flag(False, "Paths in a list end with NUL, not a line feed.", "--null", "-0")
    recursive: bool = flag(True, "Also look into the folders of a folder.", "--recursive/--no-recursive")
    glob: str | None = flag(None, "Take these files of a folder: '*.mp4'.", metavar="PATTERN")
    shard: str | None = flag(None, "Do share K of N only, chosen by the paths.", metavar="K/N")
    segment: float | None = flag(None, "Cut videos into clips of this length.", metavar="SECONDS")
    overlap: float = flag(0.0, "How far such clips reach into the next.", metavar="SECONDS")
    scenes: bool = flag(False, "Cut videos where the scene changes.", "--scenes")


@dataclass(frozen=True)
class Prompts(OptionGroup):
    """The prompts for each clip."""

    section = "What is asked"
    common = ("prompt",)

    prompt: list[str] | None = flag(
        None,
        "What to ask of each clip; repeat for more. {name}, {duration} and {subtitles} are filled in: the "
        "last is what is said in it, by a text track or a .srt or .vtt beside the video.",
        metavar="TEXT",
        shown=DEFAULT_PROMPT,
    )
    prompt_file: Path | None = flag(None, "The prompt is this file's text.", metavar="FILE")
    system: options.System = None
    think: options.Think = False
    choices: options.Choices = None
    schema: options.Schema = None


@dataclass(frozen=True)
class Records(OptionGroup):
    """The output file, which records are made, and what counts as failed."""

    section = "Output"
    common = ("out", "dry_run", "retry_errors", "redo")

    out: str = flag(
        "captions.jsonl", "The records; - is stdout. One is a line of JSON.", "-o",
        metavar="FILE", callback=_records_to,
    )  # fmt: skip
    dry_run: bool = flag(False, "Show what would be done, and load no weights.", "--dry-run")
    retry_errors: bool = flag(False, "Do again what failed before.", "--retry-errors")
    redo: bool = flag(False, "Do all of it again.", "--redo")
    fail_on: list[str] | None = flag(
        None, "Count such captions as failed: length,repetition,partial.", metavar="LIST"
    )
    audit: str | None = flag(
        None,
        "Answer this share of the captions in mode ar as well, and say what is kept of it and how much "
        "faster --mode is: 5% or 0.05. Chosen by key, of what is captioned now.",
        metavar="SHARE",
    )
    on_oom: Literal["shrink", "fail"] = flag(
        "shrink", "Where memory is short: try with fewer pixels, then frames, or fail."
    )


@dataclass(frozen=True)
class Export(OptionGroup):
    """What is written at the end, beside the records."""

    section = "Output"
    common = ("to",)

    to: list[ExportFormat] | None = flag(
        None,
        "Write this, too, at the end; `lvspec export` says more. Repeat for several.",
        metavar="FORMAT",
    )
    out_dir: Path | None = flag(None, "Where --to writes, if not beside the clips.", metavar="DIR")
    prefix: str = flag("", "Put before each text by --to.", metavar="TEXT")
    suffix: str = flag("", "Put after each text by --to.", metavar="TEXT")
    force: bool = flag(False, "Let --to overwrite files that are not its own.", "--force")


@dataclass(frozen=True)
class Workers(OptionGroup):
    """The number of workers, and their shares of the machine."""

    section = "Speed"
    common = ("workers", "ray")

    workers: str = flag(
        "auto",
        "Pairs side by side. Each has its share of the memory. auto: 1, or with --ray as many as the cluster "
        "has room for.",
        metavar="N|auto",
        callback=_checked_workers,
    )
    devices: str | None = flag(None, "One pair on each: cuda:0,cuda:1.", metavar="LIST")
    ray: str | None = flag(
        None,
        "Run the workers on the nodes of this Ray cluster, which see videos and models at the same paths. "
        "auto: the cluster that this machine is a part of.",
        metavar="ADDRESS",
    )
    gpus_per_worker: float | None = flag(
        None,
        "GPUs of each worker with --ray; 0.5: two share one.",
        min=0,
        max=64,
        metavar="N",
        shown="1 if the cluster has any",
    )
    at_once: str = flag(
        "1",
        "Captions that each pair decodes together. auto: as many as fit into memory and still pay; 1 with "
        "--temperature, and in 16 bits where captions could change each other's words.",
        metavar="N",
    )
    decode_workers: int | None = flag(None, "Videos decoded ahead at a time.", min=1, max=64, metavar="N")
    decode_memory: int = flag(512, "Frames decoded ahead, at most.", min=16, max=2**24, metavar="MB")


@dataclass(frozen=True)
class CaptionDecoding(options.Decoding):
    """Without fallback by default, so that a batch always gives the same rows."""

    fallback: bool = flag(
        False,
        "Go on without the draft for the rest of a clip where that is measured to be faster. Rows then "
        "depend on the clock: without it the same run gives the same rows.",
        "--fallback/--no-fallback",
    )


@dataclass(frozen=True)
class CaptionFlags(OptionGroup):
    """All flags of the command."""

    inputs: Inputs
    prompts: Prompts
    records: Records
    export: Export
    loading: options.Loading
    workers: Workers
    decoding: CaptionDecoding
    rule: options.Rule
    sampling: options.FullSampling
    messages: options.Messages
