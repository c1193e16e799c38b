"""Bootstrap intervals over clips: of a median, of a mean, of a ratio of sums.

A clip is drawn whole, so that whatever two modes did with it stays together. All intervals are 95 % ones:
bias-corrected and accelerated (BCa, Efron 1987) for what is made of sums, the percentiles for medians, whose
jackknife has two values only. A seed gives the same interval each time.

They are those of scipy's ``bootstrap`` with the same seed, to rounding. That draws the clips anew for every
figure and takes n passes over them for the jackknife; here one set of draws serves all figures of as many
clips, and sums without a clip are subtractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lvspec_cli.figures.answers import Estimate, Spread

LEVEL = 0.95
RESAMPLES = (1_999, 9_999)  # of many clips fewer: each costs more, and all lie closer together
_CELLS = 1 << 21  # numbers in memory at a time

Ends = tuple[float | None, float | None]


def median_spread(values: Sequence[float], *, seed: int = 0) -> Spread | None:
    """The median of one value a clip. None without any."""
    if not values:
        return None
    low, high = _median_ends(np.asarray(values, dtype=float), seed)
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
    """Where a figure of sums over clips lies, the samples drawn together by clip; none from fewer than two.

    :param figure: takes sums, (samples, draws), and gives a figure a draw.
    :param samples: one or more numbers a clip; all of the same length.
    """
    columns = np.array(samples, dtype=float)
    count = columns.shape[1]
    if count < 2:
        return None, None
    whole = columns.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.concatenate([figure(columns @ times.T) for times in _counted(count, seed)])
        return _bca(drawn, float(figure(whole)[0]), figure(whole - columns))


def _bca(drawn: Any, value: float, without: Any) -> Ends:
    """Ends of the BCa interval (Efron and Tibshirani 1993, section 14.3).

    :param drawn: the figure of each draw.
    :param value: that of the clips as they are.
    :param without: that without each of the clips.
    """
    from scipy.special import ndtr, ndtri

    bias = ndtri((np.mean(drawn < value) + np.mean(drawn <= value)) / 2)
    away = without.mean() - without
    acceleration = np.sum(away**3) / (6 * np.sum(away**2) ** 1.5)
    tails = bias + ndtri([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    places = ndtr(bias + tails / (1 - acceleration * tails))
    if np.isfinite(places).all() and np.isfinite(drawn).all():
        return _quantiles(drawn, places)
    # BCa has no answer where the clips are all alike, and a draw may have nothing to divide by.
    return _percentiles(drawn[np.isfinite(drawn)])


def _median_ends(values: Any, seed: int) -> Ends:
    """Percentiles of the median of one value a clip."""
    count = len(values)
    if count < 2:
        return None, None
    order = np.argsort(values, kind="stable")
    middle = ((count - 1) // 2, count // 2)  # ranks of the one or two values in the middle, from 0
    found = []
    for times in _counted(count, seed):
        passed = np.cumsum(times[:, order], axis=1)
        low, high = (values[order[(passed <= rank).sum(axis=1)]] for rank in middle)
        found.append((low + high) / 2)
    return _percentiles(np.concatenate(found))


def _percentiles(drawn: Any) -> Ends:
    return _quantiles(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def _quantiles(drawn: Any, places: Any) -> Ends:
    low, high = np.quantile(drawn, places)
    return float(low), float(high)


def _counted(count: int, seed: int) -> Iterator[Any]:
    """How often each clip is in each draw, (draws, clips), in parts that fit into memory."""
    batch = max(1, _CELLS // count)
    times = _draws(count, seed, min(RESAMPLES[1], max(RESAMPLES[0], batch)))
    return (times[start : start + batch].astype(float) for start in range(0, len(times), batch))


@lru_cache(maxsize=4)  # all figures of a report are of few numbers of clips
def _draws(count: int, seed: int, draws: int) -> Any:
    """As ``_counted``, whole, a byte each: 255 times the same clip does not come up."""
    random = np.random.default_rng(seed)
    times = np.empty((draws, count), dtype=np.uint8)
    batch = max(1, _CELLS // count)
    for start in range(0, draws, batch):
        places = random.integers(0, count, (min(batch, draws - start), count))
        rows = np.arange(len(places))[:, None]
        times[start : start + batch] = np.bincount(
            (places + count * rows).ravel(), minlength=places.size
        ).reshape(places.shape)
    return times
