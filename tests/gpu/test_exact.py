"""Exact mode on a GPU gives the very tokens of the stock model's generate there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lvspec_cli.models.load import LoadedModel, ModelRequest, load_models
from lvspec_cli.models.steps import Chain
from lvspec_cli.types import RelevanceName
from tests.conformance import test_exact as conformance
from tests.conformance import test_relevance as relevance
from tests.conformance import test_slots as slots
from tests.gpu.conftest import DEVICE, NEEDS_GPU, GpuSubject
from tests.speculation.conftest import decode

pytestmark = NEEDS_GPU

CASES = [case for case in conformance.CASES if case.clip in ("odd", "wide", "12-seconds", "over-a-minute")]


def is_captured(loaded: LoadedModel) -> bool:
    return loaded.workspace is not None and loaded.workspace.is_usable


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clip)
def test_exact_is_generate(subject: GpuSubject, case: conformance.Case) -> None:
    draft = subject.pair.draft
    assert draft is not None
    if draft.workspace is not None:
        draft.workspace.chain_after = 0
    conformance.check(subject, case)
    # It was by passes that are captured as CUDA graphs.
    for loaded in (subject.pair.target, draft):
        assert is_captured(loaded) == (DEVICE != "cpu" and not loaded.family.waits_for_host)
    if draft.workspace is not None and draft.workspace.is_usable and not draft.family.has_states:
        assert draft.workspace.can_chain
        assert any(isinstance(step.memory, Chain) for step in draft.workspace.alone.kept.values())


def test_answers_together_are_generate(subject: GpuSubject) -> None:
    """Their passes are captured, too."""
    found = slots.together(subject, slots.ALWAYS, slots.EXACT)
    for answer, generation in zip(slots.ALWAYS, found, strict=True):
        whole = subject.generated(*slots.ASKED[answer.asked], slots.LONGEST)
        assert list(generation.tokens) == whole[: answer.tokens]
    target = subject.pair.target
    if target.workspace is not None and not target.family.has_states:
        assert target.workspace.together.kept


def test_a_draft_on_the_cpu(subject: GpuSubject) -> None:
    target, draft = subject.folders
    pair = load_models(
        ModelRequest(target, device=DEVICE, dtype="float32"), ModelRequest(draft, device="cpu")
    )
    assert pair.draft is not None
    assert (pair.target.device.type, pair.draft.device.type) == (DEVICE, "cpu")
    apart = replace(subject, pair=pair, _prompts={})
    conformance.check(apart, conformance.Case("odd", gamma=5))
    conformance.check(apart, conformance.Case("wide", gamma=3, keep=0.5))


@pytest.mark.parametrize("name", RelevanceName)
def test_every_scheme_scores_every_drafted_token(subject: GpuSubject, name: RelevanceName) -> None:
    relevance.test_every_scheme_scores_every_drafted_token(subject, name)


def test_passes_are_captured_anew_where_the_memory_grows(subject: GpuSubject) -> None:
    for clip, tokens in (("two-frames", 24), ("over-a-minute", 700), ("odd", 24)):
        wanted = replace(conformance.WANTED, max_new_tokens=tokens)
        found, _ = decode(subject.pair, subject.prompts(clip), wanted)
        assert list(found.tokens) == subject.generate(clip, max_new_tokens=tokens)
    target = subject.pair.target
    assert is_captured(target) == (DEVICE != "cpu" and not target.family.waits_for_host)
