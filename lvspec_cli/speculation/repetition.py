"""Answers that go round in circles."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PERIOD = 48  # tokens of the longest loop that is looked for
FEWEST_REPEATS = 4
FEWEST_TOKENS = 32  # a loop is one only when so much of the answer's end is nothing else
LOOSE_PERIOD = 8  # a loosely accepted token may not say the last 1 to 8 tokens twice


def is_looping(tokens: Sequence[int]) -> bool:
    """True when the answer's end is one stretch of up to 48 tokens, said over and over.

    At least 4 times, and at least 32 tokens in all, so that a list or a stammer is not a loop.
    """
    count = len(tokens)
    for period in range(1, min(LONGEST_PERIOD, count // FEWEST_REPEATS) + 1):
        span = max(period * FEWEST_REPEATS, FEWEST_TOKENS)
        if span > count or tokens[-1] != tokens[-1 - period]:
            continue
        if all(tokens[-back] == tokens[-back - period] for back in range(1, span - period + 1)):
            return True
    return False


def starts_loop(tokens: Sequence[int], token: int) -> bool:
    """True when ``token`` behind ``tokens`` says the last 1 to 8 tokens a second time, back to back."""
    tail = [*tokens[-2 * LOOSE_PERIOD :], token]
    return any(
        tail[-period:] == tail[-2 * period : -period]
        for period in range(1, min(LOOSE_PERIOD, len(tail) // 2) + 1)
    )
