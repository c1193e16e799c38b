"""The cache-driven loop against one that recomputes everything from scratch."""

from __future__ import annotations

from dataclasses import replace

import torch

from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.verify import History, gather, judge
from lvspec_cli.types import (
    DecodeSettings,
    Mode,
    PairPrompts,
    Prompt,
    RelevanceName,
    Round,
    RuleSettings,
    TokenKind,
)
from tests.speculation.conftest import decode, prompts_for, stock_model, with_generation

LOOSE = RuleSettings(
    relevance=RelevanceName.PLAUSIBLE,
    filler_margin=1.0,
    anchor_margin=0.5,
    max_loose_run=2,
    max_loose_in_window=5,
)
STRICT = replace(LOOSE, filler_margin=0.0, anchor_margin=0.0, shift_window=0)


@torch.inference_mode()
def scratch_logits(loaded: LoadedModel, prompt: Prompt, answer: list[int], rows: int) -> torch.Tensor:
    """Logits of the last rows by one pass of the model's own forward over everything, without a cache."""
    ids = torch.cat((prompt.input_ids, torch.tensor([answer], dtype=torch.long)), dim=1)
    behind = loaded.family.answer_positions(prompt.next_position, len(answer), torch.device("cpu"))
    positions = torch.cat((prompt.position_ids, behind), dim=-1)
    outputs = stock_model(loaded.name)(
        input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=rows, **prompt.video_inputs
    )
    return outputs.logits[0].float()


def scratch_rounds(
    pair: LoadedPair, prompts: PairPrompts, gamma: int, limit: int, rule: RuleSettings
) -> list[tuple[tuple[int, ...], tuple[TokenKind, ...], tuple[int, ...]]]:
    answer = [int(scratch_logits(pair.target, prompts.target, [], 1).argmax())]
    assert pair.draft is not None
    assert prompts.draft is not None
    history, rounds = History().extended(answer, [TokenKind.TARGET], rule), []
    while len(answer) < limit and answer[-1] not in pair.words.ends:
        drafted: list[int] = []
        for _ in range(min(gamma, limit - len(answer) - 1)):
            logits = scratch_logits(pair.draft, prompts.draft, answer + drafted, 1)
            drafted.append(int(logits[0, : pair.shared_vocabulary].argmax()))
        logits = scratch_logits(pair.target, prompts.target, answer + drafted, len(drafted) + 1)
        verdict = judge(
            gather(logits, torch.tensor(drafted, dtype=torch.long), None), rule, pair.words, history
        )
        answer += verdict.tokens
        history = history.extended(verdict.tokens, verdict.kinds, rule)
        rounds.append((verdict.tokens, verdict.kinds, tuple(drafted)))
    return rounds


def outcome(done: Round) -> str:
    accepted = sum(kind is not TokenKind.TARGET for kind in done.kinds)
    if done.kinds[-1] is not TokenKind.TARGET:
        return "stop inside"
    return "full" if accepted == len(done.drafted) else "none" if not accepted else "part"


def test_caches_hold_what_recomputing_gives(pair: LoadedPair) -> None:
    seen = set()
    for seed, gamma, rule in ((0, 1, STRICT), (1, 3, LOOSE), (2, 6, STRICT), (3, 8, LOOSE)):
        prompts = prompts_for(pair, seed=seed)
        wanted = DecodeSettings(
            mode=Mode.LVSPEC, gamma=gamma, max_new_tokens=20, rule=rule, repetition_guard=False
        )
        _, rounds = decode(pair, prompts, wanted)
        # An end that the answer meets as a drafted token, so that a round stops inside.
        inside = [done.tokens[0] for done in rounds[4:] if done.kinds[0] is TokenKind.EXACT]
        stopping = with_generation(pair, end_ids=(inside[0] if inside else 0,))
        for each in (pair, stopping):
            _, found = decode(each, prompts, wanted)
            expected = scratch_rounds(each, prompts, gamma, 20, rule)
            assert [(done.tokens, done.kinds, done.drafted) for done in found[1:]] == expected
            seen |= {outcome(done) for done in found[1:]}
    assert seen == {"full", "none", "part", "stop inside"}


def test_caches_hold_the_answer_but_its_last_token(pair: LoadedPair) -> None:
    session = Session(pair)
    prompts = prompts_for(pair)
    steps = session.answer(prompts, DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=20))
    count = 0
    for done in steps:
        count += len(done.tokens)
        assert session._target.answered == count - 1
        assert session._draft is not None
        behind = count - 1 - session._draft.answered
        if done.drafted:
            # After a full acceptance the last drafted token has not been run.
            assert behind == (len(done.tokens) == len(done.drafted) + 1)
