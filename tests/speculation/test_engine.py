"""The session and its answers: questions, ends, counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lvspec_cli.errors import NotFiniteError, UsageError
from lvspec_cli.models import decoder
from lvspec_cli.models.decoder import Decoder, kept_positions
from lvspec_cli.models.families.base import VideoFeatures
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.probe import attention_by_video_token
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.output.records import stats_fields
from lvspec_cli.request import check_draft_view
from lvspec_cli.speculation.engine import Session, SharedMemory, is_to_the_letter
from lvspec_cli.types import (
    DecodeSettings,
    FinishReason,
    Gamma,
    KeepBy,
    Mode,
    RelevanceName,
    RuleSettings,
    TokenKind,
)
from tests.speculation.conftest import decode, generate, prompts_for, with_generation
from tests.tiny_models import FAMILIES, make_clip, save_pair, spoil_weights

WANTED = DecodeSettings(gamma=4, max_new_tokens=24)


@pytest.mark.parametrize("mode", Mode)
def test_questions_in_one_session_are_answered_as_in_fresh_ones(pair: LoadedPair, mode: Mode) -> None:
    session = Session.of(pair)
    for question in ("What moves?", "how many balls are there in the clip", "What moves?", "colour"):
        prompts = prompts_for(pair, question)
        # Each answer longer than the one before: the caches grow while they are kept.
        wanted = replace(WANTED, mode=mode, max_new_tokens=10 + len(question))
        kept, _ = decode(pair, prompts, wanted, session)
        fresh, _ = decode(pair, prompts, wanted)
        assert (kept.tokens, kept.kinds) == (fresh.tokens, fresh.kinds)


def test_the_video_is_encoded_once(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    original = type(pair.target.family).video_features

    def counted(*arguments: Any) -> VideoFeatures:
        nonlocal count
        count += 1
        return original(*arguments)

    monkeypatch.setattr(type(pair.target.family), "video_features", counted)
    session = Session.of(pair)
    session.encode(prompts_for(pair))
    for question in ("What moves?", "colour"):
        decode(pair, prompts_for(pair, question), WANTED, session)
    assert count == 2  # target and draft
    similarity = replace(WANTED, rule=RuleSettings(relevance=RelevanceName.SIMILARITY))
    decode(pair, prompts_for(pair), similarity, session)
    decode(pair, prompts_for(pair), similarity, session)
    assert count == 3  # by the target once more: what similarity reads had not been kept
    other = replace(WANTED, rule=RuleSettings(relevance=RelevanceName.SIMILARITY, layers=(0,)))
    for wanted in (other, similarity, other):
        decode(pair, prompts_for(pair), wanted, session)
    assert count == 4  # for another layer, beside which the earlier ones are kept


def test_the_last_question_is_run_with_the_video(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def counted(decoder: Decoder, embeddings: Tensor, *more: Any) -> Any:
        rows.append(embeddings.shape[1])
        return run(decoder, embeddings, *more)

    run = Decoder._run
    monkeypatch.setattr(Decoder, "_run", counted)
    prompts = prompts_for(pair)
    assert prompts.draft is not None
    begun, whole = prompts.target.prefix_length, prompts.target.length
    assert prompts.draft.length == whole
    for wanted in (WANTED, replace(WANTED, draft_keep=0.3, draft_keep_by=KeepBy.ATTENTION)):
        answers = {}
        for is_last in (False, True):
            rows.clear()
            steps = Session.of(pair).answer(prompts, wanted, is_last=is_last)
            next(steps)
            if (
                wanted.draft_is_guided
            ):  # the draft's is, as it is encoded for each question, the target's never
                assert rows[:2] == [begun, whole - begun]
                assert len(rows) == 3
            else:
                assert rows == ([whole] * 2 if is_last else [begun, begun, whole - begun, whole - begun])
            answers[is_last] = steps.run()
        assert answers[True].tokens == answers[False].tokens


def test_the_draft_reads_as_much_of_the_video_as_each_answer_wants(pair: LoadedPair) -> None:
    session, prompts, rows = Session.of(pair), prompts_for(pair), []
    assert session.draft is not None
    for keep in (1.0, 0.3, 0.3, 1.0):
        session.encode(prompts, replace(WANTED, draft_keep=keep, draft_keep_by=KeepBy.EVEN))
        rows.append(session.draft.cache.length)
    assert rows[0] == rows[3] > rows[1] == rows[2]


def test_a_draft_that_is_shown_less_leaves_exact_what_it_is(pair: LoadedPair) -> None:
    session, clip = Session.of(pair), make_clip(8)
    assert session.draft is not None
    exact = replace(WANTED, mode=Mode.EXACT)
    expected, lengths = None, []
    for frames in (None, 2, 4, 4, None):
        wanted = replace(exact, draft_frames=frames, draft_keep=0.5, draft_keep_by=KeepBy.EVEN)
        prompts = build_prompts(pair, clip, "What moves?", draft_view=wanted.draft_view)
        found, _ = decode(pair, prompts, wanted, session)
        expected = expected or found.tokens
        assert found.tokens == expected
        lengths.append(session.draft._prefix_length)
    assert lengths[0] == lengths[4] > lengths[2] == lengths[3] > lengths[1]


@pytest.mark.parametrize(
    ("values", "mtp", "says"),
    [
        ({"draft_keep": 0.5}, True, "--draft mtp reads"),
        ({"draft_frames": 2}, True, "--draft mtp reads"),
        ({"draft_keep": 0.5, "draft_pixels": 999}, False, "--draft-keep goes by the target's attention"),
        ({"draft_keep": 0.5, "draft_pixels": 999, "draft_keep_by": KeepBy.EVEN}, False, None),
        ({"draft_frames": 2, "mode": Mode.AR}, True, None),
        ({"draft_frames": 2}, False, None),
    ],
    ids=str,
)
def test_what_a_draft_sees_of_a_video_may_exclude_each_other(
    values: dict[str, Any], mtp: bool, says: str | None
) -> None:
    with pytest.raises(UsageError, match=says) if says else nullcontext():
        check_draft_view(replace(WANTED, **values), mtp=mtp)


def test_a_guided_draft_reads_the_video_anew_for_each_question(pair: LoadedPair) -> None:
    session = Session.of(pair)
    assert session.draft is not None
    guided = replace(WANTED, draft_keep=0.3, draft_keep_by=KeepBy.ATTENTION)
    for wanted in (guided, WANTED, guided, WANTED, replace(guided, draft_keep_by=KeepBy.EVEN), guided):
        for question in ("What moves?", "colour"):
            prompts, fresh = prompts_for(pair, question), Session.of(pair)
            found, expected = (decode(pair, prompts, wanted, each)[0] for each in (session, fresh))
            assert found.tokens == expected.tokens
            assert found.stats.drafted == expected.stats.drafted
            assert fresh.draft is not None
            assert session.draft._prefix_length == fresh.draft._prefix_length


def test_a_guided_draft_sees_what_the_target_looks_at(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor | None] = []

    def told(video: Tensor, keep: float, scores: Tensor | None = None) -> Tensor:
        given.append(scores)
        return kept_positions(video, keep, scores)

    prompts, target = prompts_for(pair), Decoder(pair.target)
    with torch.inference_mode():
        target.encode(prompts.target)
        asked = target.begin(prompts.target, 8, range(target.layer_count))
        looks = attention_by_video_token(target, asked)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "kept_positions", told)
        decode(pair, prompts, replace(WANTED, draft_keep=0.3, draft_keep_by=KeepBy.ATTENTION))
    (scores,) = given
    assert scores is not None
    assert torch.allclose(scores, looks)


def test_mode_ar_leaves_the_draft_alone(pair: LoadedPair) -> None:
    session, prompts = Session.of(pair), prompts_for(pair)
    assert session.draft is not None
    ar = replace(WANTED, mode=Mode.AR)
    session.encode(prompts, ar)
    decode(pair, prompts, ar, session)
    assert session.draft.cache.length == 0
    exact = replace(WANTED, mode=Mode.EXACT)
    assert decode(pair, prompts, exact, session)[0].tokens == decode(pair, prompts, exact)[0].tokens


def test_another_clip_in_the_same_session_is_encoded_anew(pair: LoadedPair) -> None:
    session = Session.of(pair)
    long, short = (build_prompts(pair, make_clip(frames), "What moves?") for frames in (8, 4))
    for prompts in (long, short, long):
        assert decode(pair, prompts, WANTED, session)[0].tokens == decode(pair, prompts, WANTED)[0].tokens


def test_an_abandoned_answer_leaves_nothing_behind(pair: LoadedPair) -> None:
    session, prompts = Session.of(pair), prompts_for(pair)
    steps = session.answer(prompts, WANTED)
    list(itertools.islice(steps, 3))
    del steps
    assert decode(pair, prompts, WANTED, session)[0].tokens == decode(pair, prompts, WANTED)[0].tokens


def test_no_state_is_left_on_the_model(pairs: dict[str, LoadedPair]) -> None:
    pair = pairs["qwen2_5_vl"]
    inner = pair.target.model.model
    prompts = prompts_for(pair)
    before = generate(pair, prompts.target, model=pair.target.model, max_new_tokens=12)
    inner.rope_deltas = None
    wanted = replace(WANTED, mode=Mode.EXACT, max_new_tokens=12)
    assert list(decode(pair, prompts, wanted)[0].tokens) == before
    assert inner.rope_deltas is None
    inner.rope_deltas = torch.tensor([[-1000]])  # as another request would have left it
    assert list(decode(pair, prompts, wanted)[0].tokens) == before
    inner.rope_deltas = None


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_an_answer_is_never_longer_than_asked(pair: LoadedPair, mode: Mode, limit: int) -> None:
    found, rounds = decode(
        pair, prompts_for(pair), replace(WANTED, mode=mode, max_new_tokens=limit, gamma=12)
    )
    assert len(found.tokens) == limit == sum(len(done.tokens) for done in rounds)
    assert found.finish_reason is FinishReason.LENGTH
    assert all(len(done.drafted) < limit for done in rounds)


@pytest.mark.parametrize("mode", Mode)
def test_the_end_token_is_the_last(pair: LoadedPair, mode: Mode) -> None:
    ends = frozenset(range(0, pair.target.vocabulary, 9))
    stopping = with_generation(pair, end_ids=tuple(ends))
    stops = set()
    for seed in range(4):
        found, _ = decode(stopping, prompts_for(pair, seed=seed), replace(WANTED, mode=mode, gamma=6))
        stops.add(found.finish_reason)
        assert not set(found.tokens[:-1]) & ends
        assert (found.tokens[-1] in ends) == (found.finish_reason is FinishReason.STOP)
        assert found.kinds[-1] in (TokenKind.EXACT, TokenKind.TARGET)
    assert FinishReason.STOP in stops


def polls(count: int) -> Callable[[], bool]:
    """False so many times, then true."""
    answers = itertools.chain([False] * count, itertools.repeat(True))
    return lambda: next(answers)


def test_an_interruption_keeps_what_there_is(pair: LoadedPair) -> None:
    prompts, wanted = prompts_for(pair), replace(WANTED, mode=Mode.EXACT)
    whole, rounds = decode(pair, prompts, wanted)
    for count in (0, 3):
        found, seen = decode(pair, prompts, wanted, interrupted=polls(count))
        assert found.finish_reason is FinishReason.INTERRUPTED
        assert seen == rounds[: count + 1]
        assert found.tokens == whole.tokens[: len(found.tokens)]
        assert found.stats.rounds == count


def test_a_generation_is_there_when_its_rounds_are_over(pair: LoadedPair) -> None:
    rounds = Session.of(pair).answer(prompts_for(pair), WANTED)
    first = next(rounds)
    with pytest.raises(RuntimeError, match="not over"):
        _ = rounds.generation
    tokens = [token for done in (first, *rounds) for token in done.tokens]
    assert rounds.generation.tokens == tuple(tokens)
    assert list(rounds) == []
    assert rounds.run() == rounds.generation


def test_an_answer_that_failed_does_not_go_on(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Session.of(pair).answer(prompts_for(pair), WANTED)
    next(rounds)
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "forward", None)
        with pytest.raises(TypeError):
            next(rounds)
    assert list(rounds) == []
    with pytest.raises(RuntimeError, match="not over"):
        _ = rounds.generation


def test_an_answer_in_circles_is_ended(pair: LoadedPair) -> None:
    allowed = set(generate(pair, prompts_for(pair).target, max_new_tokens=3)[:1])
    others = tuple(index for index in range(pair.target.vocabulary) if index not in allowed)
    stuck = with_generation(pair, suppressed=others)
    wanted = replace(WANTED, max_new_tokens=100)
    ends = []
    for mode in Mode:
        found, rounds = decode(stuck, prompts_for(pair), replace(wanted, mode=mode))
        assert found.finish_reason is FinishReason.REPETITION
        assert found.tokens == tuple(token for done in rounds for token in done.tokens)
        ends.append(found.tokens)
    assert ends[0] == ends[1] == ends[2]
    free, _ = decode(stuck, prompts_for(pair), replace(wanted, repetition_guard=False))
    assert free.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("mode", Mode)
def test_statistics_add_up(pair: LoadedPair, mode: Mode) -> None:
    rule = RuleSettings(relevance=RelevanceName.PLAUSIBLE, filler_margin=3.0)
    found, rounds = decode(pair, prompts_for(pair), replace(WANTED, mode=mode, rule=rule))
    stats = found.stats
    assert rounds[0].prefill
    assert not any(done.prefill for done in rounds[1:])
    assert stats.output_tokens == len(found.tokens) == len(found.kinds)
    assert stats.rounds == len(rounds) - 1
    assert stats.drafted == sum(len(done.drafted) for done in rounds)
    counted = [found.kinds.count(kind) for kind in (TokenKind.EXACT, TokenKind.FILLER, TokenKind.SHIFT)]
    assert counted == [stats.accepted_exact, stats.accepted_filler, stats.accepted_shift]
    assert stats.mean_accepted_length == pytest.approx((len(found.tokens) - 1) / stats.rounds)
    assert stats.prefill_seconds > 0 < stats.decode_seconds
    assert stats.gamma == (0 if mode is Mode.AR else WANTED.gamma)
    said = list(itertools.accumulate(len(done.tokens) for done in rounds))
    for before, done in zip(said, rounds[1:], strict=False):
        room = WANTED.max_new_tokens - before - 1  # the target adds one of its own
        assert len(done.drafted) == (0 if mode is Mode.AR else min(WANTED.gamma, room))


def test_time_spent_by_the_caller_does_not_count(pair: LoadedPair) -> None:
    import time

    steps = Session.of(pair).answer(prompts_for(pair), replace(WANTED, max_new_tokens=3, mode=Mode.AR))
    next(steps)
    time.sleep(0.5)
    next(steps)
    time.sleep(0.5)
    assert steps.run().stats.decode_seconds < 0.5


class Transfers(TorchFunctionMode):
    """Counts what makes the host wait for the device."""

    names = frozenset({"tolist", "item", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.names
        return func(*args, **(kwargs or {}))


@pytest.mark.sampled
@pytest.mark.parametrize("name", RelevanceName)
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_one_transfer_to_the_host_a_round(pair: LoadedPair, name: RelevanceName, penalty: float) -> None:
    pair = with_generation(pair, repetition_penalty=penalty, end_ids=())
    rule = RuleSettings(relevance=name)
    steps = Session.of(pair).answer(prompts_for(pair), replace(WANTED, rule=rule))
    next(steps)
    for _ in range(4):
        with Transfers() as transfers:
            next(steps)
        assert transfers.count == 1


def test_sampling_too_has_one_transfer_a_round(pair: LoadedPair) -> None:
    pair = with_generation(pair, end_ids=())
    steps = Session.of(pair).answer(prompts_for(pair), replace(WANTED, mode=Mode.EXACT, temperature=1.0))
    next(steps)
    for _ in range(4):
        with Transfers() as transfers:
            next(steps)
        assert transfers.count == 1


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, LoadedPair]) -> LoadedPair:
    """The model whose weights are NaN is this pair's target; its draft is sound."""
    target, _ = save_pair(tmp_path_factory.mktemp("spoilt"), "qwen2_5_vl")
    spoil_weights(target)
    return replace(pairs["qwen2_5_vl"], target=load_pair(target, None, device="cpu", dtype="float32").target)


WAYS = [
    replace(WANTED, mode=Mode.LVSPEC),
    replace(WANTED, mode=Mode.EXACT),
    replace(WANTED, mode=Mode.AR),
    replace(WANTED, mode=Mode.EXACT, temperature=1.0),
]


@pytest.mark.parametrize("wanted", WAYS, ids=lambda wanted: f"{wanted.mode} {wanted.temperature}")
def test_a_target_whose_numbers_are_nan_gives_no_answer(spoilt: LoadedPair, wanted: DecodeSettings) -> None:
    with pytest.raises(NotFiniteError, match=r"the target's numbers are not finite \(NaN\)") as caught:
        next(Session.of(spoilt).answer(prompts_for(spoilt), wanted))  # the token that prefill gives
    assert "--dtype float32" in caught.value.remedy


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("wanted", WAYS, ids=lambda wanted: f"{wanted.mode} {wanted.temperature}")
def test_numbers_that_overflow_later_end_the_answer_there(
    pair: LoadedPair, wanted: DecodeSettings, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As float16 does on the way: one token's logit is enough."""
    pair = with_generation(pair, end_ids=())
    session, logits = Session.of(pair), Decoder.logits

    def overflowing(decoder: Decoder, *arguments: Any) -> Tensor:
        found = logits(decoder, *arguments)
        if decoder is session.target and decoder.answered > 2:
            found = found.clone()
            found[0, 3] = bad
        return found

    monkeypatch.setattr(Decoder, "logits", overflowing)
    steps = session.answer(prompts_for(pair), replace(wanted, gamma=1))
    assert next(steps).tokens
    with pytest.raises(NotFiniteError):
        list(steps)


@pytest.mark.parametrize("gamma", [4, "auto"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_whose_numbers_are_nan_costs_speed_only(
    spoilt: LoadedPair, pairs: dict[str, LoadedPair], temperature: float, gamma: Any
) -> None:
    sound = pairs["qwen2_5_vl"]
    pair = replace(sound, draft=spoilt.target)
    wanted = replace(WANTED, mode=Mode.EXACT, temperature=temperature, gamma=gamma)
    found, _ = decode(pair, prompts_for(pair), wanted)
    assert len(found.tokens) > 1
    if not temperature:
        alone, _ = decode(sound, prompts_for(sound), replace(wanted, mode=Mode.AR))
        assert found.tokens == alone.tokens


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"gamma": 0},
        {"temperature": -1.0},
        {"temperature": 0.7},
        {"rule": RuleSettings(layers=(9,))},
    ],
    ids=str,
)
def test_settings_that_cannot_be(pair: LoadedPair, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        decode(pair, prompts_for(pair), replace(WANTED, **values))


def test_without_a_draft_only_ar(pair: LoadedPair) -> None:
    alone = replace(pair, draft=None)
    with pytest.raises(UsageError, match="draft"):
        decode(alone, prompts_for(alone), WANTED)


@pytest.fixture(scope="module")
def half_pairs(pair_folders: dict[str, tuple[Path, Path]]) -> dict[str, LoadedPair]:
    return {
        name: load_pair(*folders, device="cpu", dtype="bfloat16") for name, folders in pair_folders.items()
    }


@pytest.mark.sampled
@pytest.mark.parametrize("name", RelevanceName)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_decodes_by_every_relevance(
    half_pairs: dict[str, LoadedPair], family: str, name: RelevanceName
) -> None:
    pair = with_generation(half_pairs[family], end_ids=())
    rule = RuleSettings(relevance=name, filler_margin=3.0)
    found, rounds = decode(pair, prompts_for(pair), replace(WANTED, rule=rule))
    assert len(found.tokens) == WANTED.max_new_tokens
    scores = [score for done in rounds for score in done.relevance]
    assert all(0 <= score <= 1 for score in scores)
    assert bool(scores) == (name not in (RelevanceName.PLAUSIBLE, RelevanceName.NONE))


def test_what_loose_tokens_give_up_is_told(pair: LoadedPair) -> None:
    rule = RuleSettings(
        relevance=RelevanceName.PLAUSIBLE,
        filler_margin=math.inf,
        sentence_margin=math.inf,
        never_loosely=False,
    )
    wanted = replace(WANTED, mode=Mode.LVSPEC, gamma=4, rule=rule, repetition_guard=False)
    found, rounds = decode(with_generation(pair, end_ids=()), prompts_for(pair), wanted)
    for done in rounds:
        loose = (TokenKind.FILLER, TokenKind.SHIFT)
        gaps = [gap for gap, kind in zip(done.gap, done.kinds, strict=False) if kind in loose]
        assert done.loss == pytest.approx(sum(gaps))
    total = sum(done.loss for done in rounds)
    assert total > 0
    assert found.stats.loss == pytest.approx(total)
    assert found.stats.loss_per_token == pytest.approx(total / len(found.tokens))
    assert stats_fields(found.stats, 0.0).loss_per_token == found.stats.loss_per_token


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("mode", "gamma", "exact_rows", "same_prefill", "promised"),
    [
        (Mode.LVSPEC, 4, None, True, False),
        (Mode.EXACT, 64, None, False, True),
        (Mode.EXACT, 32, 33, True, True),
        (Mode.EXACT, 33, 33, True, False),
        (Mode.EXACT, "auto", 33, True, True),
        (Mode.EXACT, "auto", 16, True, False),
        (Mode.EXACT, 4, 33, False, False),
        (Mode.EXACT, 1, 0, True, False),
        (Mode.AR, 64, 33, True, True),
        (Mode.AR, 1, 0, True, False),
    ],
)
def test_what_is_promised_of_an_answer(
    mode: Mode, gamma: Gamma, exact_rows: int | None, same_prefill: bool, promised: bool
) -> None:
    wanted = DecodeSettings(mode=mode, gamma=gamma)
    assert is_to_the_letter(wanted, exact_rows, same_prefill=same_prefill) == promised


def test_what_is_sampled_with_a_draft_is_not_the_targets_to_the_letter() -> None:
    sampled = DecodeSettings(mode=Mode.EXACT, temperature=0.7)
    assert not is_to_the_letter(sampled, None, same_prefill=True)
    assert is_to_the_letter(replace(sampled, mode=Mode.AR), None, same_prefill=True)


def test_a_session_is_copied_into_a_slot_that_was_free(pair: LoadedPair) -> None:
    shared, prompts = SharedMemory(2), prompts_for(pair)
    session, other = Session.of(pair, shared), Session.of(pair, shared)
    del other
    session.encode(prompts)
    copied, wanted = session.copied(), replace(WANTED, mode=Mode.EXACT)
    assert copied.answer(prompts, wanted).run().tokens == decode(pair, prompts, wanted)[0].tokens


def test_other_passes_over_the_prompt_are_no_promise_in_lower_precision(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, exact = Session.of(pair), DecodeSettings(mode=Mode.EXACT)
    guided = replace(exact, draft_keep=0.5)
    assert session.is_to_the_letter(guided), "in float32 it is"
    monkeypatch.setattr(Decoder, "exact_rows", 33)
    assert session.is_to_the_letter(exact)
    assert not session.is_to_the_letter(exact, is_audited=True)
    assert not session.is_to_the_letter(guided)
    assert session.is_to_the_letter(replace(guided, mode=Mode.AR))
    monkeypatch.setattr(Decoder, "reads_target", True)
    assert not session.is_to_the_letter(exact)
