"""Lower precision on a GPU: bfloat16 and bitsandbytes' kernels under exact mode, and what they read."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch

import lvspec_cli
from lvspec_cli.checks.verify import check_answers
from lvspec_cli.demo.scenes import sample_scene
from lvspec_cli.demo.write import render_frames
from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.load import LoadedPair, ModelRequest, load_models
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.quantise import verification_width_limit
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Clip, DecodeSettings, Mode, Quantisation
from tests.gpu.conftest import DEVICE, NEEDS_GPU
from tests.speculation.conftest import decode
from tests.tiny_models import make_clip, save_pair
from tests.tools.test_real_size import WORK, tiny
from tools.fabricate import _pack, real_config
from tools.real_size import measure_model

pytestmark = NEEDS_GPU

BUNDLED = Path(lvspec_cli.__file__).parent / "demo" / "pair"
SETTINGS = DecodeSettings(gamma=6, max_new_tokens=48, repetition_guard=False)
QUESTIONS = ("Describe the video.", "What moves?", "which colour is it", "how many balls", "what now")
WAYS = [
    ("float32", Quantisation.NONE),
    ("bfloat16", Quantisation.NONE),
    ("float32", Quantisation.NF4),
    ("bfloat16", Quantisation.NF4),
    ("bfloat16", Quantisation.INT8),
    ("bfloat16", Quantisation.INT4),
    ("bfloat16", Quantisation.FP8),
]


def drawn_clip(seed: int) -> Clip:
    """A clip of the world that the bundled pair knows, drawn at once and never encoded."""
    scene, count = sample_scene(random.Random(seed)), 8
    spacing = scene.duration / count
    frames = render_frames(scene, [spacing * place for place in range(count)], 112, 84)
    return replace(make_clip(count, size=84, width=112, spacing=spacing), frames=frames)


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[1]}-{way[0]}")
def pair(request: pytest.FixtureRequest) -> LoadedPair:
    dtype, quantisation = request.param
    halves = (
        ModelRequest(BUNDLED / half, device=DEVICE, dtype=dtype, quantisation=quantisation)
        for half in ("target", "draft")
    )
    return load_models(*halves)


@pytest.mark.parametrize("gamma", [2, 8])
def test_exact_is_ar_up_to_ties(pair: LoadedPair, gamma: int) -> None:
    """Of float32 there are none to speak of; what else counts as one is `models verify`'s to say."""
    for clip in (drawn_clip(1), make_clip(4, size=84)):
        prompts = build_prompts(pair, clip, "Describe the video.")
        found = check_answers(pair, prompts, replace(SETTINGS, gamma=gamma))
        assert found.state == "ok", found.detail


def test_the_draft_is_worth_something(pair: LoadedPair) -> None:
    """Packed or not, on drawn clips most of what it says is kept."""
    prompts = build_prompts(pair, drawn_clip(1), "Describe the video.")
    for mode in (Mode.EXACT, Mode.LVSPEC):
        found, rounds = decode(pair, prompts, replace(SETTINGS, mode=mode))
        assert len(found.tokens) > 2 * len(rounds)


def test_what_is_packed(pair: LoadedPair) -> None:
    kind = {
        Quantisation.NF4: "Linear4bit",
        Quantisation.INT8: "Linear8bitLt",
        Quantisation.INT4: "PackedLinear",
        Quantisation.FP8: "PackedLinear",
    }
    target = pair.target
    layers = target.family.layers(target.model)
    wanted = kind.get(target.quantisation, "Linear")
    assert sum(type(part).__name__ == wanted for part in layers.modules()) == 7 * len(layers)
    assert {part.device.type for part in target.model.parameters()} == {DEVICE}


@pytest.mark.parametrize("name", ["7B", "32B"])
def test_rows_that_nf4_takes_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bitsandbytes itself decides for the projections of a layer, by the rows of a pass."""
    from bitsandbytes.backends.cuda import ops

    written: list[int] = []
    write_out = ops._dequant_linear_fallback

    def noted(*values: Any, **more: Any) -> torch.Tensor:
        written.append(values[0].shape[-2])
        return write_out(*values, **more)

    monkeypatch.setattr(ops, "_dequant_linear_fallback", noted)
    text = real_config(f"Qwen/Qwen2.5-VL-{name}-Instruct").get_text_config()
    wide, inner = text.hidden_size, text.intermediate_size
    keys = wide // text.num_attention_heads * text.num_key_value_heads
    shapes = [(wide, wide), (wide, keys), (wide, inner), (inner, wide)]
    how: dict[str, Any] = {"bias": False, "device": DEVICE, "dtype": torch.bfloat16}
    layer = torch.nn.ModuleList(torch.nn.Linear(*shape, **how) for shape in shapes)
    _pack(layer, torch.bfloat16)
    with torch.inference_mode():
        for rows in range(1, 18):
            for part, (width, _) in zip(layer, shapes, strict=True):
                part(torch.randn(1, rows, width, device=DEVICE, dtype=torch.bfloat16))
    assert written
    device = torch.cuda.get_device_name(DEVICE)
    assert min(written) - 1 == verification_width_limit(Quantisation.NF4, device, bitsandbytes.__version__)


@pytest.mark.parametrize(
    "quantisation", [Quantisation.BF16, Quantisation.NF4, Quantisation.INT4, Quantisation.FP8]
)
def test_the_bench_of_real_sizes(quantisation: Quantisation) -> None:
    """At a tiny size, where what is planned of a prefill is not to scale."""
    config, device = tiny("Qwen/Qwen2.5-VL-7B-Instruct"), torch.device(DEVICE)
    found = measure_model(config, "7B", quantisation, device, WORK)
    (clip,) = found.clips
    assert abs(found.off) < 0.01
    assert clip.cache <= clip.cache_planned  # which is more than 10 % off where a clip is as short as this
    assert clip.activations is None or clip.activations > 0
    assert all(seconds > 0 for seconds in (clip.prefill_s, *clip.steps.values()))


@pytest.mark.parametrize("name", ["bundled", *FAMILIES])
def test_exact_is_ar_to_the_letter_where_rows_stand_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, whose ties are many in models of random weights: 200 prompts of each, 0 differences."""
    # Whether our products of such small models are fast enough to be taken is chance.
    monkeypatch.setattr("lvspec_cli.models.kernels.fused._is_fast_enough", lambda *_: True)
    is_bundled = name == "bundled"
    target, draft = (BUNDLED / "target", BUNDLED / "draft") if is_bundled else save_pair(tmp_path, name)
    pair = load_models(*(ModelRequest(each, device=DEVICE, dtype="bfloat16") for each in (target, draft)))
    assert (pair.target.fused is None) == (name.startswith("qwen3_5") or DEVICE == "cpu")
    if pair.target.fused is None:
        return
    different = []
    for seed, question in product(range(40), QUESTIONS):
        clip = drawn_clip(seed) if is_bundled else make_clip(4, seed=seed)
        exact = replace(SETTINGS, mode=Mode.EXACT, gamma=1 + (seed + len(question)) % 20, max_new_tokens=24)
        session, prompts = Session.of(pair), build_prompts(pair, clip, question)
        texts = [decode(pair, prompts, replace(exact, mode=mode), session)[0].tokens
                 for mode in (Mode.AR, Mode.EXACT)]  # fmt: skip
        assert session.is_to_the_letter(exact)
        if texts[0] != texts[1]:
            different.append((seed, question))
    assert not different
