"""What the caches hold after rollbacks, against one pass of the stock model over everything."""

from __future__ import annotations

from dataclasses import replace

import torch

from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.verify import History, gather, judge
from lvspec_cli.types import (
    DecodeSettings,
    Mode,
    PairPrompts,
    RelevanceName,
    Round,
    RuleSettings,
    TokenKind,
)
from tests.conformance.conftest import Subject, scratch
from tests.speculation.conftest import decode, with_generation

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
    history = History().extended(answer, [TokenKind.TARGET], rule)
    for done in rounds[1:]:
        drafted, rows = list(done.drafted), len(done.drafted)
        if drafted:
            logits = scratch(pair.draft, prompts.draft, answer + drafted[:-1], logits_to_keep=rows).logits[0]
            assert logits[:, : pair.shared_vocabulary].argmax(-1).tolist() == drafted
        logits = scratch(pair.target, prompts.target, answer + drafted, logits_to_keep=rows + 1).logits[0]
        evidence = gather(logits, torch.tensor(drafted, dtype=torch.long), None)
        verdict = judge(evidence, rule, pair.words, history)
        assert (verdict.tokens, verdict.kinds) == (done.tokens, done.kinds)
        answer += verdict.tokens
        history = history.extended(verdict.tokens, verdict.kinds, rule)


def outcome(done: Round) -> str:
    accepted = sum(kind is not TokenKind.TARGET for kind in done.kinds)
    if done.kinds[-1] is not TokenKind.TARGET:
        return "stop inside"
    return "full" if accepted == len(done.drafted) else "none" if not accepted else "part"


def test_caches_hold_what_recomputing_gives(subject: Subject) -> None:
    pair, seen = subject.pair, set()
    for clip, gamma, rule in (("odd", 3, LOOSE), ("wide", 6, STRICT), ("one-frame", 1, STRICT)):
        prompts = subject.prompts(clip)
        wanted = DecodeSettings(
            mode=Mode.LVSPEC, gamma=gamma, max_new_tokens=20, rule=rule, repetition_guard=False
        )
        _, rounds = decode(pair, prompts, wanted)
        # An end that the answer meets as a drafted token, so that a round stops inside.
        inside = [done.tokens[0] for done in rounds[2:] if done.kinds[0] is TokenKind.EXACT]
        stopping = with_generation(pair, end_ids=inside[:1])
        for each in (pair, stopping):
            _, found = decode(each, prompts, wanted)
            check_rounds(each, prompts, found, rule)
            seen |= {outcome(done) for done in found[1:]}
    assert seen == {"full", "none", "part", "stop inside"}
