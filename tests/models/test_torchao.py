"""Weights in torchao's 4 bits, packed while they are loaded: on a CPU they are the numbers they stand for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lvspec_cli.errors import PairError
from lvspec_cli.memory.plan import matrix_bytes
from lvspec_cli.models.load import LoadedPair, ModelRequest, load_model, load_models
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.quantise import TORCHAO_GROUP, check_usable
from lvspec_cli.types import DecodeSettings, Mode, Quantisation
from tests.models.generated import generated
from tests.speculation.conftest import decode
from tests.tiny_families import TinyShape
from tests.tiny_models import make_clip, save_model

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
INT4 = Quantisation.TORCHAO_INT4
QUESTION = "Describe the video."
CLIP = make_clip(4, size=84)
DEMO_CLIP = Path("lvspec_cli/demo/clips/clip_0001.mp4").resolve()
EXACT = DecodeSettings(mode=Mode.EXACT, max_new_tokens=16, repetition_guard=False)
SHAPE = TinyShape(width=2 * TORCHAO_GROUP)


@pytest.fixture(scope="module", params=FAMILIES)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    """A packed target, and the model itself as the draft."""
    plain = save_model(tmp_path_factory.mktemp("torchao"), request.param, shape=SHAPE)
    return load_models(
        ModelRequest(plain, device="cpu", quantisation=INT4), ModelRequest(plain, device="cpu")
    )


def in_four_bits(weight: Tensor) -> Tensor:
    """What groups of a row are in sixteen even steps from their least to their greatest value."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // TORCHAO_GROUP, TORCHAO_GROUP)
    least, greatest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (greatest - least) / 15
    return (least + ((groups - least) / step).round().clamp(0, 15) * step).reshape(rows, columns)


@pytest.mark.sampled
def test_the_blocks_are_packed_and_stand_for_their_numbers(packed: LoadedPair) -> None:
    target, draft = packed.target, packed.draft
    assert draft is not None
    originals = dict(draft.family.layers(draft.model).named_modules())
    seen = 0
    for name, part in target.family.layers(target.model).named_modules():
        if isinstance(part, torch.nn.Linear):
            assert type(part.weight).__name__ == "Int4OpaqueTensor", name
            said = torch.nn.functional.linear(torch.eye(part.in_features), part.weight).T
            meant = in_four_bits(originals[name].weight.detach())
            assert torch.allclose(said, meant, atol=1e-4 * float(meant.abs().max())), name
            assert not torch.allclose(said, originals[name].weight.detach(), atol=1e-3)
            seen += 1
    assert seen == 7 * len(target.family.layers(target.model))
    layers = {id(part) for part in target.family.layers(target.model).modules()}
    for beside in target.model.modules():
        if isinstance(beside, torch.nn.Linear) and id(beside) not in layers:
            assert type(beside.weight) is torch.nn.Parameter
    assert (target.quantisation, target.dtype, target.full_precision) == (INT4, torch.float32, True)


@pytest.mark.sampled
def test_exact_is_ar_and_generate(packed: LoadedPair) -> None:
    prompts = build_prompts(packed, CLIP, QUESTION)
    expected = generated(packed.target, CLIP, QUESTION, 16)
    assert list(decode(packed, prompts, replace(EXACT, mode=Mode.AR))[0].tokens) == expected
    for gamma in (1, 5):
        assert list(decode(packed, prompts, replace(EXACT, gamma=gamma))[0].tokens) == expected


def test_a_row_stands_alone(packed: LoadedPair) -> None:
    """Exact mode to the letter rests on it."""
    layer = next(
        part for part in packed.target.family.layers(packed.target.model).modules()
        if isinstance(part, torch.nn.Linear)
    )  # fmt: skip
    rows = torch.randn(13, layer.in_features, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together, alone = layer(rows), torch.cat([layer(row[None]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5 * float(alone.abs().max()))


def test_it_takes_the_memory_that_is_planned(packed: LoadedPair) -> None:
    layer = next(
        part for part in packed.target.family.layers(packed.target.model).modules()
        if isinstance(part, torch.nn.Linear)
    )  # fmt: skip
    weight: Any = layer.weight
    taken = sum(part.numel() * part.element_size() for part in (weight.qdata, weight.scale_and_zero))
    assert taken == pytest.approx(weight.numel() * matrix_bytes(INT4, 4))
    assert matrix_bytes(INT4, 2) == 0.5 + 4 / 128
    assert (matrix_bytes(Quantisation.INT8, 4), matrix_bytes(Quantisation.NONE, 4)) == (1, 4)


def test_files_of_torchao_want_the_device_that_they_are_laid_out_for(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", "qwen2_5_vl")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao", "quant_type": "int4_weight_only"}
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(PairError, match="torchao-int4 needs a CUDA device, not cpu"):
        load_model(ModelRequest(plain, device="cpu"))


@pytest.mark.parametrize("kind", ["torchao-int4", "fp8"])
def test_other_devices_have_no_kernels_for_it(kind: str) -> None:
    with pytest.raises(PairError, match=f"{kind} needs a CUDA device, not mps"):
        check_usable(Quantisation(kind), torch.device("mps"))


@pytest.mark.thorough
def test_it_is_asked_for_on_the_command_line(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", "qwen2_5_vl", shape=SHAPE)
    models = tmp_path / "models.yaml"
    half = {"repo": str(plain)}
    models.write_text(yaml.safe_dump({"pairs": {"tiny": {"target": half, "draft": half}}}))
    done = subprocess.run(
        [sys.executable, "-m", "lvspec_cli", "ask", str(DEMO_CLIP), QUESTION, "--pair", "tiny",
         "--models", str(models), "--max-new-tokens", "8", "--mode", "exact", "--json",
         "--quant-target", "torchao-int4", "--quant-draft", "torchao-int4"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    record = json.loads(line)
    assert record["settings"]["loading"]["target"] == record["settings"]["loading"]["draft"] == "torchao-int4"
    assert record["lossless"] is True
    assert not set(done.stderr.split()) & {"WARNING", "INFO", "Skipping", "UserWarning:"}
