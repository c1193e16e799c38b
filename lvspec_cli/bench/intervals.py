"""Bootstrap intervals over clips: of a median, of a mean, of a ratio of sums.

A clip is drawn whole, so that whatever two modes did with it stays together. All intervals are 95 % ones of
scipy's ``bootstrap``: bias-corrected and accelerated (BCa, Efron 1987) for means and ratios of sums, the
percentiles for medians, whose jackknife has two values only. A seed gives the same interval each time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from lvspec_cli.bench.results import Estimate, Spread

LEVEL = 0.95
RESAMPLES = (1_999, 9_999)  # of many clips fewer: each costs more, and all lie closer together
_CELLS = 1 << 21  # numbers in memory at a time

Statistic = Callable[..., Any]  # (samples..., axis) -> the figure of each resample


def median_spread(values: Sequence[float], *, seed: int = 0) -> Spread | None:
    """The median of one value a clip. None without any."""
    if not values:
        return None
    middle = float(np.median(values))
    low, high = interval(np.median, [values], method="percentile", seed=seed)
    return Spread(median=middle, low=low, high=high)


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate | None:
    """The mean of one value a clip. None without any."""
    if not values:
        return None
    low, high = interval(np.mean, [values], seed=seed)
    return Estimate(value=float(np.mean(values)), low=low, high=high)


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0
) -> Estimate | None:
    """Sum of the numerators / sum of the denominators, one of each a clip. None where the second sum is 0."""
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators")
    below = float(np.sum(denominators))
    if below == 0:
        return None
    low, high = interval(_ratio, [numerators, denominators], seed=seed)
    return Estimate(value=float(np.sum(numerators)) / below, low=low, high=high)


def interval(
    statistic: Statistic,
    samples: Sequence[Sequence[float]],
    *,
    method: Literal["BCa", "percentile"] = "BCa",
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """Where ``statistic`` of the samples lies, drawn together by clip; none from fewer than two clips.

    :param statistic: takes the samples as arrays and ``axis``, along which the clips lie.
    :param samples: one or more numbers a clip; all of the same length.
    """
    from scipy.stats import bootstrap

    count = len(samples[0])
    if count < 2:
        return None, None
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # clips that are all alike: answered below
        found = bootstrap(
            tuple(np.asarray(sample, dtype=float) for sample in samples),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=min(RESAMPLES[1], max(RESAMPLES[0], _CELLS // count)),
            batch=max(1, _CELLS // count),
            confidence_level=LEVEL,
            method=method,
            rng=np.random.default_rng(seed),
        )
    drawn = found.bootstrap_distribution
    low, high = found.confidence_interval
    if not (np.isfinite(low) and np.isfinite(high)):
        # BCa has no answer where the clips are all alike, and a draw may have nothing to divide by.
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _ratio(numerators: Any, denominators: Any, axis: int = -1) -> Any:
    return np.sum(numerators, axis=axis) / np.sum(denominators, axis=axis)
