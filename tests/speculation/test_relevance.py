"""Relevance against the models' own attention weights and hidden states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lvspec_cli.errors import UsageError
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.relevance import layers_of
from lvspec_cli.types import DecodeSettings, PairPrompts, RelevanceName, Round, RuleSettings
from tests.speculation.conftest import decode, prompts_for
from tests.tiny_models import FAMILIES

GAMMA = 5
CLOSED = RuleSettings(anchor_threshold=0.0, anchor_margin=1e-9, filler_margin=0.0, shift_window=0)


def rounds_of(pair: LoadedPair, prompts: PairPrompts, rule: RuleSettings) -> list[Round]:
    return decode(pair, prompts, DecodeSettings(gamma=GAMMA, max_new_tokens=40, rule=rule))[1]


@torch.inference_mode()
def own_outputs(folder: Path, pair: LoadedPair, prompts: PairPrompts, rounds: list[Round], at: int):
    """The eager model over prompt, answer before round ``at``, and its drafted tokens."""
    prompt, family = prompts.target, pair.target.family
    tokens = [token for done in rounds[:at] for token in done.tokens] + list(rounds[at].drafted)
    positions = family.answer_positions(prompt.next_position, len(tokens), torch.device("cpu"))
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    return model(
        input_ids=torch.cat((prompt.input_ids, torch.tensor([tokens])), dim=1),
        position_ids=torch.cat((prompt.position_ids, positions), dim=-1),
        output_attentions=True,
        output_hidden_states=True,
        use_cache=False,
        **prompt.video_inputs,
    )


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("layers", [(-1,), (0,), (0, 2)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_the_models_own(
    pairs: dict[str, LoadedPair],
    pair_folders: dict[str, tuple[Path, Path]],
    family: str,
    layers: tuple[int, ...],
    at: int,
) -> None:
    pair, prompts = pairs[family], prompts_for(pairs[family])
    rounds = rounds_of(pair, prompts, replace(CLOSED, layers=layers))
    outputs = own_outputs(pair_folders[family][0], pair, prompts, rounds, at)
    gamma = len(rounds[at].drafted)
    video = prompts.target.video_mask
    shares = [
        outputs.attentions[layer][0, :, -gamma - 1 : -1, : len(video)][..., video].sum(-1).amax(0)
        for layer in layers
    ]
    expected = torch.stack(shares).mean(0)
    assert rounds[at].relevance == pytest.approx(expected.tolist(), abs=1e-4)
    assert expected.max() - expected.min() > 0.01


@pytest.mark.parametrize("layers", [(-1,), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize("name", [RelevanceName.SIMILARITY, RelevanceName.LENS])
@pytest.mark.parametrize("family", FAMILIES)
def test_similarity_and_lens_read_the_videos_states(
    pairs: dict[str, LoadedPair],
    pair_folders: dict[str, tuple[Path, Path]],
    family: str,
    name: RelevanceName,
    layers: tuple[int, ...],
) -> None:
    pair, prompts = pairs[family], prompts_for(pairs[family])
    rounds = rounds_of(pair, prompts, replace(CLOSED, relevance=name, layers=layers))
    outputs = own_outputs(pair_folders[family][0], pair, prompts, rounds, 3)
    model, gamma = pair.target.model, len(rounds[3].drafted)
    scores = []
    for layer in layers:
        # transformers' last hidden state is normalised, the others are not.
        states = outputs.hidden_states[layer + 1 if layer >= 0 else layer][0]
        video = states[: prompts.target.length][prompts.target.video_mask]
        if name is RelevanceName.SIMILARITY:
            rows = torch.nn.functional.normalize(states[-gamma - 1 : -1], dim=-1)
            scores.append((rows @ torch.nn.functional.normalize(video, dim=-1).T).amax(1).clamp(0, 1))
        else:
            with torch.inference_mode():
                read = video if layer == -1 else model.model.language_model.norm(video)
                chances = model.lm_head(read).softmax(-1).amax(0)
            scores.append(chances[list(rounds[3].drafted)])
    assert rounds[3].relevance == pytest.approx(torch.stack(scores).mean(0).tolist(), abs=1e-4)


def test_lexicon_knows_function_words(pair: LoadedPair) -> None:
    prompts = prompts_for(pair)
    rounds = rounds_of(pair, prompts, replace(CLOSED, relevance=RelevanceName.LEXICON))
    for done in rounds[1:]:
        assert done.relevance == tuple(float(token not in pair.words.function) for token in done.drafted)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, {1.0}), (1.0, {0.0}), (0.5, {0.0, 1.0})])
def test_random_throws_its_die_by_seed(pair: LoadedPair, rate: float, expected: set[float]) -> None:
    rule = RuleSettings(relevance=RelevanceName.RANDOM, random_rate=rate)
    prompts = prompts_for(pair)
    first, again = (rounds_of(pair, prompts, rule) for _ in range(2))
    assert first == again
    assert {score for done in first for score in done.relevance} == expected


@pytest.mark.parametrize("name", [RelevanceName.PLAUSIBLE, RelevanceName.NONE])
def test_nothing_is_scored_that_is_not_read(pair: LoadedPair, name: RelevanceName) -> None:
    rounds = rounds_of(pair, prompts_for(pair), RuleSettings(relevance=name))
    assert {done.relevance for done in rounds} == {()}


def test_layers_are_counted_from_either_end() -> None:
    assert layers_of(RuleSettings(layers=(-1, 2, 0)), 3) == (0, 2)
    for layers in ((3,), (-4,), ()):
        with pytest.raises(UsageError):
            layers_of(RuleSettings(layers=layers), 3)
