import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lvspec_cli.demo.scenes import sample_scene
from lvspec_cli.demo.texts import Span, caption, caption_spans
from lvspec_cli.models.families.qwen2_5_vl import count_fractions
from tools.train_demo.dataset import (
    Batch,
    SceneDataset,
    Turn,
    collate,
    encode_spans,
    pack_turns,
    seen_labels,
    training_scene,
)
from tools.train_demo.evaluate import PAIR_FOLDER
from tools.train_demo.guides import (
    EVENTS,
    IGNORED,
    KINDS,
    PRESENCE_KINDS,
    Guides,
    object_labels,
    presence_labels,
)
from tools.train_demo.halves import build_model, build_processor, copy_into, save_half, train_tokenizer
from tools.train_demo.muon import orthogonalise
from tools.train_demo.train import Plan, batches, forward_hidden, rate_share, start_run, train
from tools.train_demo.vision import use_linear_patches, use_padded_slices

PLAN = Plan(
    half="draft", layers=1, steps=4, batch=2, learning_rate=1e-3, warm_up=2, decay=0.5, vision_first=1,
    slices=4, frozen_until=2, dense_until=3, fact_weight=2.0, seen_after=1, told_after=1, guided_until=3,
    eventful=0.5, decisions=2, decision_weight=0.5, seed=1, save_every=2, checked=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def processor() -> Qwen2_5_VLProcessor:
    return build_processor(train_tokenizer(texts=300))


@pytest.fixture(scope="module")
def model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    model = build_model("draft", processor.tokenizer, 3).eval()
    count_fractions(model)
    return model


def test_eventful_scenes_have_more_events() -> None:
    rng = random.Random(2)
    plain, eventful = ([len(training_scene(rng, share).events) for _ in range(300)] for share in (0.0, 1.0))
    # Of two scenes with 0, 1 and 2 events one time in 4, 2.5 and 3, the one with more has 1.52 on average.
    assert abs(sum(plain) / 300 - 1.1) < 0.15
    assert abs(sum(eventful) / 300 - 1.52) < 0.15


@pytest.mark.thorough
def test_captions_have_80_to_200_tokens() -> None:
    tokenizer = train_tokenizer()
    rng = random.Random(11)
    lengths = [len(tokenizer.encode(caption(sample_scene(rng), rng))) for _ in range(120)]
    assert 80 <= min(lengths) <= max(lengths) <= 200


def test_a_packed_turn_stands_where_transformers_puts_it_in_decoding(
    processor: Qwen2_5_VLProcessor, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    grid = torch.tensor([4, 8, 12])
    turns = [
        Turn("What happens?", (Span("It vanishes.", 0),)),
        Turn("How many objects are there?", (Span("Two."),)),
    ]
    packed = pack_turns(processor, turns, grid, seconds_per_grid=2.5)
    turn = (packed["segments"] == 2).nonzero()[:, 0]
    # The prompt ends with the first position that learns: its next token is the answer's first.
    asked = turn[: int((packed["labels"][turn] != IGNORED).nonzero()[0]) + 1]
    prompt = torch.cat([(packed["segments"] == 0).nonzero()[:, 0], asked])
    ids = packed["input_ids"][prompt][None]
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.video_token_id).int() * 2,
        video_grid_thw=grid[None],
        second_per_grid_ts=torch.tensor([2.5]),
    )
    assert torch.equal(packed["positions"][:, prompt], positions[:, 0])
    first_answer = packed["positions"][:, turn[len(asked)]]
    assert first_answer.tolist() == (positions[:, 0, -1] + 1).tolist()


def test_a_packed_turn_is_predicted_as_if_it_stood_alone(
    processor: Qwen2_5_VLProcessor, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    packed = SceneDataset(processor, 1, seed=4, turns=3)[0]
    prefix, last = packed.segments == 0, packed.segments == packed.segments.max()
    kept = prefix | last
    alone = replace(
        packed,
        positions=packed.positions[:, kept],
        told_labels=packed.told_labels[:, kept],
        **{name: getattr(packed, name)[kept] for name in ("input_ids", "labels", "weights", "segments")},
    )
    with torch.no_grad():
        together = forward_hidden(model, collate([packed, alone]), True).last
    assert torch.allclose(together[0][last], together[1][int(prefix.sum()) : int(kept.sum())], atol=1e-4)


def test_a_caption_in_stretches_is_the_caption() -> None:
    for seed in range(20):
        scene = sample_scene(random.Random(seed))
        told = list(caption_spans(scene, random.Random(seed)))
        assert "".join(part.text for part in told) == caption(scene, random.Random(seed))
        about = [part.about for part in told if part.about is not None]
        assert about[: len(scene.objects)] == list(range(len(scene.objects)))
        assert about[len(scene.objects) :] == [event.index for event in scene.events]


def test_a_token_is_about_the_object_of_its_stretch(processor: Qwen2_5_VLProcessor) -> None:
    told = (Span("A red star is"), Span(" here", 1), Span(", a blue one there.", 0))
    ids, about = encode_spans(processor, told)
    assert ids == processor.tokenizer.encode("A red star is here, a blue one there.<|im_end|>")
    texts = dict.fromkeys((IGNORED, 0, 1), "")
    for token, number in zip(ids, about, strict=True):
        texts[number] += processor.tokenizer.decode([token])
    assert texts == {IGNORED: "A red star is<|im_end|>", 1: " here", 0: ", a blue one there."}


def test_labels_know_an_event_once_it_has_happened() -> None:
    scenes = (sample_scene(random.Random(seed)) for seed in range(60))
    found = set()
    for scene in scenes:
        if [event.kind for event in scene.events] != ["disappears"]:
            continue
        (event,) = scene.events
        times = [scene.duration * (index + 0.5) / 8 for index in range(8)]
        labels = seen_labels(scene, times, torch.tensor([4, 8, 8])).reshape(4, 16, len(KINDS))
        shape = object_labels(scene)[event.index, list(KINDS).index("shape")]
        here = labels[..., list(KINDS).index("shape")] == shape
        for step in range(4):
            gone = times[2 * step + 1] >= event.time
            told = set(labels[step, here[step], list(KINDS).index("event")].tolist())
            assert told <= {1 + EVENTS.index("disappears") if gone else 0}
            found |= told
    assert len(found) == 2, "before it and after it"


def test_presence_labels_tell_an_objects_colour_from_one_that_comes_later() -> None:
    scenes = [sample_scene(random.Random(seed)) for seed in range(40)]
    scene = next(scene for scene in scenes if any(item.new_colour for item in scene.objects))
    labels = dict(zip(PRESENCE_KINDS, presence_labels(scene).tolist(), strict=True))
    expected = dict.fromkeys(PRESENCE_KINDS, 0)
    expected |= {item.new_colour: 2 for item in scene.objects if item.new_colour}
    expected |= {name: 1 for item in scene.objects for name in (item.colour, item.shape)}
    assert labels == expected
    assert sorted(set(labels.values())) == [0, 1, 2]


def test_guides_read_what_a_hidden_state_holds() -> None:
    torch.manual_seed(0)
    guides = Guides(16)
    hidden = torch.randn(40, 16)
    labels = torch.stack([torch.randint(0, count, (40,)) for count in KINDS.values()], dim=1)
    labels[::2, 1] = IGNORED
    optimizer = torch.optim.Adam(guides.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = guides.told_loss(hidden, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    right = guides.accuracy("told", hidden, labels)
    assert right.shape == (len(KINDS),)
    assert float(right[2]) > 0.5


def test_the_patch_product_equals_the_convolution(
    processor: Qwen2_5_VLProcessor, model: Qwen2_5_VLForConditionalGeneration
) -> None:
    pixels = torch.randn(5, 3 * 2 * 14 * 14)
    expected = model.model.visual.patch_embed(pixels)
    twin = build_model("draft", processor.tokenizer, 3).eval()
    use_linear_patches(twin)
    assert torch.allclose(twin.model.visual.patch_embed(pixels), expected, atol=1e-5)


def test_slices_attended_at_once_come_out_as_one_by_one() -> None:
    # Trained weights: random ones attend so little that padding would not show.
    folder = PAIR_FOLDER / "draft"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Qwen2_5_VLProcessor.from_pretrained(folder)
    examples = SceneDataset(processor, 10, seed=5)
    batch = collate([examples[number] for number in range(10)])
    assert len({int(grid[1:].prod()) for grid in batch.grids}) > 1, "slices of several lengths"
    with torch.no_grad():
        expected = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
        use_padded_slices(model)
        found = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_plans_decisions_are_asked(tmp_path: Path, processor: Qwen2_5_VLProcessor) -> None:
    save_half(build_model("draft", processor.tokenizer, 1, 1), processor, tmp_path / "start")

    def asked(decisions: int) -> int:
        plan = replace(PLAN, decisions=decisions, vision_first=0)
        run = start_run(plan, tmp_path / "run", torch.device("cpu"), tmp_path / "start", None)
        batch = next(iter(batches(run, 0, workers=0)))
        assert isinstance(batch, Batch)
        return int(batch.segments.max())

    assert asked(3) > asked(0)


def test_spread_layers_are_gathered_again(processor: Qwen2_5_VLProcessor) -> None:
    few, many, again = (
        build_model("draft", processor.tokenizer, seed, n) for seed, n in ((1, 2), (2, 5), (3, 2))
    )
    copy_into(few, many)
    copy_into(many, again)
    state, found = few.state_dict(), again.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state if "visual" not in name)
    with pytest.raises(ValueError, match="2 layers do not go into 1"):
        copy_into(many, build_model("draft", processor.tokenizer, 3, 1))


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


@pytest.mark.thorough
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

    train(PLAN, out, device=torch.device("cpu"), workers=0, start_from=start_from, after_step=watch)
