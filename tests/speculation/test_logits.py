"""What generation_config does to logits, against transformers' own processors, row by row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from lvspec_cli.models.generation import GenerationRules
from lvspec_cli.speculation.logits import LogitsRules

SIZE = 8
TOKENS = st.integers(0, SIZE - 1)
FEW = st.lists(TOKENS, max_size=2, unique=True).map(tuple)
RULES = st.builds(
    GenerationRules,
    end_ids=FEW,
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    suppressed=FEW,
    suppressed_first=FEW,
    min_new_tokens=st.integers(0, 6),
)
SAID = st.lists(TOKENS, min_size=1, max_size=4)


def processors(rules: GenerationRules, prompt: int) -> LogitsProcessorList:
    """As ``generate`` puts them together for a prompt of so many tokens."""
    found = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(rules.repetition_penalty)])
    if rules.end_ids and rules.min_new_tokens:
        found.append(MinNewTokensLengthLogitsProcessor(prompt, rules.min_new_tokens, list(rules.end_ids)))
    if rules.suppressed:
        found.append(SuppressTokensLogitsProcessor(list(rules.suppressed)))
    if rules.suppressed_first:
        found.append(SuppressTokensAtBeginLogitsProcessor(list(rules.suppressed_first), prompt))
    return found


@given(RULES, SAID, st.lists(TOKENS, max_size=4), st.lists(TOKENS, max_size=5), st.integers(0, 99))
def test_every_row_stands_behind_the_drafted_tokens_before_it(
    rules: GenerationRules, prompt: list[int], answer: list[int], drafted: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(drafted) + 1, SIZE, generator=generator)
    ours = LogitsRules(rules, SIZE, torch.device("cpu"))
    for said in (prompt, answer):
        ours.add(torch.tensor(said, dtype=torch.long))
    found = ours.apply(logits.clone(), torch.tensor(drafted, dtype=torch.long), produced=len(answer))
    theirs = processors(rules, len(prompt))
    for at, row in enumerate(logits):
        before = torch.tensor([prompt + answer + drafted[:at]])
        assert torch.equal(found[at], theirs(before, row[None].clone())[0]), at


@given(RULES, SAID, SAID, st.integers(2, SIZE), st.integers(0, 99))
def test_a_draft_follows_the_targets_rules(
    rules: GenerationRules, prompt: list[int], drafted: list[int], shared: int, seed: int
) -> None:
    """But for the ends and the first token: a proposal against those is refused, which costs little."""
    ours = LogitsRules(rules, SIZE, torch.device("cpu"))
    ours.add(torch.tensor(prompt))
    draft = ours.drafting(shared)
    before = list(prompt)
    for token in (token for token in drafted if token < shared):
        logits = torch.randn(1, shared, generator=torch.Generator().manual_seed(seed))
        allowed = GenerationRules(
            repetition_penalty=rules.repetition_penalty,
            suppressed=tuple(index for index in rules.suppressed if index < shared),
        )
        known = torch.tensor([[index for index in before if index < shared]], dtype=torch.long)
        assert torch.equal(draft.apply(logits.clone()), processors(allowed, len(prompt))(known, logits))
        draft.add(torch.tensor([token]))
        before.append(token)
