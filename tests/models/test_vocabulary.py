"""When two tokenizers mean the same, and drafts that propose a part of what they know."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.demo.scenes import sample_scene
from lvspec_cli.demo.texts import caption
from lvspec_cli.models.generation import first_difference
from lvspec_cli.models.load import (
    ModelRequest,
    load_models,
    proposed_vocabulary,
    shared_vocabulary,
)
from lvspec_cli.models.processing import quiet
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.read import read_processor
from lvspec_cli.pairs.registry import PACKAGE
from lvspec_cli.types import Constraint, DecodeSettings, Mode
from tests.speculation.conftest import decode
from tests.tiny_models import make_clip, save_pair

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


def test_a_draft_that_proposes_only_first_ids_leaves_exact_what_it_is(tmp_path: Path) -> None:
    target, draft = save_pair(tmp_path, "qwen2_5_vl")
    whole = load_models(ModelRequest(target, device="cpu"), ModelRequest(draft, device="cpu"))
    first = whole.shared_vocabulary // 2
    part = load_models(ModelRequest(target, device="cpu"), ModelRequest(draft, device="cpu", proposes=first))
    assert part.draft is not None
    head = part.draft.model.lm_head
    embeddings = part.draft.model.get_input_embeddings().weight
    assert (head.out_features, len(embeddings), part.draft.vocabulary) == (first, *[len(embeddings)] * 2)
    for pair, expected in ((whole, whole.shared_vocabulary), (part, first)):
        assert proposed_vocabulary(pair.target, pair.draft) == expected
        assert shared_vocabulary(pair.target, pair.draft) == whole.shared_vocabulary
    wanted = DecodeSettings(mode=Mode.EXACT, max_new_tokens=32, repetition_guard=False)
    clip = make_clip(4)
    for settings in (
        wanted,
        replace(wanted, gamma=4),
        replace(wanted, temperature=0.7),
        replace(wanted, constraint=Constraint(choices=("red ball", "green ball"))),
    ):
        texts = [
            decode(part, build_prompts(part, clip, "What moves?"), replace(settings, mode=mode))
            for mode in (Mode.AR, Mode.EXACT)
        ]
        (alone, _), (found, rounds) = texts
        drafted = [token for one in rounds for token in one.drafted]
        assert drafted or settings.constraint
        assert all(token < first for token in drafted)
        if not settings.temperature:
            assert found.tokens == alone.tokens
            assert len(found.tokens) > 2


def test_how_many_tokens_of_captions_are_among_the_first_ids() -> None:
    """What docs/pairs.md says of the bundled pair's tokenizer."""
    with quiet():
        tokenizer = read_processor(PACKAGE / "demo" / "pair" / "target").tokenizer
    ids = []
    for seed in range(200):
        draw = random.Random(seed)
        scene = sample_scene(draw)
        ids += tokenizer(caption(scene, draw), add_special_tokens=False).input_ids
    shares = [round(100 * sum(token < first for token in ids) / len(ids)) for first in (420, 600, 700, 800)]
    assert shares == [56, 83, 93, 100]
    assert len(tokenizer) == 840
