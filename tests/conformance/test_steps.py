"""Passes in fixed memory, as they are captured on a GPU: here each replay runs the pass again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.kernels.fused import MOST_ROWS, FusedLayers, Operations, Twins, fuse_layers
from lvspec_cli.models.kernels.packed import Packed
from lvspec_cli.models.load import LoadedModel, LoadedPair, load_pair
from lvspec_cli.models.steps import MOST_CAPTURED, WIDTHS, Replay, StepOutputs, Workspace, run_again, width_of
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName, RuleSettings
from tests.conformance.conftest import Subject
from tests.conformance.test_exact import CASES, WANTED, Case, check
from tests.models.test_fused import OneByOne
from tests.speculation.conftest import decode

# Passes of experts are not captured: the host has to know where rows go.
CAPTURED = [name for name, family in FAMILIES.items() if not family.waits_for_host]

captured = pytest.mark.parametrize("subject", CAPTURED, indirect=True)


@dataclass
class Counted:
    """Captures, and counts them and their replays."""

    captured: int = 0
    replayed: int = 0
    most: int = 1_000_000

    def __call__(self, run: Callable[[], StepOutputs]) -> Replay:
        if self.captured >= self.most:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured += 1
        run()  # a capture writes into the cache, behind what it holds

        def replay() -> StepOutputs:
            self.replayed += 1
            return run_again(run)()

        return replay


def in_few(loaded: LoadedModel, operations: Operations) -> FusedLayers | None:
    """The model's layers of few operations, where its family's can be made so."""
    family, model = loaded.family, loaded.model
    return fuse_layers(family.layers(model), family.language(model).norm, model.lm_head, [operations])


class Uneven(OneByOne):
    """Products in which rows are not quite what they are alone."""

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        return super().multiply(inputs, weight, bias) * (1.01 if len(inputs) > 1 else 1.0)


@dataclass(frozen=True)
class Fixed:
    """A pair whose passes are in fixed memory."""

    pair: LoadedPair
    target: Counted = field(default_factory=Counted)
    draft: Counted = field(default_factory=Counted)

    def made(self, *, fused: bool = False, operations: Operations | None = None) -> LoadedPair:
        """:param fused: decoder layers are made of few operations, where their family's can be."""
        run = operations or Twins()
        assert self.pair.draft is not None
        target, draft = (
            replace(
                loaded,
                workspace=Workspace(capture),
                fused=in_few(loaded, run) if fused else None,
            )
            for loaded, capture in ((self.pair.target, self.target), (self.pair.draft, self.draft))
        )
        return replace(self.pair, target=target, draft=draft)


@captured
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clip)
def test_exact_is_generate(subject: Subject, case: Case) -> None:
    fixed = Fixed(subject.pair)
    check(replace(subject, pair=fixed.made()), case)
    assert fixed.target.replayed
    assert fixed.draft.replayed


# Biases, normalised heads, and neither; ``tests/models/test_fused.py`` has the layers of every family.
@pytest.mark.parametrize("subject", ["qwen2_5_vl", "qwen3_vl", "smolvlm"], indirect=True)
def test_layers_in_few_operations_give_the_same_answers(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what relevance wants of the layers that it watches, without computing queries again."""
    pair = Fixed(subject.pair).made(fused=True)
    assert pair.target.fused is not None
    check(replace(subject, pair=pair), Case("wide", gamma=5, keep=0.1))
    rule = RuleSettings(
        relevance=RelevanceName.ATTENTION, anchor_threshold=0.3, filler_margin=3.0, layers=(1, -1)
    )
    wanted = DecodeSettings(gamma=5, rule=rule, max_new_tokens=12, repetition_guard=False)
    with monkeypatch.context() as patched:
        patched.setattr(type(pair.target.family), "queries", None)
        _, rounds = decode(pair, subject.prompts("wide"), wanted)
    _, others = decode(subject.pair, subject.prompts("wide"), wanted)
    for one, other in zip(rounds, others, strict=True):
        assert one.tokens == other.tokens
        assert one.relevance == pytest.approx(other.relevance, abs=1e-4)


@captured
@pytest.mark.parametrize("relevance", [RelevanceName.ATTENTION, RelevanceName.SIMILARITY])
def test_loose_answers_and_what_they_go_by_are_the_same(subject: Subject, relevance: RelevanceName) -> None:
    """Watched layers, too: relevance reads them."""
    rule = RuleSettings(
        relevance=relevance, anchor_threshold=0.3, filler_margin=3.0, layers=(subject.attention_layers[0], -1)
    )
    wanted = DecodeSettings(gamma=5, rule=rule, max_new_tokens=24, repetition_guard=False)
    prompts = subject.prompts("wide")
    found, rounds = decode(Fixed(subject.pair).made(), prompts, wanted)
    expected, others = decode(subject.pair, prompts, wanted)
    assert found.tokens == expected.tokens
    for one, other in zip(rounds, others, strict=True):
        assert one.relevance == pytest.approx(other.relevance, abs=1e-4)
        assert one.gap == pytest.approx(other.gap, abs=1e-3)


@captured
def test_sessions_of_one_pair_take_the_memory_from_each_other(subject: Subject) -> None:
    """A session whose clip another one has displaced encodes it again."""
    pair = Fixed(subject.pair).made()
    clips = ("odd", "wide")
    sessions = {clip: Session.of(pair) for clip in clips}
    for gamma, clip in ((4, "odd"), (3, "wide"), (5, "odd"), (2, "odd"), (4, "wide")):
        found, _ = decode(pair, subject.prompts(clip), replace(WANTED, gamma=gamma), sessions[clip])
        assert list(found.tokens) == subject.generate(clip, max_new_tokens=24)


@captured
def test_an_answer_that_was_displaced_says_so(subject: Subject) -> None:
    """Going on would write into another clip's keys and values."""
    pair = Fixed(subject.pair).made()
    steps = Session.of(pair).answer(subject.prompts("odd"), WANTED)
    next(steps)
    decode(pair, subject.prompts("wide"), WANTED)
    with pytest.raises(RuntimeError, match="another decoder"):
        list(steps)


@captured
def test_memory_is_given_back(subject: Subject) -> None:
    pair = Fixed(subject.pair).made()
    session = Session.of(pair)
    decode(pair, subject.prompts("wide"), WANTED, session)
    assert session.target.cache.bytes
    pair.release()
    assert not session.target.cache.bytes
    assert not session.target.holds_clip
    found, _ = decode(pair, subject.prompts("wide"), WANTED, session)
    assert list(found.tokens) == subject.generate("wide", max_new_tokens=24)
    subject.pair.release()  # nothing is kept where nothing is captured


@pytest.mark.parametrize("subject", ["qwen2_5_vl", "qwen3_5"], indirect=True)
def test_another_clip_finds_the_passes_that_were_captured(subject: Subject) -> None:
    fixed = Fixed(subject.pair)
    pair, counts = fixed.made(), []
    for _ in range(2):
        for clip in (
            "over-a-minute",
            "two-frames",
            "odd",
        ):  # the longest first: the others fit into its memory
            found, _ = decode(pair, subject.prompts(clip), WANTED)
            assert list(found.tokens) == subject.generate(clip, max_new_tokens=24)
        counts.append((fixed.target.captured, fixed.draft.captured))
    assert counts[0] == counts[1]
    assert counts[0][0] <= 4  # up to 5 rows
    # A longer answer needs more memory, and what was captured over the old is not replayed.
    found, _ = decode(pair, subject.prompts("odd"), replace(WANTED, max_new_tokens=600))
    assert list(found.tokens) == subject.generate("odd", max_new_tokens=600)
    assert fixed.target.captured > counts[0][0]


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_layers_in_few_operations_are_not_captured_anew_where_the_memory_grows(subject: Subject) -> None:
    """They find keys and values where these have moved to, and tell what goes to this clip's video."""
    fixed = Fixed(subject.pair)
    pair, rooms = fixed.made(fused=True), []
    memory = pair.target.workspace
    assert memory is not None
    for clip, tokens in (("two-frames", 24), ("odd", 600), ("over-a-minute", 24)):
        wanted = replace(WANTED, max_new_tokens=tokens)
        found, _ = decode(pair, subject.prompts(clip), wanted)
        assert list(found.tokens) == subject.generate(clip, max_new_tokens=tokens)
        rooms.append(memory.cache.capacity)
    assert rooms[0] < rooms[1]
    assert fixed.target.captured == len(memory._steps) <= 4, "each once, of up to 5 rows"


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
@torch.inference_mode()
def test_what_is_known_of_the_rows_of_a_pass(subject: Subject) -> None:
    whole = Fixed(subject.pair).made(fused=True).target
    assert whole.fused is not None
    assert Decoder(whole).exact_rows is None, "in float32"
    half, prompt = replace(whole, dtype=torch.bfloat16), subject.prompts("odd").target
    for stands_alone, usable, known in ((True, True, MOST_ROWS), (False, True, 0), (True, False, 0)):
        fused = replace(whole.fused, rows_stand_alone=stands_alone)
        decoder = Decoder(replace(half, fused=fused, workspace=Workspace(run_again, is_usable=usable)))
        assert decoder.exact_rows == 0
        decoder.encode(prompt)
        decoder.begin(prompt, 8)
        assert decoder.exact_rows == known
    assert Decoder(replace(half, fused=None)).exact_rows == 0


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_where_rows_stand_alone_exact_is_ar_to_the_letter_in_16_bits_too(subject: Subject) -> None:
    """``tests/gpu/test_precision.py`` shows it of the kernels that are for this."""
    half = Fixed(load_pair(*subject.folders, device="cpu", dtype="bfloat16"))
    pair = half.made(fused=True, operations=OneByOne())
    assert pair.target.fused is not None
    assert pair.target.fused.rows_stand_alone
    session = Session.of(pair)
    for clip, gamma in (("odd", 7), ("wide", 16)):
        exact = replace(WANTED, gamma=gamma)
        texts = [
            decode(pair, subject.prompts(clip), replace(exact, mode=mode), session)[0].tokens
            for mode in (Mode.AR, Mode.EXACT)
        ]
        assert texts[0] == texts[1]
        assert session.is_to_the_letter(exact)
    assert half.target.replayed
    other = half.made(fused=True, operations=Uneven())
    session = Session.of(other)
    texts = [
        decode(other, subject.prompts("odd"), replace(WANTED, gamma=7, mode=mode), session)[0].tokens
        for mode in (Mode.AR, Mode.EXACT)
    ]
    assert texts[0] != texts[1]
    assert not session.is_to_the_letter(replace(WANTED, gamma=7)), "and it is seen when a model is loaded"


@captured
@pytest.mark.parametrize("most", [0, 1])
def test_what_cannot_be_captured_is_run(subject: Subject, most: int) -> None:
    fixed = Fixed(subject.pair, target=Counted(most=most))
    pair = fixed.made()
    for gamma in (2, 4):
        found, _ = decode(pair, subject.prompts("odd"), replace(WANTED, gamma=gamma))
        assert list(found.tokens) == subject.generate("odd", max_new_tokens=24)
    assert pair.target.workspace is not None
    assert not pair.target.workspace.is_usable
    assert fixed.draft.replayed


@captured
def test_a_pass_as_wide_as_none_is_captured_is_run(subject: Subject) -> None:
    alone = replace(subject.pair, draft=None, target=Fixed(subject.pair).made().target)
    session = Session.of(alone)
    prompts = replace(subject.prompts("odd"), draft=None)
    found, _ = decode(alone, prompts, replace(WANTED, mode=Mode.AR), session)
    tokens = torch.tensor(found.tokens)
    with torch.inference_mode():
        session.target.begin(prompts.target, 200)
        wide = session.target.forward(tokens.repeat(WIDTHS[-1])[: WIDTHS[-1] + 1])
        assert wide.logits is None
        narrow = session.target
        narrow.rollback(0)
        first = narrow.forward(tokens[:3])
        assert torch.allclose(
            narrow.logits(first, 3),
            session.target.loaded.family.head(alone.target.model, wide.hidden[0, :3]).float(),
            atol=1e-4,
        )


def test_widths() -> None:
    assert [width_of(rows) for rows in (1, 2, 4, 13, 14, 65, 66)] == [1, 2, 5, 13, 17, 65, None]


def test_no_more_passes_are_kept_than_there_is_room_for() -> None:
    counted = Counted()
    workspace = Workspace(counted)
    workspace.cache.reserve(200)

    def run(*_: object) -> StepOutputs:
        return StepOutputs(torch.zeros(1), torch.zeros(1), {})

    for turn in range(2):
        for layer in range(MOST_CAPTURED + 1):
            workspace.step(1, (layer,), torch.zeros(1, 1, 4), run)
        assert counted.captured == (turn + 1) * (MOST_CAPTURED + 1)  # the oldest goes, and is made anew
