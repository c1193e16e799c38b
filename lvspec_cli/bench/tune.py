"""``lvspec tune``: finds the fastest setting of the rule that keeps enough quality, and reports it.

It is chosen on one half of the clips, and reported on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lvspec_cli.bench.calibrate import Calibration, calibrate
from lvspec_cli.bench.items import BenchClip, are_labelled
from lvspec_cli.bench.journal import Header, Journal, environment_of, open_journal
from lvspec_cli.bench.lines import contrast_table, number, result_table, retention
from lvspec_cli.bench.measure import Plan, Progress
from lvspec_cli.bench.remote import Measure, measurer
from lvspec_cli.bench.results import Results, differing_fields
from lvspec_cli.bench.run import BenchJob, bench_settings, inputs_digest, run_loaded
from lvspec_cli.bench.search import (
    Score,
    candidate_rules,
    fastest_sufficient,
    predicted_speedup,
    promoted,
    rungs,
    split_halves,
)
from lvspec_cli.bench.variants import NO_LIMIT, NamedRule, as_yaml, rules_by_name
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.figures.answers import BenchMode, FrozenModel, Variant, lower_bound, retention_lower_bound
from lvspec_cli.figures.fidelity import (
    Comparison,
    combined_quality,
    compare_blocks,
    fidelity_of,
    label_of,
)
from lvspec_cli.figures.summary import Measured, is_within_freedom
from lvspec_cli.memory.plan import Workload
from lvspec_cli.memory.resolve import workload_of
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.output.files import replacing
from lvspec_cli.pairs.registry import Pair
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.speculation.relevance import LAYERED
from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.table import Style, Table, markdown_lines
from lvspec_cli.text_file import LISTS, read_own
from lvspec_cli.types import DecodeSettings, Gamma, RelevanceName, RoundCosts, VideoRequest

CALIBRATION = "calibration.json"
SEARCH, REPORT = "search", "report"  # subfolders of the run's folder
AR, CONTROL = Variant(BenchMode.AR), Variant(BenchMode.CONTROL)
BEFORE = "before"  # the name of the pair's current rule in the report


@dataclass(frozen=True)
class TuneJob:
    """What to tune. ``budget``: settings of each relevance; ``min_fidelity``: share of quality to keep."""

    load_plan: LoadPlan
    video: VideoRequest  # for every clip
    settings: DecodeSettings  # the pair's current ones
    clips: tuple[BenchClip, ...]
    relevances: tuple[RelevanceName, ...]
    gammas: tuple[Gamma, ...]
    budget: int
    min_fidelity: float
    seed: int
    out: Path
    redo: bool = False
    command: str = ""
    processes: int = 1  # for the search, which is untimed
    find_layers: bool = True  # if facts are known; otherwise the layers of the pair's rule
    reported: int | None = None  # clips of the second half in the report; None: all
    system: str | None = None

    @property
    def workload(self) -> Workload:
        """The largest possible clip and answer."""
        return workload_of(AskRequest(self.video, (), self.settings, self.system))


@dataclass(frozen=True)
class Trial:
    """A setting and its score on the clips of the last rung it reached."""

    rule: NamedRule
    score: Score


@dataclass(frozen=True)
class Tuned:
    """The outcome. ``chosen``: for each relevance, its fastest setting that keeps enough quality, if any."""

    judged_by: str
    clips: int  # for tuning
    trials: tuple[Trial, ...]
    chosen: Mapping[RelevanceName, Trial]
    costs: Mapping[RelevanceName, RoundCosts]
    results: Results | None  # of the second half; None if nothing was chosen
    failed: tuple[str, ...] = ()  # unreadable clips of the first half

    @property
    def best(self) -> Trial | None:
        return max(self.chosen.values(), key=lambda trial: trial.score.speedup, default=None)


class _CalibrationFile(FrozenModel):
    """The file of the calibration. ``asked``: everything that determines the search."""

    asked: dict[str, Any]
    calibration: Calibration


def tune(
    loaded: LoadedPair,
    job: TuneJob,
    *,
    progress: Callable[[str], Progress] = lambda label: lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
    on_chosen: Callable[[Tuned], None] = lambda tuned: None,
) -> Tuned:
    """Runs the search and the report; measures only what is missing in the folder.

    :param progress: returns a progress callback for a stage's label.
    :param on_chosen: called with the choice, before the report is measured.
    :raises UsageError: there are too few clips, or the folder belongs to another run.
    :raises LvspecError: the clips or the folder cannot be used.
    """
    first, second = _split_clips(job)
    calibration = _calibration_of(loaded, job, first, progress("timing rounds"))
    costs = calibration.costs[job.relevances[0]]
    settings = replace(job.settings, adaptation=replace(job.settings.adaptation, costs=costs))
    rules = {
        relevance: candidate_rules(
            replace(settings.rule, layers=calibration.layers[relevance]),
            relevance,
            job.gammas,
            calibration.borders[relevance],
            job.budget,
            job.seed,
        )
        for relevance in job.relevances
    }
    search = _Search(loaded, job, first, settings, calibration, rules)
    trials = search.run(progress("trying settings"), warn)
    chosen = {}
    for relevance in job.relevances:
        group = [trial for trial in trials if trial.rule.rule.relevance is relevance]
        if best := _best_trial(group, job.min_fidelity):
            chosen[relevance] = best
    tuned = Tuned(
        search.judged_by, len(first), trials, chosen, calibration.costs, None, tuple(sorted(search.failed))
    )
    on_chosen(tuned)
    if tuned.best is None:
        return tuned
    results = _report(loaded, job, second, settings, tuned, progress("reporting"), warn)
    return replace(tuned, results=results)


def _split_clips(job: TuneJob) -> tuple[tuple[BenchClip, ...], tuple[BenchClip, ...]]:
    first, _ = split_halves([clip.items[0].file_name for clip in job.clips], job.seed)
    halves = (
        tuple(clip for clip in job.clips if clip.items[0].file_name in first),
        tuple(clip for clip in job.clips if clip.items[0].file_name not in first)[: job.reported],
    )
    if not halves[1]:
        raise UsageError("one clip cannot be tuned on and reported on", "name more videos")
    return halves


def _calibration_of(
    loaded: LoadedPair, job: TuneJob, clips: Sequence[BenchClip], progress: Progress
) -> Calibration:
    """The stored calibration, or a new one that is stored: a continued search must use the same."""
    facts = _search_facts(loaded, job)
    path = job.out / CALIBRATION
    with suppress(OSError):
        if not job.redo:
            return _read(path, facts)
    calibration = calibrate(
        loaded,
        clips,
        job.settings,
        job.relevances,
        job.gammas,
        system=job.system,
        find_layers=job.find_layers,
        progress=progress,
    )
    file = _CalibrationFile(asked=facts, calibration=calibration)
    with replacing(path) as stream:
        stream.write(file.model_dump_json(indent=1).encode())
    return calibration


def _search_facts(loaded: LoadedPair, job: TuneJob) -> dict[str, Any]:
    choice = job.load_plan.choice
    settings = bench_settings(_bench_job(job, job.clips, (), job.settings, job.out), loaded)
    newer = {"slots", "views", "draft_vocabulary"}  # than some calibrations: left out where they say nothing
    return {
        **{
            name: value
            for name, value in settings.model_dump(mode="json").items()
            if value or name not in newer
        },
        "environment": environment_of(loaded).model_dump(mode="json"),
        "clips": inputs_digest(job.clips),
        "weights": [choice.quant_target, choice.quant_draft, choice.draft_device],
        "relevance": list(job.relevances),
        "budget": job.budget,
        "min_fidelity": job.min_fidelity,
        "find_layers": job.find_layers,
        "seed": job.seed,
    }


def _read(path: Path, facts: Mapping[str, Any]) -> Calibration:
    remedy = "name another folder with --out, or add --redo to measure again"
    try:
        stored = _CalibrationFile.model_validate_json(read_own(path, LISTS))
    except ValidationError:
        raise UsageError(f"{path}: not of this version", remedy) from None
    for name, _, _ in differing_fields(stored.asked, facts):
        raise UsageError(f"{path} is of another run: {name} differs", remedy)
    return stored.calibration


def _bench_job(
    job: TuneJob,
    clips: Sequence[BenchClip],
    named: Sequence[NamedRule],
    settings: DecodeSettings,
    out: Path,
    others: Sequence[Variant] = (),
    **plan: Any,
) -> BenchJob:
    variants = (AR, *others, *(rule.variant for rule in named))
    return BenchJob(
        load_plan=job.load_plan,
        video=job.video,
        clips=tuple(clips),
        modes=variants,
        gammas=job.gammas,
        plan=Plan(variants, settings, draft_keep=1.0, system=job.system, rules=rules_by_name(named), **plan),
        out=out,
        redo=job.redo,
        command=job.command,
    )


class _Search:
    """The rungs of the search: each adds clips and keeps fewer settings."""

    def __init__(
        self,
        loaded: LoadedPair,
        job: TuneJob,
        clips: tuple[BenchClip, ...],
        settings: DecodeSettings,
        calibration: Calibration,
        rules: Mapping[RelevanceName, Sequence[NamedRule]],
    ) -> None:
        self._loaded, self._job, self._clips, self._settings = loaded, job, clips, settings
        self._calibration, self._by_relevance = calibration, rules
        self._rules = {rule.name: rule for group in rules.values() for rule in group}
        self.failed: set[str] = set()
        self._labelled = any(label_of(item) is not None for clip in clips for item in clip.items)

    @property
    def _others(self) -> tuple[Variant, ...]:
        return () if self._labelled else (CONTROL,)

    @property
    def judged_by(self) -> str:
        if self._labelled:
            return "facts and answers that are right"
        return "the content words of ar's texts that the target's own second choices keep"

    def run(self, progress: Progress, warn: Callable[[str], None]) -> tuple[Trial, ...]:
        """All settings with their scores, in the order of their names."""
        job = self._job
        bench = _bench_job(
            job, self._clips, list(self._rules.values()), self._settings, job.out / SEARCH, self._others
        )
        header = Header(
            settings=bench_settings(bench, self._loaded),
            environment=environment_of(self._loaded),
            inputs=inputs_digest(self._clips),
        )
        scores: dict[str, Score] = {}
        with (
            open_journal(bench.out, header, redo=job.redo) as journal,
            measurer(self._loaded, job.load_plan, job.workload, job.processes) as run,
        ):
            for scores_of_rung in self._rungs(run, journal, progress, warn):
                scores |= {score.name: score for score in scores_of_rung}
            self.failed = {item.file_name for item in journal.items.values() if item.error}
        return tuple(Trial(rule, scores[name]) for name, rule in self._rules.items())

    def _rungs(
        self, run: Measure, journal: Journal, progress: Progress, warn: Callable[[str], None]
    ) -> Iterator[list[Score]]:
        """Yields after each rung the scores of its settings."""
        plan = rungs(max(map(len, self._by_relevance.values())), len(self._clips))
        names, done = list(self._rules), 0
        scores: list[Score] = []
        for rung, (count, clips) in enumerate(plan):
            if rung:
                names = self._promoted(scores, count, done / len(self._clips))
            items = sum(len(clip.items) for clip in self._clips[done:clips])
            rung_progress = _SearchProgress(progress, plan, rung, items)
            # If no clip of an early rung can be read, the search goes on.
            with suppress(*(() if clips == len(self._clips) else (NoInputError,))):
                run(self._clips[done:clips], self._plan(names), journal, progress=rung_progress, warn=warn)
            done = clips
            scores = [self._score(journal, name, clips) for name in names]
            yield scores

    def _plan(self, names: Sequence[str]) -> Plan:
        rules = [self._rules[name] for name in names]
        return _bench_job(
            self._job, (), rules, self._settings, self._job.out,
            others=self._others, timed=False, scored=False, examples=0, profiles=0,
        ).plan  # fmt: skip

    def _promoted(self, scores: Sequence[Score], count: int, fraction: float) -> list[str]:
        """The settings promoted to the next rung, after ``fraction`` of all clips."""
        chosen: set[str] = set()
        for group in self._by_relevance.values():
            names = {rule.name for rule in group if not is_exact(rule.rule)}
            group_scores = [score for score in scores if score.name in names]
            chosen.update(promoted(group_scores, count, self._job.min_fidelity, fraction))
        return [score.name for score in scores if score.name in chosen]

    def _score(self, journal: Journal, name: str, clips: int) -> Score:
        """A setting's score on the first ``clips`` only: a continued run has measurements of later rungs."""
        rule = self._rules[name]
        items = {item.id for clip in self._clips[:clips] for item in clip.items}
        blocks = [block for block in journal.blocks.values() if block.item in items]
        answers = Measured(journal.items, blocks).of(rule.variant)
        comparisons = compare_blocks(journal.items, blocks, rule.variant, AR)
        tokens = sum(answer.output_tokens - answer.first_tokens for answer in answers)
        rounds = sum(answer.rounds or 0 for answer in answers)
        costs = self._calibration.costs[rule.rule.relevance]
        return Score(
            name=name,
            clips=len({comparison.item.file_name for comparison in comparisons}),
            speedup=predicted_speedup(answers, costs) or 0.0,
            accepted_length=tokens / max(1, rounds),
            **self._quality(comparisons, compare_blocks(journal.items, blocks, CONTROL, AR), rule),
        )

    def _quality(
        self, comparisons: Sequence[Comparison], controls: Sequence[Comparison], rule: NamedRule
    ) -> dict[str, Any]:
        if not self._labelled:
            fidelity = fidelity_of(comparisons, controls)
            quality = fidelity.freedom.content if fidelity and fidelity.freedom else None
            # What drifts has no proven quality, whatever words it keeps.
            kept = fidelity is not None and is_within_freedom(fidelity, self._job.min_fidelity)
            bound = lower_bound(quality) if quality and kept else None
        elif combined := combined_quality(comparisons):
            quality, bound = combined.retention, retention_lower_bound(combined)
        else:
            quality = bound = None
        return {"quality": quality, "quality_bound": 1.0 if is_exact(rule.rule) else bound}


@dataclass(frozen=True)
class _SearchProgress:
    """Converts the progress of one rung into that of the whole search, in settings times clips."""

    progress: Progress
    plan: Sequence[tuple[int, int]]
    rung: int
    items: int  # of the rung

    def __call__(self, done: int, total: int) -> None:
        new = [
            count * (clips - previous)
            for (count, clips), (_, previous) in zip(self.plan, ((0, 0), *self.plan), strict=False)
        ]
        share = done / self.items if self.items else 1.0
        self.progress(round(sum(new[: self.rung]) + share * new[self.rung]), sum(new))


def _best_trial(trials: Sequence[Trial], min_fidelity: float) -> Trial | None:
    """The best of the settings measured on all clips, and of exact mode, which needs no measurement."""
    clips = max((trial.score.clips for trial in trials), default=0)
    finalists = {
        trial.score.name: trial for trial in trials if trial.score.clips == clips or is_exact(trial.rule.rule)
    }
    best = fastest_sufficient([trial.score for trial in finalists.values()], min_fidelity)
    return finalists[best.name] if best else None


def _report(
    loaded: LoadedPair,
    job: TuneJob,
    clips: Sequence[BenchClip],
    settings: DecodeSettings,
    tuned: Tuned,
    progress: Progress,
    warn: Callable[[str], None],
) -> Results:
    """Measures the second half: ar, exact, the best as ``lvspec``, the current rule, other relevances."""
    best = tuned.best
    assert best is not None
    gamma = best.rule.gamma
    chosen_settings = replace(settings, rule=best.rule.rule, gamma=gamma or settings.gamma)
    named = [
        NamedRule(BEFORE, settings.rule, settings.gamma),
        *(
            NamedRule(relevance.value, trial.rule.rule, trial.rule.gamma)
            for relevance, trial in tuned.chosen.items()
            if trial is not best
        ),
    ]
    controls = () if are_labelled(clips) else (CONTROL,)
    others = (*controls, Variant(BenchMode.EXACT, gamma), Variant(BenchMode.LVSPEC, gamma))
    bench = _bench_job(job, clips, named, chosen_settings, job.out / REPORT, others)
    return run_loaded(loaded, bench, progress=progress, warn=warn)


# --- the outcome as text: an entry for models.yaml, rules for the bench, tables -----------

MODELS, RULES, MARKDOWN = "models.yaml", "variants.yaml", "tuning.md"
MARK = "# lvspec tune"
MARKS = {**dict.fromkeys((MODELS, RULES, MARKDOWN), MARK.encode()), CALIBRATION: b'"asked":'}
HEADINGS = (
    "setting", "γ", "layers", "threshold", "anchors", "fillers", "sentences", "shift", "defer",
    "loss", "in a row", "in window", "rate", "clips", "accepted length", "predicted", "kept",
)  # fmt: skip
_OPTIONAL = ("sentences", "shift", "anchors", "threshold", "fillers", "accepted length")
_LEGEND = {
    "γ": "tokens that the draft proposes in a round",
    "threshold": "relevance from which a token is an anchor",
    "anchors": "their margin, in nats",
    "fillers": "theirs",
    "sentences": "that of their first tokens",
    "shift": "places",
    "accepted length": "tokens that a round adds",
    "predicted": "speedup",
    "kept": "of ar's quality",
}
CHOSEN = "*"


def models_yaml(name: str, pair: Pair, best: Trial, costs: RoundCosts) -> str:
    """The pair's complete entry of a models.yaml, with the chosen setting and the measured costs."""
    adaptation = replace(pair.defaults.adaptation, costs=costs)
    defaults = pair.defaults.model_dump(mode="json", exclude_defaults=True, exclude={"adaptation"})
    entry = pair.model_dump(mode="json", exclude_defaults=True, exclude={"defaults", "rules"})
    entry |= {half: _source(getattr(pair, half)) for half in ("target", "draft")}
    entry["defaults"] = {**defaults, "gamma": best.rule.gamma, "adaptation": asdict(adaptation)}
    entry["rules"] = {"balanced": as_yaml(best.rule.rule)}
    if "rules" in pair.model_fields_set and "loose" in pair.rules.model_fields_set:
        entry["rules"]["loose"] = as_yaml(pair.rules.loose)
    if kept := pair.rules.percentiles.loose.model_dump(exclude_none=True):
        entry["rules"]["percentiles"] = {"loose": kept}  # those of balanced would replace what was found
    return _dump({"pairs": {name: entry}})


def _source(source: Any) -> dict[str, Any]:
    fields = source.model_dump(mode="json", exclude_defaults=True)
    if source.folder is not None:
        fields["folder"] = str(Path(source.folder).resolve())
    return fields


def rules_yaml(tuned: Tuned) -> str:
    """The best setting of each relevance, in the format of ``lvspec bench --variants``."""
    return _dump(
        {
            relevance.value: {**as_yaml(trial.rule.rule), "gamma": trial.rule.gamma}
            for relevance, trial in tuned.chosen.items()
        }
    )


def _dump(value: Any) -> str:
    return f"{MARK}\n" + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)


def trial_table(tuned: Tuned) -> Table:
    """A row for each setting, sorted by clips (most first), then by speed (fastest first)."""
    chosen = {trial.score.name for trial in tuned.chosen.values()}
    ordered = sorted(tuned.trials, key=lambda trial: (-trial.score.clips, -trial.score.speedup))
    is_chosen = [trial.score.name in chosen for trial in ordered]
    styles: dict[int, Style] = {row: "best" for row, best in enumerate(is_chosen) if best}
    rows = list(map(_cells, ordered, is_chosen))
    return Table(HEADINGS, rows, optional=_OPTIONAL, legend=_LEGEND, styles=styles)


def finalist_table(tuned: Tuned) -> Table:
    """The table of the settings that were measured on all clips or chosen."""
    clips = max((trial.score.clips for trial in tuned.trials), default=0)
    chosen = tuple(tuned.chosen.values())
    finalists = tuple(trial for trial in tuned.trials if trial.score.clips == clips or trial in chosen)
    return trial_table(replace(tuned, trials=finalists))


def _cells(trial: Trial, chosen: bool) -> tuple[str, ...]:
    rule, score = trial.rule.rule, trial.score
    return (
        score.name + (f" {CHOSEN}" if chosen else ""),
        str(trial.rule.gamma),
        ",".join(map(str, rule.layers)) if rule.relevance in LAYERED else "",
        *(
            f"{value:g}"
            for value in (rule.anchor_threshold, rule.anchor_margin, rule.filler_margin, rule.sentence_margin)
        ),
        str(rule.shift_window),
        str(rule.defer),
        f"{rule.max_loss:g}",
        *("-" if most >= NO_LIMIT else str(most) for most in (rule.max_loose_run, rule.max_loose_in_window)),
        f"{rule.random_rate:g}" if rule.relevance == "random" else "",
        str(score.clips),
        number(score.accepted_length, 2),
        number(score.speedup, 2),
        retention(score.quality, 2),
    )


def notes(job: TuneJob, tuned: Tuned) -> Iterator[str]:
    """Remarks needed to read the tables, one sentence each."""
    share = f"{100 * job.min_fidelity:g} %"
    for relevance in job.relevances:
        if relevance not in tuned.chosen:
            yield f"no setting of {relevance} is shown to keep {share}: take more clips, or ask for less"
    if tuned.best is not None and is_exact(tuned.best.rule.rule):
        yield f"nothing loose is shown to keep {share}: this is exact mode. Take more clips, or ask for less"
    own = job.settings.rule.relevance
    if tuned.best is not None and tuned.best.rule.rule.relevance is not own:
        yield f"{tuned.best.rule.rule.relevance} is faster than {own}: it is the rule in the lines"
    yield (
        f"{CHOSEN} of each relevance the fastest setting whose lower end keeps {share} of {tuned.judged_by},"
        f" on {tuned.clips} clips"
    )
    for relevance, costs in tuned.costs.items():
        yield (
            f"{relevance}: in steps of ar a draft step costs {costs.draft:.3f}, a verification"
            f" {costs.verification:.3f} and {costs.row:.3f} a row, all else of a round {costs.overhead:.3f}"
        )
    if tuned.results is not None:
        names = {item.file_name for item in tuned.results.items if item.error is None}
        yield f"the report: {len(names)} other clips, on which nothing was tuned; lvspec is what was found"


def markdown(job: TuneJob, tuned: Tuned) -> str:
    """``tuning.md``: all settings that were tried, and the tables of the report."""
    lines = [MARK, "", *markdown_lines(trial_table(tuned))]
    if tuned.results is not None:
        lines += markdown_lines(replace(result_table(tuned.results), title="On the other clips"))
        lines += markdown_lines(contrast_table(tuned.results))
    lines += [f"- {note}" for note in notes(job, tuned)]
    return "\n".join([*lines, "", "Found with:", "", f"    {job.command}", ""])
