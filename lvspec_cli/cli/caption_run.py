"""What ``lvspec caption`` does: what is left of the inputs, the run, and what is said about it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from lvspec_cli.batch.answer import gated
from lvspec_cli.batch.history import history_file, remember
from lvspec_cli.batch.remote import run
from lvspec_cli.batch.work import Outstanding, Work, outstanding
from lvspec_cli.cli.caption_job import Job, lay_out_job, moved_lines, past_run, read_job
from lvspec_cli.cli.reporting import say, write_json
from lvspec_cli.cli.signals import Stop
from lvspec_cli.escape import shell_words
from lvspec_cli.events import Event, Stage, StageFinished
from lvspec_cli.output.jsonl import Kept, RecordFile, read_records
from lvspec_cli.output.records import Record, failed_record, to_line
from lvspec_cli.types import Mode
from lvspec_cli.ui.state import BatchView, View
from lvspec_cli.ui.summary import world_note
from lvspec_cli.units import clock

NAMED_FAILURES = 10  # in the summary


class Rows(Protocol):
    """Where records go."""

    kept: dict[str, Kept]

    def append(self, record: Record) -> None: ...


@dataclass
class Printed:
    """Records on stdout: nothing to resume from."""

    kept: dict[str, Kept] = field(default_factory=dict)

    def append(self, record: Record) -> None:
        write_json(to_line(record))


@dataclass
class Outcome:
    """What this run added."""

    ok: int = 0
    failures: list[str] = field(default_factory=list)
    fallbacks: int = 0
    seconds: float = 0.0
    printed: list[Record] = field(default_factory=list)  # for the audit, where no file keeps them


def caption_all(given: Mapping[str, Any], stop: Stop) -> int:
    """Runs the command and gives its exit code."""
    from lvspec_cli.cli.batch_export import check_export, export_rows

    job = read_job(given)
    check_export(given, job.collected)
    if given["dry_run"]:
        from lvspec_cli.cli.dry_run import dry_run

        return dry_run(job, given["quiet"])
    with ExitStack() as stack:
        rows: Rows = stack.enter_context(RecordFile.open(job.out)) if job.out else Printed()
        works = lay_out_job(job, given["quiet"])
        left = outstanding(works, rows.kept, job.again)
        if isinstance(rows, RecordFile):
            rows.remove(left.taken_out)
        if not given["quiet"]:
            _announce(left)
        outcome = Outcome()
        try:
            _run(job, left, rows, given, stop, outcome)
        finally:
            if isinstance(rows, RecordFile):
                rows.check()  # rows that have gone are not summed up
            if not given["quiet"]:
                _summarise(job, left, outcome)
        if job.base.audit and not given["quiet"]:
            _report_audits(job, works, left, outcome)
    exported = stop.asked() or job.out is None or export_rows(given, job, works, left.moved)
    return 1 if outcome.ok < left.count or left.failed or not exported else 0


def _announce(left: Outstanding) -> None:
    say(f"{left.done} done, {left.failed} failed, {left.count} to do")
    for line in moved_lines(left):
        say(line)
    if left.others:
        say(f"{left.others} rows of these videos were made with other settings or another content; they stay")


def _run(
    job: Job, left: Outstanding, rows: Rows, given: Mapping[str, Any], stop: Stop, outcome: Outcome
) -> None:
    began = time.monotonic()
    with _showing(job, left, given) as (listen, shown):

        def write(record: Record) -> None:
            record = gated(record, job.gates)
            with stop.holding():
                rows.append(record)
                if record.error is None:
                    outcome.ok += 1
                    outcome.fallbacks += record.stats is not None and record.stats.fallback
                else:
                    outcome.failures.append(f"{record.id}: {record.error.message}")
                if job.base.audit and job.out is None:
                    outcome.printed.append(record)
            shown(record)

        def tell(event: Event) -> None:
            nonlocal began
            if isinstance(event, StageFinished) and event.stage is Stage.LOADING:
                began = time.monotonic()  # loading is no part of the rate
            stop.listen(event)
            listen(event)

        readable = [work for work in left.works if work.error is None]
        for work in left.works:
            if work.error is not None:
                for number in work.numbers:
                    write(failed_record(work.request, work.identity, number, work.error))
        try:
            if readable:
                run(readable, job.plans, write=write, listen=tell, interrupted=stop.asked)
        finally:
            outcome.seconds = time.monotonic() - began
    if outcome.ok:
        remember(past_run(job, outcome.ok, outcome.seconds), history_file())


@contextmanager
def _showing(
    job: Job, left: Outstanding, given: Mapping[str, Any]
) -> Iterator[tuple[Callable[[Event], None], Callable[[Record], None]]]:
    """What takes events, and what takes finished records."""
    if given["quiet"] or not left.count:
        yield (lambda event: None), (lambda record: None)
        return
    from lvspec_cli.ui.batch import batch_show

    settings = job.base.settings
    view = View(job.base.pair_name, settings.mode.value, None if settings.mode is Mode.AR else settings.gamma)
    start = BatchView(total=left.count, skipped=left.done + left.failed, current=view)
    live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    with batch_show(start, live=live) as show:
        yield show.listen, show.add


def _summarise(job: Job, left: Outstanding, outcome: Outcome) -> None:
    failures = outcome.failures
    skipped = f", {left.done + left.failed} skipped" if left.done + left.failed else ""
    say(f"{outcome.ok} captioned, {len(failures)} failed{skipped} in {clock(outcome.seconds)}")
    if outcome.fallbacks:
        say(
            f"speculation was slower than the target alone in {outcome.fallbacks}: their rest went without it"
        )
    for line in failures[:NAMED_FAILURES]:
        say(f"failed: {line}")
    if len(failures) > NAMED_FAILURES:
        say(f"and {len(failures) - NAMED_FAILURES} more")
    if job.out is not None:
        say(f"records: {job.out}")
        if failures or left.failed:
            say(f"try: {_retrying(sys.argv)}")
    if job.base.pair.world and not job.base.pair_note:  # which says it, too
        say(world_note(job.base.pair_name, job.base.pair.world))


def _report_audits(job: Job, works: Sequence[Work], left: Outstanding, outcome: Outcome) -> None:
    """Of all rows that the file has of this command's captions, those of earlier runs among them."""
    from lvspec_cli.figures.audit import summarise_audits
    from lvspec_cli.ui.summary import audit_lines

    videos = {key: work.request.video for work in works for key in work.keys}
    videos |= {moved.row: videos[key] for key, moved in left.moved.items()}
    whole = {key: video.path for key, video in videos.items() if video.start is None and video.end is None}
    found = outcome.printed if job.out is None else read_records(job.out)
    summary = summarise_audits((each for each in found if each.key in videos), whole)
    for line in audit_lines(summary, job.base.audit):
        say(line)


def _retrying(arguments: Sequence[str]) -> str:
    """The same command, doing what failed again."""
    kept = [text for text in arguments[1:] if text not in ("--redo", "--retry-errors")]
    return shell_words(["lvspec", *kept, "--retry-errors"])
