"""What the caches hold after rollbacks, against one pass of the stock model over everything."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.verify import History, Verification, judge, read, reduce
from lvspec_cli.types import (
    DecodeSettings,
    Mode,
    PairPrompts,
    RelevanceName,
    Round,
    RuleSettings,
    TokenKind,
)
from tests.conformance.conftest import Subject
from tests.speculation.conftest import decode, scratch, with_generation

LOOSE = RuleSettings(
    relevance=RelevanceName.PLAUSIBLE,
    filler_margin=1.0,
    anchor_margin=0.5,
    max_loose_run=2,
    max_loose_in_window=5,
)
STRICT = replace(LOOSE, filler_margin=0.0, anchor_margin=0.0, shift_window=0)


def check_rounds(pair: LoadedPair, prompts: PairPrompts, rounds: list[Round], rule: RuleSettings) -> None:
    """Every drafted token is what the draft says behind all tokens before it, and every verdict follows
    from the target's logits behind them."""
    assert pair.draft is not None
    assert prompts.draft is not None
    answer = list(rounds[0].tokens)
    assert answer == scratch(pair.target, prompts.target, [], logits_to_keep=1).logits[0].argmax(-1).tolist()
    history = History().extended(answer, [TokenKind.TARGET], [0.0], rule)
    for done in rounds[1:]:
        drafted, rows = list(done.drafted), len(done.drafted)
        if drafted:
            logits = scratch(pair.draft, prompts.draft, answer + drafted[:-1], logits_to_keep=rows).logits[0]
            assert logits[:, : pair.shared_vocabulary].argmax(-1).tolist() == drafted
        logits = scratch(pair.target, prompts.target, answer + drafted, logits_to_keep=rows + 1).logits[0]
        tokens = torch.tensor(drafted, dtype=torch.long)
        evidence = read(reduce([Verification(logits, tokens)]).tolist(), is_scored=False)
        verdict = judge(evidence, rule, pair.words, history)
        assert (verdict.tokens, verdict.kinds) == (done.tokens, done.kinds)
        answer += verdict.tokens
        history = history.extended(verdict.tokens, verdict.kinds, verdict.losses, rule)


def outcome(done: Round) -> str:
    accepted = sum(kind is not TokenKind.TARGET for kind in done.kinds)
    if done.kinds[-1] is not TokenKind.TARGET:
        return "stop inside"
    return "full" if accepted == len(done.drafted) else "none" if not accepted else "part"


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [(STRICT, {"full", "none", "part", "stop inside"}), (LOOSE, {"full", "part"})],
    ids=["strict", "loose"],
)
def test_caches_hold_what_recomputing_gives(subject: Subject, rule: RuleSettings, wanted: set[str]) -> None:
    pair, seen = subject.pair, set()
    for clip, gamma in (("odd", 3), ("wide", 5), ("one-frame", 1), ("two-frames", 8), ("tall-and-odd", 4)):
        prompts = subject.prompts(clip)
        chosen = DecodeSettings(
            mode=Mode.LVSPEC, gamma=gamma, max_new_tokens=14, rule=rule, repetition_guard=False
        )
        _, rounds = decode(pair, prompts, chosen)
        check_rounds(pair, prompts, rounds, rule)
        seen |= {outcome(done) for done in rounds[1:]}
        # An end that the answer meets as a drafted token, so that a round stops inside.
        inside = [done.tokens[0] for done in rounds[2:] if done.kinds[0] is TokenKind.EXACT]
        if inside and "stop inside" not in seen:
            stopping = with_generation(pair, end_ids=tuple(inside[:1]))
            _, rounds = decode(stopping, prompts, chosen)
            check_rounds(stopping, prompts, rounds, rule)
            seen |= {outcome(done) for done in rounds[1:]}
        if seen >= wanted:
            return
    raise AssertionError(f"only these outcomes of a round: {seen}")


def test_caches_hold_the_answer_but_its_last_token(subject: Subject) -> None:
    session = Session.of(subject.pair)
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=20)
    count = 0
    for done in session.answer(subject.prompts("odd"), wanted):
        count += len(done.tokens)
        assert session.target.answered == count - 1
        assert session.draft is not None
        behind = count - 1 - session.draft.answered
        if done.drafted:
            # After a full acceptance the last drafted token has not been run.
            assert behind == (len(done.tokens) == len(done.drafted) + 1)


def test_a_step_calls_nothing_that_is_deprecated(subject: Subject) -> None:
    """A library that warns at every call of a layer makes every step slower."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        decode(
            subject.pair, subject.prompts("odd"), DecodeSettings(mode=Mode.EXACT, gamma=3, max_new_tokens=6)
        )
