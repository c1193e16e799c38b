"""Runs ``lvspec caption``: finds the remaining works, runs or forecasts them, and reports the results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lvspec_cli.batch.answer import gated, is_partial
from lvspec_cli.batch.history import Forecast, forecast, history_file, past_runs, remember, seconds_a_row
from lvspec_cli.batch.names import Collected, absolute
from lvspec_cli.batch.remote import run
from lvspec_cli.batch.serve import WorkerPlan
from lvspec_cli.batch.work import Moved, Outstanding, Work, outstanding
from lvspec_cli.cli.caption_job import Job, lay_out_job, moved_lines, past_run, read_job
from lvspec_cli.cli.caption_options import CaptionFlags
from lvspec_cli.cli.reporting import Stop, going_on, say, say_command, say_note, write_json, write_out
from lvspec_cli.errors import UNREADABLE, LvspecError, NoInputError, UsageError, VideoError
from lvspec_cli.escape import shell_words
from lvspec_cli.events import Event
from lvspec_cli.host import may_be_seen, message_stream, terminal_width
from lvspec_cli.output.exports.export import check_places, export_records, report_lines
from lvspec_cli.output.exports.types import ExportFormat, ExportPlaces
from lvspec_cli.output.jsonl import RecordFile, RowInfo, read_records
from lvspec_cli.output.records import Record, encode_name, failed_record, renamed, to_line
from lvspec_cli.request import AskRequest
from lvspec_cli.table import clock, counted
from lvspec_cli.types import WHOLE, Mode, VideoInfo
from lvspec_cli.ui.state import BatchView, View, add_row, has_loaded, speeds
from lvspec_cli.ui.summary import short_world_note, world_note
from lvspec_cli.ui.tables import ForecastRow, for_stdout, forecast_table

if TYPE_CHECKING:
    from lvspec_cli.models.prompt import PromptSizes

NAMED_FAILURES = 10  # in the summary
NAMED_EXPORTS = 10  # captions left out of an export that are named; the others are counted


class Rows(Protocol):
    """A destination of records."""

    existing: dict[str, RowInfo]

    def append(self, record: Record) -> None: ...


@dataclass
class Printed:
    """Records on stdout, from which nothing can be resumed."""

    existing: dict[str, RowInfo] = field(default_factory=dict)

    def append(self, record: Record) -> None:
        write_json(to_line(record))


@dataclass
class Outcome:
    """The results of this run."""

    view: BatchView
    failures: list[str] = field(default_factory=list)
    retryable: int = 0  # failures that another try may mend
    fallbacks: int = 0
    partial: int = 0  # captions of fewer frames than were asked for
    seconds: float = 0.0
    printed: list[Record] = field(default_factory=list)  # for the audit, if there is no file

    @property
    def ok(self) -> int:
        return self.view.ok


def caption_all(flags: CaptionFlags, stop: Stop) -> int:
    """Runs the command and gives its exit code."""
    quiet = flags.messages.quiet
    with ExitStack() as stack:
        job = read_job(flags, stack)
        _check_export(flags, job.collected)
        if flags.records.dry_run:
            return dry_run(job, quiet)
        rows: Rows = stack.enter_context(RecordFile.open(job.out)) if job.out else Printed()
        works = lay_out_job(job, quiet)
        remaining = outstanding(job.load_plan, works, rows.existing, job.again)
        if isinstance(rows, RecordFile):
            rows.remove(remaining.removed)
        if not quiet:
            _announce(job, remaining)
        elif remaining.failed:
            see = shell_words(["lvspec", "show", str(job.out), "--failed"])
            say(f"warning: {remaining.failed} failed in an earlier run: `{see}`")
        outcome = Outcome(_start(job, remaining))
        try:
            _run(job, remaining, rows, stop, outcome, quiet=quiet)
        finally:
            if isinstance(rows, RecordFile):
                rows.check()  # if the file was removed, there is nothing to summarise
            if not quiet:
                _summarise(job, remaining, outcome, stopped=stop.asked())
            elif outcome.ok and job.load_plan.choice.pair.world:
                say(short_world_note(job.load_plan.choice.name, job.load_plan.choice.pair.world))
        if job.base.audit and not quiet:
            _report_audits(job, works, remaining, outcome)
    exported = stop.asked() or job.out is None or _export_rows(flags, job, works, remaining.moved)
    return 1 if outcome.ok < remaining.count or remaining.failed or not exported else 0


def _announce(job: Job, remaining: Outstanding) -> None:
    for note in job.notes:
        say_note(note)
    say(f"{remaining.done} done, {remaining.failed} failed, {remaining.count} to do")
    for line in moved_lines(remaining):
        say(line)
    if others := remaining.others:
        say(f"left as it is: {counted(others, 'row')} of these videos with other settings or another content")


def _run(job: Job, remaining: Outstanding, rows: Rows, stop: Stop, outcome: Outcome, *, quiet: bool) -> None:
    began, is_loaded = time.monotonic(), False
    with _showing(outcome.view, stop, quiet, printed=job.out is None) as (listen, shown):

        def write(record: Record) -> None:
            record = gated(record, job.gates)
            with stop.holding():
                rows.append(record)
                outcome.view = add_row(outcome.view, record)
                if record.error is None:
                    outcome.fallbacks += record.stats is not None and record.stats.fallback
                    outcome.partial += is_partial(record)
                else:
                    outcome.failures.append(f"{record.id}: {record.error.message}")
                    outcome.retryable += record.error.kind not in UNREADABLE
                if job.base.audit and job.out is None:
                    outcome.printed.append(record)
            shown(record)

        def listen_all(event: Event) -> None:
            nonlocal began, is_loaded
            if not is_loaded and has_loaded(event):
                began, is_loaded = time.monotonic(), True  # loading does not count
            stop.listen(event)
            listen(event)

        unread, readable = without_unreadable(remaining.works, job.plans[0])
        for work in unread:
            for number in work.numbers:
                assert work.error is not None
                write(failed_record(job.load_plan, work.request, work.identity, number, work.error))
        try:
            if readable:
                rows_left = sum(len(work.numbers) for work in readable)
                run(
                    readable,
                    [plan.at_most(rows_left) for plan in job.plans],
                    write=write,
                    listen=listen_all,
                    interrupted=stop.asked,
                    cluster=job.cluster,
                )
        finally:
            outcome.seconds = time.monotonic() - began
    if outcome.ok:
        remember(past_run(job, outcome.ok, outcome.seconds), history_file())


def without_unreadable(works: Sequence[Work], plan: WorkerPlan) -> tuple[list[Work], list[Work]]:
    """The works that are known not to be readable, with their errors, and the others.

    Files are looked at up to the first that can be read: a folder without any need not load the pair.
    """
    from lvspec_cli.video.pool import DecodePool

    known = [work for work in works if work.error is not None]
    others = [work for work in works if work.error is None]
    paths = (work.request.video.path for work in others)
    found = list[Work]()
    with DecodePool(1, plan.decode_bytes) as pool:
        for work, probed in zip(others, pool.probes(paths, timeout=plan.base.video.timeout), strict=False):
            if not (isinstance(probed, LvspecError) and probed.kind in UNREADABLE):
                break
            found.append(replace(work, error=probed))
    return [*known, *found], others[len(found) :]


@contextmanager
def _showing(
    start: BatchView, stop: Stop, quiet: bool, printed: bool
) -> Iterator[tuple[Callable[[Event], None], Callable[[Record], None]]]:
    """The listeners for events and for finished records. With ``quiet`` only what went wrong is said.

    :param printed: the records go to stdout; where they may be seen, no live view moves over them.
    """
    from lvspec_cli.ui.batch import batch_show, failure_line

    if quiet or not start.total:
        yield say_note, lambda record: say(failure_line(record)) if record.error is not None else None
        return

    covers = printed and may_be_seen(sys.stdout)
    live = message_stream().isatty() and os.environ.get("TERM", "dumb") != "dumb" and not covers
    stop.is_shown = live
    with batch_show(start, live=live, stopping=stop.asked) as show:
        yield show.listen, show.add


def _start(job: Job, remaining: Outstanding) -> BatchView:
    settings = job.base.settings
    view = View(
        job.load_plan.choice.name, settings.mode.value, None if settings.mode is Mode.AR else settings.gamma
    )
    slots = max(plan.company.slots for plan in job.plans)
    places = (view,) * (len(job.plans) * slots)
    return BatchView(remaining.count, remaining.done + remaining.failed, places, slots)


def _summarise(job: Job, remaining: Outstanding, outcome: Outcome, *, stopped: bool) -> None:
    failures = outcome.failures
    stream = message_stream()
    if job.out is not None and (width := terminal_width(stream)):  # else they are on stdout
        from lvspec_cli.ui.batch import last_results

        stream.write(last_results(outcome.view.recent, width))
    skipped = f", {remaining.done + remaining.failed} skipped" if remaining.done + remaining.failed else ""
    speed = f": {speed}" if (speed := speeds(outcome.view, outcome.seconds)) else ""
    say(f"{outcome.ok} captioned, {len(failures)} failed{skipped} in {clock(outcome.seconds)}{speed}")
    if outcome.fallbacks:
        say(
            f"speculation was slower than the large model alone in {outcome.fallbacks}:"
            " their rest went without it"
        )
    if outcome.partial:
        say(f"{outcome.partial} of fewer frames than were asked for: the warnings of their records say why")
    for line in failures[:NAMED_FAILURES]:
        say(f"failed: {line}")
    if len(failures) > NAMED_FAILURES:
        say(f"and {len(failures) - NAMED_FAILURES} more")
    if stopped and (left := remaining.count - outcome.view.done):
        say(f"{left} left" + (f": {going_on(sys.argv)}" if job.out is not None else ""))
    if job.out is not None:
        say(f"records: {job.out}")
        if outcome.retryable or remaining.retryable:
            say_command("try:", _retrying(sys.argv))
        elif failures or remaining.failed:
            say("try: repair or remove the files that cannot be read, and run the same again")
        if outcome.ok and not stopped:
            say_command("next:", ["lvspec", "show", str(job.out)])
            say_command("or:", ["lvspec", "export", str(job.out), "--to", "csv"])
    choice = job.load_plan.choice
    if choice.pair.world and not choice.note:  # a note already says it
        say(world_note(choice.name, choice.pair.world))


def _report_audits(job: Job, works: Sequence[Work], remaining: Outstanding, outcome: Outcome) -> None:
    """Summarises the audits of all of this command's rows in the file, including those of earlier runs."""
    from lvspec_cli.figures.audit import summarise_audits
    from lvspec_cli.ui.summary import audit_lines

    videos = {key: work.request.video for work in works for key in work.keys}
    videos |= {moved.row: videos[key] for key, moved in remaining.moved.items()}
    whole = {key: video.path for key, video in videos.items() if video.start is None and video.end is None}
    records = outcome.printed if job.out is None else read_records(job.out)
    summary = summarise_audits((record for record in records if record.key in videos), whole)
    for line in audit_lines(summary, job.base.audit):
        say(line)


def _retrying(arguments: Sequence[str]) -> list[str]:
    """The same command with ``--retry-errors``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # behind it all are names
    flags = [text for text in arguments[1:end] if text not in ("--redo", "--retry-errors")]
    return ["lvspec", *flags, "--retry-errors", *arguments[end:]]


def _check_export(flags: CaptionFlags, collected: Collected) -> None:
    """:raises UsageError: a path is missing for the export, or flags are given without ``--to``."""
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


def _export_rows(flags: CaptionFlags, job: Job, works: Sequence[Work], moved: Mapping[str, Moved]) -> bool:
    """Exports the rows of this command's videos. False if a foreign file stayed, or a row was skipped."""
    names = {key: work.name for work in works for key in work.keys}
    names |= {row.row: row.new for row in moved.values()}
    successes = [_export(flags, to, job, names) for to in flags.export.to or ()]  # all formats, in any case
    return all(successes)


def _export(flags: CaptionFlags, to: ExportFormat, job: Job, names: Mapping[str, bytes]) -> bool:
    """:param names: this command's names of files, by key; the row may have an older name."""
    assert job.out is not None
    report = export_records(
        (renamed(row, names[row.key]) for row in read_records(job.out, say) if row.key in names),
        to,
        _places(flags, to, job.collected),
        prefix=flags.export.prefix,
        suffix=flags.export.suffix,
        force=flags.export.force,
    )
    written, *left_out = report_lines(report, to, NAMED_EXPORTS)
    for line in left_out if flags.messages.quiet else (written, *left_out):
        say(line)
    for path in report.foreign:
        say(
            f"warning: {path} was not written by lvspec, or was changed since, and stays; --force replaces it"
        )
    return not report.foreign and not report.skipped


def _places(flags: CaptionFlags, to: ExportFormat, collected: Collected) -> ExportPlaces:
    out_dir = flags.export.out_dir
    out = to.beside(Path(flags.records.out)) if out_dir is None else None
    return ExportPlaces(videos=_videos_folder(collected), out_dir=out_dir, out=out)


def _videos_folder(collected: Collected) -> Path | None:
    """The folder to which the inputs' names are relative."""
    for item in collected.inputs:
        return Path(os.fsdecode(absolute(item.path)[: -len(item.name)] or b"/"))
    return None


def dry_run(job: Job, quiet: bool) -> int:
    """Prints a row for each stretch. The exit code is 1 if one of them cannot be read, or does not fit."""
    from lvspec_cli.video.pool import DecodePool

    works = lay_out_job(job, quiet)
    existing = _existing(job.out)
    remaining = outstanding(job.load_plan, works, existing, job.again)
    with DecodePool(job.plans[0].decode_workers, job.plans[0].decode_bytes) as pool:
        readable = [work for work in works if work.error is None]
        paths = (work.request.video.path for work in readable)
        probed = pool.probes(paths, timeout=job.base.video.timeout)
        infos = dict(zip(map(id, readable), probed, strict=True))
        rows = list(_rows(job, works, remaining, existing, infos))
    for note in () if quiet else job.notes:
        say_note(note)
    write_out(for_stdout(forecast_table(rows)))
    if not quiet:
        unreadable = {key for work, row in zip(works, rows, strict=True) if row.problem for key in work.keys}
        for line in _totals(job, remaining, rows, unreadable):
            say(line)
    return 1 if any(row.problem or not row.fits for row in rows) else 0


def _existing(out: Path | None) -> Mapping[str, RowInfo]:
    if out is None:
        return {}
    try:
        return {record.key: RowInfo.of(record) for record in read_records(out, say)}
    except NoInputError:
        return {}  # the first run will create it


def _rows(
    job: Job,
    works: Sequence[Work],
    remaining: Outstanding,
    existing: Mapping[str, RowInfo],
    infos: Mapping[int, VideoInfo | LvspecError],
) -> Iterator[ForecastRow]:
    from lvspec_cli.models.prompt import PromptSizes

    settings, views = job.base.settings, (WHOLE, job.base.settings.draft_view)
    models = [
        PromptSizes(folder, settings.max_new_tokens, view)
        for folder, view in zip((job.load_plan.target, job.load_plan.draft), views, strict=True)
        if folder is not None
    ]
    failures = {key for key, row in existing.items() if row.status == "error"}
    failures |= {key for key, moved in remaining.moved.items() if moved.row in failures}
    to_do = {key for work in remaining.works for key in (work.keys[n - 1] for n in work.numbers)}
    for work in works:
        info = infos.get(id(work), work.error)
        name = encode_name(work.name)[0]
        if not isinstance(info, VideoInfo):
            yield ForecastRow(name, problem=info.cause if info else "unknown")
            continue
        if not info.width * info.height:
            yield ForecastRow(name, problem="its picture's size is not known, or beyond the limit")
            continue
        sampled = forecast(info, work.request.video)
        try:
            fitting = _fitting(models, work.request, sampled)
            taken = replace(sampled, timestamps=sampled.timestamps[:fitting])
            visual_tokens = models[0].visual_tokens(taken.timestamps, taken.width, taken.height)
        except VideoError as error:
            yield ForecastRow(name, problem=error.cause)
            continue
        yield ForecastRow(
            name,
            start=work.request.video.start,
            end=work.request.video.end,
            duration=info.duration,
            frames=len(taken.timestamps),
            frames_expected=len(sampled.timestamps),
            fits=fitting is not None,
            width=sampled.width,
            height=sampled.height,
            visual_tokens=visual_tokens,
            to_do=sum(key in to_do for key in work.keys),
            failed=sum(key in failures and key not in to_do for key in work.keys),
            prompts=len(work.keys),
        )


def _fitting(models: Sequence[PromptSizes], request: AskRequest, sampled: Forecast) -> int | None:
    """The most of the frames that both models' contexts have room for; None if there is room for none."""
    text = max(request.questions, key=len) + (request.system or "")
    frames: int | None = len(sampled.timestamps)
    for model in models:
        if frames is not None:
            frames = model.frames_that_fit(text, sampled.timestamps, sampled.width, sampled.height, frames)
    return frames


def _totals(
    job: Job, remaining: Outstanding, rows: Sequence[ForecastRow], unreadable: Collection[str]
) -> Iterator[str]:
    """:param unreadable: keys of what cannot be read, and so is no work."""
    problems = sum(bool(row.problem) for row in rows)
    to_do = sum(work.keys[n - 1] not in unreadable for work in remaining.works for n in work.numbers)
    done, failed = remaining.done, remaining.failed
    yield f"{counted(to_do, 'caption')} to do, {done} done, {failed} failed, {problems} unreadable"
    yield from moved_lines(remaining)
    if (together := job.plans[0].company.slots) > 1:
        yield f"{together} captions at once"
    if fewer := sum(row.frames < row.frames_expected for row in rows):
        yield f"{fewer} with fewer frames than asked for, because the models' context has no room for more"
    if not to_do:
        return
    seconds = seconds_a_row(past_runs(history_file()), past_run(job, rows=1, seconds=0.0))
    if seconds is None:
        yield "no estimate of the time: no run like this one has been made on this machine yet"
    else:
        yield f"about {clock(seconds * to_do)}, as past runs like this one went"
