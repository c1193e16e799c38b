"""What ``lvspec caption`` does: inputs, what is left of them, the run, and what is said about it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from lvspec_cli.batch.health import gated
from lvspec_cli.batch.history import PastRun, history_file, remember
from lvspec_cli.batch.inputs import collect
from lvspec_cli.batch.layout import Cutting, lay_out, request_for
from lvspec_cli.batch.lists import read_paths
from lvspec_cli.batch.prompts import check_template
from lvspec_cli.batch.resume import Again, Outstanding, outstanding
from lvspec_cli.batch.run import run
from lvspec_cli.batch.segments import check_lengths
from lvspec_cli.batch.serve import WorkerPlan
from lvspec_cli.batch.shard import parse_shard
from lvspec_cli.batch.types import Collected, Input
from lvspec_cli.batch.work import Work, make_work
from lvspec_cli.cli.reporting import say, write_out
from lvspec_cli.cli.requests import decode_settings, video_request
from lvspec_cli.cli.signals import Stop
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.events import Event, Stage, StageFinished
from lvspec_cli.output.build import failed_record
from lvspec_cli.output.jsonl import Kept, RecordFile
from lvspec_cli.output.records import Record, to_line
from lvspec_cli.pipeline import AskRequest, pinned_request
from lvspec_cli.registry import load_registry
from lvspec_cli.types import Mode, VideoRequest
from lvspec_cli.ui.batch_state import BatchView, clock
from lvspec_cli.ui.state import View

DEFAULT_PROMPT = "Describe this video in detail."
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
        write_out(to_line(record) + "\n")


@dataclass(frozen=True)
class Job:
    """All that the command line asks for, checked."""

    base: AskRequest
    collected: Collected
    cutting: Cutting
    again: Again
    plans: tuple[WorkerPlan, ...]
    out: Path | None  # None for stdout


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
        outcome = _run(job, left, rows, given, stop)
    if not given["quiet"]:
        _summarise(job, left, outcome)
    exported = stop.asked() or job.out is None or export_rows(given, job, works)
    return 1 if outcome.failures or left.failed or not exported else 0


def read_job(given: Mapping[str, Any]) -> Job:
    """Everything that can be wrong is found here, before anything slow begins.

    :raises UsageError: flags are wrong or exclude each other.
    :raises NoInputError: there is nothing to caption.
    """
    name, pair = load_registry(given["models"]).pair(given["pair"])
    _check_together(given)
    base = pinned_request(
        AskRequest(
            video=video_request({**given, "video": ""}, pair.defaults),
            questions=_prompts(given),
            pair_name=name,
            pair=pair,
            settings=decode_settings(given, pair),
            system=given["system"],
            device=given["device"],
            dtype=given["dtype"],
            threads=given["threads"],
            task="caption",
        )
    )
    return Job(
        base=base,
        collected=_collected(given),
        cutting=Cutting(given["segment"], given["overlap"], given["scenes"]),
        again=Again.ALL if given["redo"] else Again.ERRORS if given["retry_errors"] else Again.NOTHING,
        plans=_plans(given, base),
        out=None if given["out"] == "-" else Path(given["out"]),
    )


def _check_together(given: Mapping[str, Any]) -> None:
    if given["segment"] is not None and given["scenes"]:
        raise UsageError("--segment and --scenes exclude each other", "choose one")
    if given["segment"] is not None:
        check_lengths(given["segment"], given["overlap"])
    elif given["overlap"]:
        raise UsageError("--overlap goes with --segment only", "add --segment, or leave it out")
    if given["redo"] and given["retry_errors"]:
        raise UsageError("--redo and --retry-errors exclude each other", "--redo does all of it again")
    if given["devices"] and (given["workers"] > 1 or given["device"] != "auto"):
        raise UsageError("--devices excludes --device and --workers", "name each device in --devices")
    if given["out"] == "-" and (given["to"] or given["retry_errors"] or given["redo"]):
        raise UsageError("--out - leaves no file to go on from or to export", "name a file with --out")


def _prompts(given: Mapping[str, Any]) -> tuple[str, ...]:
    from lvspec_cli.cli.questions import checked_text, read_text

    texts = [checked_text(text, "--prompt") for text in given["prompt"] or ()]
    if given["prompt_file"] is not None:
        texts.append(checked_text(read_text(given["prompt_file"]), f"{given['prompt_file']}"))
    for text in texts:
        check_template(text)
    if given["system"] is not None:
        checked_text(given["system"], "--system")
    return tuple(dict.fromkeys(texts)) or (DEFAULT_PROMPT,)


def _collected(given: Mapping[str, Any]) -> Collected:
    sources = [Path(text) for text in given["paths"] or () if text != "-"]
    lists = [given["from_list"]] if given["from_list"] else []
    lists += [Path("-")] * (given["paths"] or []).count("-")
    for name in lists:
        sources += read_paths(_bytes_of(name), nul=given["null"])
    if not sources:
        raise NoInputError("no video was named", "name files or folders: lvspec caption ./clips")
    collected = collect(sources, recursive=given["recursive"], glob=given["glob"])
    for text in {text for item in collected.inputs for text in item.prompts}:
        check_template(text)
    if not given["shard"]:
        return collected
    shard = parse_shard(given["shard"])
    return Collected(
        tuple(item for item in collected.inputs if shard.holds(item.name)),
        tuple(item for item in collected.problems if shard.holds(item.name)),
    )


def _bytes_of(name: Path) -> bytes:
    if name == Path("-"):
        if sys.stdin is None:
            raise UsageError("stdin is closed", "name the paths as arguments")
        return sys.stdin.buffer.read()
    try:
        return name.read_bytes()
    except OSError as error:
        raise NoInputError(f"{name}: {error.strerror}", "name a file of paths, one a line") from error


def _plans(given: Mapping[str, Any], base: AskRequest) -> tuple[WorkerPlan, ...]:
    cores = len(os.sched_getaffinity(0))
    devices = given["devices"].split(",") if given["devices"] else [base.device] * given["workers"]
    decoding = given["decode_workers"] or max(1, min(4, cores // 2) // len(devices))
    if len(devices) > 1 and base.threads is None:
        base = replace(base, threads=max(1, cores // len(devices)))
    return tuple(
        WorkerPlan(
            base=replace(base, device=device.strip()),
            decode_workers=decoding,
            decode_bytes=given["decode_memory"] * 2**20 // len(devices),
            on_out_of_memory=given["on_oom"],
        )
        for device in devices
    )


def lay_out_job(job: Job, quiet: bool) -> list[Work]:
    """The works of all inputs, and of those that can only fail."""
    from lvspec_cli.batch.scenes import scene_segments
    from lvspec_cli.ui.progress import PlainProgress
    from lvspec_cli.video.pool import DecodePool

    progress, label = PlainProgress(sys.stderr), "looking at the videos"
    if not quiet:
        progress.begin(label)
    try:
        with DecodePool(job.plans[0].decode_workers, job.plans[0].decode_bytes) as pool:
            works = lay_out(
                job.collected.inputs,
                job.base,
                job.cutting,
                probes=pool.probes,
                scenes=scene_segments,
                measure=_length,
                progress=lambda done, total: progress.advance(label, done, total),
            )
    finally:
        progress.close()
    broken = [
        replace(make_work(request_for(job.base, Input(problem.path, problem.name))), error=problem.error)
        for problem in job.collected.problems
    ]
    return [*works, *broken]


def _length(video: VideoRequest) -> float | None:
    """Seconds of a video whose header does not say: all of its packets are looked at, one frame is decoded."""
    from lvspec_cli.video.decode import read_clip

    return read_clip(replace(video, max_frames=1, fps=None, max_pixels=16 * 16)).duration


def _announce(left: Outstanding) -> None:
    if left.done or left.failed or left.taken_out:
        say(f"{left.done} done, {left.failed} failed, {left.count} to do")
    if left.others:
        say(f"{left.others} rows of these videos were made with other settings or another content; they stay")


@dataclass
class Outcome:
    """What this run added."""

    ok: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _run(job: Job, left: Outstanding, rows: Rows, given: Mapping[str, Any], stop: Stop) -> Outcome:
    outcome, gates = Outcome(), given["fail_on"] or ()
    began = time.monotonic()
    with _showing(job, left, given) as (listen, shown):

        def write(record: Record) -> None:
            record = gated(record, gates)
            with stop.holding():
                rows.append(record)
                if record.error is None:
                    outcome.ok += 1
                else:
                    outcome.failures.append(f"{record.id}: {record.error.message}")
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
    return outcome


def past_run(job: Job, rows: int, seconds: float) -> PastRun:
    """What is remembered of a run of this kind."""
    base = job.base
    return PastRun(
        pair=base.pair_name,
        mode=base.settings.mode.value,
        device=",".join(plan.base.device for plan in job.plans),
        workers=len(job.plans),
        frames=base.video.max_frames,
        rows=rows,
        seconds=round(seconds, 3),
    )


@contextmanager
def _showing(
    job: Job, left: Outstanding, given: Mapping[str, Any]
) -> Iterator[tuple[Callable[[Event], None], Callable[[Record], None]]]:
    """What takes events, and what takes finished records."""
    if given["quiet"] or not left.count or sys.stderr is None:
        yield (lambda event: None), (lambda record: None)
        return
    from lvspec_cli.ui.batch import batch_show

    settings = job.base.settings
    view = View(job.base.pair_name, settings.mode.value, 0 if settings.mode is Mode.AR else settings.gamma)
    start = BatchView(total=left.count, skipped=left.done + left.failed, current=view)
    live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    with batch_show(start, live=live) as show:
        yield show.listen, show.add


def _summarise(job: Job, left: Outstanding, outcome: Outcome) -> None:
    failures = outcome.failures
    skipped = f", {left.done + left.failed} skipped" if left.done + left.failed else ""
    say(f"{outcome.ok} captioned, {len(failures)} failed{skipped} in {clock(outcome.seconds)}")
    for line in failures[:NAMED_FAILURES]:
        say(f"failed: {line}")
    if len(failures) > NAMED_FAILURES:
        say(f"and {len(failures) - NAMED_FAILURES} more")
    if job.out is not None:
        say(f"records: {job.out}")
        if failures or left.failed:
            say(f"try: {_retrying(sys.argv)}")


def _retrying(arguments: Sequence[str]) -> str:
    """The same command, doing what failed again."""
    kept = [text for text in arguments[1:] if text not in ("--redo", "--retry-errors")]
    return shlex.join(["lvspec", *kept, "--retry-errors"])
