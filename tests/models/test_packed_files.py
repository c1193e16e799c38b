"""Files that are quantised already, as the hub has them: on a CPU they are the numbers they stand for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from packaging.version import Version
from torch import Tensor

from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.kernels.cpu_linear import CpuLinear
from lvspec_cli.models.load import LoadedPair, ModelRequest, load_model, load_models
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.types import DecodeSettings, Mode, PairPrompts, Quantisation
from tests.models.generated import generated
from tests.packed_files import save_packed
from tests.speculation.conftest import decode
from tests.tiny_families import TinyShape
from tests.tiny_models import make_clip, save_model

METHODS = ("gptq", "awq", "fp8")
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
QUESTION = "Describe the video."
CLIP = make_clip(4, size=84)
DEMO_CLIP = Path("lvspec_cli/demo/clips/clip_0001.mp4").resolve()
EXACT = DecodeSettings(mode=Mode.EXACT, max_new_tokens=16, repetition_guard=False)


def leave_out_if_refused(method: str) -> None:
    if method != "fp8" and Version(version("gptqmodel")) < Version("7.7"):
        pytest.skip("test_quantise.py shows that it is refused on a CPU")


@pytest.fixture(
    scope="module",
    params=[(family, method) for family in FAMILIES for method in METHODS],
    ids=lambda param: "-".join(param),
)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    """The packed model as the target, and its twin as the draft, which all but always agrees."""
    family, method = request.param
    leave_out_if_refused(method)
    folder = tmp_path_factory.mktemp("packed")
    plain = save_model(folder / "plain", family, shape=TinyShape(width=128))
    target, twin = save_packed(folder, plain, method)
    return load_models(ModelRequest(target, device="cpu"), ModelRequest(twin, device="cpu"))


@pytest.fixture(scope="module")
def prompts(packed: LoadedPair) -> PairPrompts:
    return build_prompts(packed, CLIP, QUESTION)


@pytest.mark.sampled
def test_the_blocks_are_packed_and_nothing_else(packed: LoadedPair) -> None:
    target = packed.target
    layers = target.family.layers(target.model)
    inside = {id(part) for part in layers.modules()}
    plain = {True: 0, False: 0}  # torch's own linear layers, by whether they are in the blocks
    for part in target.model.modules():
        plain[id(part) in inside] += type(part) in (torch.nn.Linear, CpuLinear)
    assert plain[False] > 0
    if "fp8" in target.name:  # no kernels for it here: it is unpacked
        assert (plain[True], target.quantisation) == (7 * len(layers), Quantisation.NONE)
    else:
        assert plain[True] == 0
        assert target.quantisation in (Quantisation.AWQ, Quantisation.GPTQ)
        # By itself gptqmodel would take what this processor has, and may compile it first.
        assert target.model.config.quantization_config.backend == f"{target.quantisation}_torch_aten"
    assert target.full_precision


def logits_of(pair: LoadedPair, prompts: PairPrompts, rows: Tensor) -> list[Tensor]:
    """Logits of both halves behind the prompt and some tokens."""
    found = []
    for loaded, prompt in ((pair.target, prompts.target), (pair.draft, prompts.draft)):
        assert loaded is not None
        assert prompt is not None
        decoder = Decoder(loaded)
        decoder.encode(prompt)
        decoder.begin(prompt, len(rows))
        found.append(decoder.logits(decoder.forward(rows), len(rows)))
    return found


def test_they_are_the_numbers_that_they_stand_for(packed: LoadedPair, prompts: PairPrompts) -> None:
    with torch.inference_mode():
        ours, meant = logits_of(packed, prompts, torch.arange(40, 48))
    assert torch.allclose(ours, meant, atol=2e-3 * float(meant.abs().max()))
    assert not torch.equal(ours[0], ours[1])


@pytest.mark.sampled
def test_exact_is_ar_and_generate(packed: LoadedPair, prompts: PairPrompts) -> None:
    expected = generated(packed.target, CLIP, QUESTION, 16)
    assert list(decode(packed, prompts, replace(EXACT, mode=Mode.AR))[0].tokens) == expected
    for gamma in (1, 5):
        exact, rounds = decode(packed, prompts, replace(EXACT, gamma=gamma))
        assert list(exact.tokens) == expected
        assert len(rounds) < len(expected)


def test_fp8_is_unpacked_in_the_type_that_is_computed_in(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", "qwen2_5_vl", shape=TinyShape(width=128))
    target, _ = save_packed(tmp_path, plain, "fp8")
    loaded = load_model(ModelRequest(target, device="cpu", dtype="bfloat16"))
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_the_package_says_is_kept_from_standard_output(tmp_path: Path, method: str) -> None:
    """In a process of its own: it speaks when it is imported, too."""
    leave_out_if_refused(method)
    plain = save_model(tmp_path / "plain", "qwen2_5_vl", shape=TinyShape(width=128))
    target, twin = save_packed(tmp_path, plain, method)
    models = tmp_path / "models.yaml"
    halves = {"target": {"repo": str(target)}, "draft": {"repo": str(twin)}}
    models.write_text(yaml.safe_dump({"pairs": {"packed": halves}}))
    done = subprocess.run(
        [sys.executable, "-m", "lvspec_cli", "ask", str(DEMO_CLIP), QUESTION, "--pair", "packed",
         "--models", str(models), "--max-new-tokens", "8", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["settings"]["loading"]["target"] == method
    assert not set(done.stderr.split()) & {"WARNING", "INFO", "GPT-QModel"}
    assert "torch/" not in done.stderr
