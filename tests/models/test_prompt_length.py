"""Prompts that are longer than a model has positions for."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import ContextError, UsageError
from lvspec_cli.models import decoder
from lvspec_cli.models import prompt as prompt_module
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.prompt_length import Limit, check_texts, frames_within, positions_of
from lvspec_cli.types import DecodeSettings, Mode
from tests.conftest import Printed
from tests.speculation.conftest import decode, prompts_for
from tests.tiny_models import make_clip, save_model, set_positions


@pytest.mark.parametrize(
    ("rope", "found"),
    [
        (None, 4096),
        ({"rope_type": "default"}, 4096),
        ({"rope_type": "linear", "factor": 2.5}, 10240),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
    ],
)
def test_positions_with_what_stretches_them(rope: Any, found: int) -> None:
    assert positions_of(SimpleNamespace(max_position_embeddings=4096, rope_parameters=rope)) == found


def test_a_text_fits_with_its_answer_to_the_last_token() -> None:
    limit = Limit(positions=100, new_tokens=40)
    limit.check_tokens(60, "--prompt")
    with pytest.raises(UsageError, match="--prompt: 61 tokens, and the target has 100 positions, 40 of them"):
        limit.check_tokens(61, "--prompt")
    limit.check_text("x" * 1600, "a.txt")
    with pytest.raises(UsageError, match=r"a\.txt: 1601 characters"):
        limit.check_text("x" * 1601, "a.txt")
    assert limit.may_fit("x" * 15)
    assert not limit.may_fit("x" * 16)


def test_what_takes_most_of_the_tokens_is_what_is_to_be_less() -> None:
    limit = Limit(positions=100)
    limit.check_prompt(100, 90)
    for visual, frames, remedy in (
        (90, None, "take a smaller --max-pixels"),
        (20, None, "shorten it"),
        (90, 7, "take --frames 7"),
        (20, 7, "take --frames 7"),
    ):
        with pytest.raises(ContextError, match=f"101 tokens, {visual} of them of the video") as caught:
            limit.check_prompt(101, visual, lambda: frames)  # noqa: B023 - called at once
        assert (caught.value.remedy, caught.value.frames) == (remedy, frames)


def test_an_error_keeps_its_frames_on_its_way_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(ContextError("too long", "take less", 7)))
    assert (sent.cause, sent.remedy, sent.frames) == ("too long", "take less", 7)


@pytest.mark.parametrize(
    ("tokens", "room", "found"),
    [
        (lambda frames: 20 + 4 * frames, 100, 20),
        (lambda frames: 20 + 4 * frames, 99, 19),
        (lambda frames: 20 + 4 * frames, 200, 40),  # all
        (lambda frames: 20 + 4 * frames, 28, 2),
        (lambda frames: 20 + 4 * frames, 27, None),
        (lambda frames: 20 + 8 * -(-frames // 2), 100, 20),  # pairs of frames
        (lambda frames: 20 + 8 * -(-frames // 2), 99, 18),
        (lambda frames: 20 + 4 * frames + frames**2 // 30, 100, 17),  # later frames have longer times
        (lambda frames: 20 + min(4 * frames, 90), 100, 20),  # smaller frames where they are many
        (lambda frames: 20 + 81 * frames, 2000, 24),
    ],
)
def test_the_most_frames_that_fit(tokens: Callable[[int], int], room: int, found: int | None) -> None:
    assert frames_within(tokens, 40, room) == found


@given(
    st.integers(1, 300), st.integers(1, 200), st.integers(0, 3000), st.integers(1, 8), st.integers(0, 60_000)
)
def test_frames_that_fit_are_counted_a_few_times_only(
    frames: int, a_group: int, text: int, group: int, room: int
) -> None:
    """Whatever group of frames shares its tokens: with one frame more there would be too many."""
    counted = []

    def tokens(count: int) -> int:
        assert 1 <= count <= frames
        counted.append(count)
        return text + a_group * -(-count // group)

    found = frames_within(tokens, frames, room)
    assert len(counted) <= 6 + group
    if found is None:
        assert tokens(min(2, frames)) > room
    else:
        assert tokens(found) <= room
        assert found == frames or tokens(found + 1) > room


def test_a_single_frame_that_does_not_fit() -> None:
    assert frames_within(lambda frames: 50, 1, 49) is None
    assert frames_within(lambda frames: 50, 1, 50) == 1


@pytest.mark.parametrize("words", [5000, 100_000])
def test_a_long_question_is_refused_before_the_frames_are_looked_at(
    pair: LoadedPair, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_module, "process", lambda *_: pytest.fail("the frames were processed"))
    with pytest.raises(UsageError, match="the target has 4096 positions"):
        build_prompts(pair, make_clip(4), "moves " * words)


def test_a_video_of_too_many_tokens_is_refused(pair: LoadedPair) -> None:
    needed = prompts_for(pair).target
    most = pair.target.positions - needed.length
    build_prompts(pair, make_clip(4), "What moves?", new_tokens=most)
    with pytest.raises(ContextError, match=f"{needed.length} tokens, {needed.visual_tokens} of") as caught:
        build_prompts(pair, make_clip(4), "What moves?", new_tokens=most + 1)
    fewer = 2 if pair.target.family.model_type == "qwen2_5_vl" else 3  # two frames share their tokens
    assert caught.value.frames == fewer
    assert caught.value.remedy == f"take --frames {fewer}, or lower --max-new-tokens"
    least = pair.target.positions - build_prompts(pair, make_clip(2), "What moves?").target.length
    build_prompts(pair, make_clip(2), "What moves?", new_tokens=least)
    with pytest.raises(ContextError, match=f"tokens, {needed.visual_tokens} of them") as caught:
        build_prompts(pair, make_clip(4), "What moves?", new_tokens=least + 1)
    assert caught.value.frames is None
    assert caught.value.remedy == "shorten it, or lower --max-new-tokens"


def test_a_video_of_too_many_tokens_for_the_draft_alone_is_refused(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pair.draft is not None
    needed = prompts_for(pair).draft
    assert needed is not None
    config = pair.draft.model.config.get_text_config()
    monkeypatch.setattr(config, "max_position_embeddings", needed.length)
    build_prompts(pair, make_clip(4), "What moves?")
    monkeypatch.setattr(config, "max_position_embeddings", needed.length - 1)
    said = (
        f"{needed.length} tokens, {needed.visual_tokens} of them.*, and the draft has {needed.length - 1} pos"
    )
    with pytest.raises(UsageError, match=said):
        build_prompts(pair, make_clip(4), "What moves?")


def test_texts_are_checked_by_a_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, "qwen2_5_vl")
    (tmp_path / "model.safetensors").unlink()
    check_texts({"target": tmp_path}, {"What moves?": "--prompt"}, None, 256)
    check_texts({"target": tmp_path}, {"What moves? " * 200: "--prompt"}, None, 256)
    for text, system, where in (
        ("moves " * 5000, None, "a.txt: [0-9]+ tokens"),
        ("moves " * 10**6, None, "a.txt: 6000000 characters"),
        ("What?", "moves " * 5000, "--system: [0-9]+ tokens"),
    ):
        with pytest.raises(UsageError, match=where):
            check_texts({"target": tmp_path}, {"What moves?": "--prompt", text: "a.txt"}, system, 256)
    with pytest.raises(UsageError, match=r"4096 positions, 5000 of them for the answer"):
        check_texts({"target": tmp_path}, {"What moves?": "--prompt"}, None, 5000)
    set_positions(tmp_path, 10**5)
    check_texts({"target": tmp_path}, {"moves " * 5000: "a.txt"}, None, 256)


def test_the_draft_has_positions_of_its_own(
    tiny_models: Path, video_file: Path, tmp_path: Path, here: Callable[..., Printed]
) -> None:
    """Both commands, a prompt that is long by itself and one that is long by its video; ar needs no draft."""
    models = shutil.copytree(tiny_models.parent, tmp_path / "models") / tiny_models.name
    (tmp_path / "long.txt").write_text("moves " * 1000)
    given = {"LVSPEC_MODELS": str(models)}
    for positions, question, command in (
        (1000, ("--prompt-file", tmp_path / "long.txt"), ("caption", video_file, "--out", "-")),
        (1000, ("--questions", tmp_path / "long.txt"), ("ask", video_file)),
        (50, ("What?",), ("ask", video_file)),
    ):
        set_positions(models.parent / "draft", positions)
        printed = here(*command, *question, environment=given)
        assert printed.returncode == 2, printed.stderr
        found = f"error: .*: [0-9]+ tokens.*, and the draft has {positions} positions"
        assert re.search(found, printed.stderr)
        assert printed.stderr.count("error: ") == 1
        assert "or take --mode ar, which needs no draft" in printed.stderr
    printed = here("ask", video_file, "What?", "--mode", "ar", "--max-new-tokens", 2, environment=given)
    assert printed.returncode == 0, printed.stderr


def test_a_long_question_is_read_in_pieces_and_answered_the_same(
    pairs: dict[str, LoadedPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pairs["qwen2_5_vl"]
    prompts = prompts_for(pair, "What moves, and where does it go from there? " * 4)
    rows = prompts.target.length - prompts.target.prefix_length
    assert rows > 20
    for mode in (Mode.AR, Mode.EXACT):
        wanted = DecodeSettings(mode=mode, gamma=3, max_new_tokens=16)
        found = []
        for piece in (rows, 7, 1):
            monkeypatch.setattr(decoder, "QUESTION_ROWS", piece)
            found.append(decode(pair, prompts, wanted)[0].tokens)
        assert found[0] == found[1] == found[2]
