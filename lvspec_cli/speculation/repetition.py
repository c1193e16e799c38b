"""Answers that repeat themselves without end."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PERIOD = 48  # tokens that are repeated, at most
FEWEST_REPEATS = 4
FEWEST_TOKENS = 32  # of the answer's end that must be repetition
LOOSE_PERIOD = 8  # a loosely accepted token must not repeat the last 1 to 8 tokens


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether the answer ends with the same 1 to 48 tokens, repeated at least 4 times and over at least 32
    tokens. Shorter repetitions are allowed: lists have them, and repeated words.
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
    """Whether ``token`` after ``tokens`` completes an immediate repetition of the last 1 to 8 tokens."""
    tail = [*tokens[-2 * LOOSE_PERIOD :], token]
    return any(
        tail[-period:] == tail[-2 * period : -period]
        for period in range(1, min(LOOSE_PERIOD, len(tail) // 2) + 1)
    )
