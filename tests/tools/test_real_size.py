"""The bench of real sizes, at tiny ones: a CPU cannot show more than that it measures what it says."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lvspec_cli.models.kernels import cpu_linear
from lvspec_cli.models.kernels.cpu_linear import CpuLinear
from lvspec_cli.models.kernels.nf4 import Packed
from lvspec_cli.types import Quantisation
from tools import fabricate as fabricate_module
from tools import real_size
from tools.fabricate import fabricate, real_config
from tools.real_size import (
    CARDS,
    KERNELS_OF_3B,
    REPOS,
    ClipFigures,
    ModelFigures,
    Work,
    costs,
    count_kernels,
    main,
    measure_model,
    model_lines,
    narrowed,
    pair_lines,
    predict_model,
)

WORK = Work(frames=(4,), side=56, widths=(1, 2, 5), repeats=1)
CPU = torch.device("cpu")


def tiny(repo: str) -> Any:
    """The real config, its layers narrowed and few."""
    config = real_config(repo)
    text, vision = config.get_text_config(), config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 128, 256, 3
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = 4, 2, 2048
    text.layer_types = ["full_attention"] * 3
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [4, 6, 6]}
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 2, 64, 128, 2
    vision.out_hidden_size, vision.fullatt_block_indexes = 128, [1]
    config.image_token_id, config.video_token_id = 2040, 2041
    return config


@pytest.fixture
def tiny_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_size, "real_config", tiny)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "quantisation",
    [Quantisation.NONE, Quantisation.NF4, Quantisation.INT4, Quantisation.FP8, Quantisation.TORCHAO_INT4],
)
def test_what_is_measured_of_a_model(quantisation: Quantisation) -> None:
    config = tiny("Qwen/Qwen2.5-VL-7B-Instruct")
    found = measure_model(config, "7B", quantisation, CPU, WORK)
    assert abs(found.off) < 0.01
    (clip,) = found.clips
    assert clip.prompt_tokens == 2 * 2 * 2 + 96  # two grids of 2 x 2 tokens, and text
    rows = 512  # the prefix of 8 + 48, and what a cache sets aside, in blocks of 128
    assert clip.cache == 3 * 2 * 2 * 32 * 4 * rows  # layers, keys and values, heads, their size, float32
    planned = 8 + 96 + 5 + 512  # the prompt, the answer, and at most what is set aside beside them
    assert clip.cache_planned == clip.cache // rows * planned
    assert clip.prefill_s > 0
    assert clip.activations is None  # a CPU keeps no count
    assert clip.activations_planned > 0
    (told,) = [line for line in model_lines(replace(found, clips=(replace(clip, activations=3 * 10**9),)))
               if "more for a while" in line]  # fmt: skip
    assert told.startswith("  prefill takes 3.0 GB more for a while (planned ")
    assert list(clip.steps) == [1, 2, 5]
    assert all(seconds > 0 for seconds in clip.steps.values())


def test_a_fabricated_model_is_the_real_one() -> None:
    """The same modules as transformers builds, but for what is packed."""
    from transformers import AutoModelForImageTextToText

    config = tiny("Qwen/Qwen2.5-VL-3B-Instruct")
    stock = AutoModelForImageTextToText.from_config(config)
    names = {name: tuple(part.shape) for name, part in stock.named_parameters()}
    made = fabricate(config, "3B", Quantisation.NONE, CPU)
    assert {name: tuple(part.shape) for name, part in made.model.named_parameters()} == names
    packed = fabricate(config, "3B", Quantisation.NF4, CPU)
    kinds = {type(part).__name__ for part in packed.family.layers(packed.model).modules()}
    assert "Linear4bit" in kinds
    assert "Linear" not in kinds


def test_fabricated_weights_stand_for_what_nf4_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes makes its levels in torch's default type, which is not the one that is computed in."""
    monkeypatch.setattr(fabricate_module, "choose_dtype", lambda *_, **__: torch.bfloat16)
    made = fabricate(tiny("Qwen/Qwen2.5-VL-3B-Instruct"), "3B", Quantisation.NF4, CPU)
    layer = made.family.layers(made.model)[0].mlp.up_proj
    assert layer.compute_dtype is torch.bfloat16
    assert Packed.of(layer.weight.data, layer.weight.quant_state) is not None


def tiny3_5(repo: str) -> Any:
    """Of Qwen3.5 both kinds of layers."""
    config = narrowed(real_config(repo))
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = 4, text.layer_types[:4]
    return config


def test_qwen3_5_is_measured_with_its_states_and_times() -> None:
    found = measure_model(tiny3_5("Qwen/Qwen3.5-9B"), "9B", Quantisation.NONE, CPU, replace(WORK, side=64))
    assert abs(found.off) < 0.01
    (clip,) = found.clips
    assert clip.prompt_tokens == 2 * (10 + 2 * 2) + 96  # times before each pair of frames
    assert list(clip.steps) == [1, 2, 5]
    assert clip.cache > 0


MEASURED = {"32B": 0.0223, "3B": 0.0050}  # one row over 32 frames on the H200, docs/real-size.md


def test_predictions_are_near_what_was_measured() -> None:
    work, (_, h200) = Work(frames=(32,)), CARDS
    for name, seconds in MEASURED.items():
        config = real_config(REPOS[name])
        kernels = count_kernels(config, (1, 5))
        found = predict_model(config, name, h200, work, kernels)
        assert found.clips[0].steps[1] == pytest.approx(seconds, rel=0.05)
    assert kernels[5] == KERNELS_OF_3B  # which all counts are scaled by


def test_a_delta_layer_has_more_kernels_than_an_attending_one() -> None:
    """So a step of the 0.8B takes longer than its bytes say."""
    config = real_config(REPOS["0.8B"])
    kinds = config.get_text_config().layer_types

    def kernels(few: list[str]) -> float:
        part = deepcopy(config)
        part.get_text_config().num_hidden_layers, part.get_text_config().layer_types = len(few), few
        return count_kernels(part, (1,))[1]

    one = kernels(["linear_attention", "full_attention"])
    delta = kernels(["linear_attention", "linear_attention", "full_attention"]) - one
    attending = kernels(["linear_attention", "full_attention", "full_attention"]) - one
    assert delta > 1.5 * attending > 0
    assert kinds.count("linear_attention") == 3 * kinds.count("full_attention")


@pytest.mark.thorough
def test_predictions_are_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--predict", "--pairs", "7B/3B", "--frames", "32"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("predicted")] == [
        f"predicted for an {card.name}, nothing was measured" for card in CARDS
    ]
    assert lines[1].startswith("7B bf16, 32 frames: milliseconds by rows: 1: ")
    (pair, *gammas) = lines[3:7]
    assert pair == "7B bf16 with 3B bf16"
    assert [line.split(":")[0] for line in gammas] == [f"  32 frames, gamma {gamma}" for gamma in (4, 8, 12)]


def figures(name: str, steps: dict[int, float]) -> ModelFigures:
    clip = ClipFigures(64, 8000, 1.0, 1, 1, steps)
    return ModelFigures(name, Quantisation.NF4, 1, 1, (clip,))


def test_costs_of_a_pair() -> None:
    target = figures("32B", {1: 0.020, 5: 0.024, 9: 0.030})
    draft = figures("3B", {1: 0.002, 5: 0.003, 9: 0.004})
    model = costs(target.clips[0], draft.clips[0], 4)
    assert (model.c, model.v) == pytest.approx((0.1, 1.2))
    assert model.speedup(4.0) == pytest.approx(4.0 / (4 * 0.1 + 1.2))
    lines = list(pair_lines(target, draft))
    assert (
        lines[1]
        == "  64 frames, gamma 4: c 0.100, v 1.20; 1.25 at 2, 1.88 at 3, 2.50 at 4; 200 tokens in 3.60 s at 4"
    )
    assert len(lines) == 3  # gamma 12 was not measured


@pytest.mark.thorough
def test_the_script(
    tiny_configs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_size, "Work", lambda frames, captured: replace(WORK, captured=captured))
    file = tmp_path / "figures.json"
    main(["--pairs", "7B/3B", "--quantisations", "nf4", "--device", "cpu", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "7B nf4 with 3B nf4" in printed
    assert "gamma 4: c " in printed
    assert printed.count("passes run one by one") == 2
    models = json.loads(file.read_text())["models"]
    assert [(each["model"], each["quantisation"]) for each in models] == [("7B", "nf4"), ("3B", "nf4")]


@pytest.mark.thorough
def test_a_clip_that_does_not_fit_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, tiny_configs: None
) -> None:
    def too_little(*values: Any) -> ClipFigures:
        if values[3] == 8:
            raise torch.OutOfMemoryError
        return measure(*values)

    measure = real_size.measure_clip
    monkeypatch.setattr(real_size, "measure_clip", too_little)
    config, work = tiny("Qwen/Qwen2.5-VL-3B-Instruct"), replace(WORK, frames=(4, 8, 2))
    found = measure_model(config, "3B", Quantisation.NONE, CPU, work)
    assert [clip.frames for clip in found.clips] == [4, 2]
    assert found.too_large == (8,)
    assert list(model_lines(found))[-1] == "  8 frames: do not fit"
    # What a pair costs is told of the clips that both have read.
    short = replace(found, clips=found.clips[1:])
    assert [line.split(",")[0] for line in pair_lines(found, short)][1:] == ["  2 frames"]


def test_a_run_that_is_cut_short_leaves_what_it_has(
    tiny_configs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: Any, name: str, *__: Any) -> ModelFigures:
        if name == "7B":
            raise torch.OutOfMemoryError
        if name == "3B":
            raise KeyboardInterrupt
        return figures(name, {1: 0.020})

    monkeypatch.setattr(real_size, "measure_model", measured)
    file = tmp_path / "figures.json"
    with pytest.raises(KeyboardInterrupt):
        main(["--pairs", "32B/7B", "7B/3B", "--quantisations", "nf4", "--device", "cpu", "--json", str(file)])
    assert "7B nf4: does not fit" in capsys.readouterr().out
    assert [each["model"] for each in json.loads(file.read_text())["models"]] == ["32B"]


@pytest.mark.parametrize("by_torch", [False, True])
def test_on_a_cpu_products_are_those_of_loaded_models_or_torchs(
    by_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_linear, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(cpu_linear, "few_rows_pay", lambda: True)
    config = tiny("Qwen/Qwen2.5-VL-3B-Instruct")
    made = fabricate(config, "3B", Quantisation.NONE, CPU, by_torch=by_torch)
    assert isinstance(made.model.get_output_embeddings(), CpuLinear) is not by_torch
