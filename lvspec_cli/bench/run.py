"""A complete bench run: clips, measurements, figures, files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import FILE_NAME as JOURNAL_NAME
from lvspec_cli.bench.journal import MARK as JOURNAL_MARK
from lvspec_cli.bench.journal import Header, digest_of, environment_of, open_journal
from lvspec_cli.bench.lines import markdown
from lvspec_cli.bench.measure import Plan, Progress
from lvspec_cli.bench.remote import measurer
from lvspec_cli.bench.report import FILE_NAME as REPORT_NAME
from lvspec_cli.bench.report import MARK as REPORT_MARK
from lvspec_cli.bench.report import write_report
from lvspec_cli.bench.results import FILE_NAME, BenchSettings, Results, to_json
from lvspec_cli.bench.throughput import measure_runs
from lvspec_cli.bench.variants import rule_fields
from lvspec_cli.demo.write import HELD_OUT_SEED, clip_path, write_clip
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.events import Listener
from lvspec_cli.figures.answers import BenchMode, Variant
from lvspec_cli.figures.summary import Measured, contrasts, summarise
from lvspec_cli.figures.throughput import throughput_of
from lvspec_cli.memory.plan import Workload
from lvspec_cli.memory.resolve import fitting_slots, workload_of
from lvspec_cli.memory.short import memory_errors
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.words import TokenSets
from lvspec_cli.output.files import replacing, sweep
from lvspec_cli.output.records import settings_fields
from lvspec_cli.pipeline import load
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import Adaptation, Gamma, VideoRequest

_ADAPTATION = TypeAdapter(Adaptation)

# Numbers of demo clips that a command draws if the user names no clips.
BENCH_CLIPS, QUICK_CLIPS = 8, 2  # a quick look at every mode, in minutes
THROUGHPUT_CLIPS, QUICK_THROUGHPUT_CLIPS = 32, 8  # enough to fill slots more than once
RELEVANCE_CLIPS = 20  # enough tokens to distinguish schemes
TUNING_CLIPS = 200  # half of them have enough facts to prove a retention of 99.8 %

MARKDOWN_NAME = "results.md"
MARKS = {
    FILE_NAME: b'"schema": "lvspec.bench.',
    MARKDOWN_NAME: b"# lvspec bench",
    REPORT_NAME: REPORT_MARK,
    JOURNAL_NAME: JOURNAL_MARK,
}


@dataclass(frozen=True)
class BenchJob:
    """What to measure: the pair, the clips, and what to run on them."""

    load_plan: LoadPlan
    video: VideoRequest  # for every clip, from the flags
    clips: tuple[BenchClip, ...]
    modes: tuple[Variant, ...]  # without gamma
    gammas: tuple[Gamma, ...]
    plan: Plan
    out: Path
    redo: bool = False
    command: str = ""
    processes: int = 1  # for untimed texts only
    slots: tuple[int, ...] = ()  # captions at once, where throughput is measured in place of single answers

    @property
    def workload(self) -> Workload:
        """The largest possible clip and answer."""
        return workload_of(AskRequest(self.video, (), self.plan.settings, self.plan.system))


def demo_clips(
    folder: Path,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    seed: int = HELD_OUT_SEED,
) -> list[Path]:
    """Demo clips that were not used in training, with their scene files; existing ones are not written again.

    :param seed: another seed gives other clips.
    :raises OutputError: the folder cannot be written.
    """
    paths = {number: clip_path(folder, number) for number in range(1, count + 1)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        missing = [
            number
            for number, path in paths.items()
            if not (path.is_file() and path.with_suffix(".json").is_file())
        ]
        progress(count - len(missing), count)
        for done, number in enumerate(missing, count - len(missing) + 1):
            write_clip(folder, seed, number)
            progress(done, count)
        return list(paths.values())
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}", "name a folder that can be written with --out"
        ) from error


def run_bench(
    job: BenchJob,
    *,
    listen: Listener = lambda event: None,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Results:
    """Measures what is missing in the journal, then computes and writes the results.

    :raises LvspecError: the pair, the clips or the folder cannot be used.
    """
    if job.slots:
        return _run_throughput(job, listen, progress, warn)
    loaded = load(job.load_plan, job.workload, listen)
    return run_loaded(loaded, job, progress=progress, warn=warn)


def run_loaded(
    loaded: LoadedPair,
    job: BenchJob,
    *,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Results:
    """``run_bench`` with a loaded pair."""
    results = results_of(loaded, job, measured_of(loaded, job, progress=progress, warn=warn))
    write_results(results, job.out)
    return results


def _run_throughput(
    job: BenchJob, listen: Listener, progress: Progress, warn: Callable[[str], None]
) -> Results:
    fitting = fitting_slots(job.load_plan, job.workload, max(job.slots))  # of the memory before it is loaded
    loaded = load(job.load_plan, job.workload, listen)
    header = header_of(loaded, job)
    with open_journal(job.out, header, redo=job.redo) as journal:
        measure_runs(
            loaded, job.load_plan, job.clips, job.plan, job.slots, fitting, journal,
            progress=progress, warn=warn,
        )  # fmt: skip
    modes = [variant.mode for variant in job.plan.variants]
    by_line = sorted(journal.runs.values(), key=lambda run: (modes.index(run.mode), run.slots, run.repeat))
    runs = tuple(by_line)
    results = Results(
        command=job.command,
        environment=header.environment,
        settings=header.settings,
        reference=BenchMode.AR,
        modes=(),
        throughput=throughput_of(runs),
        items=tuple(journal.items[item.id] for clip in job.clips for item in clip.items),
        blocks=(),
        runs=runs,
    )
    write_results(results, job.out)
    return results


def results_of(loaded: LoadedPair, job: BenchJob, measured: Measured) -> Results:
    """Computes the results from the measurements.

    :raises UsageError: no plain mode was measured.
    """
    settings = {variant: _variant_settings(variant, job.plan) for variant in job.plan.variants}
    try:
        reference, modes = summarise(measured, job.plan.variants, settings)
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
    """Measures what is missing in the journal; returns all measurements, in the order of the job's items.

    :raises LvspecError: the clips or the folder cannot be used.
    """
    items = tuple(item for clip in job.clips for item in clip.items)
    with (
        memory_errors(job.load_plan, job.workload),
        open_journal(job.out, header_of(loaded, job), redo=job.redo) as journal,
    ):
        processes = job.processes if not job.plan.timed else 1
        with measurer(loaded, job.load_plan, job.workload, processes) as run:
            run(job.clips, job.plan, journal, progress=progress, warn=warn)
        known = {item.id: journal.items.get(item.id, item) for item in items}
        order = {item.id: number for number, item in enumerate(items)}
        blocks = sorted(journal.blocks.values(), key=lambda block: (order[block.item], block.repeat))
    return Measured(known, tuple(blocks))


def header_of(loaded: LoadedPair, job: BenchJob) -> Header:
    """The header of the job's journal."""
    return Header(
        settings=bench_settings(job, loaded),
        environment=environment_of(loaded),
        inputs=inputs_digest(job.clips),
    )


def write_results(results: Results, folder: Path) -> None:
    """Writes the files of the results, each atomically.

    :raises OutputError: one cannot be written.
    """
    for name, text in ((FILE_NAME, to_json(results)), (MARKDOWN_NAME, markdown(results))):
        with replacing(folder / name) as stream:
            stream.write(text.encode())
    write_report(folder, results)


def bench_settings(job: BenchJob, loaded: LoadedPair) -> BenchSettings:
    """The job's settings, as they are written to the files."""
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
        draft_frames=plan.settings.draft_frames,
        draft_pixels=plan.settings.draft_pixels,
        draft_vocabulary=None if plain else pair.draft.vocabulary,
        rules={name: rule_fields(rule) for name, rule in plan.rules.items()},
        views={name: asdict(view) for name, view in plan.views.items()},
        words=words_digest(loaded.words),
        slots=job.slots,
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
    """A variant's settings as JSON values."""
    if not variant.mode.is_peer:
        return settings_fields(plan.settings_of(variant))
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": plan.settings.max_new_tokens}
    if variant.gamma is not None:
        settings |= {"num_assistant_tokens": variant.gamma, "num_assistant_tokens_schedule": "constant"}
    return settings


def words_digest(words: TokenSets) -> str:
    """A digest of the words that the rule treats specially."""
    meanings = ((token, sorted(meanings)) for token, meanings in words.meanings.items())
    sets = (words.ends, words.protected, words.function, meanings, words.stops)
    return digest_of([sorted(words_) for words_ in sets])


def inputs_digest(clips: Sequence[BenchClip]) -> str:
    """A digest of the clips and questions, the files' content included."""
    return digest_of(
        [
            [
                clip.sample,
                [clip.video.start, clip.video.end],
                [item.model_dump(mode="json") for item in clip.items],
            ]
            for clip in clips
        ]
    )
