"""How well a score tells one class of tokens from another: facts from fillers. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvspec_cli.figures.answers import Part


class Point(Part):
    """What a threshold does: a score at or above it is taken for a fact."""

    threshold: float
    precision: float | None  # of those taken for facts, how many are; null where nothing is taken
    recall: float  # of the facts, how many are taken


@dataclass(frozen=True)
class Curve:
    """Every threshold, from the highest score down: (thresholds,) each; rates from 0 to 1."""

    thresholds: Any
    taken_facts: Any  # counts
    taken_fillers: Any
    facts: int
    fillers: int


def curve(scores: Sequence[float], facts: Sequence[bool]) -> Curve:
    """Counts at every threshold.

    :param facts: which of the scores are of facts; there has to be one, and one that is not.
    """
    values, classes = np.asarray(scores, dtype=float), np.asarray(facts, dtype=bool)
    if classes.all() or not classes.any():
        raise ValueError("a curve needs facts and fillers")
    order = np.argsort(-values, kind="stable")
    values, classes = values[order], classes[order]
    last = np.append(np.diff(values) != 0, True)  # equal scores pass a threshold together
    return Curve(
        thresholds=values[last],
        taken_facts=np.cumsum(classes)[last],
        taken_fillers=np.cumsum(~classes)[last],
        facts=int(classes.sum()),
        fillers=int((~classes).sum()),
    )


def auc(scores: Sequence[float], facts: Sequence[bool]) -> float | None:
    """Area under the ROC curve: how often a fact's score is above a filler's, equal ones counting half.

    Mann and Whitney's U / (facts x fillers). None where there are not both.
    """
    from scipy.stats import mannwhitneyu

    ours = [score for score, fact in zip(scores, facts, strict=True) if fact]
    others = [score for score, fact in zip(scores, facts, strict=True) if not fact]
    if not ours or not others:
        return None
    return float(mannwhitneyu(ours, others, method="asymptotic").statistic) / (len(ours) * len(others))


def best_point(found: Curve) -> Point:
    """Where precision and recall are best together (F1); of equals, the highest threshold."""
    f1 = 2 * found.taken_facts / (found.taken_facts + found.taken_fillers + found.facts)
    return _point(found, int(np.argmax(f1)))


def point_at(found: Curve, threshold: float) -> Point:
    """What a given threshold does."""
    taken = int((found.thresholds >= threshold).sum())
    if not taken:
        return Point(threshold=threshold, precision=None, recall=0.0)
    return _point(found, taken - 1).model_copy(update={"threshold": threshold})


def roc(found: Curve, points: int = 100) -> tuple[tuple[float, float], ...]:
    """The ROC curve from (0, 0) to (1, 1), of about so many points: fillers taken, facts taken, as shares."""
    fillers, facts = found.taken_fillers / found.fillers, found.taken_facts / found.facts
    places = np.unique(np.linspace(0, len(fillers) - 1, points).round().astype(int))
    return ((0.0, 0.0), *((float(fillers[place]), float(facts[place])) for place in places))


def _point(found: Curve, place: int) -> Point:
    facts, fillers = int(found.taken_facts[place]), int(found.taken_fillers[place])
    return Point(
        threshold=float(found.thresholds[place]),
        precision=facts / (facts + fillers),
        recall=facts / found.facts,
    )
