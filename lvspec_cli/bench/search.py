"""The decisions of ``lvspec tune`` as pure functions: clips, candidate settings, promotion, final choice.

The search is successive halving (Jamieson and Talwalkar 2016): many settings on few clips, the best of them
on more. Speed has no noise: it is computed from the counts of each answer and the measured costs of a round
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

FACTOR = 3  # each rung of the search has 3 times the clips and a third of the settings
FEWEST_CLIPS = 4  # in the first rung
FINALISTS = 4  # least number of settings of each relevance in the last rung
QUANTILES = (0.5, 0.65, 0.8, 0.9)  # of the relevance of drafted tokens: candidate thresholds
# Candidates for each part of the rule. The margin of fillers is at least that of anchors.
MARGINS: Mapping[str, Sequence[Any]] = {
    "anchor_margin": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
    "filler_margin": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0, inf),
}
OTHERS: Mapping[str, Sequence[Any]] = {
    "sentence_margin": (0.0, 0.3, inf),
    "shift_window": (0, 2, 3),
    "defer": (0, 1, 2),
    "max_loss": (0.04, 0.07, 0.1, inf),
}
LIMITS = ((2, 4), (3, 6), (6, 10), (NO_LIMIT, NO_LIMIT))  # loose tokens in a row, and in a window
RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def split_halves(names: Sequence[str], seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Two halves of the clips, for tuning and for the report, determined by names and seed only.

    If the number is odd, the first half has one more.
    """

    def order(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()

    ordered = sorted(set(names), key=order)
    half = ceil(len(ordered) / 2)
    return frozenset(ordered[:half]), frozenset(ordered[half:])


def candidate_thresholds(scores: Sequence[float]) -> tuple[float, ...]:
    """Candidate thresholds between anchors and fillers: quantiles of a scheme's scores, ascending.

    Rounded to three significant digits, because the scores of a sharp attention are very small.
    """
    borders = np.quantile(scores, QUANTILES) if scores else ()
    return tuple(sorted({float(f"{value:.3g}") for value in borders if value > 0}))


def candidate_rules(
    base: RuleSettings,
    relevance: RelevanceName,
    gammas: Sequence[Gamma],
    borders: Sequence[float],
    count: int,
    seed: int,
) -> tuple[NamedRule, ...]:
    """At most ``count`` settings of one relevance; each candidate of each part occurs about equally often.

    The first is exact mode, which keeps all quality, so that there is always a valid choice; the second is
    ``base``, if it has this relevance.

    :param borders: candidates for ``anchor_threshold``.
    """
    parts = _parts(relevance, borders or (base.anchor_threshold,))
    names = [*parts, "limits", "gamma"]
    random = np.random.default_rng([seed, *relevance.encode()])
    columns = [_spread_evenly(values, count, random) for values in (*parts.values(), LIMITS, tuple(gammas))]
    plain = replace(base, relevance=relevance)
    middle = "auto" if "auto" in gammas else gammas[len(gammas) // 2]
    exact = replace(plain, anchor_margin=0.0, filler_margin=0.0, shift_window=0)
    candidates: dict[tuple[RuleSettings, Gamma], None] = {(exact, middle): None}
    if relevance is base.relevance:
        candidates[base, middle] = None
    for row in zip(*columns, strict=True):
        values = dict(zip(names, row, strict=True))
        run, in_window = values.pop("limits")
        gamma = values.pop("gamma")
        rule = replace(plain, max_loose_run=run, max_loose_in_window=in_window, **values)
        candidates[_canonical(rule), gamma] = None
    return tuple(
        NamedRule(f"{relevance}-{number:03d}", rule, gamma)
        for number, (rule, gamma) in enumerate(list(candidates)[:count], 1)
    )


def _parts(relevance: RelevanceName, borders: Sequence[float]) -> dict[str, Sequence[Any]]:
    """The parts of the rule to tune for a relevance, with their candidates."""
    match relevance:
        case RelevanceName.RANDOM:
            return {"random_rate": RATES}
        case RelevanceName.PLAUSIBLE | RelevanceName.LEXICON:
            return {**MARGINS, **OTHERS}
    return {"anchor_threshold": borders, **MARGINS, **OTHERS}


def _canonical(rule: RuleSettings) -> RuleSettings:
    """The canonical form of settings with the same effect."""
    match rule.relevance:
        case RelevanceName.PLAUSIBLE if rule.defer == 0:  # then ties are like all others
            return replace(rule, filler_margin=max(rule.filler_margin, rule.anchor_margin), anchor_margin=0.0)
        case RelevanceName.RANDOM:
            return replace(rule, anchor_margin=0.0, filler_margin=inf, shift_window=0, defer=0, max_loss=inf)
        case RelevanceName.LEXICON:
            rule = replace(rule, anchor_threshold=0.5)
    return replace(rule, filler_margin=max(rule.filler_margin, rule.anchor_margin))


def _spread_evenly(values: Sequence[T], count: int, random: np.random.Generator) -> list[T]:
    """``count`` values in random order, each about equally often."""
    indices = np.arange(count) % len(values)
    return [values[index] for index in random.permutation(indices)]


def rungs(settings: int, clips: int) -> tuple[tuple[int, int], ...]:
    """The rungs of the search: (settings of a relevance, clips) each; the last has all clips."""
    last = 0
    while clips / FACTOR ** (last + 1) >= FEWEST_CLIPS:
        last += 1
    return tuple(
        (
            min(settings, max(FINALISTS, ceil(settings / FACTOR**rung))),
            ceil(clips / FACTOR ** (last - rung)),
        )
        for rung in range(last + 1)
    )


@dataclass(frozen=True)
class Score:
    """The results of a setting so far.

    :param speedup: predicted.
    :param quality: relative to ``ar``, if known.
    :param quality_bound: the proven lower bound of it, at most the lower end of its interval.
    """

    name: str
    clips: int
    speedup: float
    accepted_length: float
    quality: Estimate | None
    quality_bound: float | None = None


def predicted_speedup(answers: Iterable[Measurement], costs: RoundCosts) -> float | None:
    """Tokens after the prefill / cost of their rounds in steps of the target alone; None without rounds."""
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


def promoted(scores: Sequence[Score], count: int, min_quality: float, fraction: float = 1) -> tuple[str, ...]:
    """Names of the settings that are promoted to the next rung, at most ``count``.

    Settings proven to keep less than ``min_quality`` are dropped. Half of the places go to the fastest
    settings whose projected lower bound on all clips reaches ``min_quality``: otherwise only aggressive
    settings would reach the last rung, where none of them could be chosen. The other places go to the Pareto
    fronts of speed and quality, the first front first, because quality is uncertain on few clips.

    :param fraction: of all clips: those on which the scores are measured.
    """
    candidates = [score for score in scores if _upper_bound(score) >= min_quality]
    pool = candidates or sorted(scores, key=lambda score: -_quality(score))[:count]
    safe = [score for score in pool if _projected_bound(score, fraction) >= min_quality]
    names = [score.name for score in sorted(safe, key=lambda score: -score.speedup)][: ceil(count / 2)]
    pool = [score for score in pool if score.name not in names]
    while pool and len(names) < count:
        front = [score for score in pool if not any(_dominates(rival, score) for rival in pool)]
        names += [score.name for score in sorted(front, key=lambda score: -score.speedup)]
        pool = [score for score in pool if score not in front]
    return tuple(names[:count])


def _projected_bound(score: Score, fraction: float) -> float:
    """The projected ``quality_bound`` on all clips.

    The interval narrows with the square root of the number of clips, the limit of the rule of three with the
    number itself.
    """
    if score.quality is None or score.quality_bound is None:
        return -inf
    value, low = score.quality.value, score.quality.low
    margin = value - (score.quality_bound if low is None else low)
    return min(value - margin * sqrt(fraction), 1 - (1 - score.quality_bound) * fraction)


def fastest_sufficient(scores: Iterable[Score], min_quality: float) -> Score | None:
    """The fastest setting proven to keep ``min_quality``."""
    bounds = ((score, score.quality_bound) for score in scores)
    sufficient = [score for score, bound in bounds if bound is not None and bound >= min_quality]
    return max(sufficient, key=lambda score: score.speedup, default=None)


def _dominates(score: Score, rival: Score) -> bool:
    """Whether ``score`` is at least as good in speed and quality, and better in one of them."""
    own, other = (score.speedup, _quality(score)), (rival.speedup, _quality(rival))
    return own != other and own[0] >= other[0] and own[1] >= other[1]


def _quality(score: Score) -> float:
    return -inf if score.quality is None else score.quality.value


def _upper_bound(score: Score) -> float:
    if score.quality is None:
        return -inf
    return score.quality.value if score.quality.high is None else score.quality.high
