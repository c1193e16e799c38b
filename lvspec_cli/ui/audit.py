"""What ``lvspec caption --audit`` says at the end."""

from __future__ import annotations

from collections.abc import Iterator

from lvspec_cli.batch.audited import AuditSummary
from lvspec_cli.bench.lines import estimate, few_clips, number, percent, retention, spread
from lvspec_cli.bench.results import Fidelity


def audit_lines(summary: AuditSummary, share: float) -> Iterator[str]:
    """Speed and what was kept of ar, with 95 % intervals over clips, a subject a line."""
    if not summary.audited and not summary.failures:
        yield (
            f"audit: none of {summary.captions} captions is among the {share:.4g} of all that keys choose;"
            " a larger --audit takes more, with --redo of captions that are there, too"
        )
        return
    yield f"audit: {summary.audited} of {summary.captions} captions answered in mode ar as well"
    if summary.failures:
        yield f"audit: {len(summary.failures)} more could not be: {summary.failures[0]}"
    if summary.speedup is not None:
        yield f"audit: decoding is {spread(summary.speedup)} times as fast as ar"
    if summary.fidelity is not None:
        yield from _kept(summary.fidelity)
        yield from (f"audit: {line}" for line in few_clips(summary.fidelity.clips))


def _kept(found: Fidelity) -> Iterator[str]:
    for name, kept in (("facts F1", found.facts), ("right answers", found.questions)):
        if kept is not None and kept.retention is not None:
            yield (
                f"audit: {name} {number(kept.mode, 3)}, {retention(kept.retention)} of ar's"
                f" {number(kept.ar, 3)}"
            )
    likelihood = retention(found.likelihood)
    yield f"audit: to the target itself a token is {likelihood} as probable as one of ar's"
    yield (
        f"audit: to ar's text chrF {estimate(found.chrf, 1)}, ROUGE-L {estimate(found.rouge_l, 1)},"
        f" identical {retention(found.identical)}"
    )
    yield (
        f"audit: repeated 4-grams {percent(found.repetition, 1)} (ar {percent(found.ar_repetition, 1)}),"
        f" tokens a caption {number(found.length, 1)} (ar {number(found.ar_length, 1)})"
    )
