"""``lvspec merge``: the shards of a batch made one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, say, write_out

if TYPE_CHECKING:
    from lvspec_cli.output.merging import Merged


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", help="Files of records.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--inputs",
            metavar="PATH",
            help="What was captioned, as lvspec caption was given it: videos without a record are listed. "
            "Repeat for several.",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Look for inputs in folders within folders.")
    ] = True,
    glob: Annotated[
        str | None, typer.Option("--glob", metavar="PATTERN", help="Which files in folders are inputs.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    debug: options.Debug = False,
) -> None:
    """Join files of records: one row a key, a good one before a failed one, then the later one."""
    with reporting(debug):
        from lvspec_cli.output.merging import merge_records

        merged = merge_records(shards, out, force=force, warn=lambda message: say(f"warning: {message}"))
        _say_merged(merged, out)
        missing = _missing(inputs, merged.names, recursive, glob) if inputs else {}
        if missing:
            _say_missing(missing, merged.names)
        raise typer.Exit(1 if missing or merged.errors else 0)


def _say_merged(merged: Merged, out: Path) -> None:
    for shard in merged.shards:
        say(f"{shard.path}: {shard.rows} rows, {shard.doubles} doubles dropped, {shard.errors} failed")
    say(f"{out}: {merged.rows} rows, {merged.errors} failed")


def _say_missing(missing: Mapping[bytes, Path], names: frozenset[bytes]) -> None:
    from lvspec_cli.escape import visible_line

    last_parts = {name.rpartition(b"/")[2] for name in names}
    alike = sum(name.rpartition(b"/")[2] in last_parts for name in missing)
    say(f"{len(missing)} inputs have no record:")
    write_out("".join(visible_line(str(path)) + "\n" for path in missing.values()))
    if alike:
        say(f"{alike} of them may have one under another folder: only `lvspec caption` compares contents")


def _missing(
    sources: Sequence[Path], names: frozenset[bytes], recursive: bool, glob: str | None
) -> dict[bytes, Path]:
    """The inputs without a record by name, each once, in order."""
    from lvspec_cli.batch.inputs import collect

    collected = collect(sources, recursive=recursive, glob=glob)
    found = {item.name: item.path for item in collected.inputs} | {
        problem.name: problem.path for problem in collected.problems
    }
    return {name: path for name, path in found.items() if name not in names}
