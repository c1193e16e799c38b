"""The pair and the clips that ship in the package."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lvspec_cli.demo.scenes import Scene, scene_from_dict
from lvspec_cli.demo.write import describe, encode_scene, scene_of
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.pairs.registry import load_registry, rule_of
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Clip, DecodeSettings, Generation, Looseness, Mode, VideoRequest
from lvspec_cli.video.decode import read_clip
from tools.train_demo.evaluate import PAIR_FOLDER, answer_batch
from tools.train_demo.halves import CLIP_FRAMES

CLIPS = sorted((PAIR_FOLDER.parent / "clips").glob("*.mp4"))
QUESTIONS = ("What happens?", "How many objects are there?", "What colour is the background?")


@pytest.fixture(scope="module")
def pair() -> LoadedPair:
    return load_pair(PAIR_FOLDER / "target", PAIR_FOLDER / "draft", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return read_clip(VideoRequest(CLIPS[0], max_frames=CLIP_FRAMES))


def test_both_halves_are_bf16_and_take_30_megabytes_at_most() -> None:
    files = sorted(PAIR_FOLDER.glob("*/*.safetensors"))
    assert [file.parent.name for file in files] == ["draft", "target"]
    assert sum(file.stat().st_size for file in PAIR_FOLDER.glob("*/*")) <= 30e6
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_linear_layers_suit_four_bit_kernels(pair: LoadedPair) -> None:
    assert pair.draft is not None
    for loaded in (pair.target, pair.draft):
        for name, layer in loaded.model.named_modules():
            if isinstance(layer, torch.nn.Linear) and "lm_head" not in name:
                assert layer.in_features % 64 == 0, name


def test_four_clips_ship_with_their_facts() -> None:
    assert len(CLIPS) == 4
    for number, path in enumerate(CLIPS, start=1):
        told = json.loads(path.with_suffix(".json").read_text())
        scene: Scene = scene_from_dict(told["scene"])
        drawn, rng = scene_of(201, number)
        assert scene == drawn
        assert told == json.loads(json.dumps(describe(drawn, rng)))


@pytest.mark.sampled
@pytest.mark.parametrize("mode", [Mode.AR, Mode.EXACT])
def test_exact_modes_say_what_transformers_says(pair: LoadedPair, clip: Clip, mode: Mode) -> None:
    for question in QUESTIONS:
        generation = _answer(pair, clip, question, DecodeSettings(mode=mode, gamma=6))
        text = pair.target.tokenizer.decode(generation.tokens, skip_special_tokens=True)
        assert text == answer_batch(pair.target, [(clip, question)], 256)[0]


@pytest.mark.thorough
def test_exact_modes_say_what_transformers_says_of_a_long_clip(pair: LoadedPair, tmp_path: Path) -> None:
    """Its times go further than the prompt's positions."""
    scene, _ = scene_of(9, 1)
    encode_scene(replace(scene, duration=12.0, objects=scene.objects, events=()), tmp_path / "long.mp4")
    long = read_clip(VideoRequest(tmp_path / "long.mp4", max_frames=CLIP_FRAMES))
    prompt = build_prompts(pair, long, QUESTIONS[0]).target
    assert int(prompt.position_ids.max()) >= prompt.next_position
    for mode in (Mode.AR, Mode.EXACT):
        generation = _answer(pair, long, QUESTIONS[0], DecodeSettings(mode=mode, gamma=6))
        text = pair.target.tokenizer.decode(generation.tokens, skip_special_tokens=True)
        assert text == answer_batch(pair.target, [(long, QUESTIONS[0])], 256)[0]


def test_the_default_rule_accepts_more_than_exact_mode(pair: LoadedPair, clip: Clip) -> None:
    name, entry = load_registry(environment={}).pair(None)
    assert name == "demo"
    rule = rule_of(entry, Looseness.BALANCED)
    loose = _answer(pair, clip, QUESTIONS[0], DecodeSettings(rule=rule)).stats
    exact = _answer(pair, clip, QUESTIONS[0], DecodeSettings(mode=Mode.EXACT)).stats
    assert loose.accepted_filler + loose.accepted_shift > 0
    assert loose.mean_accepted_length > exact.mean_accepted_length > 1.5  # type: ignore[operator]


def _answer(pair: LoadedPair, clip: Clip, question: str, settings: DecodeSettings) -> Generation:
    return Session.of(pair).answer(build_prompts(pair, clip, question), settings).run()
