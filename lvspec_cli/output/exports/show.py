"""What an export did, in lines."""

from __future__ import annotations

import os

from lvspec_cli.output.exports.types import ExportFormat, ExportReport


def report_lines(report: ExportReport, to: ExportFormat, named: int) -> list[str]:
    """What was written and what was left out, and why.

    :param named: how many skipped captions are named; the others are counted.
    """
    lines = [_written(report, to)]
    if report.failed:
        lines.append(f"left out: {report.failed} that failed")
    if report.superseded and (to.is_sidecar or to in (ExportFormat.VIDEOFOLDER, ExportFormat.MUSUBI)):
        lines.append(f"left out: {report.superseded} with a later caption of the same clip and prompt")
    shown = report.skipped[:named]
    lines += [f"left out: {os.fsdecode(skipped.name)}: {skipped.reason}" for skipped in shown]
    if len(report.skipped) > named:
        lines.append(f"left out: {len(report.skipped) - named} more")
    return lines


def _written(report: ExportReport, to: ExportFormat) -> str:
    if to.is_sidecar:
        return f"{to} files: {len(report.written)} written, {len(report.unchanged)} unchanged"
    done = [f"{path}: {report.captions} captions written" for path in report.written]
    same = [f"{path}: unchanged, {report.captions} captions" for path in report.unchanged]
    return "".join(done or same or [f"{to}: nothing written"])
