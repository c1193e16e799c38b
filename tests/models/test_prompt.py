"""What reaches the models: real times, positions, the video's tokens, a prefix that questions share."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from lvspec_cli.models.families.qwen2_5_vl import _rope_index
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.processing import batch_features_of, quiet, video_metadata
from lvspec_cli.models.prompt import build_prompts, shown
from lvspec_cli.models.read import chat_text
from lvspec_cli.types import Clip, DraftView, Prompt
from tests.speculation.conftest import stock_model
from tests.tiny_models import make_clip


def timed(times: tuple[float, ...]) -> Clip:
    return replace(make_clip(len(times)), timestamps=times)


@pytest.mark.parametrize(
    ("times", "seconds_per_grid"),
    [
        ((0.0, 0.5, 1.0, 1.5), 1.0),
        ((0.0, 2.0, 4.0, 6.0), 4.0),
        ((3.0, 3.04, 3.08, 3.12), 0.08),
        ((0.0, 0.1, 0.9, 3.0), 2.0),  # irregular: the mean
        ((0.25, 1.25), 2.0),
        ((1.0, 1.5, 2.0), 1.0),  # an odd number of frames
    ],
    ids=str,
)
def test_real_times_reach_the_processor(
    pairs: dict[str, LoadedPair], times: tuple[float, ...], seconds_per_grid: float
) -> None:
    prompt = build_prompts(pairs["qwen2_5_vl"], timed(times), "What moves?").target
    assert prompt.video_inputs["second_per_grid_ts"].tolist() == pytest.approx([seconds_per_grid], rel=1e-4)


def test_metadata_holds_every_time() -> None:
    times = (0.0, 0.04, 0.52, 1.0, 7.123)
    metadata = video_metadata(timed(times))
    assert metadata.timestamps == pytest.approx(times, abs=1e-5)
    assert metadata.sampled_fps == pytest.approx(4 / 7.123, rel=1e-4)


def given_times(pair: LoadedPair, times: tuple[float, ...]) -> tuple[Prompt, torch.Tensor]:
    """Our prompt, and positions by the model's own reckoning."""
    prompt = build_prompts(pair, timed(times), "What moves?").target
    positions, _ = pair.target.model.model.get_rope_index(
        prompt.input_ids,
        mm_token_type_ids=prompt.video_mask.long()[None] * 2,
        **{name: value for name, value in prompt.video_inputs.items() if name != "pixel_values_videos"},
    )
    return prompt, positions


@pytest.mark.parametrize("times", [(0.0, 0.5, 1.0, 1.5), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0), (0.0, 9.0)], ids=str)
def test_positions_are_the_models_own(pairs: dict[str, LoadedPair], times: tuple[float, ...]) -> None:
    prompt, positions = given_times(pairs["qwen2_5_vl"], times)
    assert torch.equal(prompt.position_ids, positions)
    # Behind a long video too: generate counts on from the last token, not from the highest position.
    assert [prompt.next_position - 1] * 3 == positions[:, 0, -1].tolist()


@pytest.mark.parametrize("times", [(0.0, 0.4, 0.8, 1.2), (0.0, 0.1, 0.9, 3.0, 3.3, 3.4)], ids=str)
def test_positions_in_fractions_of_seconds(pairs: dict[str, LoadedPair], times: tuple[float, ...]) -> None:
    prompt, positions = given_times(pairs["qwen2_5_vl"], times)
    assert torch.equal(prompt.position_ids, positions)


def test_a_model_that_cuts_seconds_to_whole_ones_is_made_to_count_fractions(
    pairs: dict[str, LoadedPair],
) -> None:
    """As releases before 5.23 do. Of two prompts the shorter one is padded on its left."""
    pair, questions = pairs["qwen2_5_vl"], ("What moves?", "What moves there, and where to?")
    texts = [chat_text(pair.target.processor, question, None, "") for question in questions]
    clips = [timed((0.0, 0.4, 0.8, 1.2)), timed((0.0, 0.1, 0.9, 3.0))]
    batch = batch_features_of(pair.target.processor, texts, clips)
    inputs = {name: value for name, value in batch.items() if name != "pixel_values_videos"}
    model = stock_model(pair.target.name)
    own = type(model.model).get_rope_index

    def cut(input_ids: torch.Tensor, **rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rest["second_per_grid_ts"] = rest["second_per_grid_ts"].int().float()
        positions, ahead = own(model.model, input_ids, **rest)
        return positions.clone(), ahead.clone()

    expected, found = own(model.model, **inputs), _rope_index(model, cut, **inputs)
    if Version(transformers.__version__) >= Version("5.23"):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert not torch.equal(cut(**inputs)[0], found[0])


def test_fractions_of_seconds_are_not_cut(pairs: dict[str, LoadedPair]) -> None:
    prompt = build_prompts(pairs["qwen2_5_vl"], timed((0.0, 0.4, 0.8, 1.2, 1.6, 2.0)), "What moves?").target
    times = prompt.position_ids[0, 0, prompt.video_mask].unique().tolist()
    assert [time - times[0] for time in times] == [0, 1, 3]  # 0, 1.6 and 3.2: two positions a second


def test_llava_positions_are_plain(pairs: dict[str, LoadedPair]) -> None:
    prompt = build_prompts(pairs["llava_onevision"], make_clip(4), "What moves?").target
    assert prompt.position_ids.tolist() == [list(range(prompt.length))]
    assert prompt.next_position == prompt.length
    assert prompt.visual_tokens == 4 * 2 * 2 + 1  # pooled 3 x 3 patches a frame, and the newline


def test_a_draft_is_shown_less(pairs: dict[str, LoadedPair]) -> None:
    clip = replace(make_clip(8, size=112), timestamps=(0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 10.0))
    few = shown(clip, DraftView(frames=4))
    assert few.timestamps == (0.0, 2.0, 6.0, 10.0)
    assert np.array_equal(few.frames, clip.frames[[0, 2, 5, 7]])
    small = shown(clip, DraftView(frames=1, pixels=56 * 56))
    assert (small.frames.shape, small.timestamps) == ((1, 56, 56, 3), (0.0,))
    assert abs(float(small.frames.mean()) - float(clip.frames[0].mean())) < 2
    assert shown(clip, DraftView(frames=8, pixels=112 * 112)) is clip
    pair = pairs["qwen2_5_vl"]
    whole = build_prompts(pair, clip, "What moves?")
    less = build_prompts(pair, clip, "What moves?", draft_view=DraftView(4, 56 * 56))
    again = build_prompts(pair, clip, "Why?", draft_view=DraftView(4, 56 * 56), earlier=less)
    assert whole.draft is not None
    assert less.draft is not None
    assert again.draft is not None
    assert torch.equal(less.target.input_ids, whole.target.input_ids)
    assert whole.draft.visual_tokens == whole.target.visual_tokens == 4 * 3 * 3  # 84 pixels a side at most
    assert less.draft.visual_tokens == again.draft.visual_tokens == 2 * 2 * 2
    # The same seconds: 10 on two pairs of frames, not on four.
    seconds = [float(prompt.video_inputs["second_per_grid_ts"][0]) for prompt in (whole.draft, less.draft)]
    assert seconds == pytest.approx([20 / 7, 20 / 3], rel=1e-4)


def test_frames_are_not_capped_a_second_time(pairs: dict[str, LoadedPair]) -> None:
    pair, clip = pairs["qwen2_5_vl"], make_clip(8, size=84)
    wanted = build_prompts(pair, clip, "What moves?").target.visual_tokens
    processor = copy.deepcopy(pair.target.processor)
    processor.video_processor.cap_pixels_per_frame = True  # as a model's files may say, from 5.23 on
    processor.video_processor.max_video_tokens = 1
    capped = replace(pair, target=replace(pair.target, processor=processor))
    assert build_prompts(capped, clip, "What moves?").target.visual_tokens == wanted


def test_the_librarys_notes_are_held_back_while_it_works() -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    with pytest.raises(KeyError), quiet():
        assert logging.get_verbosity() == logging.ERROR
        raise KeyError
    assert logging.get_verbosity() == before < logging.ERROR
