"""``lvspec export`` and ``lvspec merge``: records in other formats, and several files as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, say, write_bytes, write_out
from lvspec_cli.cli.requests import check_local
from lvspec_cli.errors import NoInputError, OutputError, UsageError
from lvspec_cli.output.exports.types import ExportFormat, ExportPlaces, ExportReport
from lvspec_cli.table import counted

if TYPE_CHECKING:
    from lvspec_cli.output.records import Record

NAMED = 10  # skipped captions that are named; the others are counted


def export(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="What lvspec caption --out or lvspec merge wrote.")
    ],
    to: Annotated[
        ExportFormat,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="txt: one file per caption; srt, vtt: one per video; csv, parquet: a table (csv with an "
            "apostrophe before texts that would be formulas); videofolder: metadata.jsonl of a Hugging Face "
            "VideoFolder; webdataset: shards with the videos, to --out-dir. For trainers: musubi (JSONL of "
            "musubi-tuner), and in the folder of the videos diffusion-pipe (captions.json), finetrainers "
            "(videos.txt, prompts.txt), ltx (dataset.json), diffsynth (metadata.csv), videox-fun "
            "(metadata.json).",
        ),
    ],
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos",
            metavar="DIR",
            help="The folder that was captioned; txt, srt, vtt and files of trainers go there.",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            metavar="DIR",
            help="Write here; txt, srt, vtt in folders as the videos are.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The one file of the other formats [beside RECORDS]; - is stdout."
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option("--prefix", metavar="TEXT", help="Put before each caption as it is: a trigger word."),
    ] = "",
    suffix: Annotated[str, typer.Option("--suffix", metavar="TEXT", help="Put after each caption.")] = "",
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace files too that lvspec did not write, or somebody changed since."
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Write captions as text, subtitles, tables or training lists. Failed records are left out.

    lvspec export captions.jsonl --to srt --videos films
    lvspec export captions.jsonl --to csv --out captions.csv
    """
    with reporting(debug):
        from lvspec_cli.output.exports.export import check_places, export_records

        check_local(records)
        if videos is not None and not videos.is_dir():
            raise NoInputError(f"{videos}: no such folder", "name the folder that was captioned")
        if out == Path("-"):
            raise typer.Exit(_to_stdout(records, to, ExportPlaces(videos, out_dir), prefix, suffix))
        where = ExportPlaces(videos, out_dir, out if out or out_dir else to.beside(records))
        check_places(to, where)
        if where.out and where.out.exists() and records.exists() and where.out.samefile(records):
            raise UsageError(f"{records} is what would be exported", "name another file with --out")
        report = export_records(_non_empty(records), to, where, prefix=prefix, suffix=suffix, force=force)
        raise typer.Exit(_say_report(report, to))


def _to_stdout(records: Path, to: ExportFormat, where: ExportPlaces, prefix: str, suffix: str) -> int:
    """Prints the file of an export; returns the exit code."""
    from lvspec_cli.output.exports.export import check_places, export_records

    if to is ExportFormat.VIDEOFOLDER:
        raise UsageError("a VideoFolder's metadata.jsonl lies with its videos", "leave out --out")
    with TemporaryDirectory() as folder:
        file = Path(folder, f"export.{to}")
        check_places(to, replace(where, out=file))
        report = export_records(
            _non_empty(records), to, replace(where, out=file), prefix=prefix, suffix=suffix
        )
        write_bytes(file.read_bytes())
    return _say_report(replace(report, written=(Path("stdout"),)), to)


def _non_empty(file: Path) -> Iterator[Record]:
    from lvspec_cli.output.jsonl import read_records

    rows = read_records(file, lambda message: say(f"warning: {message}"))
    first = next(rows, None)
    if first is None:
        raise NoInputError(f"{file}: no record in it", "name the file that lvspec caption --out wrote")
    return chain([first], rows)


def _say_report(report: ExportReport, to: ExportFormat) -> int:
    """Prints what was exported and what was left out; returns the exit code.

    :raises OutputError: a foreign file was not replaced.
    """
    from lvspec_cli.output.exports.export import report_lines

    for line in report_lines(report, to, NAMED):
        say(line)
    if report.foreign:
        more = len(report.foreign) - 1
        files, was, stays = (f" and {more} more", "were", "are") if more else ("", "was", "is")
        raise OutputError(
            f"{report.foreign[0]}{files} {was} not written by lvspec, or {was} changed since,"
            f" and {stays} left alone",
            "look at them; --force replaces them",
        )
    return 1 if report.failed or report.skipped else 0


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
    """Join files of records. Keeps one row per key: a successful one if there is one, otherwise the latest.

    lvspec merge all.jsonl shard-1.jsonl shard-2.jsonl
    lvspec merge all.jsonl shard-*.jsonl --inputs films
    """
    with reporting(debug):
        from lvspec_cli.output.merging import merge_records

        check_local(*shards)
        merged = merge_records(shards, out, force=force, warn=lambda message: say(f"warning: {message}"))
        for shard in merged.shards:
            duplicates = counted(shard.doubles, "duplicate")
            say(f"{shard.path}: {counted(shard.rows, 'row')}, {duplicates} dropped, {shard.errors} failed")
        say(f"{out}: {counted(merged.rows, 'row')}, {merged.errors} failed")
        missing = _missing(inputs, merged.names, recursive, glob) if inputs else {}
        if missing:
            _say_missing(missing, merged.names)
        raise typer.Exit(1 if missing or merged.errors else 0)


def _say_missing(missing: Mapping[bytes, Path], names: frozenset[bytes]) -> None:
    from lvspec_cli.escape import visible_line

    last_parts = {name.rpartition(b"/")[2] for name in names}
    alike = sum(name.rpartition(b"/")[2] in last_parts for name in missing)
    say(f"{counted(len(missing), 'input')} without a record:")
    write_out("".join(visible_line(str(path)) + "\n" for path in missing.values()))
    if alike:
        say(f"{alike} of them may have one under another folder: only `lvspec caption` compares contents")


def _missing(
    sources: Sequence[Path], names: frozenset[bytes], recursive: bool, glob: str | None
) -> dict[bytes, Path]:
    """The inputs without a record, by name, in order."""
    from lvspec_cli.batch.inputs import collect

    collected = collect(sources, recursive=recursive, glob=glob)
    paths = {item.name: item.path for item in collected.inputs}
    paths |= {problem.name: problem.path for problem in collected.problems}
    return {name: path for name, path in paths.items() if name not in names}
