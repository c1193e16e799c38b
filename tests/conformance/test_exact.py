"""Exact mode gives the very tokens of the stock model's generate(do_sample=False)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvspec_cli.models.kernels import cpu_linear
from lvspec_cli.models.kernels.cpu_linear import CpuLinear
from lvspec_cli.models.load import load_pair
from lvspec_cli.models.processing import features_of
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.read import chat_text
from lvspec_cli.pairs.files import read_object
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, FinishReason, Gamma, KeepBy, Mode, TokenKind, Turn
from tests.conformance.conftest import CLIPS, Subject
from tests.speculation.conftest import decode, stock_model, with_generation
from tests.tiny_families import TinyShape
from tests.tiny_models import save_model, save_pair
from tests.tiny_tokenizers import WORDS

WANTED = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=24, repetition_guard=False)


@dataclass(frozen=True)
class Case:
    clip: str
    question: str = "What moves?"
    gamma: Gamma = 4
    keep: float = 1.0
    by: KeepBy = KeepBy.EVEN
    penalty: float = 1.0
    ends: tuple[int, ...] = ()  # places of the free answer whose tokens become ends
    limit: int = 24
    is_last: bool = True  # the question is run in one pass with the video


CASES = (
    Case("one-frame", gamma=3),
    Case("two-frames", "how many balls", gamma=1, penalty=1.3),
    Case("odd", "which colour is it", gamma=12, ends=(7, 15), is_last=False),
    Case("wide", gamma=5, keep=0.1, penalty=0.8),
    Case("tall-and-odd", "what now", gamma=6, keep=0.5, penalty=1.3, ends=(9,)),
    Case("12-seconds", "describe the clip", gamma="auto", limit=40, is_last=False),
    Case("over-a-minute", gamma=8, keep=0.3, by=KeepBy.ATTENTION, limit=17),
)


def check(subject: Subject, case: Case) -> None:
    """The pair's answer is generate's; the extra ends stand among the pair's own two."""
    pair = with_generation(subject.pair, repetition_penalty=case.penalty)
    asked = (case.clip, case.question)
    values: dict[str, Any] = {"repetition_penalty": case.penalty}
    own_ends = pair.target.generation.end_ids
    assert len(own_ends) == 2
    free = subject.generate(*asked, max_new_tokens=24, **values) if case.ends else []
    ends = (*own_ends, *(free[at] for at in case.ends if at < len(free)))
    expected = subject.generate(*asked, max_new_tokens=case.limit, eos_token_id=list(ends), **values)
    pair = with_generation(pair, end_ids=ends)
    wanted = replace(
        WANTED,
        gamma=case.gamma,
        max_new_tokens=case.limit,
        draft_keep=case.keep,
        draft_keep_by=case.by,
    )

    found, rounds = decode(pair, subject.prompts(*asked), wanted, is_last=case.is_last)

    assert list(found.tokens) == expected
    assert found.finish_reason == (FinishReason.STOP if expected[-1] in ends else FinishReason.LENGTH)
    assert set(found.kinds) <= {TokenKind.EXACT, TokenKind.TARGET}
    assert found.tokens == tuple(token for done in rounds for token in done.tokens)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clip)
def test_exact_is_generate(subject: Subject, case: Case) -> None:
    check(subject, case)


@given(
    case=st.builds(
        Case,
        clip=st.builds(
            "{}/{}/{}".format, st.integers(1, 5), st.integers(0, 999), st.sampled_from([36, 60, 100])
        ),
        question=st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=9).map(" ".join),
        gamma=st.integers(1, 12) | st.just("auto"),
        keep=st.sampled_from([1.0, 1.0, 0.5, 0.1]),
        by=st.sampled_from(KeepBy),
        penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
        ends=st.sets(st.integers(0, 23), max_size=2).map(tuple),
        limit=st.integers(1, 24),
        is_last=st.booleans(),
    )
)
@settings(max_examples=6)
def test_exact_is_generate_at_any_setting(subject: Subject, case: Case) -> None:
    check(subject, case)


@pytest.mark.parametrize("case", CASES[-2:], ids=lambda case: case.clip)
def test_exact_is_generate_by_other_products_of_few_rows(
    subject: Subject, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of large weights, on processors on which oneDNN is faster."""
    monkeypatch.setattr(cpu_linear, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(cpu_linear, "few_rows_pay", lambda: True)
    pair = load_pair(*subject.folders, device="cpu", dtype="float32")
    head = pair.target.model.get_output_embeddings()
    assert isinstance(head, CpuLinear)
    assert head.most
    check(replace(subject, pair=pair), case)


def test_a_question_after_others_is_generates(subject: Subject) -> None:
    """The video stands in the first turn, and is processed and encoded for that one alone."""
    history = (Turn("how many balls", "two red balls"), Turn("is it red", "it is"))
    session, prompts = Session.of(subject.pair), subject.prompts("odd")
    decode(subject.pair, prompts, WANTED, session)
    prompts = build_prompts(subject.pair, CLIPS["odd"], "What moves?", earlier=prompts, history=history)
    text = chat_text(subject.processor, "What moves?", None, history=history)
    assert text.index("two red balls") < text.index("is it red") < text.index("What moves?")
    assert text.index(subject.processor.video_token) < text.index("how many balls")
    inputs = features_of(subject.processor, text, CLIPS["odd"])
    assert torch.equal(prompts.target.input_ids, inputs["input_ids"])
    tokens = stock_model(subject.pair.target.name).generate(**inputs, do_sample=False, max_new_tokens=24)
    found, _ = decode(subject.pair, prompts, WANTED, session)
    assert list(found.tokens) == tokens[0, prompts.target.length :].tolist()


def test_ar_is_generate(subject: Subject) -> None:
    alone = replace(subject.pair, draft=None)
    prompts = build_prompts(alone, CLIPS["odd"], "What moves?")
    found, _ = decode(alone, prompts, replace(WANTED, mode=Mode.AR))
    assert prompts.draft is None
    assert list(found.tokens) == subject.generate("odd", max_new_tokens=24)
    assert found.stats.drafted == 0


def test_a_batch_of_questions_over_one_prefix(subject: Subject) -> None:
    """The video is processed and encoded once, whatever is asked; ``wide`` has other sides than ``odd``.

    A question that was to be the last one, and was not, does no harm.
    """
    session = Session.of(subject.pair)
    prompts = subject.prompts("wide")
    for gamma, keep, question in ((4, 1.0, "how many balls"), (6, 0.3, "What moves?"), (2, 0.3, "is it red")):
        prompts = build_prompts(subject.pair, CLIPS["wide"], question, earlier=prompts)
        wanted = replace(WANTED, gamma=gamma, draft_keep=keep, max_new_tokens=16)
        found, _ = decode(subject.pair, prompts, wanted, session, is_last=gamma == 4)
        assert list(found.tokens) == subject.generate("wide", question, max_new_tokens=16)


@pytest.mark.thorough
def test_paddings_of_the_vocabularies_may_differ(subject: Subject, tmp_path: Path) -> None:
    """The pair's own draft has more rows than its target, this one has fewer."""
    assert subject.pair.draft is not None
    assert subject.pair.draft.vocabulary > subject.pair.target.vocabulary
    target, shape = subject.folders[0], TinyShape(extra_vocabulary=0)
    draft = save_model(tmp_path / "draft", subject.family, shape=shape, noise=(target, 0.01))
    pair = load_pair(target, draft, device="cpu", dtype="float32")
    assert pair.draft is not None
    assert pair.draft.vocabulary < pair.target.vocabulary
    # The likeliest token of all is one of the target's padding, which the draft has no row for.
    with torch.no_grad():
        pair.target.model.lm_head.weight[-1] = 3 * pair.target.model.lm_head.weight[90]
    tokens = set()
    for clip in ("one-frame", "odd", "wide"):
        found, _ = decode(pair, subject.prompts(clip), WANTED)
        assert list(found.tokens) == subject.generate(clip, model=pair.target.model, max_new_tokens=24)
        tokens |= set(found.tokens)
    assert pair.target.vocabulary - 1 in tokens


def test_half_precision_takes_the_processors_tensors(subject: Subject) -> None:
    pair = load_pair(*subject.folders, device="cpu", dtype="bfloat16")
    found, _ = decode(pair, subject.prompts("odd"), replace(WANTED, max_new_tokens=4))
    assert found.tokens


def test_internvl3_5(tmp_path: Path) -> None:
    """Another language model and tower inside; its files' head counts, whatever the config says of tying."""
    folders = save_pair(tmp_path, "internvl3_5")
    for folder in folders:
        config = read_object(folder / "config.json")
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    subject = Subject("internvl", folders, load_pair(*folders, device="cpu", dtype="float32"))
    for model in (subject.pair.target.model, stock_model(str(folders[0]))):
        assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    for clip in ("one-frame", "odd", "wide"):
        check(subject, Case(clip, gamma=5))


@pytest.mark.parametrize(
    ("target", "draft", "shape"),
    [
        # As SmolVLM2 2.2B and 256M: other numbers of tokens an image.
        ("smolvlm", "smolvlm", TinyShape(merge=4)),
        ("qwen2_5_vl", "llava_onevision", TinyShape()),
    ],
    ids=["smolvlm", "qwen2_5_vl-llava_onevision"],
)
def test_prompts_of_different_lengths(tmp_path: Path, target: str, draft: str, shape: TinyShape) -> None:
    """Each half reads the video in its own way; only the answer's tokens are common."""
    folders = save_pair(tmp_path, target)[0], save_model(tmp_path / "other", draft, shape=shape)
    subject = Subject(target, folders, load_pair(*folders, device="cpu", dtype="float32"))
    prompts = subject.prompts("odd")
    assert prompts.draft is not None
    assert prompts.draft.visual_tokens != prompts.target.visual_tokens
    assert prompts.draft.length != prompts.target.length
    for gamma in (1, 5):
        found, _ = decode(subject.pair, prompts, replace(WANTED, gamma=gamma))
        assert list(found.tokens) == subject.generate("odd", max_new_tokens=24)
