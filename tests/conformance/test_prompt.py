"""What reaches the models: the processor's own tokens, real times, one prefix for all questions."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from lvspec_cli.errors import ContextError, PairError, UsageError
from lvspec_cli.memory.plan import Workload, prompt_tokens
from lvspec_cli.memory.sizes import size_of
from lvspec_cli.models import prompt as prompt_module
from lvspec_cli.models.decoder import Decoder, kept_positions
from lvspec_cli.models.load import LoadedModel, check_tokenizers, load_pair
from lvspec_cli.models.probe import attention_by_video_token, video_attention
from lvspec_cli.models.processing import features_of, process
from lvspec_cli.models.prompt import PromptSizes, build_prompts
from lvspec_cli.models.read import chat_text
from lvspec_cli.types import Clip
from tests.conformance.conftest import CLIPS, Subject
from tests.tiny_families import TINY
from tests.tiny_models import make_clip


@pytest.mark.parametrize("clip", CLIPS)
def test_tokens_are_the_processors_own(subject: Subject, clip: str) -> None:
    prompt = subject.prompts(clip).target
    text = chat_text(subject.processor, "What moves?", None)
    features = features_of(subject.processor, text, CLIPS[clip])
    assert torch.equal(prompt.input_ids, features["input_ids"])
    assert set(prompt.video_inputs) <= set(features)
    sizes = PromptSizes(subject.folders[0])
    frames = (CLIPS[clip].timestamps, CLIPS[clip].width, CLIPS[clip].height)
    assert prompt.visual_tokens == sizes.visual_tokens(*frames) > 0
    assert prompt.position_ids.shape[-2:] == (1, prompt.length)
    assert prompt.next_position == int(prompt.position_ids[..., -1].max()) + 1


def test_the_size_that_is_planned_with(subject: Subject) -> None:
    """What ``models fit`` and loading reckon with, from the config alone."""
    planned, loaded = size_of(subject.folders[0] / "config.json"), subject.pair.target
    assert planned.parameters == sum(part.numel() for part in loaded.model.parameters())
    assert planned.layers == len(loaded.family.layers(loaded.model))
    prompt, clip = subject.prompts("tall-and-odd").target, CLIPS["tall-and-odd"]
    frames, pixels = len(clip.timestamps), clip.width * clip.height
    # Qwen rounds the sides of a frame to whole tokens, LLaVA-OneVision ends with a newline.
    assert planned.vision.tokens(frames, pixels) == pytest.approx(prompt.visual_tokens, rel=0.2)
    assert prompt.length <= prompt_tokens(planned, Workload(frames, pixels, 0))


def test_questions_share_the_video_and_the_prefix(subject: Subject) -> None:
    first = subject.prompts("odd")
    for question, system in (("how many balls", None), ("how many balls", "there is a red ball: grün")):
        taken = build_prompts(subject.pair, CLIPS["odd"], question, system=system, earlier=first)
        anew = build_prompts(subject.pair, CLIPS["odd"], question, system=system)
        for one, two, before in (
            (taken.target, anew.target, first.target),
            (taken.draft, anew.draft, first.draft),
        ):
            assert one is not None
            assert two is not None
            assert before is not None
            assert torch.equal(one.input_ids, two.input_ids)
            assert torch.equal(one.position_ids, two.position_ids)
            assert (one.next_position, one.prefix_length) == (two.next_position, two.prefix_length)
            assert all(one.video_inputs[name] is before.video_inputs[name] for name in two.video_inputs)
            assert not one.video_mask[one.prefix_length :].any()
            if system is None:
                prefix = one.prefix_length
                assert torch.equal(one.input_ids[:, :prefix], before.input_ids[:, :prefix])


def test_a_system_text_comes_before_the_video(subject: Subject) -> None:
    prompt = build_prompts(subject.pair, CLIPS["odd"], "What moves?", system="there is a red ball").target
    tokenizer = subject.pair.target.tokenizer
    before = tokenizer.decode(prompt.input_ids[0, : int(prompt.video_mask.nonzero()[0])])
    behind = tokenizer.decode(prompt.input_ids[0, prompt.prefix_length :])
    assert "there is a red ball" in before
    assert "What moves?" in behind


def test_placeholders_and_special_tokens_in_the_text_are_refused(subject: Subject) -> None:
    processor = subject.processor
    ends = TINY[subject.family].ends
    for token in {processor.video_token, processor.image_token, *ends}:
        for question, system in ((f"what {token} is", None), ("What?", f"stop {token} here")):
            with pytest.raises(UsageError, match=re.escape(token)):
                build_prompts(subject.pair, CLIPS["odd"], question, system=system)


def test_both_models_read_what_the_targets_template_writes(subject: Subject, tmp_path: Path) -> None:
    """Templates of a pair may differ, as Qwen3.5's of different sizes do where thinking is not switched."""
    draft = Path(copytree(subject.folders[1], tmp_path / "draft"))
    file = draft / "chat_template.jinja"
    switch = "{% if enable_thinking is defined and enable_thinking is false %} quietly{% endif %}"
    file.write_text((file.read_text() if file.exists() else "") + switch)
    pair = load_pair(subject.folders[0], draft, device="cpu", dtype="float32")
    assert pair.draft is not None
    prompts = build_prompts(pair, CLIPS["odd"], "What moves?")
    assert prompts.draft is not None
    assert prompts.draft.text == prompts.target.text == subject.prompts("odd").target.text
    own = chat_text(pair.draft.processor, "What moves?", None)
    assert own.endswith(" quietly") == (subject.family != "smolvlm")  # which has the library's own template


def test_frames_are_processed_once_for_models_that_take_the_same(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = subject.pair.draft
    assert draft is not None
    apart = build_prompts(replace(subject.pair, target=draft, draft=None), CLIPS["odd"], "What moves?").target
    processed = []

    def counted(processor: Any, text: str, clip: Clip) -> Any:
        processed.append(processor)
        return process(processor, text, clip)

    monkeypatch.setattr(prompt_module, "process", counted)
    both = build_prompts(subject.pair, CLIPS["odd"], "What moves?")
    assert both.draft is not None
    assert processed == [subject.pair.target.processor]
    assert torch.equal(both.draft.input_ids, apart.input_ids)
    assert torch.equal(both.draft.position_ids, apart.position_ids)
    assert both.draft.video_inputs.keys() == apart.video_inputs.keys()
    for name, values in apart.video_inputs.items():
        assert torch.equal(both.draft.video_inputs[name], values)
    other = copy.deepcopy(draft.processor)
    other.video_processor.image_mean = [0.1, 0.2, 0.3]  # other pixels, in the same shape
    pair = replace(subject.pair, draft=replace(draft, processor=other))
    build_prompts(pair, CLIPS["odd"], "What moves?")
    assert processed[1:] == [pair.target.processor, other]


TIMES = (0.0, 0.5, 61.0, 62.0, 125.3)


def test_frames_that_a_short_context_has_room_for(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is run: so many frames fit, to the last token, and a frame more does not."""
    pair, answer = subject.pair, 10
    lengths = [build_prompts(pair, make_clip(count), "What moves?").target.length for count in (6, 7)]
    room = lengths[0] if lengths[1] > lengths[0] else lengths[0] - 1
    config = pair.target.model.config.get_text_config()
    monkeypatch.setattr(config, "max_position_embeddings", room + answer)
    with pytest.raises(ContextError, match=f"the target has {room + answer} positions") as caught:
        build_prompts(pair, make_clip(9), "What moves?", new_tokens=answer)
    fitting = caught.value.frames
    assert fitting in (5, 6)
    assert fitting is not None
    build_prompts(pair, make_clip(fitting), "What moves?", new_tokens=answer)
    with pytest.raises(ContextError):
        build_prompts(pair, make_clip(fitting + 1), "What moves?", new_tokens=answer)
    sizes, clip = PromptSizes(subject.folders[0]), make_clip(9)
    planned = sizes.frames_that_fit("What moves?", clip.timestamps, clip.width, clip.height, 9)
    assert planned == 9, "its own context is long enough"


EXPECTED_TIMES = {
    # Pairs of frames: the mean of each, an odd last frame with itself.
    "qwen3_vl": ["<0.2 seconds>", "<61.5 seconds>", "<125.3 seconds>"],
    "qwen3_5": ["<0.2 seconds>", "<61.5 seconds>", "<125.3 seconds>"],
    "qwen3_5_moe": ["<0.2 seconds>", "<61.5 seconds>", "<125.3 seconds>"],
    "smolvlm": [
        "five frames from a 0:02:10 [H:MM:SS] video",
        "Frame from 00:00:",
        "Frame from 01:01:",
        "Frame from 01:02:",
        "Frame from 02:05:",
    ],
}


def test_times_stand_in_the_text_of_families_that_write_them(subject: Subject) -> None:
    clip = replace(make_clip(len(TIMES)), timestamps=TIMES, duration=130.0)
    prompt = build_prompts(subject.pair, clip, "What moves?").target
    text = subject.pair.target.tokenizer.decode(prompt.input_ids[0])
    for words in EXPECTED_TIMES.get(subject.family, ()):
        assert words in text
    written = re.search(r"\d+[.:]\d+", text) is not None
    assert written == (subject.family in EXPECTED_TIMES)


@contextmanager
def without_attention(loaded: LoadedModel) -> Iterator[None]:
    """What attention or a state gathers is thrown away: every row stands alone."""
    weights = [
        layer.self_attn.o_proj.weight
        if hasattr(layer, "self_attn")
        else layer.linear_attn.layer.out_proj.weight
        for layer in loaded.family.layers(loaded.model)
    ]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
        yield
        for weight, values in zip(weights, before, strict=True):
            weight.copy_(values)


def test_a_pruned_video_keeps_its_features_and_positions(subject: Subject) -> None:
    loaded, prompt = subject.pair.target, subject.prompts("wide").target
    with without_attention(loaded), torch.inference_mode():
        whole = Decoder(loaded).encode(prompt)
        pruned = Decoder(loaded).encode(prompt, keep=0.4)
    places = kept_positions(prompt.video_mask[: prompt.prefix_length], 0.4)
    assert pruned.rows == len(places) < whole.rows
    assert torch.allclose(pruned.hidden, whole.hidden[:, places], atol=1e-4)
    for part, all_of_it in zip(pruned.rotary, whole.rotary, strict=True):
        assert torch.equal(part, all_of_it[:, places])


def test_what_is_looked_at_is_the_models_own_attention(subject: Subject) -> None:
    loaded, prompt = subject.pair.target, subject.prompts("odd").target
    decoder = Decoder(loaded)
    with torch.inference_mode():
        decoder.encode(prompt)
        asked = decoder.begin(prompt, 8, range(decoder.layer_count))
        looks = attention_by_video_token(decoder, asked)
        shares = [video_attention(decoder, asked, layer, asked.rows) for layer in decoder.attention_layers]
    assert looks.shape == (prompt.visual_tokens,)
    assert bool((looks >= 0).all())
    assert len(looks) < 2 or float(looks.std()) > 0
    assert float(looks.sum()) == pytest.approx(float(torch.stack(shares).mean()), abs=1e-4)


def test_a_mismatched_tokenizer_is_refused_with_the_first_differing_token(subject: Subject) -> None:
    target, draft = subject.pair.target, subject.pair.draft
    assert draft is not None
    other = TINY[subject.family].tokenizer("some other words entirely, and what they say")
    ours, theirs = (
        {index: token for token, index in one.get_vocab().items()} for one in (target.tokenizer, other)
    )
    first = min(index for index in ours if index in theirs and ours[index] != theirs[index])
    words = f"token {first} is {ours[first]!r} in the target and {theirs[first]!r} in the draft"
    with pytest.raises(PairError, match=re.escape(words)):
        check_tokenizers(target, replace(draft, tokenizer=other))
    check_tokenizers(target, draft)
