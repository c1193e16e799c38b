"""Bootstrap intervals over clips: of a median, of a mean, of a ratio of sums.

A clip is drawn whole, so that whatever two modes did with it stays together. All intervals are 95 % ones by
scipy's ``bootstrap``: bias-corrected and accelerated (BCa, Efron 1987) for what is made of sums, the
percentiles for medians, whose jackknife has two values only. A seed gives the same interval each time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from lvspec_cli.figures.answers import Estimate, Spread

LEVEL = 0.95
RESAMPLES = (999, 9_999)  # of many clips fewer: each costs more, and all lie closer together
_CELLS = 1 << 21  # clips in all resamples, where the most are not reached
_BATCH_CELLS = 1 << 17  # and in those in memory at a time

Ends = tuple[float | None, float | None]


def median_spread(values: Sequence[float], *, seed: int = 0) -> Spread | None:
    """The median of one value a clip. None without any."""
    if not values:
        return None
    low, high = _ends(np.array(values, dtype=float), np.median, "percentile", seed)
    return Spread(median=float(np.median(values)), low=low, high=high)


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate | None:
    """The mean of one value a clip. None without any."""
    return ratio_of_sums(values, [1.0] * len(values), seed=seed)


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0
) -> Estimate | None:
    """Sum of the numerators / sum of the denominators, one of each a clip. None where the second sum is 0."""
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators")
    below = float(np.sum(denominators))
    if below == 0:
        return None
    low, high = interval_of_sums(lambda sums: sums[0] / sums[1], [numerators, denominators], seed=seed)
    return Estimate(value=float(np.sum(numerators)) / below, low=low, high=high)


def interval_of_sums(
    figure: Callable[[Any], Any], samples: Sequence[Sequence[float]], *, seed: int = 0
) -> Ends:
    """The interval of a figure of sums over clips, the samples drawn together by clip; none from fewer than
    two clips.

    :param figure: takes sums, (samples, resamples), and gives a figure for each resample.
    :param samples: one or more numbers a clip; all of the same length.
    """
    columns = np.array(samples, dtype=float)
    count = columns.shape[1]
    whole = columns.sum(axis=1)
    if count > 1 and (columns == columns[:, :1]).all():  # as of an exact mode: all resamples are the same
        value = float(figure(whole))
        return value, value

    def statistic(clips: Any, axis: int) -> Any:
        if clips.shape[axis] == count - 1:  # the jackknife: one subtraction in place of a sum over clips
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
    # BCa has no answer where the clips are all alike, and a resample may have nothing to divide by.
    if method == "percentile" or not (usable.all() and np.isfinite((low, high)).all()):
        low, high = np.quantile(drawn[usable], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
