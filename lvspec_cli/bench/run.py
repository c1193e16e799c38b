"""A whole run of the bench: clips, measurements, figures, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import FILE_NAME as JOURNAL_NAME
from lvspec_cli.bench.journal import MARK as JOURNAL_MARK
from lvspec_cli.bench.journal import Header, digest_of, environment_of, journal
from lvspec_cli.bench.lines import markdown
from lvspec_cli.bench.measure import Plan, Progress
from lvspec_cli.bench.remote import measuring
from lvspec_cli.bench.report import FILE_NAME as REPORT_NAME
from lvspec_cli.bench.report import MARK as REPORT_MARK
from lvspec_cli.bench.report import report, write_report
from lvspec_cli.bench.results import FILE_NAME, BenchSettings, Results, to_json
from lvspec_cli.bench.variants import rule_fields
from lvspec_cli.demo.write import HELD_OUT_SEED, clip_path, write_clip
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.events import Listener
from lvspec_cli.figures.answers import Variant
from lvspec_cli.figures.summary import Measured, contrasts, summarise
from lvspec_cli.memory.plan import Workload
from lvspec_cli.memory.resolve import workload_of
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.words import TokenSets
from lvspec_cli.output.files import replacing, sweep
from lvspec_cli.output.records import identify, settings_fields
from lvspec_cli.pipeline import load, memory_errors
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import Adaptation, Gamma, VideoRequest

_ADAPTATION = TypeAdapter(Adaptation)

# Clips of the demo world that a command draws where none are named.
BENCH_CLIPS, QUICK_CLIPS = 8, 2  # a look at every mode, in minutes
RELEVANCE_CLIPS = 20  # tokens enough to tell schemes apart; each caption is scored by all of them
TUNING_CLIPS = 200  # half of them have facts enough to show that 99.8 % are kept

MARKDOWN_NAME = "results.md"
MARKS = {
    FILE_NAME: b'"schema": "lvspec.bench.',
    MARKDOWN_NAME: b"# lvspec bench",
    REPORT_NAME: REPORT_MARK,
    JOURNAL_NAME: JOURNAL_MARK,
}


@dataclass(frozen=True)
class BenchJob:
    """All that was asked for: of which pair, of which clips, and what is run on them."""

    load_plan: LoadPlan
    video: VideoRequest  # what is taken of each clip, by the flags
    clips: tuple[BenchClip, ...]
    modes: tuple[Variant, ...]  # without gamma
    gammas: tuple[Gamma, ...]
    plan: Plan
    out: Path
    redo: bool = False
    command: str = ""
    processes: int = 1  # for texts that are not timed

    @property
    def workload(self) -> Workload:
        """The largest clip and answer."""
        return workload_of(AskRequest(self.video, (), self.plan.settings, self.plan.system))


def demo_clips(
    folder: Path,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    seed: int = HELD_OUT_SEED,
    first: int = 1,
    processes: int = 1,
) -> list[Path]:
    """Clips of the demo world that no training has seen, with their scenes beside them; each written once.

    :param seed: another one gives other clips.
    :param first: the number of the first one, from 1.
    :param processes: that draw them.
    :raises OutputError: the folder cannot be written.
    """
    paths = {number: clip_path(folder, number) for number in range(first, first + count)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        missing = [
            number
            for number, path in paths.items()
            if not (path.is_file() and path.with_suffix(".json").is_file())
        ]
        progress(count - len(missing), count)
        with mapping(min(processes, len(missing))) as mapped:
            drawn = mapped(partial(write_clip, folder, seed), missing)
            for done, _ in enumerate(drawn, count - len(missing) + 1):
                progress(done, count)
        return list(paths.values())
    except BrokenProcessPool as error:
        raise OutputError(
            f"{folder}: a process that drew clips was ended from outside",
            "give the command again, it goes on where it was; fewer --processes need less memory",
        ) from error
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}", "name a folder that can be written with --out"
        ) from error


@contextmanager
def mapping(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map``, here or in so many other processes; what is not begun when it ends is dropped."""
    if processes < 2:
        yield map
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


def run_bench(
    job: BenchJob,
    *,
    listen: Listener = lambda event: None,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Results:
    """Measures what is left to measure, and computes and writes the results.

    :raises LvspecError: the pair, the clips or the folder cannot be used.
    """
    loaded = load(job.load_plan, job.workload, listen)
    return run_loaded(loaded, job, progress=progress, warn=warn)


def run_loaded(
    loaded: LoadedPair,
    job: BenchJob,
    *,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Results:
    """The same with the job's pair, loaded already."""
    results = results_of(loaded, job, measured_of(loaded, job, progress=progress, warn=warn))
    write_results(results, job.out)
    return results


def results_of(loaded: LoadedPair, job: BenchJob, measured: Measured) -> Results:
    """The figures of what was measured.

    :raises UsageError: no plain mode is among it.
    """
    used = {variant: _variant_settings(variant, job.plan) for variant in job.plan.variants}
    try:
        reference, modes = summarise(measured, job.plan.variants, used)
    except ValueError as error:
        remedy = "add ar to --modes, or allow more tokens"
        raise UsageError(f"nothing to compare with: {error}", remedy) from error
    return Results(
        command=job.command,
        environment=environment_of(loaded),
        settings=bench_settings(job, loaded),
        reference=reference.mode,
        modes=modes,
        contrasts=contrasts(measured, modes, job.plan.settings.gamma),
        items=tuple(measured.items.values()),
        blocks=tuple(measured.blocks),
    )


def measured_of(
    loaded: LoadedPair,
    job: BenchJob,
    *,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Measured:
    """Measures what is left to measure, and gives all that was asked for, items and blocks in their order.

    :raises LvspecError: the clips or the folder cannot be used.
    """
    items = tuple(item for clip in job.clips for item in clip.items)
    with (
        memory_errors(job.load_plan, job.workload),
        journal(job.out, header_of(loaded, job), redo=job.redo) as kept,
    ):
        processes = job.processes if not job.plan.timed else 1
        with measuring(loaded, job.load_plan, job.workload, processes) as run:
            run(job.clips, job.plan, kept, progress=progress, warn=warn)
        seen = {item.id: kept.items.get(item.id, item) for item in items}
        order = {item.id: number for number, item in enumerate(items)}
        blocks = sorted(kept.blocks.values(), key=lambda each: (order[each.item], each.repeat))
    return Measured(seen, tuple(blocks))


def header_of(loaded: LoadedPair, job: BenchJob) -> Header:
    """What decides whether measurements of the job can stand beside others."""
    return Header(
        settings=bench_settings(job, loaded),
        environment=environment_of(loaded),
        inputs=inputs_digest(job.clips),
    )


def write_results(results: Results, folder: Path) -> list[Path]:
    """Writes the files of the results, each whole or not at all.

    :raises OutputError: one cannot be written.
    """
    texts = {FILE_NAME: to_json(results), MARKDOWN_NAME: markdown(results), REPORT_NAME: report(results)}
    paths = []
    for name, text in texts.items():
        with replacing(folder / name) as stream:
            stream.write(text.encode())
        paths.append(folder / name)
    return [*paths, write_report(folder, results)]


def bench_settings(job: BenchJob, loaded: LoadedPair) -> BenchSettings:
    """What was asked for, as the files tell it."""
    choice, video, plan, plain = job.load_plan.choice, job.video, job.plan, loaded.draft is None
    pair = choice.pair
    return BenchSettings(
        pair=choice.name,
        target=pair.target.name,
        draft=None if plain else pair.draft.name,
        revisions=(pair.target.revision, None if plain else pair.draft.revision),
        modes=tuple(variant.name for variant in job.modes),
        gammas=job.gammas,
        repeat=plan.repeat,
        max_new_tokens=plan.settings.max_new_tokens,
        draft_keep=plan.draft_keep,
        draft_keep_by=plan.settings.draft_keep_by,
        rule=rule_fields(plan.settings.rule),
        rules={name: rule_fields(rule) for name, rule in plan.rules.items()},
        words=words_digest(loaded.words),
        timed=plan.timed,
        first={str(variant): count for variant, count in plan.first.items()},
        adaptation=_ADAPTATION.dump_python(plan.settings.adaptation, mode="json"),
        quantisation=(choice.quant_target, choice.quant_draft),
        draft_device=choice.draft_device,
        cuda_graphs=choice.cuda_graphs,
        sampling={
            "frames": video.max_frames,
            "fps": video.fps,
            "max_pixels": video.max_pixels,
            "start": video.start,
            "end": video.end,
            "decoder": video.decoder,
        },
        system=plan.system,
        seed=plan.settings.seed,
        device=choice.device,
        dtype=choice.dtype,
        threads=choice.threads,
    )


def _variant_settings(variant: Variant, plan: Plan) -> Mapping[str, Any]:
    """What a variant was run with, as JSON can hold it."""
    if not variant.mode.is_peer:
        return settings_fields(plan.settings_of(variant))
    found: dict[str, Any] = {"do_sample": False, "max_new_tokens": plan.settings.max_new_tokens}
    if variant.gamma is not None:
        found |= {"num_assistant_tokens": variant.gamma, "num_assistant_tokens_schedule": "constant"}
    return found


def words_digest(words: TokenSets) -> str:
    """What tells the words that the rule treats in their own way from others."""
    sets = (words.ends, words.protected, words.function, words.meanings.items(), words.stops)
    return digest_of([sorted(each) for each in sets])


def inputs_digest(clips: Sequence[BenchClip]) -> str:
    """What tells these clips and questions from others, the files' content included."""
    facts = []
    for clip in clips:
        sample = ""
        with suppress(OSError):  # it stands in the results as one that cannot be read
            sample = identify(clip.video.path, b"").sample
        stretch = [clip.video.start, clip.video.end]
        facts.append([sample, stretch, [item.model_dump(mode="json") for item in clip.items]])
    return digest_of(facts)
