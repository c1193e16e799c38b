"""The outcome of ``lvspec tune`` as text: an entry for models.yaml, rules for the bench, tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from lvspec_cli.bench.lines import contrast_table, number, result_table, retention
from lvspec_cli.bench.tune import CALIBRATION, Trial, Tuned, TuneJob
from lvspec_cli.bench.variants import NO_LIMIT, as_yaml
from lvspec_cli.pairs.registry import Pair
from lvspec_cli.speculation.relevance import LAYERED
from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.table import Style, Table, markdown_lines
from lvspec_cli.types import RoundCosts

MODELS, RULES, MARKDOWN = "models.yaml", "variants.yaml", "tuning.md"
MARK = "# lvspec tune"
MARKS = {**dict.fromkeys((MODELS, RULES, MARKDOWN), MARK.encode()), CALIBRATION: b'"asked":'}
HEADINGS = (
    "setting", "γ", "layers", "threshold", "anchors", "fillers", "sentences", "shift", "in a row",
    "in window", "rate", "clips", "accepted length", "predicted", "kept",
)  # fmt: skip
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
    return Table(HEADINGS, list(map(_cells, ordered, is_chosen)), styles=styles)


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
