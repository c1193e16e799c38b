"""Relevance against the stock model's own attention weights and hidden states."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from math import isfinite
from typing import Any

import pytest
import torch
from torch import Tensor

from lvspec_cli.models.load import LoadedPair
from lvspec_cli.types import DecodeSettings, PairPrompts, RelevanceName, Round, RuleSettings
from tests.conformance.conftest import Subject
from tests.speculation.conftest import decode, scratch, stock_model

# Nothing is accepted that is not the target's own, yet everything is scored.
CLOSED = RuleSettings(anchor_threshold=0.0, anchor_margin=1e-9, filler_margin=0.0, shift_window=0)


def rounds_of(pair: LoadedPair, prompts: PairPrompts, rule: RuleSettings) -> list[Round]:
    return decode(pair, prompts, DecodeSettings(gamma=5, max_new_tokens=18, rule=rule))[1]


def longest(rounds: list[Round]) -> int:
    """The last of the rounds that drafted most."""
    return max(range(len(rounds)), key=lambda at: (len(rounds[at].drafted), at))


def run_before(rounds: list[Round], at: int) -> list[int]:
    """The answer before round ``at``, and its drafted tokens."""
    return [token for done in rounds[:at] for token in done.tokens] + list(rounds[at].drafted)


@pytest.mark.parametrize("which", [(-1,), (0, -1)], ids=str)
def test_attention_is_the_models_own(subject: Subject, which: tuple[int, ...]) -> None:
    """``which``: of the layers that attend, of which alone the stock model shows attention."""
    layers = tuple(subject.attention_layers[index] for index in which)
    prompts = subject.prompts("wide")
    video = prompts.target.video_mask
    rounds = rounds_of(subject.pair, prompts, replace(CLOSED, layers=layers))
    eager = stock_model(subject.pair.target.name, "eager")
    for at in (1, longest(rounds)):
        tokens = run_before(rounds, at)
        outputs = scratch(subject.pair.target, prompts.target, tokens, eager, output_attentions=True)
        rows = slice(-len(rounds[at].drafted) - 1, -1)
        shares = [
            outputs.attentions[index][0, :, rows, : len(video)][..., video].sum(-1).mean(0) for index in which
        ]
        expected = torch.stack(shares).mean(0)
        assert rounds[at].relevance == pytest.approx(expected.tolist(), abs=1e-4)
        assert expected.max() - expected.min() > 0.01


def states_of(subject: Subject, prompts: PairPrompts, tokens: list[int]) -> list[Tensor]:
    """The stock model's states (rows, width) behind every layer; the last one's normalised."""
    loaded, states = subject.pair.target, []

    def note(_: Any, arguments: tuple[Tensor, ...]) -> None:
        states.append(arguments[0][0])

    model = stock_model(loaded.name)
    with ExitStack() as hooks:
        for layer in loaded.family.layers(model)[1:]:
            hooks.callback(layer.register_forward_pre_hook(note).remove)
        norm = loaded.family.language(model).norm
        hooks.callback(norm.register_forward_hook(lambda *found: states.append(found[-1][0])).remove)
        scratch(loaded, prompts.target, tokens)
    return states


@pytest.mark.parametrize("layers", [(-1,), (0, 1)], ids=str)
@pytest.mark.parametrize("name", [RelevanceName.SIMILARITY, RelevanceName.LENS, RelevanceName.PAPER])
def test_similarity_lens_and_paper_read_the_videos_states(
    subject: Subject, name: RelevanceName, layers: tuple[int, ...]
) -> None:
    prompts = subject.prompts("wide")
    rounds = rounds_of(subject.pair, prompts, replace(CLOSED, relevance=name, layers=layers))
    at = longest(rounds)
    drafted = list(rounds[at].drafted)
    states, model = states_of(subject, prompts, run_before(rounds, at)), subject.pair.target.model
    scores = []
    for layer in layers:
        video = states[layer][: prompts.target.length][prompts.target.video_mask]
        if name is not RelevanceName.LENS:
            rows = torch.nn.functional.normalize(states[layer][-len(drafted) - 1 : -1], dim=-1)
            cosines = rows @ torch.nn.functional.normalize(video, dim=-1).T
            nearest = cosines.sort(dim=1, descending=True).values[
                :, : 1 if name is RelevanceName.SIMILARITY else 10
            ]
            scores.append(nearest.mean(1))
        else:
            with torch.inference_mode():
                read = video if layer == -1 else subject.pair.target.family.norm(model, video)
                scores.append(model.lm_head(read).softmax(-1).amax(0)[drafted])
    expected = torch.stack(scores).mean(0).clamp(0, 1).tolist()
    if name is not RelevanceName.PAPER:
        assert rounds[at].relevance == pytest.approx(expected, abs=1e-4)
        return
    for score, similarity in zip(rounds[at].relevance, expected, strict=True):
        lower = [sum(other < similarity + by for other in expected) / len(expected) for by in (-1e-4, 1e-4)]
        assert lower[0] - 1e-6 <= score <= lower[1] + 1e-6


@pytest.mark.parametrize("name", RelevanceName)
def test_every_scheme_scores_every_drafted_token(subject: Subject, name: RelevanceName) -> None:
    rule = RuleSettings(relevance=name)
    for done in rounds_of(subject.pair, subject.prompts("tall-and-odd"), rule):
        scored = () if name in (RelevanceName.PLAUSIBLE, RelevanceName.NONE) else done.drafted
        assert len(done.relevance) == len(scored)
        assert all(isfinite(score) and 0 <= score <= 1 for score in done.relevance)
