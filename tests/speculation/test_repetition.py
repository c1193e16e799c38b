"""Loops: what ends an answer, and what a loose token may not start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.speculation.repetition import (
    FEWEST_REPEATS,
    FEWEST_TOKENS,
    LONGEST_PERIOD,
    is_looping,
    starts_loop,
)


@pytest.mark.parametrize(
    ("tokens", "looping"),
    [
        ([], False),
        ([7] * 31, False),
        ([7] * 32, True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 3, False),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 4, True),
        ([*[1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 4, 1, 2], True),
        ([*[1, 2] * 20, 3], False),
        (list(range(49)) * 4, False),
    ],
    ids=str,
)
def test_cases(tokens: list[int], looping: bool) -> None:
    assert is_looping(tokens) is looping


@given(
    st.lists(st.integers(0, 3), max_size=20),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.integers(1, 40),
)
def test_is_a_tail_of_repeats(head: list[int], part: list[int], times: int) -> None:
    tokens = head + part * times

    def repeats(period: int) -> bool:
        span = max(period * FEWEST_REPEATS, FEWEST_TOKENS)
        tail = tokens[len(tokens) - span :]
        return span <= len(tokens) and all(token == tail[at % period] for at, token in enumerate(tail))

    assert is_looping(tokens) == any(repeats(period) for period in range(1, LONGEST_PERIOD + 1))
    if len(part) * times >= FEWEST_TOKENS and times >= FEWEST_REPEATS:
        assert is_looping(tokens)


@pytest.mark.parametrize(
    ("tokens", "token", "starts"),
    [
        ([], 5, False),
        ([5], 5, True),
        ([5, 6], 5, False),
        ([5, 6, 5], 6, True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7], 8, True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8], 9, False),
    ],
    ids=str,
)
def test_starting_a_loop(tokens: list[int], token: int, starts: bool) -> None:
    assert starts_loop(tokens, token) is starts
