"""Constrained answers (--choices, --schema): held against transformers' own loop with the same mask."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from unittest.mock import Mock

import jsonschema
import pytest
import torch
from llguidance import LLMatcher
from transformers import AutoModelForImageTextToText, LogitsProcessor, LogitsProcessorList
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lvspec_cli.errors import UsageError
from lvspec_cli.models.constraint import check_constraint, grammar_of
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.output.records import value_of
from lvspec_cli.output.text import TextStream
from lvspec_cli.speculation.answer import Answer
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Constraint, DecodeSettings, Gamma, Mode, RelevanceName, RuleSettings, TokenKind
from tests.conformance.test_near_ties import beside, rounded, with_twins
from tests.conftest import demo_plan
from tests.speculation.conftest import decode, generate, prompts_for

Allowed = Callable[[list[int]], list[int]]
CHOICES = Constraint(choices=("red", "green one", 'blue "two" \\ né'))
SCHEMA = {
    "type": "object",
    "properties": {
        "sure": {"type": "boolean"},
        "what": {"type": "string", "maxLength": 10},
        "colour": {"enum": ["red", "green", "blue"]},
    },
    "required": ["sure", "what", "colour"],
    "additionalProperties": False,
}
JSON = Constraint(schema=json.dumps(SCHEMA))
LOOSE = RuleSettings(
    relevance=RelevanceName.PLAUSIBLE,
    filler_margin=math.inf,
    sentence_margin=math.inf,
    max_loose_run=99,
    max_loose_in_window=99,
    never_loosely=False,
)


@cache
def bundled() -> LoadedPair:
    plan = demo_plan()
    assert plan.draft is not None
    return load_pair(plan.target, plan.draft, device="cpu", dtype="float32")


@pytest.fixture(params=["bundled", "qwen2_5_vl"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, LoadedPair]) -> LoadedPair:
    return bundled() if request.param == "bundled" else pairs[request.param]


class Only(LogitsProcessor):
    """Lets through what ``allowed`` gives for the tokens of the answer so far."""

    def __init__(self, prompt: int, allowed: Allowed) -> None:
        self._prompt, self._allowed = prompt, allowed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = torch.full_like(scores, -math.inf)
        ids = self._allowed(input_ids[0, self._prompt :].tolist())
        kept[:, ids] = scores[:, ids]
        return kept


def by_text(pair: LoadedPair) -> Allowed:
    """The tokens after which one of the choices can still be written, found by writing each of them."""
    tokenizer, ends = pair.target.tokenizer, list(pair.target.generation.end_ids)
    special = set(tokenizer.all_special_ids)
    forms = [space + choice for choice in CHOICES.choices for space in ("", " ")]
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    piece = {
        index: bytes(letters[letter] for letter in token)
        for token, index in tokenizer.get_vocab().items()
        if index not in special and letters.keys() >= set(token)
    }

    def allowed(answer: list[int]) -> list[int]:
        written = b"".join(piece[token] for token in answer)
        found = [
            index
            for index, text in piece.items()
            if text and any(form.encode().startswith(written + text) for form in forms)
        ]
        return found + (ends if written.decode(errors="replace") in forms else [])

    return allowed


def by_replay(pair: LoadedPair) -> Allowed:
    """What the library allows after the whole answer so far, without any rollback."""

    def allowed(answer: list[int]) -> list[int]:
        matcher = LLMatcher(pair.target.grammar_tokens, grammar_of(JSON))
        assert matcher.consume_tokens(answer)
        mask = matcher.compute_bitmask()
        return [index for index in range(len(pair.target.tokenizer)) if mask[index // 8] >> index % 8 & 1]

    return allowed


def text_of(pair: LoadedPair, tokens: tuple[int, ...]) -> str:
    stream = TextStream(pair.target.tokenizer.backend_tokenizer)
    stream.feed(tokens, (TokenKind.TARGET,) * len(tokens))
    return stream.text


@pytest.mark.parametrize("constraint", [CHOICES, JSON], ids=["choices", "schema"])
def test_ar_and_exact_are_generate_with_the_same_mask(pair: LoadedPair, constraint: Constraint) -> None:
    prompts = prompts_for(pair)
    allowed = by_text(pair) if constraint is CHOICES else by_replay(pair)
    only = LogitsProcessorList([Only(prompts.target.length, allowed)])
    stock = AutoModelForImageTextToText.from_pretrained(pair.target.name, dtype=torch.float32)
    expected = generate(pair, prompts.target, model=stock, max_new_tokens=80, logits_processor=only)
    gamma: Gamma = 5 if constraint is CHOICES else "auto"
    for mode in (Mode.AR, Mode.EXACT):
        wanted = DecodeSettings(mode=mode, gamma=gamma, max_new_tokens=80, constraint=constraint)
        found, _ = decode(pair, prompts, wanted)
        assert list(found.tokens) == expected
    value = value_of(constraint, text_of(pair, tuple(expected)))
    if constraint is CHOICES:
        assert value in CHOICES.choices
    else:
        jsonschema.validate(value, SCHEMA)


@pytest.mark.parametrize("mode", Mode)
def test_rounding_decides_nothing_within_a_grammar(pair: LoadedPair, mode: Mode) -> None:
    pair, prompts = with_twins(pair), prompts_for(pair)
    wanted = DecodeSettings(mode=mode, gamma=4, max_new_tokens=60, rule=LOOSE, constraint=JSON)
    whole, _ = decode(pair, prompts, wanted)
    jsonschema.validate(value_of(JSON, text_of(pair, whole.tokens)), SCHEMA)
    asked = [prompts, prompts_for(pair, "is it red", seed=1)]
    for seed in range(3):
        with rounded(seed, least=2):
            assert beside(pair, asked, wanted)[0] == whole.tokens


def test_a_near_tie_behind_drafted_tokens_is_decided_by_the_grammar_there(pair: LoadedPair) -> None:
    pair, prompts = with_twins(pair), prompts_for(pair)
    wanted = DecodeSettings(mode=Mode.AR, gamma=4, max_new_tokens=60, constraint=JSON)
    whole, _ = decode(pair, prompts, wanted)
    found, _ = decode(replace(pair, draft=pair.target), prompts, replace(wanted, mode=Mode.EXACT))
    assert found.tokens == whole.tokens
    assert found.stats.accepted_exact > 2


def test_an_answer_goes_on_after_a_round_that_failed(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_for(pair)
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=5, max_new_tokens=80, constraint=JSON)
    whole, _ = decode(pair, prompts, wanted)
    rounds = Session.of(pair).answer(prompts, wanted)
    assert next(rounds).tokens + next(rounds).tokens
    with monkeypatch.context() as patch:
        patch.setattr(Answer, "verified", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            next(rounds)
    assert rounds.drop_round()
    assert rounds.run().tokens == whole.tokens


def test_a_choice_is_never_changed_by_loose_acceptance(pair: LoadedPair) -> None:
    prompts = prompts_for(pair)
    wanted = DecodeSettings(mode=Mode.AR, gamma=4, max_new_tokens=40, rule=LOOSE, constraint=CHOICES)
    alone, _ = decode(pair, prompts, wanted)
    found, rounds = decode(pair, prompts, replace(wanted, mode=Mode.LVSPEC))
    assert found.tokens == alone.tokens
    assert any(done.drafted for done in rounds)
    assert {*found.kinds} <= {TokenKind.EXACT, TokenKind.TARGET}


@pytest.mark.parametrize("constraint", [CHOICES, JSON], ids=["choices", "schema"])
def test_the_draft_proposes_what_the_grammar_allows(pair: LoadedPair, constraint: Constraint) -> None:
    allowed = by_text(pair) if constraint is CHOICES else by_replay(pair)
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=40, constraint=constraint)
    _, rounds = decode(pair, prompts_for(pair), wanted)
    answer: list[int] = []
    for done in rounds:
        for at, token in enumerate(done.drafted):
            assert token in allowed([*answer, *done.drafted[:at]])
        answer += done.tokens
    assert any(len(done.drafted) > 1 for done in rounds)


def test_loose_tokens_stand_in_free_text_alone(pair: LoadedPair) -> None:
    """In JSON: what a string of any text says, not where it ends, nor keys, nor values of an enum."""
    prompts = prompts_for(pair)
    longer = Constraint(schema=json.dumps(SCHEMA).replace("10", "24"))
    wanted = DecodeSettings(gamma=5, max_new_tokens=80, rule=LOOSE, constraint=longer)
    found, _ = decode(pair, prompts, wanted)
    jsonschema.validate(json.loads(text_of(pair, found.tokens)), json.loads(longer.schema or ""))
    loose = [at for at, kind in enumerate(found.kinds) if kind is TokenKind.FILLER]
    assert loose
    for at in loose:
        before, after = text_of(pair, found.tokens[:at]), text_of(pair, found.tokens[: at + 1])
        assert '"what": "' in before
        assert '", "colour' not in after


def test_sampled_answers_keep_to_the_grammar(pairs: dict[str, LoadedPair]) -> None:
    pair = pairs["qwen2_5_vl"]
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=120, temperature=1.5, constraint=JSON)
    found, _ = decode(pair, prompts_for(pair), wanted)
    jsonschema.validate(json.loads(text_of(pair, found.tokens)), SCHEMA)


def test_what_a_schema_cannot_say_is_told() -> None:
    check_constraint(JSON)
    for schema, reason in (
        ({"type": "object", "propertyNames": {"minLength": 3}}, "propertyNames"),
        ({"type": "nothing"}, "nothing"),
    ):
        with pytest.raises(UsageError, match=reason):
            check_constraint(Constraint(schema=json.dumps(schema)))
