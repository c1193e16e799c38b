"""``lvspec tune``: the fastest setting of the rule that keeps enough; found on one half of the clips, and
reported on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lvspec_cli.bench.calibrate import Calibration, calibrate
from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Header, Journal, environment_of, journal
from lvspec_cli.bench.measure import Plan, Progress
from lvspec_cli.bench.remote import Measure, measuring
from lvspec_cli.bench.results import Results, differing_fields
from lvspec_cli.bench.run import BenchJob, bench_settings, inputs_digest, run_loaded
from lvspec_cli.bench.search import (
    Score,
    choice,
    going_on,
    predicted_speedup,
    settings_to_try,
    split,
    turns,
)
from lvspec_cli.bench.variants import NamedRule, rules_of
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.figures.answers import BenchMode, Part, Variant, lower_end, surely_kept
from lvspec_cli.figures.fidelity import Compared, compare_blocks, label_of, likelihood_kept, right_kept
from lvspec_cli.figures.summary import Measured
from lvspec_cli.memory.plan import Workload
from lvspec_cli.memory.resolve import workload_of
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.output.files import replacing
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.text_file import LISTS, read_own
from lvspec_cli.types import DecodeSettings, Gamma, RelevanceName, RoundCosts, VideoRequest

CALIBRATION = "calibration.json"
SEARCH, REPORT = "search", "report"  # folders in that of the run
AR = Variant(BenchMode.AR)
BEFORE = "before"  # the pair's rule as it was, in the report


@dataclass(frozen=True)
class TuneJob:
    """All that was asked for. ``budget``: settings of each relevance; ``least``: share of quality to keep."""

    load_plan: LoadPlan
    video: VideoRequest  # what is taken of each clip
    settings: DecodeSettings  # of the pair as it is
    clips: tuple[BenchClip, ...]
    relevances: tuple[RelevanceName, ...]
    gammas: tuple[Gamma, ...]
    budget: int
    least: float
    seed: int
    out: Path
    redo: bool = False
    command: str = ""
    processes: int = 1  # for the search, which is not timed
    find_layers: bool = True  # where facts are known; else those of the pair's rule
    reported: int | None = None  # clips of the other half; None: all
    system: str | None = None

    @property
    def workload(self) -> Workload:
        """The largest clip and answer."""
        return workload_of(AskRequest(self.video, (), self.settings, self.system))


@dataclass(frozen=True)
class Tried:
    """A setting and how it did on as many clips as it came to see."""

    rule: NamedRule
    score: Score


@dataclass(frozen=True)
class Tuned:
    """What was found. ``chosen``: of each relevance that has one the fastest that keeps enough."""

    judged_by: str
    clips: int  # that were tuned on
    tried: tuple[Tried, ...]
    chosen: Mapping[RelevanceName, Tried]
    costs: Mapping[RelevanceName, RoundCosts]
    results: Results | None  # of the other half; None where nothing was chosen
    failed: tuple[str, ...] = ()  # clips of the first half that could not be read

    @property
    def best(self) -> Tried | None:
        return max(self.chosen.values(), key=lambda each: each.score.speedup, default=None)


class _Asked(Part):
    """What decides the search, and what was measured before it."""

    asked: dict[str, Any]
    calibration: Calibration


def tune(
    loaded: LoadedPair,
    job: TuneJob,
    *,
    progress: Callable[[str], Progress] = lambda label: lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
    found: Callable[[Tuned], None] = lambda tuned: None,
) -> Tuned:
    """Measures what is left to measure, and chooses.

    :param progress: given what is done now, where its advance is told.
    :param found: told what was chosen, before it is reported on.
    :raises UsageError: there are too few clips, or the folder is of another run.
    :raises LvspecError: the clips or the folder cannot be used.
    """
    first, second = _halves(job)
    calibration = _calibrated(loaded, job, first, progress("timing rounds"))
    costs = calibration.costs[job.relevances[0]]
    settings = replace(job.settings, adaptation=replace(job.settings.adaptation, costs=costs))
    named = {
        relevance: settings_to_try(
            replace(settings.rule, layers=calibration.layers[relevance]),
            relevance,
            job.gammas,
            calibration.borders[relevance],
            job.budget,
            job.seed,
        )
        for relevance in job.relevances
    }
    search = _Search(loaded, job, first, settings, calibration, named)
    tried = search.run(progress("trying settings"), warn)
    chosen = {
        relevance: best
        for relevance in job.relevances
        if (best := _chosen([each for each in tried if each.rule.rule.relevance is relevance], job.least))
    }
    tuned = Tuned(
        search.judged_by, len(first), tried, chosen, calibration.costs, None, tuple(sorted(search.failed))
    )
    found(tuned)
    if tuned.best is None:
        return tuned
    results = _reported(loaded, job, second, settings, tuned, progress("reporting"), warn)
    return replace(tuned, results=results)


def _halves(job: TuneJob) -> tuple[tuple[BenchClip, ...], tuple[BenchClip, ...]]:
    first, _ = split([clip.items[0].file_name for clip in job.clips], job.seed)
    halves = (
        tuple(clip for clip in job.clips if clip.items[0].file_name in first),
        tuple(clip for clip in job.clips if clip.items[0].file_name not in first)[: job.reported],
    )
    if not halves[1]:
        raise UsageError("one clip cannot be tuned on and reported on", "name more videos")
    return halves


def _calibrated(
    loaded: LoadedPair, job: TuneJob, clips: Sequence[BenchClip], progress: Progress
) -> Calibration:
    """Measured once, and kept: a search that goes on has to know what it knew."""
    asked = _asked(loaded, job)
    path = job.out / CALIBRATION
    with suppress(OSError):
        if not job.redo:
            return _read(path, asked)
    found = calibrate(
        loaded,
        clips,
        job.settings,
        job.relevances,
        job.gammas,
        system=job.system,
        find_layers=job.find_layers,
        progress=progress,
    )
    with replacing(path) as stream:
        stream.write(_Asked(asked=asked, calibration=found).model_dump_json(indent=1).encode())
    return found


def _asked(loaded: LoadedPair, job: TuneJob) -> dict[str, Any]:
    asked = job.load_plan.choice
    settings = bench_settings(_bench_job(job, job.clips, (), job.settings, job.out), loaded)
    return {
        **settings.model_dump(mode="json"),
        "environment": environment_of(loaded).model_dump(mode="json"),
        "clips": inputs_digest(job.clips),
        "weights": [asked.quant_target, asked.quant_draft, asked.draft_device],
        "relevance": list(job.relevances),
        "budget": job.budget,
        "min_fidelity": job.least,
        "find_layers": job.find_layers,
        "seed": job.seed,
    }


def _read(path: Path, asked: Mapping[str, Any]) -> Calibration:
    remedy = "name another folder with --out, or add --redo to measure again"
    try:
        kept = _Asked.model_validate_json(read_own(path, LISTS))
    except ValidationError:
        raise UsageError(f"{path}: not of this version", remedy) from None
    for name, _, _ in differing_fields(kept.asked, asked):
        raise UsageError(f"{path} is of another run: {name} differs", remedy)
    return kept.calibration


def _bench_job(
    job: TuneJob,
    clips: Sequence[BenchClip],
    named: Sequence[NamedRule],
    settings: DecodeSettings,
    out: Path,
    others: Sequence[Variant] = (),
    **plan: Any,
) -> BenchJob:
    variants = (AR, *others, *(each.variant for each in named))
    return BenchJob(
        load_plan=job.load_plan,
        video=job.video,
        clips=tuple(clips),
        modes=variants,
        gammas=job.gammas,
        plan=Plan(variants, settings, draft_keep=1.0, system=job.system, rules=rules_of(named), **plan),
        out=out,
        redo=job.redo,
        command=job.command,
    )


class _Search:
    """Turns of the search: in each, new clips and the settings that are left."""

    def __init__(
        self,
        loaded: LoadedPair,
        job: TuneJob,
        clips: tuple[BenchClip, ...],
        settings: DecodeSettings,
        calibration: Calibration,
        named: Mapping[RelevanceName, Sequence[NamedRule]],
    ) -> None:
        self._loaded, self._job, self._clips, self._settings = loaded, job, clips, settings
        self._calibration, self._named = calibration, named
        self._rules = {each.name: each for many in named.values() for each in many}
        self.failed: set[str] = set()
        self._labelled = any(label_of(item) is not None for clip in clips for item in clip.items)

    @property
    def judged_by(self) -> str:
        if self._labelled:
            return "facts and answers that are right"
        return "how likely the target finds the texts, a token"

    def run(self, progress: Progress, warn: Callable[[str], None]) -> tuple[Tried, ...]:
        """All settings with their scores, in the order of the names."""
        job = self._job
        bench = _bench_job(job, self._clips, list(self._rules.values()), self._settings, job.out / SEARCH)
        header = Header(
            settings=bench_settings(bench, self._loaded),
            environment=environment_of(self._loaded),
            inputs=inputs_digest(self._clips),
        )
        scores: dict[str, Score] = {}
        with (
            journal(bench.out, header, redo=job.redo) as kept,
            measuring(self._loaded, job.load_plan, job.workload, job.processes) as run,
        ):
            for turn in self._turns(run, kept, progress, warn):
                scores |= {score.name: score for score in turn}
            self.failed = {item.file_name for item in kept.items.values() if item.error}
        return tuple(Tried(rule, scores[name]) for name, rule in self._rules.items())

    def _turns(
        self, run: Measure, kept: Journal, progress: Progress, warn: Callable[[str], None]
    ) -> Iterator[list[Score]]:
        """After each turn the scores of those that took part in it."""
        planned = turns(max(map(len, self._named.values())), len(self._clips))
        alive, seen = list(self._rules), 0
        scores: list[Score] = []
        for number, (count, clips) in enumerate(planned):
            if number:
                alive = self._left(scores, count, seen / len(self._clips))
            told = _Told(progress, planned, number, sum(len(clip.items) for clip in self._clips[seen:clips]))
            # Clips of an early turn that cannot be read are no reason to end.
            with suppress(*(() if clips == len(self._clips) else (NoInputError,))):
                run(self._clips[seen:clips], self._plan(alive), kept, progress=told, warn=warn)
            seen = clips
            scores = [self._score(kept, name, clips) for name in alive]
            yield scores

    def _plan(self, names: Sequence[str]) -> Plan:
        rules = [self._rules[name] for name in names]
        return _bench_job(
            self._job, (), rules, self._settings, self._job.out,
            timed=False, scored=not self._labelled, examples=0, profiles=0,
        ).plan  # fmt: skip

    def _left(self, scores: Sequence[Score], count: int, seen: float) -> list[str]:
        """Of each relevance those that go on, ``seen`` of all clips being known."""
        going: set[str] = set()
        for many in self._named.values():
            names = {each.name for each in many if not is_exact(each.rule)}
            own = [each for each in scores if each.name in names]
            going.update(going_on(own, count, self._job.least, seen))
        return [each.name for each in scores if each.name in going]

    def _score(self, kept: Journal, name: str, clips: int) -> Score:
        """On the first ``clips``: a run that goes on holds measurements of later turns already."""
        rule = self._rules[name]
        asked = {item.id for clip in self._clips[:clips] for item in clip.items}
        blocks = [block for block in kept.blocks.values() if block.item in asked]
        answers = Measured(kept.items, blocks).of(rule.variant)
        compared = compare_blocks(kept.items, blocks, rule.variant, AR)
        rounds = sum(each.rounds or 0 for each in answers)
        costs = self._calibration.costs[rule.rule.relevance]
        return Score(
            name=name,
            clips=len({each.item.file_name for each in compared}),
            speedup=predicted_speedup(answers, costs) or 0.0,
            accepted_length=sum(each.output_tokens - each.first_tokens for each in answers) / max(1, rounds),
            **self._kept(compared, rule),
        )

    def _kept(self, compared: Sequence[Compared], rule: NamedRule) -> dict[str, Any]:
        if not self._labelled:
            kept = likelihood_kept(compared)
            surely = lower_end(kept) if kept else None
        elif right := right_kept(compared):
            kept, surely = right.retention, surely_kept(right)
        else:
            kept = surely = None
        return {"kept": kept, "surely": 1.0 if is_exact(rule.rule) else surely}


@dataclass(frozen=True)
class _Told:
    """Tells of the whole search while one turn of it goes on: settings times clips."""

    progress: Progress
    planned: Sequence[tuple[int, int]]
    turn: int
    items: int  # of the turn

    def __call__(self, done: int, total: int) -> None:
        new = [
            count * (clips - before)
            for (count, clips), (_, before) in zip(self.planned, ((0, 0), *self.planned), strict=False)
        ]
        share = done / self.items if self.items else 1.0
        self.progress(round(sum(new[: self.turn]) + share * new[self.turn]), sum(new))


def _chosen(tried: Sequence[Tried], least: float) -> Tried | None:
    """Among those that saw all clips, and exact mode, which needs none to be known."""
    most = max((each.score.clips for each in tried), default=0)
    last = {each.score.name: each for each in tried if each.score.clips == most or is_exact(each.rule.rule)}
    best = choice([each.score for each in last.values()], least)
    return last[best.name] if best else None


def _reported(
    loaded: LoadedPair,
    job: TuneJob,
    clips: Sequence[BenchClip],
    settings: DecodeSettings,
    tuned: Tuned,
    progress: Progress,
    warn: Callable[[str], None],
) -> Results:
    """The other half: ar, exact, the best as ``lvspec``, the pair's own before, and the other relevances."""
    best = tuned.best
    assert best is not None
    gamma = best.rule.gamma
    found = replace(settings, rule=best.rule.rule, gamma=gamma or settings.gamma)
    named = [
        NamedRule(BEFORE, settings.rule, settings.gamma),
        *(
            NamedRule(relevance.value, each.rule.rule, each.rule.gamma)
            for relevance, each in tuned.chosen.items()
            if each is not best
        ),
    ]
    others = (Variant(BenchMode.EXACT, gamma), Variant(BenchMode.LVSPEC, gamma))
    bench = _bench_job(job, clips, named, found, job.out / REPORT, others)
    return run_loaded(loaded, bench, progress=progress, warn=warn)
