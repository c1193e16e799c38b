"""``lvspec caption --to FORMAT``: the exports at the end of a batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lvspec_cli.batch.names import Collected, absolute
from lvspec_cli.batch.work import Moved, Work
from lvspec_cli.cli.caption_job import Job
from lvspec_cli.cli.caption_options import CaptionFlags
from lvspec_cli.cli.reporting import say
from lvspec_cli.errors import UsageError
from lvspec_cli.output.exports.export import check_places, export_records, report_lines
from lvspec_cli.output.exports.types import ExportFormat, ExportPlaces
from lvspec_cli.output.jsonl import read_records
from lvspec_cli.output.records import renamed

NAMED = 10  # captions left out that are named; the others are counted


def check_export(flags: CaptionFlags, collected: Collected) -> None:
    """:raises UsageError: what is to be exported has no place, or flags are given without ``--to``."""
    export = flags.export
    if not export.to:
        alone = {
            "--out-dir": export.out_dir,
            "--prefix": export.prefix,
            "--suffix": export.suffix,
            "--force": export.force,
        }
        for flag in (flag for flag, value in alone.items() if value):
            raise UsageError(f"{flag} goes with --to only", f"add --to, or leave out {flag}")
    for to in export.to or ():
        check_places(to, _places(flags, to, collected))


def export_rows(flags: CaptionFlags, job: Job, works: Sequence[Work], moved: Mapping[str, Moved]) -> bool:
    """Exports the rows of this command's videos; False where a file stood in the way or was left out."""
    names = {key: work.name for work in works for key in work.keys}
    names |= {row.row: row.new for row in moved.values()}
    went_well = [_export(flags, to, job, names) for to in flags.export.to or ()]
    return all(went_well)


def _export(flags: CaptionFlags, to: ExportFormat, job: Job, names: Mapping[str, bytes]) -> bool:
    """:param names: by key what this command calls the file; the row may have an earlier name."""
    assert job.out is not None
    report = export_records(
        (renamed(row, names[row.key]) for row in read_records(job.out, say) if row.key in names),
        to,
        _places(flags, to, job.collected),
        prefix=flags.export.prefix,
        suffix=flags.export.suffix,
        force=flags.export.force,
    )
    if not flags.messages.quiet:
        for line in report_lines(report, to, NAMED):
            say(line)
    for path in report.foreign:
        say(f"warning: {path} was not written by lvspec, or changed since, and stays; --force replaces it")
    return not report.foreign and not report.skipped


def _places(flags: CaptionFlags, to: ExportFormat, collected: Collected) -> ExportPlaces:
    out_dir = flags.export.out_dir
    beside = to.beside(Path(flags.records.out)) if out_dir is None else None
    return ExportPlaces(videos=videos_folder(collected), out_dir=out_dir, out=beside)


def videos_folder(collected: Collected) -> Path | None:
    """The folder that the inputs' names are relative to."""
    for item in collected.inputs:
        return Path(os.fsdecode(absolute(item.path)[: -len(item.name)] or b"/"))
    return None
