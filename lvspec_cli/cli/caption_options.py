"""The flags of ``lvspec caption`` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lvspec_cli.output.exports.types import ExportFormat


def _records_to(place: str) -> str:
    """``-`` for every name of stdout."""
    return "-" if place in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") else place


Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATHS]...",
        help="Videos, folders of videos, CSV, TSV or JSONL files of jobs; - reads paths from stdin.",
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out", "-o", metavar="FILE", callback=_records_to,
        help="Where the records go, a line each; - is stdout.",
    ),
]  # fmt: skip
FromList = Annotated[
    Path | None, typer.Option("--from-list", metavar="FILE", help="A file of paths, one a line.")
]
Null = Annotated[bool, typer.Option("--null", "-0", help="Paths in a list end with NUL, not a line feed.")]
Recursive = Annotated[
    bool, typer.Option("--recursive/--no-recursive", help="Also look into the folders of a folder.")
]
Glob = Annotated[
    str | None, typer.Option("--glob", metavar="PATTERN", help="Take these files of a folder: '*.mp4'.")
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="K/N", help="Do share K of N only, chosen by the paths.")
]

Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", metavar="TEXT",
        help="What to ask of each clip; repeat for more. {name} and {duration} are filled in.",
    ),
]  # fmt: skip
PromptFile = Annotated[
    Path | None, typer.Option("--prompt-file", metavar="FILE", help="The prompt is this file's text.")
]
SegmentSeconds = Annotated[
    float | None, typer.Option("--segment", metavar="SECONDS", help="Cut videos into clips of this length.")
]
Overlap = Annotated[
    float, typer.Option("--overlap", metavar="SECONDS", help="How far such clips reach into the next.")
]
Scenes = Annotated[bool, typer.Option("--scenes", help="Cut videos where the scene changes.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and load no weights.")]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Do again what failed before.")]
Redo = Annotated[bool, typer.Option("--redo", help="Do all of it again.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on", metavar="LIST", help="Count such captions as failed: length,repetition,partial."
    ),
]
Audit = Annotated[
    str | None,
    typer.Option(
        "--audit", metavar="SHARE",
        help="Answer this share of the captions in mode ar as well, and say what is kept of it and how much"
        " faster --mode is: 5% or 0.05. Chosen by key, of what is captioned now.",
    ),
]  # fmt: skip
OnOutOfMemory = Annotated[
    Literal["shrink", "fail"],
    typer.Option("--on-oom", help="Where memory is short: try with fewer pixels, then frames, or fail."),
]

Fallback = Annotated[
    bool,
    typer.Option(
        "--fallback/--no-fallback",
        help="Go on without the draft for the rest of a clip where that is measured to be faster. Rows then"
        " depend on the clock: without it the same run gives the same rows.",
    ),
]
DecodeWorkers = Annotated[
    int | None,
    typer.Option("--decode-workers", min=1, max=64, metavar="N", help="Videos decoded ahead at a time."),
]
DecodeMemory = Annotated[
    int,
    typer.Option("--decode-memory", min=16, max=2**24, metavar="MB", help="Frames decoded ahead, at most."),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", min=1, max=64, metavar="N", help="Pairs side by side, each with its share of the memory."
    ),
]
Devices = Annotated[
    str | None, typer.Option("--devices", metavar="LIST", help="One pair on each: cuda:0,cuda:1.")
]

To = Annotated[
    list[ExportFormat] | None,
    typer.Option("--to", help="Write this, too, at the end; `lvspec export` says more. Repeat for several."),
]
OutDir = Annotated[
    Path | None, typer.Option("--out-dir", metavar="DIR", help="Where --to writes, if not beside the clips.")
]
Prefix = Annotated[str, typer.Option("--prefix", metavar="TEXT", help="Put before each text by --to.")]
Suffix = Annotated[str, typer.Option("--suffix", metavar="TEXT", help="Put after each text by --to.")]
Force = Annotated[bool, typer.Option("--force", help="Let --to overwrite files that are not its own.")]
