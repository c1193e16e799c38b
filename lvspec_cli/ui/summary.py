"""Results as text: of bench, tune and bench-relevance, and the lines after an answer or a batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

from lvspec_cli.bench.lines import (
    contrast_table,
    estimate,
    few_clips,
    number,
    percent,
    result_table,
    retention,
    spread,
    throughput_table,
    trusted,
)
from lvspec_cli.bench.results import Change, Results
from lvspec_cli.figures.answers import Fidelity
from lvspec_cli.figures.audit import AuditSummary
from lvspec_cli.output.records import THINKING, UNFINISHED, Record
from lvspec_cli.table import Style, Table, counted, plain, short_time
from lvspec_cli.types import FinishReason
from lvspec_cli.ui.tables import for_stdout
from lvspec_cli.video.source import is_picture

if TYPE_CHECKING:
    from lvspec_cli.bench.tune import Tuned


_GAINS = ("mode", "γ", "speedup", "end to end", "tokens/s", "accepted length", "retention")
_COSTS = ("mode", "γ", "acceptance", "c", "v", "o", "predicted", "speedup")
_SETTINGS = (
    "setting", "γ", "threshold", "anchors", "fillers", "sentences", "shift", "accepted length", "predicted",
    "kept",
)  # fmt: skip


def results_text(results: Results) -> str:
    """One table in a pipe; three in a terminal: gains, round costs, the pair's rule against other lines."""
    if results.settings.slots:
        table = throughput_table(results)
        return for_stdout(table) if sys.stdout.isatty() else plain(table)
    if not sys.stdout.isatty():
        return plain(result_table(results))
    tables = (
        result_table(results).columns(*_GAINS),
        result_table(results, drafting=True).columns(*_COSTS),
        contrast_table(results),
    )
    return "\n".join(for_stdout(table) for table in tables if table.rows)


def tuned_text(tuned: Tuned) -> str:
    """The finalists, then the report on the other clips.

    In a pipe as comments, so that the whole output is a valid models.yaml.
    """
    from lvspec_cli.bench.tune import finalist_table

    table, report = finalist_table(tuned), results_text(tuned.results) if tuned.results is not None else ""
    if sys.stdout.isatty():
        return "\n".join((for_stdout(table.columns(*_SETTINGS)), report, ""))
    return indent(plain(table) + report, "# ", lambda line: True)


def change_table(changes: Sequence[Change]) -> Table:
    """A row for each figure; regressions are highlighted."""
    styles: dict[int, Style] = {row: "worse" for row, change in enumerate(changes) if change.regression}
    headings = ("mode", "figure", "before", "after", "change", "")
    return Table(
        headings, list(map(_change_cells, changes)), prose=("figure",), optional=("change",), styles=styles
    )


def _change_cells(change: Change) -> tuple[str, ...]:
    share = "" if change.share is None else f"{100 * change.share:+.1f} %"
    verdict = "worse" if change.regression else "not measured" if change.after is None else ""
    return (change.mode, change.figure, _figure(change.before), _figure(change.after), share, verdict)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


ENDINGS = {
    FinishReason.LENGTH: "cut at --max-new-tokens",
    FinishReason.REPETITION: "stopped: it began to repeat itself",
    FinishReason.INTERRUPTED: "interrupted",
}


def answer_summary(record: Record, *, kinds: bool = True) -> list[str]:
    """Lines about one answer: speed, acceptance, and an unusual ending.

    :param kinds: with the number of tokens of each kind, which a legend may have told already.
    """
    stats = record.stats
    if stats is None:
        return []
    speed = f", {stats.tokens_per_s:.1f} tokens/s" if stats.tokens_per_s is not None else ""
    ending = ENDINGS.get(record.finish_reason, "")
    if record.error is not None and record.error.kind in (THINKING, UNFINISHED):
        ending = f"no answer: {record.error.message}"
    ending = ending and f", {ending}"
    lines = [f"{counted(stats.output_tokens, 'token')} in {short_time(stats.decode_s)}{speed}{ending}"]
    if stats.mean_accepted_length is not None and stats.acceptance_rate is not None:
        moved = f", moved {stats.accepted_shift}" if stats.accepted_shift else ""
        counts = (
            f"same as the large model {stats.accepted_exact}, draft's wording {stats.accepted_filler}{moved}"
        )
        lines.append(
            f"{stats.mean_accepted_length:.1f} tokens a step of the large model,"
            f" {stats.acceptance_rate:.0%} of the draft kept{f' ({counts})' if kinds else ''}"
        )
    if stats.loss_per_token:
        lines[-1] += f", {stats.loss_per_token:.3f} nats a token given up"
    if stats.fallback and stats.drafted:  # later answers about the clip draft nothing
        lines.append("speculation was slower than the large model alone: the rest went without the draft")
    return lines


def clip_summary(record: Record) -> str:
    """The sampled frames and the requested sampling, in one line."""
    sampling, requested = record.sampling, record.sampling.requested
    times = sampling.timestamps or (0.0,)
    flags = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in (
            ("frames", requested.frames),
            ("fps", requested.fps),
            ("max-pixels", requested.max_pixels),
        )
        if value is not None
    ]
    when = f" at {times[0]:.1f} s" if len(times) == 1 else f" from {times[0]:.1f} to {times[-1]:.1f} s"
    if is_picture(Path(record.file_name)):
        when = ""
    return (
        f"{record.file_name}: {sampling.decoded} of {counted(sampling.frames_expected or 0, 'frame')}{when},"
        f" {sampling.width}x{sampling.height},"
        f" {sampling.visual_tokens} visual tokens" + (f" (asked: {', '.join(flags)})" if flags else "")
    )


def short_world_note(pair: str, world: str) -> str:
    """The note of ``world_note`` with ``--quiet``."""
    return f"warning: {pair} knows only {world}"


def world_note(pair: str, world: str) -> str:
    """A note that a pair knows only one world of clips, and how to choose another pair."""
    return f"{pair} knows only {world}; --pair takes another of `lvspec models`"


def audit_lines(summary: AuditSummary, share: float) -> Iterator[str]:
    """Speed and quality relative to ar, with 95 % intervals over clips, one subject per line."""
    if not summary.audited and not summary.failures:
        yield (
            f"audit: none of {counted(summary.captions, 'caption')} is among the {share:.4g} of all that keys"
            " choose; a larger --audit takes more, with --redo of captions that are there, too"
        )
        return
    yield f"audit: {summary.audited} of {counted(summary.captions, 'caption')} answered in mode ar as well"
    if summary.failures:
        yield f"audit: {len(summary.failures)} more could not be: {summary.failures[0]}"
    clips = summary.fidelity.clips if summary.fidelity is not None else 0
    if summary.speedup is not None:
        yield f"audit: decoding is {spread(trusted(summary.speedup, clips))} times as fast as ar"
    if summary.fidelity is not None:
        yield from _fidelity_lines(trusted(summary.fidelity, clips))
        yield from (f"audit: {line}" for line in few_clips(clips))


def _fidelity_lines(fidelity: Fidelity) -> Iterator[str]:
    for name, quality in (("facts F1", fidelity.facts), ("right answers", fidelity.questions)):
        if quality is not None and quality.retention is not None:
            yield (
                f"audit: {name} {number(quality.mode, 3)}, {retention(quality.retention)} of ar's"
                f" {number(quality.ar, 3)}"
            )
    if fidelity.content_kept is not None:
        yield f"audit: {retention(fidelity.content_kept)} of the content words of ar's texts are kept"
    likelihood = retention(fidelity.likelihood)
    yield f"audit: to the target itself a token is {likelihood} as probable as one of ar's"
    yield (
        f"audit: to ar's text chrF {estimate(fidelity.chrf, 1)}, ROUGE-L {estimate(fidelity.rouge_l, 1)},"
        f" identical {retention(fidelity.identical)}"
    )
    yield (
        f"audit: repeated 4-grams {percent(fidelity.repetition, 1)}"
        f" (ar {percent(fidelity.ar_repetition, 1)}), tokens a caption"
        f" {number(fidelity.length, 1)} (ar {number(fidelity.ar_length, 1)})"
    )
