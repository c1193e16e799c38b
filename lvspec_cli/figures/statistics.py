"""Bootstrap intervals over clips (of a median, a mean, or a ratio of sums), and ROC curves of scores.

A resample takes a clip whole, so that the answers of two modes stay paired. All are 95 % intervals by scipy's
``bootstrap``: bias-corrected and accelerated (BCa, Efron 1987) for figures of sums, percentiles for medians,
whose jackknife takes only two values. The same seed gives the same interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lvspec_cli.figures.answers import Estimate, FrozenModel, Spread

LEVEL = 0.95
# Least and most. Fewer for many clips, where each costs more and they differ less.
RESAMPLES = (999, 9_999)
_CELLS = 1 << 21  # limit of resamples x clips between the two
_BATCH_CELLS = 1 << 17  # the same, in memory at a time

Ends = tuple[float | None, float | None]


def median_spread(values: Sequence[float], *, seed: int = 0) -> Spread | None:
    """The median of one value per clip. None without values."""
    if not values:
        return None
    low, high = _ends(np.array(values, dtype=float), np.median, "percentile", seed)
    return Spread(median=float(np.median(values)), low=low, high=high)


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate | None:
    """The mean of one value per clip. None if there are no values."""
    return ratio_of_sums(values, [1.0] * len(values), seed=seed)


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0
) -> Estimate | None:
    """Sum of numerators / sum of denominators, one of each per clip. None if the denominators sum to 0."""
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators")
    total = float(np.sum(denominators))
    if total == 0:
        return None
    low, high = interval_of_sums(lambda sums: sums[0] / sums[1], [numerators, denominators], seed=seed)
    return Estimate(value=float(np.sum(numerators)) / total, low=low, high=high)


def interval_of_sums(
    figure: Callable[[Any], Any], samples: Sequence[Sequence[float]], *, seed: int = 0
) -> Ends:
    """The interval of a figure computed from sums over clips; none for fewer than two clips.

    :param figure: maps sums (samples, resamples) to a figure for each resample.
    :param samples: sequences of one number per clip, all of the same length; a clip's numbers stay together.
    """
    columns = np.array(samples, dtype=float)
    count = columns.shape[1]
    whole = columns.sum(axis=1)
    if count > 1 and (columns == columns[:, :1]).all():  # e.g. an exact mode: all resamples are equal
        value = float(figure(whole))
        return value, value

    def statistic(clips: Any, axis: int) -> Any:
        if clips.shape[axis] == count - 1:  # the jackknife: a subtraction instead of a sum over clips
            missing = count * (count - 1) // 2 - clips.sum(axis)
            return figure(whole.reshape(-1, *[1] * missing.ndim) - columns[:, missing])
        return figure(np.array([column[clips].sum(axis) for column in columns]))

    return _ends(np.arange(count), statistic, "BCa", seed)


def _ends(
    sample: Any, statistic: Callable[..., Any], method: Literal["BCa", "percentile"], seed: int
) -> Ends:
    from scipy.stats import bootstrap

    count = len(sample)
    if count < 2:
        return None, None
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        result = bootstrap(
            (sample,),
            statistic,
            vectorized=True,
            method=method,
            confidence_level=LEVEL,
            n_resamples=min(RESAMPLES[1], max(RESAMPLES[0], _CELLS // count)),
            batch=max(1, _BATCH_CELLS // count),
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    drawn = result.bootstrap_distribution
    usable = np.isfinite(drawn)
    # BCa gives NaN if all clips are equal, and a resample's denominator may be 0.
    if method == "percentile" or not (usable.all() and np.isfinite((low, high)).all()):
        low, high = np.quantile(drawn[usable], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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
