"""Tiny pairs of two families, answers and references."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForImageTextToText

from lvspec_cli.models.families.qwen2_5_vl import Qwen2_5VL, count_fractions
from lvspec_cli.models.load import LoadedModel, LoadedPair, load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, Generation, PairPrompts, Prompt, Round
from tests.tiny_models import FAMILIES, make_clip, save_pair

# A busy machine is slow, which is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("pairs")
    return {family: save_pair(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def pairs(pair_folders: dict[str, tuple[Path, Path]]) -> dict[str, LoadedPair]:
    return {
        family: load_pair(*folders, device="cpu", dtype="float32") for family, folders in pair_folders.items()
    }


@pytest.fixture(scope="session", params=FAMILIES)
def pair(request: pytest.FixtureRequest, pairs: dict[str, LoadedPair]) -> LoadedPair:
    return pairs[request.param]


def with_generation(pair: LoadedPair, **values: Any) -> LoadedPair:
    """The pair as if its target's generation_config said so."""
    rules = replace(pair.target.generation, **values)
    words = replace(pair.words, ends=frozenset(rules.end_ids))
    return replace(pair, target=replace(pair.target, generation=rules), words=words)


def prompts_for(pair: LoadedPair, question: str = "What moves?", seed: int = 0) -> PairPrompts:
    return build_prompts(pair, make_clip(4, seed=seed), question)


def decode(
    pair: LoadedPair,
    prompts: PairPrompts,
    wanted: DecodeSettings,
    session: Session | None = None,
    **more: Any,
) -> tuple[Generation, list[Round]]:
    """Run an answer to its end."""
    steps = (session or Session.of(pair)).answer(prompts, wanted, **more)
    rounds = list(steps)
    return steps.generation, rounds


def model_inputs(prompt: Prompt, family: str) -> dict[str, torch.Tensor]:
    """A prompt as the model's own forward and generate take it."""
    inputs = {
        "input_ids": prompt.input_ids,
        "attention_mask": torch.ones_like(prompt.input_ids),
        **prompt.video_inputs,
    }
    if family == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = prompt.video_mask.long()[None] * 2
    return inputs


@functools.cache
def stock_model(folder: str, attention: str = "sdpa") -> Any:
    """A saved model as transformers itself loads and runs it."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attention)
    if model.config.model_type == Qwen2_5VL.model_type:
        count_fractions(model)
    return model


@torch.inference_mode()
def scratch(loaded: LoadedModel, prompt: Prompt, answer: list[int], model: Any = None, **more: Any) -> Any:
    """Outputs of the stock model's own forward over prompt and answer at once, without a cache."""
    behind = loaded.family.answer_positions(prompt.next_position, len(answer), torch.device("cpu"))
    return (model or stock_model(loaded.name))(
        input_ids=torch.cat((prompt.input_ids, torch.tensor([answer], dtype=torch.long)), dim=1),
        position_ids=torch.cat((prompt.position_ids, behind), dim=-1),
        use_cache=False,
        **prompt.video_inputs,
        **more,
    )


def generate(pair: LoadedPair, prompt: Prompt, *, model: Any = None, **values: Any) -> list[int]:
    """The reference: transformers' own greedy loop, over its own model or one that a test has changed."""
    rules = pair.target.generation
    inputs = model_inputs(prompt, pair.target.family.model_type)
    tokens = (model or stock_model(pair.target.name)).generate(
        **inputs,
        **{
            "do_sample": False,
            "eos_token_id": list(rules.end_ids),
            "repetition_penalty": rules.repetition_penalty,
            **values,
        },
    )
    return tokens[0, prompt.length :].tolist()
