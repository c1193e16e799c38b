import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lvspec_cli.demo.captions import caption
from lvspec_cli.demo.dataset import IGNORED, SceneDataset, collate, pack_turns
from lvspec_cli.demo.halves import build_model, build_processor, copy_into, save_half, train_tokenizer
from lvspec_cli.demo.muon import orthogonalise
from lvspec_cli.demo.scenes import sample_scene
from lvspec_cli.demo.train import Plan, forward_hidden, rate_share, train, use_linear_patches


@pytest.fixture(scope="module")
def processor() -> Qwen2_5_VLProcessor:
    return build_processor(train_tokenizer(texts=300))


@pytest.fixture(scope="module")
def model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    return build_model("draft", processor.tokenizer, 3).eval()


def test_captions_have_80_to_200_tokens() -> None:
    tokenizer = train_tokenizer()
    rng = random.Random(11)
    lengths = [len(tokenizer.encode(caption(sample_scene(rng), rng))) for _ in range(300)]
    assert 80 <= min(lengths) <= max(lengths) <= 200


def test_a_packed_turn_stands_where_transformers_puts_it_in_decoding(
    processor: Qwen2_5_VLProcessor, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    grid = torch.tensor([4, 8, 12])
    pairs = [("What happens?", "It vanishes."), ("How many objects are there?", "Two.")]
    packed = pack_turns(processor, pairs, grid, seconds_per_grid=2.5)
    turn = (packed["segments"] == 2).nonzero()[:, 0]
    # The prompt ends with the first position that learns: its next token is the answer's first.
    asked = turn[: int((packed["labels"][turn] != IGNORED).nonzero()[0]) + 1]
    prompt = torch.cat([(packed["segments"] == 0).nonzero()[:, 0], asked])
    ids = packed["input_ids"][prompt][None]
    positions, delta = model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.video_token_id).int() * 2,
        video_grid_thw=grid[None],
        second_per_grid_ts=torch.tensor([2.5]),
    )
    assert torch.equal(packed["positions"][:, prompt], positions[:, 0])
    first_answer = packed["positions"][:, turn[len(asked)]]
    assert first_answer.tolist() == [ids.shape[1] + int(delta)] * 3


def test_a_packed_turn_is_predicted_as_if_it_stood_alone(
    processor: Qwen2_5_VLProcessor, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    packed = SceneDataset(processor, 1, seed=4, turns=3)[0]
    prefix, last = packed.segments == 0, packed.segments == packed.segments.max()
    kept = prefix | last
    alone = replace(
        packed,
        positions=packed.positions[:, kept],
        **{name: getattr(packed, name)[kept] for name in ("input_ids", "labels", "weights", "segments")},
    )
    with torch.no_grad():
        together, _ = forward_hidden(model, collate([packed, alone]), True)
    assert torch.allclose(together[0][last], together[1][int(prefix.sum()) : int(kept.sum())], atol=1e-4)


def test_the_patch_product_equals_the_convolution(
    processor: Qwen2_5_VLProcessor, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    pixels = torch.randn(5, 3 * 2 * 14 * 14)
    expected = model.model.visual.patch_embed(pixels)
    twin = build_model("draft", processor.tokenizer, 3).eval()
    use_linear_patches(twin)
    assert torch.allclose(twin.model.visual.patch_embed(pixels), expected, atol=1e-5)


def test_more_layers_compute_the_same_at_first(processor: Qwen2_5_VLProcessor) -> None:
    small = build_model("draft", processor.tokenizer, 1, 2).eval()
    large = build_model("draft", processor.tokenizer, 2, 5).eval()
    copy_into(small, large)
    ids = torch.randint(0, 300, (1, 12))
    with torch.no_grad():
        assert torch.equal(small(input_ids=ids).logits, large(input_ids=ids).logits)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.3


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (4, 0.5), (50, 1.0), (80, 1.0), (90, 0.5), (99, 0.05)])
def test_the_rate_rises_stays_and_falls(step: int, share: float) -> None:
    assert rate_share(step, steps=100, warm_up=10, decay=0.2) == pytest.approx(share)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, processor: Qwen2_5_VLProcessor) -> None:
    """Two runs of four steps, one of them cut off after two, end with the same model."""
    save_half(build_model("draft", processor.tokenizer, 1, 1), processor, tmp_path / "start")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    _run(tmp_path / "start", straight)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "start", resumed, stop_after=2)
    assert not (resumed / "model").exists()
    _run(tmp_path / "start", resumed)
    start, one, other = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "start", straight / "model", resumed / "model")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    for part in ("visual.blocks", "language_model.layers"):
        assert any(part in name and not torch.equal(one[name], start[name]) for name in one)


def _run(start_from: Path, out: Path, stop_after: int | None = None) -> None:
    def watch(step: int) -> None:
        if step == stop_after:
            raise KeyboardInterrupt

    plan = Plan(
        half="draft", layers=1, steps=4, batch=2, learning_rate=1e-3, warm_up=2, decay=0.5, vision_first=1,
        slices=4, frozen_until=2, dense_until=3, fact_weight=2.0, seed=1, save_every=2, checked=4,
    )  # fmt: skip
    train(plan, out, device=torch.device("cpu"), workers=0, start_from=start_from, after_step=watch)
