"""The trace of rounds: one JSON object a round, with the reason why each draft token was accepted or not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

from lvspec_cli.types import Round, TokenKind

MARK: Final = b'{"question": 1, "round": '  # first bytes of a trace


def trace_row(question: int, number: int, done: Round, word: Callable[[int], str]) -> dict[str, Any]:
    """The row of one round. ``question`` counts from 1, ``number`` from 0 (the token from prefill).

    :param word: the text of one token.
    """
    return {
        "question": question,
        "round": number,
        "prefill": done.prefill,
        "accepted_length": len(done.tokens),
        "draft": [_token(token, word) for token in done.drafted],
        "target": [_token(token, word) for token in done.target],
        "relevance": [_finite(value) for value in done.relevance],
        "gap": [_finite(value) for value in done.gap],
        "loss": _finite(done.loss),
        "verdict": verdicts(done),
        "output": [
            {**_token(token, word), "kind": kind.value}
            for token, kind in zip(done.tokens, done.kinds, strict=True)
        ],
    }


def verdicts(done: Round) -> list[str]:
    """One for each drafted token: its kind if it was accepted, ``rejected`` if the target replaced it, and
    ``unread`` for tokens after that."""
    accepted = [kind.value for kind in done.kinds if kind is not TokenKind.TARGET][: len(done.drafted)]
    after = len(done.drafted) - len(accepted)
    rejected = ["rejected"] if after and done.kinds[-1:] == (TokenKind.TARGET,) else []
    return accepted + rejected + ["unread"] * (after - len(rejected))


def trace_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _token(token: int, word: Callable[[int], str]) -> dict[str, Any]:
    return {"id": token, "text": word(token)}


def _finite(value: float) -> float | str:
    return round(value, 6) if math.isfinite(value) else str(value)
