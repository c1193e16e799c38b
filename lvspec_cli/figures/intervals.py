"""Bootstrap intervals over clips: of a median, a mean, or a ratio of sums.

A resample takes a clip whole, so that the answers of two modes stay paired. All are 95 % intervals by scipy's
``bootstrap``: bias-corrected and accelerated (BCa, Efron 1987) for figures of sums, percentiles for medians,
whose jackknife takes only two values. The same seed gives the same interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from lvspec_cli.figures.answers import Estimate, Spread

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
