from __future__ import annotations

import json
from math import inf

import pytest

from lvspec_cli.output.text import trace_line, trace_row, verdicts
from lvspec_cli.types import Round, TokenKind

EXACT, FILLER, TARGET = TokenKind.EXACT, TokenKind.FILLER, TokenKind.TARGET


@pytest.mark.parametrize(
    ("kinds", "drafted", "wanted"),
    [
        ((EXACT, FILLER, TARGET), 4, ["exact", "filler", "rejected", "unread"]),
        ((TARGET,), 2, ["rejected", "unread"]),
        ((EXACT, EXACT, TARGET), 2, ["exact", "exact"]),  # all kept, then the bonus
        ((EXACT, EXACT), 4, ["exact", "exact", "unread", "unread"]),  # the answer ended inside
        ((TARGET,), 0, []),
    ],
)
def test_verdicts(kinds: tuple[TokenKind, ...], drafted: int, wanted: list[str]):
    done = Round(tokens=(5,) * len(kinds), kinds=kinds, drafted=(5,) * drafted)
    assert verdicts(done) == wanted


def test_a_row_holds_the_round_and_is_json_without_infinity():
    done = Round((7, 9), (EXACT, TARGET), (7, 8), (7, 9, 3), relevance=(0.25, 0.5), gap=(0.0, inf))
    row = json.loads(
        trace_line(trace_row(2, 3, done, lambda token: f"<{token}>")), parse_constant=pytest.fail
    )
    assert row["question"] == 2
    assert row["round"] == 3
    assert row["accepted_length"] == 2
    assert row["draft"] == [{"id": 7, "text": "<7>"}, {"id": 8, "text": "<8>"}]
    assert [token["id"] for token in row["target"]] == [7, 9, 3]
    assert row["relevance"] == [0.25, 0.5]
    assert row["gap"] == [0.0, None]
    assert row["verdict"] == ["exact", "rejected"]
    assert [token["kind"] for token in row["output"]] == ["exact", "target"]
