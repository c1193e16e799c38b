"""How well a score separates fact tokens from filler tokens. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvspec_cli.figures.answers import FrozenModel


class Point(FrozenModel):
    """Precision and recall at a threshold: a score at or above it predicts a fact."""

    threshold: float
    precision: float | None  # null if no score reaches the threshold
    recall: float


@dataclass(frozen=True)
class ThresholdCounts:
    """Counts of scores at or above each threshold: (thresholds,) each, from the highest threshold down."""

    thresholds: Any
    true_positives: Any
    false_positives: Any
    facts: int
    fillers: int


def threshold_counts(scores: Sequence[float], facts: Sequence[bool]) -> ThresholdCounts:
    """Counts at every threshold.

    :param facts: whether each score belongs to a fact.
    :raises ValueError: all of them do, or none.
    """
    values, classes = np.asarray(scores, dtype=float), np.asarray(facts, dtype=bool)
    if classes.all() or not classes.any():
        raise ValueError("a curve needs facts and fillers")
    order = np.argsort(-values, kind="stable")
    values, classes = values[order], classes[order]
    last = np.append(np.diff(values) != 0, True)  # equal scores share a threshold
    return ThresholdCounts(
        thresholds=values[last],
        true_positives=np.cumsum(classes)[last],
        false_positives=np.cumsum(~classes)[last],
        facts=int(classes.sum()),
        fillers=int((~classes).sum()),
    )


def auc(scores: Sequence[float], facts: Sequence[bool]) -> float | None:
    """Area under the ROC curve: the probability that a fact scores higher than a filler; ties count half.

    Mann and Whitney's U / (facts x fillers). None unless there are both.
    """
    from scipy.stats import mannwhitneyu

    fact_scores = [score for score, fact in zip(scores, facts, strict=True) if fact]
    filler_scores = [score for score, fact in zip(scores, facts, strict=True) if not fact]
    if not fact_scores or not filler_scores:
        return None
    statistic = float(mannwhitneyu(fact_scores, filler_scores, method="asymptotic").statistic)
    return statistic / (len(fact_scores) * len(filler_scores))


def best_point(counts: ThresholdCounts) -> Point:
    """The threshold with the highest F1; of equals, the highest threshold."""
    f1 = 2 * counts.true_positives / (counts.true_positives + counts.false_positives + counts.facts)
    return _point(counts, int(np.argmax(f1)))


def point_at(counts: ThresholdCounts, threshold: float) -> Point:
    """Precision and recall at a given threshold."""
    passed = int((counts.thresholds >= threshold).sum())
    if not passed:
        return Point(threshold=threshold, precision=None, recall=0.0)
    return _point(counts, passed - 1).model_copy(update={"threshold": threshold})


def roc(counts: ThresholdCounts, points: int = 100) -> tuple[tuple[float, float], ...]:
    """About ``points`` points of the ROC curve from (0, 0) to (1, 1): (false, true) positive rates."""
    fillers, facts = counts.false_positives / counts.fillers, counts.true_positives / counts.facts
    indices = np.unique(np.linspace(0, len(fillers) - 1, points).round().astype(int))
    return ((0.0, 0.0), *((float(fillers[index]), float(facts[index])) for index in indices))


def _point(counts: ThresholdCounts, index: int) -> Point:
    facts, fillers = int(counts.true_positives[index]), int(counts.false_positives[index])
    return Point(
        threshold=float(counts.thresholds[index]),
        precision=facts / (facts + fillers),
        recall=facts / counts.facts,
    )
