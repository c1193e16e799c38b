"""Gamma auto: when to draft on, what is learnt of a round, and that answers stay what they are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lvspec_cli.models.load import LoadedPair, load_model
from lvspec_cli.models.steps import Workspace, run_again
from lvspec_cli.speculation.answer import EXACT_RULE
from lvspec_cli.speculation.draft_length import (
    EXACT_CALIBRATION,
    LOOSE_CALIBRATION,
    READ_BY_A_GPU,
    WAIT,
    AdaptiveLength,
    DraftLengthPolicy,
    FixedLength,
    costs_of_sizes,
    non_weight_bytes,
    policy_for,
    round_cost,
    taken,
)
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Adaptation, DecodeSettings, Mode, PairPrompts, RoundCosts, RuleSettings
from tests.speculation.conftest import decode, generate, prompts_for, with_generation
from tests.speculation.test_engine import Transfers
from tests.tiny_models import FAMILIES, save_model

# At the rate of 1.5 tokens a step, one more token has to be accepted with a probability above .15.
POLICY = AdaptiveLength(RoundCosts(draft=0.1, verification=1.0, row=0.0, overhead=0.0), most=4)
CHEAP = Adaptation(costs=RoundCosts(draft=0.05, verification=1.0, row=0.01, overhead=0.1))
AUTO = DecodeSettings(mode=Mode.EXACT, adaptation=CHEAP, max_new_tokens=24)
LIKELY = st.floats(0, 1)


@pytest.mark.parametrize(
    ("likely", "continues"),
    [
        ((), True),
        ((0.5,), True),
        ((0.1,), False),
        ((0.5, 0.4), True),
        ((0.5, 0.2), False),
        ((0.9, 0.9, 0.2), True),
        ((0.9, 0.9, 0.1), False),
        ((1.0, 1.0, 1.0, 1.0), False),  # as many as there may be
    ],
)
def test_drafting_goes_on_while_all_are_likely_to_be_kept(likely: tuple[float, ...], continues: bool) -> None:
    assert POLICY.should_continue(likely) is continues


def test_a_round_is_learnt_from() -> None:
    after = POLICY.after((0.9, 0.6, 0.5), accepted=1, exact=1, added=2)
    # Judged were the first two: a doubt of .5, one refused. The round cost 1.3 steps.
    assert after.rejections == 1
    assert after.expected_rejections == pytest.approx(0.5)
    assert after.acceptance(0.6) == pytest.approx(1 - (2 + 1) / (2 + 0.5) * 0.4)
    assert after.rate == pytest.approx((5 * 1.5 + 2) / (5 + 1.3))
    later = after.after((0.8,), accepted=1, exact=1, added=2)
    assert later.rejections == pytest.approx(0.9)
    assert later.expected_rejections == pytest.approx(0.9 * 0.5 + 0.2)
    assert later.tokens == pytest.approx(0.9 * 2 + 2)
    assert later.steps == pytest.approx(0.9 * 1.3 + 1.1)


def test_what_more_a_token_brings_into_sight() -> None:
    """With a window of two, the third token is what lets the first be accepted loosely."""
    policy = replace(POLICY, calibration=0.5, defer=2)
    loose, exact = (lambda prob: 1 - 0.5 * (1 - prob)), (lambda prob: prob)
    assert policy.gain(()) == 1
    assert policy.gain((0.6,)) == pytest.approx(exact(0.6))
    one, two = 0.6, 0.8
    before = exact(one) + exact(one) * exact(two)
    after = loose(one) + loose(one) * exact(two) + loose(one) * exact(two)
    assert policy.gain((one, two)) == pytest.approx(after - before)
    before = loose(one) * (1 + exact(two) + exact(two) * exact(0.9))
    after = loose(one) * (1 + loose(two) + 2 * loose(two) * exact(0.9))
    assert policy.gain((one, two, 0.9)) == pytest.approx(after - before)


def test_tokens_that_nothing_follows_do_not_count_as_rejected_loosely() -> None:
    policy = replace(POLICY, defer=2)
    after = policy.after((0.9, 0.6, 0.5), accepted=1, exact=0, added=2)
    # Of three only the first can be accepted loosely, and was. The second is none of the target's own either.
    assert (after.rejections, after.mismatches) == (0, 2)
    assert after.expected_rejections == pytest.approx(0.1)
    assert after.expected_mismatches == pytest.approx(0.1 + 0.4)
    refused = policy.after((0.9, 0.6, 0.5), accepted=0, exact=0, added=1)
    assert (refused.rejections, refused.mismatches) == (1, 1)


@given(likely=st.lists(LIKELY, max_size=6), defer=st.integers(0, 4), ratio=LIKELY)
def test_gain_is_the_difference_of_two_proposals(likely: list[float], defer: int, ratio: float) -> None:
    policy = replace(POLICY, calibration=ratio, defer=defer)

    def expected(probs: Sequence[float]) -> float:
        """Accepted tokens of a whole proposal, on average."""
        total, all_accepted = 0.0, 1.0
        for at, prob in enumerate(probs):
            in_sight = at + defer < len(probs)
            all_accepted *= policy.acceptance(prob) if in_sight else policy.agreement(prob)
            total += all_accepted
        return total

    assert policy.gain(likely) == pytest.approx(expected([*likely, 1.0]) - expected(likely), abs=1e-9)
    assert policy.gain(likely) >= 0


def test_doubts_that_never_come_true_do_not_count_for_long() -> None:
    policy = replace(POLICY, most=8)
    for _ in range(30):
        policy = policy.after((0.6,) * 8, accepted=8, exact=8, added=9)
    assert policy.should_continue((0.6,) * 7)
    assert not replace(POLICY, most=8).should_continue((0.6,) * 7)


def test_a_draft_that_is_sure_and_wrong_drafts_less() -> None:
    def count(policy: AdaptiveLength) -> int:
        return next(length for length in range(17) if not policy.should_continue((0.9,) * length))

    policy = replace(POLICY, most=16)
    assert count(policy) == 16
    for _ in range(30):
        policy = policy.after((0.9,), accepted=0, exact=0, added=1)
    assert count(policy) < 6


@given(
    likely=st.lists(LIKELY, max_size=6),
    rounds=st.lists(st.tuples(st.lists(LIKELY, max_size=6), st.integers(0, 6)), max_size=5),
    draft=st.floats(0.001, 3),
    most=st.integers(1, 8),
    at=st.integers(0, 5),
    less=LIKELY,
)
def test_laws(
    likely: list[float],
    rounds: list[tuple[list[float], int]],
    draft: float,
    most: int,
    at: int,
    less: float,
) -> None:
    policy = AdaptiveLength(RoundCosts(draft=draft), most)
    for drafted, kept in rounds:
        kept = min(kept, len(drafted))
        policy = policy.after(drafted, kept, kept, kept + 1)
    assert not policy.should_continue([*likely, *[1.0] * most])
    if policy.should_continue(likely):
        # Whoever goes on went on before, and would with a draft that is cheaper or surer.
        assert all(policy.should_continue(likely[:count]) for count in range(len(likely)))
        assert replace(policy, costs=RoundCosts(draft=draft / 2)).should_continue(likely)
    elif likely:
        doubtful = [each * less if place == at else each for place, each in enumerate(likely)]
        assert not policy.should_continue(doubtful)


@pytest.mark.parametrize(
    ("wait", "likely", "left", "count"),
    [
        (0.0, (), 16, 1),  # a wait costs nothing
        (0.01, (), 16, 1),  # one token in a hundred is so doubtful that drafting ends: below .1
        (0.05, (), 16, 2),  # one in twenty: below .22
        (0.05, (0.5,), 16, 1),
        (1.0, (), 16, 4),  # .71 three times is .35
        (1.0, (), 3, 2),
        (4.0, (), 16, 16),
        (4.0, (), 7, 4),
        (4.0, (0.2,), 16, 2),
    ],
)
def test_how_many_are_drafted_before_the_host_looks_at_them(
    wait: float, likely: tuple[float, ...], left: int, count: int
) -> None:
    """At the rate of 1.5, drafting goes on above .15."""
    assert replace(POLICY, most=16, wait=wait).ahead(likely, left) == count


@pytest.mark.parametrize(("answers", "count"), [(1, 2), (2, 2), (4, 4), (8, 8), (16, 16)])
def test_beside_others_a_step_is_in_vain_only_if_it_is_for_all_of_them(answers: int, count: int) -> None:
    """A doubt of one in twenty: .22 of one answer, .47, .68, .83 and .91 of several."""
    assert replace(POLICY, most=16, wait=0.05).ahead((), 16, answers) == count


def test_tokens_that_are_drafted_in_any_case_are_not_waited_for() -> None:
    """Where three doubts in four are accepted, only the seventh token in a row may end drafting."""
    assert replace(POLICY, most=16, calibration=0.25).ahead((), 16) == 4
    assert [FixedLength(5).ahead([None] * had, left) for had, left in ((0, 9), (0, 3), (4, 9))] == [5, 3, 1]


@given(
    likely=st.lists(LIKELY, min_size=12, max_size=12),
    counts=st.lists(st.integers(1, 5), min_size=12, max_size=12),
    most=st.integers(1, 12),
    policy=st.builds(
        AdaptiveLength,
        st.builds(RoundCosts, draft=st.floats(0.001, 0.5)),
        st.integers(1, 12),
        calibration=LIKELY,
        defer=st.integers(0, 2),
        wait=st.floats(0, 3),
    )
    | st.builds(FixedLength, st.integers(1, 12)),
)
def test_drafting_ahead_drafts_what_it_would_token_by_token(
    likely: list[Any], counts: list[int], most: int, policy: DraftLengthPolicy[Any]
) -> None:
    """However many tokens are drafted at a time; and none in vain where all are likelier than is assumed."""
    wanted = list(likely[:1])
    while len(wanted) < most and policy.should_continue(wanted):
        wanted.append(likely[len(wanted)])
    for asked in (None, iter(counts)):
        observed, goes_on, ran = tuple[Any, ...](), True, 0
        while goes_on:
            count = policy.ahead(observed, most - len(observed)) if asked is None else next(asked)
            assert asked is not None or 1 <= count <= most - len(observed)
            ran = len(observed) + count
            observed, goes_on = taken(policy, observed, likely[len(observed) : ran], most)
        assert list(observed) == wanted
        if asked is None and is_sure(policy, likely):
            assert ran == len(wanted)


def is_sure(policy: DraftLengthPolicy[Any], likely: Sequence[float]) -> bool:
    """Whether no token is more doubtful than the policy assumes of those that it drafts ahead."""
    if not isinstance(policy, AdaptiveLength):
        return True
    return not policy.defer and min(likely) ** 2 >= policy.wait / (1 + policy.wait)


def world(seed: int, truth: float) -> Iterator[tuple[float, bool]]:
    """A draft's probability of each next token, and whether it is kept: ``truth`` of its doubt comes true."""
    dice = random.Random(seed)
    while True:
        likely = dice.betavariate(4, 1) if dice.random() < 0.8 else dice.betavariate(2, 3)
        yield likely, dice.random() > truth * (1 - likely)


def played(policy: AdaptiveLength, fixed: int | None, truth: float) -> float:
    """Tokens a step over answers of 100 tokens: by the policy, or with a fixed gamma."""
    tokens, steps = 0, 0.0
    for seed in range(30):
        states, now, said = world(seed, truth), policy, 0
        ahead: list[tuple[float, bool]] = []
        while said < 100:
            likely: list[float] = []
            while len(likely) < fixed if fixed else not likely or now.should_continue(likely):
                if len(ahead) == len(likely):
                    ahead.append(next(states))
                likely.append(ahead[len(likely)][0])
            kept = next((place for place in range(len(likely)) if not ahead[place][1]), len(likely))
            # The target's own token takes the place of the refused one, or of one that was not drafted.
            del ahead[: kept + 1]
            now, said, steps = (
                now.after(likely, kept, kept, kept + 1),
                said + kept + 1,
                steps + round_cost(len(likely), policy.costs),
            )
        tokens += said
    return tokens / steps


@pytest.mark.parametrize("truth", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("draft", [0.03, 0.08, 0.25])
def test_auto_is_no_slower_than_the_best_fixed_gamma(draft: float, truth: float) -> None:
    costs = RoundCosts(draft=draft, verification=1.2, row=0.03, overhead=0.1)
    policy = AdaptiveLength(costs, 16, EXACT_CALIBRATION if truth == 1 else LOOSE_CALIBRATION)
    best = max(played(policy, fixed, truth) for fixed in range(1, 17))
    assert played(policy, None, truth) >= 0.97 * best


def test_costs_where_none_are_known_are_those_of_reading_the_weights(pairs: dict[str, LoadedPair]) -> None:
    assert costs_of_sizes(target_bytes=400, draft_bytes=100).draft == 0.25
    assert non_weight_bytes("cpu", captured=False) == 0
    pair = pairs["qwen2_5_vl"]
    assert pair.draft is not None
    layers = pair.draft.model.model.language_model.layers
    assert len(layers) == 3
    family: Any = _FewerLayers(pair.draft.family, 1)
    halved = replace(pair.draft, family=family)
    policy = policy_for(DecodeSettings(), RuleSettings(), pair.target, halved)
    assert isinstance(policy, AdaptiveLength)
    assert policy.costs.draft == pytest.approx(1 / 3)
    loosely = [RuleSettings(defer=2), RuleSettings(defer=2, defer_sure=False), RuleSettings(defer=2)]
    loosely[2] = replace(loosely[2], anchor_margin=0.0, filler_margin=0.0, shift_window=0)
    policies = [policy_for(DecodeSettings(), rule, pair.target, pair.draft) for rule in loosely]
    assert [policy.defer for policy in policies if isinstance(policy, AdaptiveLength)] == [2, 0, 0]
    assert policy_for(DecodeSettings(gamma=3), RuleSettings(), pair.target, pair.draft) == FixedLength(3)


def test_a_draft_on_the_cpu_reads_slower_than_its_target_on_a_gpu(pairs: dict[str, LoadedPair]) -> None:
    pair = pairs["qwen2_5_vl"]
    assert pair.draft is not None
    on_gpu = [replace(loaded, device=torch.device("cuda")) for loaded in (pair.target, pair.draft)]
    layers = [len(loaded.family.layers(loaded.model)) for loaded in on_gpu]
    policies = [
        policy_for(DecodeSettings(), RuleSettings(), on_gpu[0], draft) for draft in (on_gpu[1], pair.draft)
    ]
    together, apart = (each.costs.draft for each in policies if isinstance(each, AdaptiveLength))
    # Launching is nearly all that so small layers take on the GPU, and reading all on the CPU.
    assert together == pytest.approx(layers[1] / layers[0], rel=0.01)
    parts = pair.draft.family.layers(pair.draft.model)
    read = sum(weight.nbytes for layer in parts for weight in layer.parameters())
    launched = layers[0] * non_weight_bytes("cuda", captured=False)
    assert apart == pytest.approx(READ_BY_A_GPU * read / launched, rel=0.01)


@pytest.mark.parametrize(
    ("target", "draft", "captured", "measured"),  # gigabytes and layers; on an H100
    [
        ((62.4, 64), (5.5, 36), True, 0.229),  # 32B with 3B
        ((62.4, 64), (13.1, 28), True, 0.300),  # with 7B
        ((62.4, 64), (1.5, 36), True, 0.206),  # with 3B in nf4
        ((13.1, 28), (5.5, 36), True, 0.764),  # 7B with 3B
        ((62.4, 64), (5.5, 36), False, 0.575),  # 32B with 3B, run anew
    ],
)
def test_a_draft_step_on_a_gpu_costs_about_what_was_measured(
    target: tuple[float, int], draft: tuple[float, int], captured: bool, measured: float
) -> None:
    one, other = (
        weights * 1e9 + layers * non_weight_bytes("cuda", captured=captured)
        for weights, layers in (target, draft)
    )
    assert costs_of_sizes(one, other).draft == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize(("weights", "predicted"), [(5.5, 0.134), (1.5, 0.061)])  # 3B in bf16 and in int4
def test_a_draft_step_in_few_kernels_costs_about_what_is_predicted(weights: float, predicted: float) -> None:
    layer = non_weight_bytes("cuda", captured=True, fused=True)
    draft = costs_of_sizes(62.4e9 + 64 * layer, weights * 1e9 + 36 * layer).draft
    assert draft == pytest.approx(predicted, rel=0.15)


def test_of_a_layers_experts_a_row_reads_its_own_alone(tmp_path: Path) -> None:
    """Each further row of a verification reads others: speculation gains little on such targets."""
    target, draft = (load_model(save_model(tmp_path / family, family), device="cpu", dtype="float32")
                     for family in ("qwen3_5_moe", "qwen3_5"))  # fmt: skip
    experts = 8 * 3 * 64 * 16 * 4 * 8  # experts, their matrices, layers, float32: of 8 layers all
    layers = target.family.layers(target.model)
    others = sum(weight.nbytes for weight in layers.parameters()) - experts
    step = others + experts / 4  # 2 of 8
    policy = policy_for(DecodeSettings(), RuleSettings(), target, draft)
    assert isinstance(policy, AdaptiveLength)
    drafted = sum(weight.nbytes for weight in draft.family.layers(draft.model).parameters())
    plain = RoundCosts(draft=drafted / step)
    assert policy.costs.draft == pytest.approx(plain.draft)
    assert policy.costs.row == pytest.approx(plain.row + experts / 4 / step)
    assert round_cost(0, policy.costs) == pytest.approx(round_cost(0, plain))


def test_what_the_host_waits_is_weighed_against_a_step_where_passes_are_captured(pair: LoadedPair) -> None:
    assert pair.draft is not None
    head = pair.draft.model.get_output_embeddings()
    parts = [*pair.draft.family.layers(pair.draft.model), head]
    weights = sum(weight.nbytes for part in parts for weight in part.parameters())
    for workspace, wait in ((None, 0.0), (Workspace(run_again), WAIT / weights / READ_BY_A_GPU)):
        draft = replace(pair.draft, workspace=workspace)
        for rule in (EXACT_RULE, RuleSettings()):
            policy = policy_for(AUTO, rule, pair.target, draft)
            assert isinstance(policy, AdaptiveLength)
            assert policy.wait == pytest.approx(wait)


class _FewerLayers:
    """A family whose models end after the first layers."""

    def __init__(self, family: Any, count: int) -> None:
        self._family, self._count = family, count

    def layers(self, model: Any) -> Sequence[Any]:
        return list(self._family.layers(model)[: self._count])

    def active_experts(self, config: Any) -> float:
        return float(self._family.active_experts(config))


@pytest.mark.parametrize("family", FAMILIES)
@given(
    seed=st.integers(0, 5),
    draft=st.sampled_from([0.01, 0.1, 0.5, 3.0]),
    most=st.integers(1, 12),
    penalty=st.sampled_from([1.0, 1.0, 1.3]),
    ends=st.sets(st.integers(0, 23), max_size=2),
    limit=st.integers(1, 24),
)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exact_mode_stays_exact(
    pairs: dict[str, LoadedPair],
    family: str,
    seed: int,
    draft: float,
    most: int,
    penalty: float,
    ends: set[int],
    limit: int,
) -> None:
    pair = with_generation(pairs[family], repetition_penalty=penalty)
    prompts = prompts_for(pair, seed=seed)
    free = generate(pair, prompts.target, max_new_tokens=24)
    pair = with_generation(
        pair, end_ids=(*pair.target.generation.end_ids, *(free[at] for at in ends if at < len(free)))
    )
    wanted = replace(
        AUTO, adaptation=Adaptation(most, RoundCosts(draft)), max_new_tokens=limit, repetition_guard=False
    )
    found, rounds = decode(pair, prompts, wanted)
    assert list(found.tokens) == generate(pair, prompts.target, max_new_tokens=limit)
    assert found.stats.gamma == max((len(done.drafted) for done in rounds), default=0) <= most


def own_draft(pair: LoadedPair) -> tuple[LoadedPair, PairPrompts]:
    """A target that is its own draft: everything is kept."""
    pair = with_generation(replace(pair, draft=pair.target), end_ids=())
    return pair, prompts_for(pair)


def test_rounds_grow_with_a_draft_that_is_always_right(pair: LoadedPair) -> None:
    pair, prompts = own_draft(pair)
    wanted = replace(AUTO, max_new_tokens=100, repetition_guard=False)
    _, rounds = decode(pair, prompts, wanted)
    lengths = [len(done.drafted) for done in rounds[1:-1]]
    assert lengths[-1] > lengths[0]
    assert len(set(lengths)) > 2
    dear = replace(wanted, adaptation=Adaptation(costs=RoundCosts(draft=1.0)))
    assert {len(done.drafted) for done in decode(pair, prompts, dear)[1][1:]} <= {0, 1}


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.LVSPEC])
def test_the_same_answer_has_the_same_rounds(pair: LoadedPair, mode: Mode) -> None:
    session, wanted = Session.of(pair), replace(AUTO, mode=mode)
    for question in ("What moves?", "colour", "What moves?"):
        prompts = prompts_for(pair, question)
        kept, kept_rounds = decode(pair, prompts, wanted, session)
        fresh, fresh_rounds = decode(pair, prompts, wanted)
        assert (kept.tokens, kept_rounds) == (fresh.tokens, fresh_rounds)


def test_sampling_drafts_as_it_goes_too(pair: LoadedPair) -> None:
    pair, prompts = own_draft(pair)
    wanted = replace(AUTO, temperature=1.0, max_new_tokens=40, repetition_guard=False)
    found, rounds = decode(pair, prompts, wanted)
    assert found.tokens == decode(pair, prompts, wanted)[0].tokens
    assert found.stats.acceptance_rate == pytest.approx(1.0)
    assert len({len(done.drafted) for done in rounds[1:-1]}) > 1


def test_each_drafted_token_takes_one_transfer_to_the_host(pair: LoadedPair) -> None:
    pair, prompts = own_draft(pair)
    steps = Session.of(pair).answer(prompts, AUTO)
    next(steps)
    for _ in range(2):
        with Transfers() as transfers:
            done = next(steps)
        assert transfers.count == len(done.drafted) + 1


@dataclass(frozen=True)
class OnDevice:
    """A policy that learns on the device: what it observes are tensors, and the host never waits for them."""

    certainty: Tensor
    length: int = 2

    @staticmethod
    def measure(logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1).amax(dim=-1)

    def observe(self, measured: Tensor) -> Sequence[Tensor]:
        return measured.unbind()

    def ahead(self, observed: Sequence[Tensor], left: int, answers: int = 1) -> int:
        return min(left, self.length - len(observed))

    def should_continue(self, observed: Sequence[Tensor]) -> bool:
        return len(observed) < self.length

    def after(self, observed: Sequence[Tensor], accepted: int, exact: int, added: int) -> OnDevice:
        return OnDevice(0.9 * self.certainty + 0.1 * torch.stack(list(observed)).mean(), self.length + 1)


def test_a_policy_on_the_device_takes_one_transfer_a_round(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, prompts = own_draft(pair)
    monkeypatch.setattr(
        "lvspec_cli.speculation.answer.policy_for", lambda *_: OnDevice(torch.zeros((), device="cpu"))
    )
    steps = Session.of(pair).answer(prompts, AUTO)
    next(steps)
    for length in (2, 3, 4):
        with Transfers() as transfers:
            done = next(steps)
        assert len(done.drafted) == length
        assert transfers.count == 1
