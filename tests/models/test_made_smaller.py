"""Weights made bf16 or fp8 while loading: of fp8 all of it but for the kernel, which wants a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations import finegrained_fp8
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from lvspec_cli.models.load import LoadedPair, ModelRequest, load_model, load_models
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.types import DecodeSettings, Mode, Quantisation
from tests.models.generated import generated
from tests.speculation.conftest import decode
from tests.tiny_families import TinyShape
from tests.tiny_models import make_clip, save_model

BLOCK = 128
GREATEST = 448.0  # of float8_e4m3fn


def in_fp8(weight: Tensor) -> Tensor:
    """Blocks of 128 x 128, each scaled so that its greatest value is fp8's."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    found = weight.clone()
    for row in range(rows):
        for column in range(columns):
            part = found[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            scale = part.abs().max() / GREATEST
            part.copy_((part / scale).to(torch.float8_e4m3fn).float() * scale)
    return found


def unpacked(layer: Any) -> Tensor:
    scales = layer.weight_scale_inv.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return layer.weight.float() * scales[: layer.weight.shape[0], : layer.weight.shape[1]]


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedPair:
    """A target made fp8, and the model itself. What stands in for the kernel multiplies unpacked weights."""

    def multiply(rows: Tensor, weight: Tensor, scale: Tensor, block: Any, bias: Any, *_: Any) -> Tensor:
        whole = finegrained_fp8._dequantize_fp8_weight(weight, scale, block, rows.dtype)
        return torch.nn.functional.linear(rows, whole, bias)

    monkeypatch.setattr(finegrained_fp8, "fp8_linear", multiply)
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.setattr("lvspec_cli.models.load.check_usable", lambda *_: None)
    plain = save_model(tmp_path / "plain", request.param, shape=TinyShape(width=2 * BLOCK))
    return load_models(
        ModelRequest(plain, device="cpu", quantisation=Quantisation.FP8),
        ModelRequest(plain, device="cpu", dtype="bfloat16"),
    )


def test_the_blocks_are_made_fp8_and_nothing_else(pair: LoadedPair) -> None:
    target, draft = pair.target, pair.draft
    assert draft is not None
    layers = target.family.layers(target.model)
    originals = dict(draft.family.layers(draft.model).named_modules())
    inside = {id(part) for part in layers.modules()}
    for beside in target.model.modules():
        if isinstance(beside, torch.nn.Linear) and id(beside) not in inside:
            assert beside.weight.dtype is torch.bfloat16
    made = {
        name: part for name, part in layers.named_modules() if isinstance(part, finegrained_fp8.FP8Linear)
    }
    assert len(made) == 7 * len(layers)
    for name, part in made.items():
        assert part.weight.dtype is torch.float8_e4m3fn
        original = originals[name].weight.detach().float()
        meant = in_fp8(original)
        # A value between two of fp8's may go either way, as it is scaled in bfloat16.
        assert torch.isclose(unpacked(part), meant, rtol=1e-2).float().mean() > 0.98, name
        assert (
            (unpacked(part) - original).abs() <= original.abs() / 14 + 1e-4 * original.abs().max()
        ).all(), name
        assert not torch.equal(unpacked(part), original)
    assert (target.quantisation, target.dtype) == (Quantisation.FP8, torch.bfloat16)
    assert not target.full_precision  # its exact mode promises no more than bfloat16's


@pytest.mark.sampled
def test_ar_is_generate(pair: LoadedPair) -> None:
    clip, question = make_clip(4, size=84), "Describe the video."
    expected = generated(pair.target, clip, question, 12)
    settings = DecodeSettings(mode=Mode.AR, max_new_tokens=12, repetition_guard=False)
    prompts = build_prompts(pair, clip, question)
    assert list(decode(pair, prompts, settings)[0].tokens) == expected
    exact, rounds = decode(pair, prompts, replace(settings, mode=Mode.EXACT, gamma=4))
    assert len(exact.tokens) == 12
    assert len(rounds) < 12


def test_bf16_is_loaded_as_such(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", "qwen2_5_vl")
    loaded = load_model(ModelRequest(plain, device="cpu", quantisation=Quantisation.BF16))
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert (loaded.quantisation, loaded.dtype) == (Quantisation.BF16, torch.bfloat16)
    assert not loaded.full_precision
