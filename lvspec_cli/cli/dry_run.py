"""``lvspec caption --dry-run``: what would be done, with no weights loaded and nothing written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lvspec_cli.batch.history import forecast, history_file, past_runs, seconds_a_row
from lvspec_cli.batch.work import Outstanding, Work, outstanding
from lvspec_cli.cli.caption_job import Job, lay_out_job, moved_lines, past_run
from lvspec_cli.cli.reporting import say, write_out
from lvspec_cli.errors import LvspecError, NoInputError, VideoError
from lvspec_cli.output.jsonl import Kept, read_records
from lvspec_cli.output.records import encode_name
from lvspec_cli.types import VideoInfo
from lvspec_cli.ui.tables import ForecastRow, for_stdout, forecast_table
from lvspec_cli.units import clock


def dry_run(job: Job, quiet: bool) -> int:
    """Prints a row for each stretch; 1 when one of them cannot be read."""
    from lvspec_cli.video.pool import DecodePool

    works = lay_out_job(job, quiet)
    kept = _kept(job.out)
    left = outstanding(job.load_plan, works, kept, job.again)
    with DecodePool(job.plans[0].decode_workers, job.plans[0].decode_bytes) as pool:
        readable = [work for work in works if work.error is None]
        paths = (work.request.video.path for work in readable)
        found = pool.probes(paths, timeout=job.base.video.timeout)
        known = dict(zip(map(id, readable), found, strict=True))
        rows = list(_rows(job, works, left, kept, known))
    write_out(for_stdout(forecast_table(rows)))
    if not quiet:
        for line in _totals(job, left, rows):
            say(line)
    return 1 if any(row.problem for row in rows) else 0


def _kept(out: Path | None) -> Mapping[str, Kept]:
    if out is None:
        return {}
    try:
        return {record.key: Kept.of(record) for record in read_records(out, say)}
    except NoInputError:
        return {}  # the first run will make it


def _rows(
    job: Job,
    works: Sequence[Work],
    left: Outstanding,
    kept: Mapping[str, Kept],
    known: Mapping[int, VideoInfo | LvspecError],
) -> Iterator[ForecastRow]:
    from lvspec_cli.models.prompt import visual_token_counter

    count = visual_token_counter(job.load_plan.target)
    failures = {key for key, row in kept.items() if row.status == "error"}
    failures |= {key for key, moved in left.moved.items() if moved.row in failures}
    to_do = {key for work in left.works for key in (work.keys[n - 1] for n in work.numbers)}
    for work in works:
        info = known.get(id(work), work.error)
        name = encode_name(work.name)[0]
        if not isinstance(info, VideoInfo):
            yield ForecastRow(name, problem=info.cause if info else "unknown")
            continue
        if not info.width * info.height:
            yield ForecastRow(name, problem="its picture's size is not known, or beyond the limit")
            continue
        taken = forecast(info, work.request.video)
        try:
            visual_tokens = count(taken.timestamps, taken.width, taken.height)
        except VideoError as error:
            yield ForecastRow(name, problem=error.cause)
            continue
        yield ForecastRow(
            name,
            start=work.request.video.start,
            end=work.request.video.end,
            duration=info.duration,
            frames=len(taken.timestamps),
            width=taken.width,
            height=taken.height,
            visual_tokens=visual_tokens,
            to_do=sum(key in to_do for key in work.keys),
            failed=sum(key in failures and key not in to_do for key in work.keys),
            prompts=len(work.keys),
        )


def _totals(job: Job, left: Outstanding, rows: Sequence[ForecastRow]) -> Iterator[str]:
    unreadable = sum(bool(row.problem) for row in rows)
    yield f"{left.count} captions to do, {left.done} done, {left.failed} failed, {unreadable} unreadable"
    yield from moved_lines(left)
    seconds = seconds_a_row(past_runs(history_file()), past_run(job, rows=1, seconds=0.0))
    if seconds is None:
        yield "no estimate of the time: no run like this one has been made on this machine yet"
    else:
        yield f"about {clock(seconds * left.count)}, as the last run like this one went"
