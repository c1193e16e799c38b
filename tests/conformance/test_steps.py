"""Passes in fixed memory, as they are captured on a GPU: here they are recorded, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from lvspec_cli.models.cache import KeyValueCache
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.generation import GenerationRules
from lvspec_cli.models.kernels.fused import MOST_ROWS, FusedLayers, Operations, Twins, fuse_layers
from lvspec_cli.models.kernels.packed import Packed
from lvspec_cli.models.load import LoadedModel, LoadedPair, load_pair
from lvspec_cli.models.steps import (
    CHAIN_AFTER,
    MOST_CAPTURED,
    WIDTHS,
    Chain,
    Replay,
    StepOutputs,
    Workspace,
    run_again,
    width_of,
)
from lvspec_cli.speculation.answer import Answer
from lvspec_cli.speculation.draft import Drafting, Likeliest
from lvspec_cli.speculation.draft_length import DraftLengthPolicy, FixedLength
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.logits import LogitsRules
from lvspec_cli.types import (
    Adaptation,
    DecodeSettings,
    Mode,
    PairPrompts,
    RelevanceName,
    Round,
    RoundCosts,
    RuleSettings,
)
from tests.conformance.conftest import Subject
from tests.conformance.test_exact import CASES, WANTED, Case, check
from tests.models.test_fused import OneByOne
from tests.recorded import AsKernels, Recorder
from tests.speculation.conftest import decode, with_generation
from tests.speculation.test_engine import Transfers

# Passes of experts are not captured: the host has to know where rows go.
CAPTURED = [name for name, family in FAMILIES.items() if not family.waits_for_host]

captured = pytest.mark.parametrize("subject", CAPTURED, indirect=True)


@dataclass
class Counted:
    """Captures, and counts them and their replays."""

    captured: int = 0
    replayed: int = 0
    most: int = 1_000_000
    chains: list[int] = field(default_factory=list)  # lengths of those that were replayed
    can_chain: bool = True
    recorder: Recorder = field(default_factory=Recorder)

    def __call__(self, run: Callable[[], StepOutputs]) -> Replay:
        (memory, *_) = run.args if isinstance(run, partial) else (None,)
        length = len(memory.tokens) if isinstance(memory, Chain) else 0
        if self.captured >= self.most or (length and not self.can_chain):
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured += 1
        recorded = self.recorder(run)

        def replay() -> StepOutputs:
            self.replayed += 1
            self.chains += [length] if length else []
            return recorded()

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

    def made(
        self, *, fused: bool = False, operations: Operations | None = None, chain_after: int = 0
    ) -> LoadedPair:
        """:param fused: decoder layers are made of few operations, where their family's can be."""
        run = AsKernels(operations or Twins())
        assert self.pair.draft is not None
        target, draft = (
            replace(
                loaded,
                workspace=Workspace(capture, chain_after=chain_after),
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


Decoded = tuple[list[Round], DraftLengthPolicy[float], list[int]]


def decoded(pair: LoadedPair, prompts: PairPrompts, wanted: DecodeSettings) -> Decoded:
    """The rounds of an answer, its policy at the end, and how often the host waited in each round."""
    steps, waits = Session.of(pair).answer(prompts, wanted), []
    rounds = [next(steps)]
    while steps._answer.finish is None:
        with Transfers() as transfers:
            rounds.append(next(steps))
        waits.append(transfers.count)
    return rounds, steps._answer._policy, waits


AHEAD = (
    (Mode.EXACT, Case("odd", gamma=7, ends=(9,))),
    (Mode.LVSPEC, Case("wide", gamma=12, penalty=1.3, limit=40)),
    (Mode.EXACT, Case("odd", gamma="auto", penalty=1.3, limit=40)),
    (Mode.LVSPEC, Case("wide", gamma="auto", keep=0.3, ends=(15,))),
)


@pytest.mark.parametrize("subject", ["qwen2_5_vl", "smolvlm"], indirect=True)
@pytest.mark.parametrize(("mode", "case"), AHEAD)
def test_a_draft_that_runs_ahead_proposes_what_it_would_step_by_step(
    subject: Subject, mode: Mode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rounds, and the policy has observed the same probabilities, to the bit."""
    monkeypatch.setattr(Answer, "_settles", lambda *_: False)  # as in 16 bits; else loose steps are no chains
    free = subject.generate(case.clip, max_new_tokens=24, repetition_penalty=case.penalty)
    ends = (*subject.pair.target.generation.end_ids, *(free[at] for at in case.ends))
    wanted = replace(WANTED, mode=mode, gamma=case.gamma, max_new_tokens=case.limit, draft_keep=case.keep)
    wanted = replace(wanted, adaptation=Adaptation(costs=RoundCosts(draft=0.05)))
    fixed = Fixed(
        with_generation(subject.pair, repetition_penalty=case.penalty, end_ids=ends, suppressed=(3,))
    )
    prompts = subject.prompts(case.clip)
    rounds, policy, waits = decoded(fixed.made(), prompts, wanted)
    chains = list(fixed.draft.chains)
    monkeypatch.setattr(Drafting, "runs_ahead", False)
    others, other_policy, other_waits = decoded(fixed.made(), prompts, wanted)

    assert (rounds, policy) == (others, other_policy)
    assert set(chains) <= {2, 4, 8}
    assert len(chains) > len(rounds) / 2
    assert fixed.draft.chains == chains, "the other one had none"
    if case.gamma == "auto":
        assert other_waits == [len(done.drafted) + 1 for done in others[1:]]
        assert sum(waits) < 0.8 * sum(other_waits)
    else:
        assert set(waits) == set(other_waits) == {1}


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
@pytest.mark.parametrize("fused", [False, True])
def test_a_chain_goes_on_where_the_memory_grows_below_it(
    subject: Subject, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else an answer's room is set aside before it begins.
    monkeypatch.setattr("lvspec_cli.models.decoder.WIDTHS", (-150,))
    monkeypatch.setattr(KeyValueCache.reserve, "__defaults__", (0,))
    fixed = Fixed(subject.pair)
    pair = fixed.made(fused=fused)
    assert pair.draft is not None
    assert pair.draft.workspace is not None
    cache = pair.draft.workspace.cache
    steps = Session.of(pair).answer(subject.prompts("odd"), replace(WANTED, gamma=8, max_new_tokens=150))
    rooms = {cache.capacity for _ in steps}
    assert list(steps.generation.tokens) == subject.generated("odd", "What moves?", 150)
    assert len(rooms) > 1
    assert 8 in fixed.draft.chains


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_a_draft_runs_ahead_however_its_device_is_named(subject: Subject) -> None:
    """As cuda, which is the cuda:0 of its tensors and not equal to it."""
    named, fixed = torch.device("cpu", 0), Fixed(subject.pair)
    pair = fixed.made()
    assert pair.draft is not None
    assert named != torch.zeros(1, device=named).device
    pair = replace(pair, target=replace(pair.target, device=named), draft=replace(pair.draft, device=named))
    decoded(pair, subject.prompts("odd"), replace(WANTED, gamma=8))
    assert fixed.draft.chains


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_where_no_chain_can_be_captured_single_steps_run_ahead(subject: Subject) -> None:
    fixed = Fixed(subject.pair, draft=Counted(can_chain=False))
    pair = fixed.made()
    rounds, _, waits = decoded(pair, subject.prompts("odd"), replace(WANTED, gamma=8))
    assert [token for done in rounds for token in done.tokens] == subject.generate("odd", max_new_tokens=24)
    assert set(waits) == {1}
    assert pair.draft is not None
    assert pair.draft.workspace is not None
    assert pair.draft.workspace.is_usable
    assert fixed.draft.replayed > len(rounds)
    assert not fixed.draft.chains


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_a_chain_is_captured_when_it_was_wanted_often(subject: Subject) -> None:
    """Not for a single answer: a capture takes longer than it saves there."""
    fixed = Fixed(subject.pair)
    wanted = replace(WANTED, gamma=2, max_new_tokens=40)
    few = fixed.made(chain_after=CHAIN_AFTER)
    decode(few, subject.prompts("odd"), wanted)
    assert fixed.draft.replayed
    assert not fixed.draft.chains
    pair = fixed.made(chain_after=3)
    session = Session.of(pair)
    counts = []
    for _ in range(2):
        decode(pair, subject.prompts("odd"), wanted, session)
        counts.append(len(fixed.draft.chains))
    assert 0 < counts[0] < counts[1]
    assert counts[1] - counts[0] == counts[0] + 3, "after three rounds that wanted it"


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
    assert fixed.target.captured == len(memory.alone.kept) <= 4, "each once, of up to 5 rows"


@torch.inference_mode()
def test_where_memory_was_short_the_passes_of_the_next_clip_are_captured() -> None:
    failures: list[Exception] = [torch.OutOfMemoryError("short")]

    def capture(run: Callable[[], StepOutputs]) -> Replay:
        if failures:
            raise failures.pop()
        return run_again(run)

    def step() -> object:
        return workspace.step(1, (), torch.zeros(1, 1, 4), lambda inputs, rows: pytest.fail("it is not run"))

    workspace = Workspace(capture)
    workspace.cache.reserve(4)
    assert (step(), step(), workspace.is_usable) == (None, None, False)
    workspace.take()
    assert step() is not None
    failures.append(RuntimeError("not permitted"))
    workspace.release()
    assert (step(), workspace.is_usable) == (None, False)
    workspace.take()
    assert step() is None


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
@torch.inference_mode()
def test_what_is_known_of_the_rows_of_a_pass(subject: Subject) -> None:
    whole = Fixed(subject.pair).made(fused=True).target
    assert whole.fused is not None
    assert Decoder(whole).exact_rows is None, "in float32"
    half, prompt = replace(whole, dtype=torch.bfloat16), subject.prompts("odd").target
    for stands_alone, usable, known in ((True, True, MOST_ROWS), (False, True, 0), (True, False, 0)):
        fused = replace(whole.fused, rows_stand_alone=stands_alone)
        decoder = Decoder(replace(half, fused=fused, workspace=Workspace(run_again, can_capture=usable)))
        assert decoder.exact_rows == 0
        decoder.encode(prompt)
        decoder.begin(prompt, 8)
        assert decoder.exact_rows == known
        assert decoder.loaded.keeps_rows_apart == (stands_alone and usable)
    assert whole.keeps_rows_apart
    for other in (replace(half, fused=None), replace(half, fused=replace(whole.fused, joins=0))):
        assert not other.keeps_rows_apart
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
    counted.captured = 0
    for layer in range(3 * MOST_CAPTURED):
        workspace.step(1, (layer, 1), torch.zeros(1, 1, 4), run)
        workspace.step(1, (), torch.zeros(1, 1, 4), run)
    assert counted.captured == 3 * MOST_CAPTURED + 1, "one that is used all the time stays"
    workspace.chain_after = 0
    for size in range(2 * MOST_CAPTURED):
        rules = LogitsRules(GenerationRules(), size + 1, torch.device("cpu")).drafting(size + 1)
        workspace.chain(2, torch.zeros(1, 2, 4), Likeliest(rules, size + 1, FixedLength.measure), run)
    assert len(workspace.alone.kept) == MOST_CAPTURED
