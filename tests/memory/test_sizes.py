"""Sizes from configs, against sums done by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from lvspec_cli.errors import PairError
from lvspec_cli.memory.plan import ModelSize, Workload, need
from lvspec_cli.memory.sizes import size_of
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import load_model
from lvspec_cli.models.prompt import build_prompt
from lvspec_cli.models.read import chat_text
from lvspec_cli.pairs.files import CONFIGS, config_path, known_config, read_object
from lvspec_cli.pairs.registry import PACKAGE, Source, read_models_file, shipped_models
from tests.tiny_models import make_clip, save_model

LONG = Workload(frames=64, max_pixels=200_704, new_tokens=512)


@cache
def size(name: str) -> ModelSize:
    (path,) = CONFIGS.glob(f"*--{name}.json")
    return size_of(path, name)


def qwen_layer(width: int, mlp: int, keys: int) -> int:
    attention = 2 * width * width + 2 * width * keys + width + 2 * keys  # q and o, k and v, biases of q, k, v
    return attention + 3 * width * mlp + 2 * width


def qwen_tower(out: int, mlp: int) -> int:
    block = 4 * 1280 * 1280 + 4 * 1280 + 3 * 1280 * mlp + 2 * mlp + 1280 + 2 * 1280
    merger = 1280 + 5120 * 5120 + 5120 + 5120 * out + out
    return 3 * 2 * 14 * 14 * 1280 + 32 * block + merger


@pytest.mark.parametrize(
    ("name", "width", "mlp", "keys", "layers", "tower_mlp", "published"),
    [
        ("Qwen2.5-VL-7B-Instruct", 3584, 18944, 512, 28, 3420, 8_292_166_656),
        ("Qwen2.5-VL-32B-Instruct", 5120, 27648, 1024, 64, 3456, 33_452_718_336),
    ],
)
def test_parameters_are_the_sum_of_the_layers(
    name: str, width: int, mlp: int, keys: int, layers: int, tower_mlp: int, published: int
) -> None:
    layer, tower = qwen_layer(width, mlp, keys), qwen_tower(width, tower_mlp)
    by_hand = 2 * 152064 * width + layers * layer + width + tower
    assert by_hand == published
    found = size(name)
    assert (found.parameters, found.layer, found.layers) == (by_hand, layer, layers)
    assert found.key_width == keys
    assert found.largest_matrix == width * mlp
    assert found.layer_matrices == layer - 2 * width - (width + 2 * keys)


@pytest.mark.parametrize(
    ("name", "published"),  # what the hub shows of the weights' files
    [
        ("Qwen2.5-VL-3B-Instruct", 3_754_622_976),  # input and output embeddings are one
        ("Qwen3-VL-2B-Instruct", 2_127_532_032),
        ("Qwen3-VL-8B-Instruct", 8_767_123_696),
        ("InternVL3_5-1B-HF", 1_060_897_792),
        ("SmolVLM2-2.2B-Instruct", 2_246_784_880),
        ("SmolVLM2-256M-Video-Instruct", 256_484_928),
    ],
)
def test_parameters_of_other_shapes(name: str, published: int) -> None:
    assert size(name).parameters == published


def test_tokens_of_a_video() -> None:
    pixels = 448 * 448
    assert size("Qwen2.5-VL-7B-Instruct").vision.tokens(8, pixels) == 4 * 16 * 16
    assert size("Qwen2.5-VL-7B-Instruct").vision.patches(8, pixels) == 4 * 32 * 32
    assert size("Qwen3-VL-2B-Instruct").vision.tokens(8, pixels) == 4 * 14 * 14
    assert size("llava-onevision-qwen2-0.5b-ov-hf").vision.tokens(8, pixels) == 8 * 14 * 14
    assert size("SmolVLM2-2.2B-Instruct").vision.tokens(8, pixels) == 8 * 81
    assert size("SmolVLM2-256M-Video-Instruct").vision.tokens(8, pixels) == 8 * 64


def test_vocabularies_of_llava_onevision() -> None:
    """Qwen2's rows and two marks, up to the next 64: padded by the public script that converts."""
    rows = {"0.5b": 151_936, "7b": 152_064, "72b": 152_064}
    for name, words in rows.items():
        config = read_object(CONFIGS / f"llava-hf--llava-onevision-qwen2-{name}-ov-hf.json")
        assert config["text_config"]["vocab_size"] == 64 * math.ceil((words + 2) / 64)
    assert 64 * math.ceil((152_064 + 2) / 64) == 152_128


def intern_parameters(width: int, mlp: int, layers: int, heads: int, tower: int) -> int:
    """InternVL3.5: Qwen3 with a head of its own, a tower, and two layers between."""
    attention = 2 * width * heads * 128 + 2 * width * 8 * 128 + 2 * 128  # q and o, k and v, norms of q and k
    language = 2 * 151_936 * width + layers * (attention + 3 * width * mlp + 2 * width) + width
    vision = 4 * tower
    between = 2 * vision + vision * width + width + width * width + width
    return language + between


@pytest.mark.parametrize(
    ("name", "shape", "tower"),
    [("1B", (1024, 3072, 28, 16, 1024), 304_012_288), ("8B", (4096, 12288, 36, 32, 1024), 304_012_288)],
)
def test_parameters_of_internvl(name: str, shape: tuple[int, int, int, int, int], tower: int) -> None:
    assert size(f"InternVL3_5-{name}-HF").parameters == intern_parameters(*shape) + tower


def test_the_large_tower_of_internvl() -> None:
    """38B: its card says 5.5B for the tower and 32.8B for Qwen3-32B; no biases but those of the products."""
    found = size("InternVL3_5-38B-HF")
    tower = found.parameters - intern_parameters(5120, 25600, 64, 64, 3200)
    assert round(tower / 1e9, 1) == 5.5
    assert (found.vision.width, found.vision.mlp) == (3200, 12800)
    assert found.vision.tokens(8, 448 * 448) == 8 * 256


def test_every_repository_of_the_shipped_pairs_has_its_config() -> None:
    pairs = read_models_file(shipped_models()).pairs.values()
    repos = {source.repo for pair in pairs for source in (pair.target, pair.draft) if source.repo}
    assert {repo for repo in repos if known_config(repo) is None} == set()


def test_which_config_is_taken(tmp_path: Path) -> None:
    source = Source(repo="Qwen/Qwen2.5-VL-7B-Instruct")
    assert config_path(source, None) == CONFIGS / "Qwen--Qwen2.5-VL-7B-Instruct.json"
    (tmp_path / "config.json").write_text("{}")
    assert config_path(source, tmp_path) == tmp_path / "config.json"
    with pytest.raises(PairError, match="its size is not known"):
        config_path(Source(repo="some/other"), None)


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "gpt2"}', '{"model_type": "no such"}'])
def test_a_config_that_describes_no_such_model(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(PairError, match=r"config\.json"):
        size_of(path)


def test_the_bundled_pair_is_as_large_as_its_files() -> None:
    from lvspec_cli.pairs.files import count_parameters

    for half in ("target", "draft"):
        folder = PACKAGE / "demo/pair" / half
        assert size_of(folder / "config.json").parameters == count_parameters(folder / "model.safetensors")


def test_experts_are_planned_as_they_are_kept(tmp_path: Path) -> None:
    """All in memory, unpacked; at prefill a row takes two of eight, the shared one, and copies of itself."""
    size = size_of(save_model(tmp_path / "model", "qwen3_5_moe") / "config.json")
    experts = 8 * 3 * 64 * 16
    assert size.layer > experts
    assert size.layer_matrices < size.layer - experts
    assert size.mlp == 2 * 16 + 32 + 2 * 2 * 64 // 3


def test_layers_that_keep_a_state_need_no_keys(tmp_path: Path) -> None:
    """Of tiny Qwen3.5 every fourth layer attends; what the others keep does not grow with the prompt."""
    folder = save_model(tmp_path / "model", "qwen3_5")
    size = size_of(folder / "config.json")
    assert (size.layers, size.attention_layers) == (8, 2)
    assert size.state > 0
    every = need(replace(size, attention_layers=None, state=0), LONG)
    assert need(size, LONG).cache == every.cache // 4 + size.state
    loaded = load_model(folder, device="cpu", dtype="float32")
    assert size.parameters == sum(part.numel() for part in loaded.model.parameters())
    text = chat_text(loaded.processor, "What?", None)
    decoder, prompt = Decoder(loaded), build_prompt(loaded, make_clip(3), text)
    with torch.inference_mode():
        decoder.encode(prompt)
        decoder.begin(prompt, 8)
    copies = 6 * 4 * 12 * 8 * 4  # kept for further questions, not counted there
    assert decoder.cache.states.bytes == size.state - copies
