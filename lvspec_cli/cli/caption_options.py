"""The flags of ``lvspec caption`` that no other command has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from lvspec_cli.cli import options
from lvspec_cli.cli.groups import OptionGroup
from lvspec_cli.output.exports.types import ExportFormat


def _records_to(path: str) -> str:
    """``-`` for every name of stdout."""
    return "-" if path in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") else path


@dataclass(frozen=True)
class Inputs(OptionGroup):
    """The videos, and how they are cut into clips."""

    section = "Videos"

    paths: Annotated[
        list[str] | None,
        Argument(
            metavar="[PATHS]...",
            help="Videos, folders of videos, CSV, TSV or JSONL files of jobs; - reads paths from stdin.",
        ),
    ] = None
    from_list: Annotated[
        Path | None, Option("--from-list", metavar="FILE", help="A file of paths, one a line.")
    ] = None
    null: Annotated[
        bool, Option("--null", "-0", help="Paths in a list end with NUL, not a line feed.")
    ] = False  # fmt: skip
    recursive: Annotated[
        bool, Option("--recursive/--no-recursive", help="Also look into the folders of a folder.")
    ] = True
    glob: Annotated[
        str | None, Option("--glob", metavar="PATTERN", help="Take these files of a folder: '*.mp4'.")
    ] = None
    shard: Annotated[
        str | None, Option("--shard", metavar="K/N", help="Do share K of N only, chosen by the paths.")
    ] = None
    segment: Annotated[
        float | None, Option("--segment", metavar="SECONDS", help="Cut videos into clips of this length.")
    ] = None
    overlap: Annotated[
        float, Option("--overlap", metavar="SECONDS", help="How far such clips reach into the next.")
    ] = 0.0
    scenes: Annotated[bool, Option("--scenes", help="Cut videos where the scene changes.")] = False


@dataclass(frozen=True)
class Prompts(OptionGroup):
    """The prompts for each clip."""

    section = "Prompts"

    prompt: Annotated[
        list[str] | None,
        Option(
            "--prompt", metavar="TEXT",
            help="What to ask of each clip; repeat for more. {name} and {duration} are filled in.",
        ),
    ] = None  # fmt: skip
    prompt_file: Annotated[
        Path | None, Option("--prompt-file", metavar="FILE", help="The prompt is this file's text.")
    ] = None
    system: options.System = None
    think: options.Think = False


@dataclass(frozen=True)
class Records(OptionGroup):
    """The output file, which records are made, and what counts as failed."""

    section = "Records"

    out: Annotated[
        str,
        Option(
            "--out", "-o", metavar="FILE", callback=_records_to,
            help="Where the records go, a line each; - is stdout.",
        ),
    ] = "captions.jsonl"  # fmt: skip
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show what would be done, and load no weights.")
    ] = False  # fmt: skip
    retry_errors: Annotated[bool, Option("--retry-errors", help="Do again what failed before.")] = False
    redo: Annotated[bool, Option("--redo", help="Do all of it again.")] = False
    fail_on: Annotated[
        list[str] | None,
        Option("--fail-on", metavar="LIST", help="Count such captions as failed: length,repetition,partial."),
    ] = None
    audit: Annotated[
        str | None,
        Option(
            "--audit", metavar="SHARE",
            help="Answer this share of the captions in mode ar as well, and say what is kept of it and how "
            "much faster --mode is: 5% or 0.05. Chosen by key, of what is captioned now.",
        ),
    ] = None  # fmt: skip
    on_oom: Annotated[
        Literal["shrink", "fail"],
        Option("--on-oom", help="Where memory is short: try with fewer pixels, then frames, or fail."),
    ] = "shrink"


@dataclass(frozen=True)
class Export(OptionGroup):
    """What is written at the end, beside the records."""

    section = "Export"

    to: Annotated[
        list[ExportFormat] | None,
        Option("--to", help="Write this, too, at the end; `lvspec export` says more. Repeat for several."),
    ] = None
    out_dir: Annotated[
        Path | None, Option("--out-dir", metavar="DIR", help="Where --to writes, if not beside the clips.")
    ] = None
    prefix: Annotated[str, Option("--prefix", metavar="TEXT", help="Put before each text by --to.")] = ""
    suffix: Annotated[str, Option("--suffix", metavar="TEXT", help="Put after each text by --to.")] = ""
    force: Annotated[bool, Option("--force", help="Let --to overwrite files that are not its own.")] = False


@dataclass(frozen=True)
class Workers(OptionGroup):
    """The number of workers, and their shares of the machine."""

    section = "Workers"

    workers: Annotated[
        int,
        Option(
            "--workers", min=1, max=64, metavar="N",
            help="Pairs side by side, each with its share of the memory.",
        ),
    ] = 1  # fmt: skip
    devices: Annotated[
        str | None, Option("--devices", metavar="LIST", help="One pair on each: cuda:0,cuda:1.")
    ] = None
    decode_workers: Annotated[
        int | None,
        Option("--decode-workers", min=1, max=64, metavar="N", help="Videos decoded ahead at a time."),
    ] = None
    decode_memory: Annotated[
        int, Option("--decode-memory", min=16, max=2**24, metavar="MB", help="Frames decoded ahead, at most.")
    ] = 512


@dataclass(frozen=True)
class CaptionDecoding(options.Decoding):
    """Without fallback by default, so that a batch always gives the same rows."""

    fallback: Annotated[
        bool,
        Option(
            "--fallback/--no-fallback",
            help="Go on without the draft for the rest of a clip where that is measured to be faster. Rows "
            "then depend on the clock: without it the same run gives the same rows.",
        ),
    ] = False


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
