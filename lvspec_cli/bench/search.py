"""What ``lvspec tune`` decides, as pure functions: which clips, which settings, which go on, which is taken.

The search is successive halving (Jamieson and Talwalkar 2016): many settings on few clips, the best of them
on more. Speed has no noise: it comes from the counts of each answer and the measured costs of a round
(docs/design.md, "What a round costs"). Quality has an interval over clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from typing import Any, TypeVar

import numpy as np

from lvspec_cli.bench.variants import NO_LIMIT, NamedRule
from lvspec_cli.figures.answers import Estimate, Measurement
from lvspec_cli.types import Gamma, RelevanceName, RoundCosts, RuleSettings

T = TypeVar("T")

FACTOR = 3  # so many times the clips in each turn of the search, for a third of the settings
FEWEST_CLIPS = 4  # of the first turn
FINALISTS = 4  # settings of each relevance in the last turn, or more
QUANTILES = (0.5, 0.65, 0.8, 0.9)  # of the relevance of drafted tokens: thresholds that are tried
# What is tried for each part of the rule. A margin for fillers that is no wider than the anchors' is theirs.
MARGINS: Mapping[str, Sequence[Any]] = {
    "anchor_margin": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
    "filler_margin": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0, inf),
}
OTHERS: Mapping[str, Sequence[Any]] = {"sentence_margin": (0.0, 0.3, inf), "shift_window": (0, 2, 3)}
LIMITS = ((2, 4), (3, 6), (6, 10), (NO_LIMIT, NO_LIMIT))  # loose tokens in a row, and in the window
RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def split(names: Sequence[str], seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Two halves of clips, by name and seed alone: those that are tuned on, and those that are reported on.

    Of an odd number the first half has one more.
    """

    def order(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()

    ordered = sorted(set(names), key=order)
    half = ceil(len(ordered) / 2)
    return frozenset(ordered[:half]), frozenset(ordered[half:])


def thresholds(scores: Sequence[float]) -> tuple[float, ...]:
    """Where to try the border between anchors and fillers: quantiles of what a scheme gives, ascending.

    To three digits, not places: shares of a sharp attention are told apart by their magnitude.
    """
    found = np.quantile(scores, QUANTILES) if scores else ()
    return tuple(sorted({float(f"{value:.3g}") for value in found if value > 0}))


def settings_to_try(
    base: RuleSettings,
    relevance: RelevanceName,
    gammas: Sequence[Gamma],
    borders: Sequence[float],
    count: int,
    seed: int,
) -> tuple[NamedRule, ...]:
    """At most ``count`` settings of one relevance, each value of each part about equally often.

    Exact mode comes first, which keeps everything, so that there is always something to take; then ``base``,
    where it has this relevance.

    :param borders: what to try for ``anchor_threshold``.
    """
    parts = _parts(relevance, borders or (base.anchor_threshold,))
    names = [*parts, "limits", "gamma"]
    random = np.random.default_rng([seed, *relevance.encode()])
    columns = [_spread_evenly(values, count, random) for values in (*parts.values(), LIMITS, tuple(gammas))]
    plain = replace(base, relevance=relevance)
    middle = "auto" if "auto" in gammas else gammas[len(gammas) // 2]
    exact = replace(plain, anchor_margin=0.0, filler_margin=0.0, shift_window=0)
    found: dict[tuple[RuleSettings, Gamma], None] = {(exact, middle): None}
    if relevance is base.relevance:
        found[base, middle] = None
    for row in zip(*columns, strict=True):
        given = dict(zip(names, row, strict=True))
        run, in_window = given.pop("limits")
        gamma = given.pop("gamma")
        rule = replace(plain, max_loose_run=run, max_loose_in_window=in_window, **given)
        found[_as_it_works(rule), gamma] = None
    return tuple(
        NamedRule(f"{relevance}-{number:03d}", rule, gamma)
        for number, (rule, gamma) in enumerate(list(found)[:count], 1)
    )


def _parts(relevance: RelevanceName, borders: Sequence[float]) -> dict[str, Sequence[Any]]:
    """What a relevance leaves to be tuned."""
    match relevance:
        case RelevanceName.RANDOM:
            return {"random_rate": RATES}
        case RelevanceName.PLAUSIBLE:
            return {"filler_margin": MARGINS["filler_margin"], **OTHERS}
        case RelevanceName.LEXICON:
            return {**MARGINS, **OTHERS}
    return {"anchor_threshold": borders, **MARGINS, **OTHERS}


def _as_it_works(rule: RuleSettings) -> RuleSettings:
    """One form for settings that do the same."""
    match rule.relevance:
        case RelevanceName.PLAUSIBLE:
            return replace(rule, anchor_margin=0.0)
        case RelevanceName.RANDOM:
            return replace(rule, anchor_margin=0.0, filler_margin=inf, shift_window=0)
        case RelevanceName.LEXICON:
            rule = replace(rule, anchor_threshold=0.5)
    return replace(rule, filler_margin=max(rule.filler_margin, rule.anchor_margin))


def _spread_evenly(values: Sequence[T], count: int, random: np.random.Generator) -> list[T]:
    """``count`` of them in random order, each about equally often."""
    places = np.arange(count) % len(values)
    return [values[place] for place in random.permutation(places)]


def turns(settings: int, clips: int) -> tuple[tuple[int, int], ...]:
    """How many settings of a relevance are tried on how many clips, turn by turn; the last on all of them."""
    more = 0
    while clips / FACTOR ** (more + 1) >= FEWEST_CLIPS:
        more += 1
    return tuple(
        (
            min(settings, max(FINALISTS, ceil(settings / FACTOR**turn))),
            ceil(clips / FACTOR ** (more - turn)),
        )
        for turn in range(more + 1)
    )


@dataclass(frozen=True)
class Score:
    """How a setting did so far. ``speedup`` is predicted; ``kept`` is quality against ``ar``, where known.

    ``surely``: what it keeps for sure, which is no more than ``kept`` at its lower end.
    """

    name: str
    clips: int
    speedup: float
    accepted_length: float
    kept: Estimate | None
    surely: float | None = None


def predicted_speedup(answers: Iterable[Measurement], costs: RoundCosts) -> float | None:
    """Tokens behind the first / what their rounds cost, in steps of the target alone; None without rounds."""
    tokens = rounds = drafted = 0
    for answer in answers:
        tokens += answer.output_tokens - answer.first_tokens
        rounds += answer.rounds or 0
        drafted += answer.drafted or 0
    if not rounds:
        return None
    rows = drafted + rounds
    steps = drafted * costs.draft + rows * costs.row + rounds * (costs.verification + costs.overhead)
    return tokens / steps


def going_on(scores: Sequence[Score], count: int, least: float, seen: float = 1.0) -> tuple[str, ...]:
    """Names of those that are tried on more clips, ``count`` at most.

    What is shown to keep less than ``least`` goes. Half of the places are for the fastest that would be shown
    to keep it if all clips were like those so far: without them only bold settings come to the last turn,
    where none can be taken. The others are for those that none beats in both speed and quality, then those
    that only the first beat, and so on: quality is not known well on few clips.

    :param seen: share of all clips that the scores are of.
    """
    hopeful = [each for each in scores if _highest(each) >= least]
    left = hopeful or sorted(scores, key=lambda each: -_value(each))[:count]
    careful = [each for each in left if _sure_at_the_end(each, seen) >= least]
    names = [each.name for each in sorted(careful, key=lambda each: -each.speedup)][: ceil(count / 2)]
    left = [each for each in left if each.name not in names]
    while left and len(names) < count:
        front = [each for each in left if not any(_beats(other, each) for other in left)]
        names += [each.name for each in sorted(front, key=lambda each: -each.speedup)]
        left = [each for each in left if each not in front]
    return tuple(names[:count])


def _sure_at_the_end(score: Score, seen: float) -> float:
    """What would be sure on all clips: an interval narrows with the root of their number, the share that
    nothing changed can hide with the number itself."""
    if score.kept is None or score.surely is None:
        return -inf
    low = score.surely if score.kept.low is None else score.kept.low
    return min(score.kept.value - (score.kept.value - low) * sqrt(seen), 1 - (1 - score.surely) * seen)


def choice(scores: Iterable[Score], least: float) -> Score | None:
    """The fastest that surely keeps ``least``."""
    enough = [each for each in scores if each.surely is not None and each.surely >= least]
    return max(enough, key=lambda each: each.speedup, default=None)


def _beats(one: Score, other: Score) -> bool:
    ours, theirs = (one.speedup, _value(one)), (other.speedup, _value(other))
    return ours != theirs and all(mine >= its for mine, its in zip(ours, theirs, strict=True))


def _value(score: Score) -> float:
    return -inf if score.kept is None else score.kept.value


def _highest(score: Score) -> float:
    if score.kept is None:
        return -inf
    return score.kept.value if score.kept.high is None else score.kept.high
