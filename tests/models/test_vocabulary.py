"""When two tokenizers mean the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.models.generation import first_difference

WORDS = {"a": 0, "b": 1, "c": 2}


def test_by_hand() -> None:
    assert first_difference(WORDS, dict(WORDS)) is None
    assert first_difference(WORDS, {**WORDS, "d": 3}) is None
    assert first_difference(WORDS, {"a": 0, "c": 1, "b": 2}) == (1, "b", "c")
    assert first_difference(WORDS, {"x": 9}) is None


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(0, 8), st.integers(0, 8))
def test_it_is_the_lowest_shared_id(first: list[int], second: list[int], ours: int, theirs: int) -> None:
    words = {str(word): index for index, word in enumerate(first[:ours])}
    others = {str(word): index for index, word in enumerate(second[:theirs])}
    found = first_difference(words, others)
    agree = [first[index] == second[index] for index in range(min(ours, theirs))]
    assert (found is None) == all(agree)
    if found is not None:
        assert found == (agree.index(False), str(first[found[0]]), str(second[found[0]]))
