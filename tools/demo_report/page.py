"""docs/bench-demo.md, from what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lvspec_cli.bench.lines import (
    contrast_table,
    fidelity_table,
    machine,
    number,
    result_table,
    retention,
    spread,
)
from lvspec_cli.bench.results import Results
from lvspec_cli.figures.answers import BenchMode, Fidelity, Variant
from lvspec_cli.figures.fidelity import Comparison, compare_blocks
from lvspec_cli.table import Table, markdown_lines
from lvspec_cli.types import RuleSettings
from tools.demo_report.goals import best_own, goals, is_own, own_rule
from tools.demo_report.round_shares import shares_of


def page(texts: Results, speed: Results, command: str, chart: Path, further: str = "") -> str:
    """docs/bench-demo.md; the chart stands beside it.

    :param further: what to say of scenes of which fewer lines saw all.
    """
    asked = {task: sum(item.task == task for item in texts.items) for task in ("caption", "ask")}
    answered = {True: "yes", False: "no", None: "not measured"}
    lines = [
        "# The bundled pair, measured",
        "",
        f"Measured {speed.created:%Y-%m-%d} on {machine(speed.environment)}, with:",
        "",
        f"    {command}",
        "",
        "Version, models and rule are those of that day (the rule is in the last table); models.yaml has"
        " today's.",
        "",
        f"Fidelity over {asked['caption']} captions and {asked['ask']} questions of scenes that no training"
        f" saw; speed over {len(speed.items)} of these captions. Intervals are 95 %, over clips.",
        *_on_fewer(texts, speed),
        *([further] if further else []),
        "",
        *([sentence, ""] if (sentence := own_rule(texts)) else []),
        "## What was aimed at",
        "",
        *markdown_lines(
            Table(
                ("figure", "at least", "found", "reached"),
                [(goal.what, goal.wanted, goal.found, answered[goal.met]) for goal in goals(texts, speed)],
            )
        ),
        "## Speed",
        "",
        f"![Speedup of every mode]({chart.name})",
        "",
        *markdown_lines(result_table(speed)),
        *_rounds(speed),
        *_level(speed),
        *_at_one_gamma(speed),
        "What was said meanwhile, against ar's texts:",
        "",
        *markdown_lines(fidelity_table(speed)),
        *markdown_lines(contrast_table(speed)),
        "## Fidelity",
        "",
        *_kept_tables(texts),
        *_kept_by_kind(texts),
        *_otherwise(texts),
        *markdown_lines(fidelity_table(texts)),
        *markdown_lines(contrast_table(texts)),
        "Rules with names: `no-…` is the rule without one of its parts, `with-…` the rule with one that it"
        " does not have, the others are tuned controls.",
        "",
        *markdown_lines(Table(("rule", "settings"), [*_rules(texts, speed)])),
    ]
    return "\n".join(lines)


def _on_fewer(texts: Results, speed: Results) -> Iterator[str]:
    """Which lines saw only the first scenes."""
    for results in (texts, speed):
        by_count: dict[int, list[str]] = defaultdict(list)
        for name, count in results.settings.first.items():
            by_count[count].append(name)
        for count, names in sorted(by_count.items()):
            what = "speed" if results.settings.timed else "fidelity"
            yield f"On the first {count} scenes only, {what} of: {', '.join(names)}."


def _kept_tables(texts: Results) -> Iterator[str]:
    found = [(str(each.variant), each.fidelity) for each in texts.modes if each.fidelity is not None]
    lengths = {str(each.variant): number(each.mean_accepted_length, 2) for each in texts.modes}
    rows = [
        (
            name,
            lengths[name],
            number(each.facts.mode, 4) if each.facts else "",
            retention(each.facts.retention, 2) if each.facts else "",
            number(each.questions.mode, 4) if each.questions else "",
            retention(each.questions.retention, 2) if each.questions else "",
        )
        for name, each in found
    ]
    headings = ("mode", "accepted length", "facts F1", "of ar's", "questions right", "of ar's")
    yield from markdown_lines(Table(headings, rows))
    kinds = sorted({kind for _, each in found for kind in each.facts_by_kind})
    if kinds:
        by_kind = [(name, *(_f1(each, kind) for kind in kinds)) for name, each in found]
        yield from markdown_lines(Table(("mode", *kinds), by_kind, "F1 by kind of fact"))


def _f1(fidelity: Fidelity, kind: str) -> str:
    facts = fidelity.facts_by_kind.get(kind)
    return number(facts.mode, 3) if facts else ""


def _kept_by_kind(texts: Results) -> Iterator[str]:
    """What the pair's own rule keeps of each kind of fact: where it loses, if it does."""
    own = next((each for each in texts.modes if is_own(each)), None)
    kinds = own.fidelity.facts_by_kind if own is not None and own.fidelity else {}
    if own is None or not kinds:
        return
    rows = [(kind, str(kept.count), retention(kept.retention, 2)) for kind, kept in sorted(kinds.items())]
    title = f"Of ar's F1, {own.variant} keeps by kind of fact"
    yield from markdown_lines(Table(("kind", "facts", "kept"), rows, title))
    lost = [
        kind
        for kind, kept in sorted(kinds.items())
        if kept.retention is not None and kept.retention.high is not None and kept.retention.high < 1
    ]
    if lost:
        yield f"It loses more than chance would of: {', '.join(lost)}."
        yield ""


def _rounds(speed: Results) -> Iterator[str]:
    """Where the time of a round goes, and what stands in the way of more."""
    found = [(str(each.variant), shares) for each in speed.modes if (shares := shares_of(each))]
    if not found:
        return
    yield from markdown_lines(
        Table(
            ("mode", "drafted", "drafting", "verification", "rest", "round", "accepted length", "predicted"),
            [
                (name, number(each.drafted, 1), *(number(part, 2) for part in each.parts))
                for name, each in found
            ],
            "What a round costs, in steps of ar, and what that predicts (t / (γ c + v + o))",
        )
    )
    own = best_own(speed)
    shares = shares_of(own) if own else None
    if own is not None and shares is not None:
        yield (
            f"{own.variant} would be {shares.speedup(drafting=0):.2f} times ar if drafting cost nothing,"
            f" {shares.speedup(verification=1):.2f} if a verification cost no more than one step,"
            f" {shares.speedup(rest=0):.2f} without the rest, and"
            f" {(shares.drafted + 1) / shares.whole:.2f} if every drafted token were kept."
        )
        yield ""


def _level(speed: Results) -> Iterator[str]:
    """Other rules that the pair's own is shown neither faster nor slower than, and why."""
    own = next((each for each in speed.modes if is_own(each)), None)
    contrasts = {each.other: each.speed for each in speed.contrasts if own and each.line == str(own.variant)}
    level = [
        f"{each.variant} ({number(each.mean_accepted_length, 2)})"
        for each in speed.modes
        if (found := contrasts.get(str(each.variant))) is not None
        and each.mode is BenchMode.LVSPEC
        and found.low is not None
        and found.high is not None
        and found.low <= 1 <= found.high
    ]
    if own is not None and level:
        yield (
            f"No difference in speed is shown to {', '.join(level)}: a round is a draft and a verification"
            " whatever counts as an anchor, and with margins of its own each rule keeps about as many tokens"
            f" of it as {own.variant} does ({number(own.mean_accepted_length, 2)})."
        )
        yield ""


def _at_one_gamma(speed: Results) -> Iterator[str]:
    """Rules alone: the pair's own at the gamma of others that have another one than the pair."""
    first = {each.other: each.line for each in reversed(speed.contrasts)}
    again = [each for each in speed.contrasts if each.line != first[each.other] and each.speed is not None]
    found = [f"{each.line} is {spread(each.speed)} times as fast as {each.other}" for each in again]
    if found:
        yield f"Rule against rule, at one gamma: {', '.join(found)}."
        yield ""


def _otherwise(texts: Results) -> Iterator[str]:
    """How many captions tell more facts rightly than ar's, and how many fewer."""
    own = next((each for each in texts.modes if is_own(each)), None)
    if own is None:
        return
    right = [
        tuple(judgement.facts["all"].found_right for judgement in comparison.judgements)
        for comparison in compare(texts, own.variant, Variant(BenchMode.AR))
        if comparison.has_facts
    ]
    more, fewer = sum(ours > ars for ours, ars in right), sum(ours < ars for ours, ars in right)
    if right:
        yield (
            f"Of {len(right)} captions by {own.variant}, {more} tell more facts rightly than ar's, and"
            f" {fewer} fewer. One other word early on, and the target itself goes on otherwise, now and then"
            " with another count or event: so the interval is as wide as these captions make it."
        )
        yield ""


def _rules(*results: Results) -> Iterator[tuple[str, str]]:
    # Fields are left out where they have no effect.
    unset, base = asdict(RuleSettings()), results[0].settings.rule
    yield "lvspec", ", ".join(f"{name} {value}" for name, value in base.items())
    rules = {name: rule for each in results for name, rule in each.settings.rules.items()}
    for name, rule in rules.items():
        differs = {key: rule.get(key, unset[key]) for key in dict.fromkeys((*base, *rule))}
        told = (f"{key} {value}" for key, value in differs.items() if value != base.get(key, unset[key]))
        yield name, ", ".join(told)


def compare(results: Results, variant: Variant, reference: Variant) -> list[Comparison]:
    """The first answer of a variant to each item beside that of the reference in the same block."""
    items = {item.id: item for item in results.items}
    return compare_blocks(items, results.blocks, variant, reference)
