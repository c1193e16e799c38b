from __future__ import annotations

from dataclasses import replace

import pytest

from lvspec_cli.output.records import Requested, Sampling, stats_fields
from lvspec_cli.types import DecodeStats, FinishReason
from lvspec_cli.ui.summary import answer_summary, clip_summary
from tests.output.rows import record

STATS = DecodeStats(
    output_tokens=21, rounds=5, drafted=40, accepted_exact=10, accepted_filler=4, accepted_shift=1,
    gamma=8, decode_seconds=2.0,
)  # fmt: skip


def test_speed_then_acceptance():
    assert answer_summary(record(stats=stats_fields(STATS, 0.5))) == [
        "21 tokens in 2.0 s, 10.0 tokens/s",
        "4.0 tokens a step of the large model, 38% of the draft kept (same as the large model 10,"
        " draft's wording 4, moved 1)",
    ]


def test_that_speculation_was_given_up_is_said_once():
    first = replace(STATS, fallback=True)
    assert "without the draft" in answer_summary(record(stats=stats_fields(first, 0.5)))[-1]
    later = DecodeStats(output_tokens=21, rounds=20, fallback=True, decode_seconds=2.0)
    assert len(answer_summary(record(stats=stats_fields(later, 0.5)))) == 1


def test_the_target_alone_accepts_nothing():
    alone = DecodeStats(output_tokens=21, decode_seconds=2.0)
    assert answer_summary(record(stats=stats_fields(alone, 0.5))) == ["21 tokens in 2.0 s, 10.0 tokens/s"]


def test_a_choice_is_one_token_in_hardly_any_time():
    one = stats_fields(DecodeStats(output_tokens=1, decode_seconds=0.004), 0.5)
    assert answer_summary(record(stats=one))[0].startswith("1 token in 4 ms")


def test_without_an_answer_there_is_nothing_to_say():
    assert answer_summary(record(stats=None)) == []


@pytest.mark.parametrize(
    ("reason", "said"),
    [("length", "--max-new-tokens"), ("repetition", "repeat"), ("interrupted", "interrupted")],
)
def test_an_unusual_ending_is_said(reason: str, said: str):
    lines = answer_summary(record(stats=stats_fields(STATS, 0.5), finish_reason=FinishReason(reason)))
    assert said in lines[0]


def test_what_was_taken_of_what_was_asked():
    requested = Requested(frames=8, fps=2.0, max_pixels=50176, decoder="pyav")
    sampling = Sampling(
        requested=requested,
        frames_expected=8,
        decoded=2,
        timestamps=(0.5, 4.25),
        width=64,
        height=48,
        visual_tokens=12,
    )
    assert clip_summary(record(sampling=sampling)) == (
        "a.mp4: 2 of 8 frames from 0.5 to 4.2 s, 64x48, 12 visual tokens"
        " (asked: frames 8, fps 2, max-pixels 50176)"
    )
    one = sampling.model_copy(update={"frames_expected": 1, "decoded": 1, "timestamps": (0.0,)})
    assert clip_summary(record(sampling=one)).startswith("a.mp4: 1 of 1 frame at 0.0 s, 64x48, ")
    picture = record(sampling=one, file_name="a.jpg")
    assert clip_summary(picture).startswith("a.jpg: 1 of 1 frame, 64x48, "), "it has no length"
    free = Requested(frames=None, fps=None, max_pixels=None, decoder="pyav")
    assert clip_summary(record(sampling=sampling.model_copy(update={"requested": free}))).endswith("tokens")
