"""The self-test of ``lvspec models verify``: what it says where exact mode is not ar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lvspec_cli.checks import verify
from lvspec_cli.checks.verify import check_answers
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.types import DecodeSettings, Mode
from tests.tiny_models import make_clip

SETTINGS = DecodeSettings(max_new_tokens=6, repetition_guard=False)


@pytest.mark.parametrize(
    ("dtype", "tie", "cut", "state", "said"),
    [
        (torch.float32, 100.0, False, "failed", "exact mode differs from token 3 on"),
        (torch.bfloat16, 100.0, False, "ok", "exact mode differs from token 3 on"),
        (torch.bfloat16, 0.0, False, "failed", "exact mode differs from token 3 on"),
        (torch.float32, 100.0, True, "failed", "exact mode differs from token 5 on"),
    ],
)
def test_another_token_is_a_failure_but_for_ties_in_lower_precision(
    pairs: dict[str, LoadedPair],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    tie: float,
    cut: bool,
    state: str,
    said: str,
) -> None:
    pair = pairs["qwen2_5_vl"]
    prompts = build_prompts(pair, make_clip(2), "Describe the video.")
    assert check_answers(pair, prompts, SETTINGS).state == "ok"
    tokens = verify._tokens

    def spoilt(session: Any, prompts: Any, settings: DecodeSettings) -> tuple[int, ...]:
        found = tokens(session, prompts, settings)
        if settings.mode is Mode.AR:
            return found
        return found[:4] if cut else (*found[:2], found[2] + 1, *found[3:])

    monkeypatch.setattr(verify, "_tokens", spoilt)
    monkeypatch.setattr(verify, "TIE", tie)
    labelled = replace(pair, target=replace(pair.target, dtype=dtype))
    found = check_answers(labelled, prompts, SETTINGS)
    assert (found.state, found.detail.split(",")[0]) == (state, said)
