"""Clips of more frames than a model's context has room for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import lvspec_cli
from lvspec_cli.batch.answer import Answering
from lvspec_cli.batch.slots import Ready, Slots
from lvspec_cli.errors import ContextError, LvspecError
from lvspec_cli.models.load import load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.request import AskRequest
from lvspec_cli.types import DEFAULT_PROMPT, DecodeSettings, VideoRequest
from lvspec_cli.video.decode import read_clip
from tests.batch.conftest import Caption, rows
from tests.batch.test_caption import given
from tests.batch.test_resume import work
from tests.conftest import Printed, demo_plan
from tests.tiny_models import set_positions

ANSWER = 8
FLAGS = ("--frames", 8, "--max-new-tokens", ANSWER, "--no-fallback")


@pytest.fixture(scope="module")
def lengths(tiny_models: Path, some_clips: Path) -> dict[int, int]:
    """The tokens of the prompt and its answer by the number of frames."""
    pair = load_pair(tiny_models.parent / "target", None, device="cpu")
    found = {}
    for frames in (2, 6, 8):
        clip = read_clip(VideoRequest(some_clips / "d.mp4", max_frames=frames))
        found[frames] = build_prompts(pair, clip, DEFAULT_PROMPT).target.length + ANSWER
    return found


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pair whose contexts a test may shorten."""
    return Path(shutil.copytree(tiny_models.parent, tmp_path / "models")) / tiny_models.name


@pytest.fixture
def shortly(here: Caption, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caption:
    """Runs ``lvspec`` with that pair, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Printed:
        return here(*arguments, environment={"LVSPEC_MODELS": str(models)})

    return run


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_clip_is_taken_with_the_frames_that_fit(
    shortly: Caption, models: Path, clips: Path, lengths: dict[int, int], role: str
) -> None:
    """As if ``--frames`` had said so, with a note in the row; clips that fit are as ever."""
    positions = lengths[8] - 1
    set_positions(models.parent / role, positions)
    given = ("caption", clips / "a.mp4", clips / "d.mp4", *FLAGS)
    done = shortly(*given, "--out", "short.jsonl")
    assert done.returncode == 0, done.stderr
    assert "2 captioned, 0 failed" in done.stderr
    assert "1 of fewer frames than were asked for: the warnings of their records say why" in done.stderr
    first, second = rows(Path("short.jsonl"))
    assert (first["sampling"]["decoded"], first["sampling"]["warnings"]) == (6, [])
    sampling = second["sampling"]
    assert (sampling["decoded"], sampling["frames_expected"], sampling["oom_retries"]) == (6, 8, 0)
    assert sampling["requested"]["frames"] == 8
    assert sampling["warnings"] == [
        f"6 of 8 frames fit the context (the prompt: {lengths[8] - ANSWER} tokens, 16 of them of the video,"
        f" and the {role} has {positions} positions, {ANSWER} of them for the answer)"
    ]
    assert "0 to do" in shortly(*given, "--out", "short.jsonl").stderr
    assert shortly("caption", clips / "d.mp4", *FLAGS, "--frames", 6, "--out", "six.jsonl").returncode == 0
    (six,) = rows(Path("six.jsonl"))
    assert (six["text"], six["sampling"]["timestamps"]) == (second["text"], sampling["timestamps"])
    gated = shortly(*given, "--out", "gated.jsonl", "--fail-on", "partial")
    assert gated.returncode == 1
    assert rows(Path("gated.jsonl"))[1]["error"] == {
        "kind": "partial",
        "message": "6 of 8 frames could be taken",
    }


def test_a_dry_run_promises_no_frames_that_do_not_fit(
    shortly: Caption, models: Path, clips: Path, lengths: dict[int, int]
) -> None:
    set_positions(models.parent / "draft", lengths[8] - 1)
    planned = shortly("caption", clips / "a.mp4", clips / "d.mp4", *FLAGS, "--dry-run")
    assert planned.returncode == 0
    first, second = (line.split("\t") for line in planned.stdout.splitlines()[1:])
    assert (first[3], first[-1]) == ("6", "to do")
    assert second[3:] == [
        "6",
        "64x64",
        "12",
        "to do, with 6 of 8 frames: the context has room for no more",
    ]
    assert "1 with fewer frames than asked for" in planned.stderr


def test_clips_of_which_nothing_fits_fail_one_by_one(
    shortly: Caption, models: Path, clips: Path, lengths: dict[int, int]
) -> None:
    positions = lengths[2] - 1
    set_positions(models.parent / "target", positions)
    done = shortly("caption", clips / "d.mp4", clips / "c.mkv", *FLAGS, "--out", "out.jsonl")
    assert done.returncode == 1
    assert [row["error"]["kind"] for row in rows(Path("out.jsonl"))] == ["context", "context"]
    row = next(row for row in rows(Path("out.jsonl")) if row["file_name"] == "d.mp4")
    assert row["error"] == {
        "kind": "context",
        "message": f"the prompt: {lengths[8] - ANSWER} tokens, 16 of them of the video, and the target has"
        f" {positions} positions, {ANSWER} of them for the answer",
    }
    planned = shortly("caption", clips / "d.mp4", *FLAGS, "--dry-run")
    assert planned.returncode == 1
    assert "too long for the context with any frames" in planned.stdout


def test_a_question_names_the_frames_that_fit(
    shortly: Caption, models: Path, clips: Path, lengths: dict[int, int]
) -> None:
    """As where memory is short: a question is about what was asked for."""
    set_positions(models.parent / "target", lengths[8] - 1)
    asked = ("ask", clips / "d.mp4", DEFAULT_PROMPT, *FLAGS)
    refused = shortly(*asked)
    assert "loading" not in refused.stderr
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1] == "try: take --frames 6, or lower --max-new-tokens"
    assert shortly(*asked, "--frames", 6).returncode == 0


def test_the_library_takes_fewer_frames_for_captions(
    models: Path, clips: Path, lengths: dict[int, int]
) -> None:
    set_positions(models.parent / "target", lengths[8] - 1)
    model = lvspec_cli.load("tiny", models=models)
    model = model.with_settings(replace(model.settings, max_new_tokens=ANSWER))
    sampling = lvspec_cli.Sampling(frames=8)
    one, other = model.caption([clips / "d.mp4", clips / "a.mp4"], sampling=sampling)
    assert (one.sampling.decoded, one.sampling.frames_expected, len(one.sampling.warnings)) == (6, 8, 1)
    assert (other.sampling.decoded, other.sampling.warnings) == (6, ())
    with pytest.raises(ContextError) as caught:
        model.ask(clips / "d.mp4", DEFAULT_PROMPT, sampling=sampling)
    assert caught.value.frames == 6
    long = model.with_settings(replace(model.settings, max_new_tokens=lengths[8] - 20))
    (failed,) = long.caption([clips / "d.mp4"], sampling=sampling)
    assert failed.error is not None
    assert failed.error.kind == "context"


def test_where_memory_is_short_as_well_the_note_stays(
    monkeypatch: pytest.MonkeyPatch, video_file: Path
) -> None:
    taken: list[Any] = []

    def answers(*arguments: Any, **options: Any) -> Any:
        clip = arguments[4]
        taken.append((len(clip.timestamps), clip.width))
        if len(taken) == 1:
            raise ContextError("the prompt is long", "", 5)
        if len(taken) == 2:
            raise MemoryError
        assert clip.frames_expected == 9
        assert clip.warnings == ("5 of 9 frames fit the context (the prompt is long)",)
        assert options["oom_retries"] == 1
        raise LvspecError("that is all", "")

    monkeypatch.setattr("lvspec_cli.batch.answer.ClipAnswers", answers)
    monkeypatch.setattr("lvspec_cli.batch.answer.LEAST_PIXELS", 100)
    read = Mock(side_effect=read_clip)
    request = VideoRequest(video_file, max_frames=9, background=(255, 0, 0))
    todo = replace(work(str(video_file), "key"), request=AskRequest(request, ("What?",), DecodeSettings()))
    answering = Answering(Mock(), demo_plan(), read, "shrink", lambda event: None, lambda: False)
    list(Slots(answering, given(Ready(todo, read_clip(request)))).run())
    assert [count for count, _ in taken] == [9, 5, 5]
    assert taken[2][1] < taken[1][1] == 64
    assert all(call.args[0].background == (255, 0, 0) for call in read.mock_calls)
