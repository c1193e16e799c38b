"""``--think``: a tiny pair of Qwen3.5 that thinks before it answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lvspec_cli
from lvspec_cli.errors import UsageError
from lvspec_cli.escape import visible
from lvspec_cli.models.load import load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, Mode, VideoRequest
from lvspec_cli.video.decode import read_clip
from tests.conftest import Printed
from tests.tiny_models import save_pair
from tests.tiny_tokenizers import build_tokenizer

Run = Callable[..., Printed]
QUESTION = "What moves?"
TOKENS = 40
# As in Qwen3.5's own template.
SWITCH = (
    "{%- if add_generation_prompt %}{{- '<think>\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def thinking_pair(folder: Path, video: Path) -> None:
    """A pair whose target ends its thoughts with a token that it says in any case, after some others."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    models = save_pair(folder, "qwen3_5", tokenizer=tokenizer)
    for model in models:
        template = model / "chat_template.jinja"
        template.write_text(template.read_text() + SWITCH)
    pair = load_pair(*models, device="cpu")
    prompts = build_prompts(pair, read_clip(VideoRequest(video, max_frames=4)), QUESTION, think=True)
    settings = DecodeSettings(mode=Mode.AR, max_new_tokens=TOKENS)
    said = Session.of(pair).answer(prompts, settings).run().tokens
    plain = [token for token in dict.fromkeys(said) if token not in pair.words.protected]
    last = next(token for token in plain if said.index(token) >= 8)
    end = tokenizer.convert_tokens_to_ids("</think>")
    for model in models:
        weights = load_file(model / "model.safetensors")
        for name, weight in weights.items():
            if name.endswith("embed_tokens.weight"):
                weight[end] = weight[last]
            if name == "lm_head.weight":
                weight[end] = 1.001 * weight[last]
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, video_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    with torch.random.fork_rng():
        thinking_pair(folder, video_file)
    (folder / "models.yaml").write_text(
        "default: tiny\npairs:\n  tiny:\n    target: {folder: target}\n    draft: {folder: draft}\n"
        f"    defaults: {{frames: 4, gamma: 4, max_new_tokens: {TOKENS}, fallback: false}}\n"
    )
    return folder / "models.yaml"


@pytest.fixture
def lvspec(here: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Printed:
        return here(*arguments, environment={"LVSPEC_MODELS": str(models)})

    return run


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.sampled
@pytest.mark.parametrize("mode", Mode)
def test_thoughts_stand_in_the_record_and_nowhere_else(lvspec: Run, video_file: Path, mode: Mode) -> None:
    asked = ("ask", video_file, QUESTION, "--mode", mode, "--quiet")
    (row,) = rows(lvspec(*asked, "--think", "--json").stdout)
    assert row["status"] == "ok"
    assert row["thoughts"]
    assert row["text"]
    assert "think>" not in row["thoughts"] + row["text"]
    assert row["settings"]["think"] is True
    assert lvspec(*asked, "--think").stdout == visible(row["text"]) + "\n"
    (plain,) = rows(lvspec(*asked, "--json").stdout)
    assert plain["thoughts"] is None
    assert "think" not in plain["settings"]
    assert plain["key"] != row["key"]


def test_exact_thinks_and_answers_as_ar_does(lvspec: Run, video_file: Path) -> None:
    flags = ("--think", "--question", "Why?", "--json", "--quiet")
    found = [
        [
            (row["thoughts"], row["text"])
            for row in rows(lvspec("ask", video_file, QUESTION, *flags, *mode).stdout)
        ]
        for mode in (("--mode", "ar"), ("--mode", "exact"))
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_an_answer_that_ends_in_its_thoughts_is_said_to(lvspec: Run, video_file: Path) -> None:
    cut = ("--think", "--max-new-tokens", 4)
    asked = lvspec("ask", video_file, QUESTION, *cut)
    assert (asked.returncode, asked.stdout) == (1, "\n")
    assert "no answer: it was still thinking at --max-new-tokens: raise it" in asked.stderr
    (row,) = rows(lvspec("ask", video_file, QUESTION, *cut, "--json").stdout)
    assert (row["status"], row["text"], row["finish_reason"]) == ("error", "", "length")
    assert row["error"]["kind"] == "thinking"
    assert row["thoughts"]
    done = lvspec("caption", video_file, *cut, "--out", "cut.jsonl", "--to", "txt", "--out-dir", "texts")
    assert done.returncode == 1
    assert "it was still thinking at --max-new-tokens: raise it" in done.stderr
    assert not list(Path("texts").glob("*"))


@pytest.mark.thorough
def test_captions_are_kept_apart_from_thoughts(lvspec: Run, video_file: Path) -> None:
    """Rows of either kind go on where they were, exports and audits see captions only."""
    ask = ("--prompt", QUESTION, "--out", "rows.jsonl")
    done = lvspec(
        "caption", video_file, *ask, "--think", "--audit", "100%", "--to", "txt", "--out-dir", "texts"
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(Path("rows.jsonl").read_text())
    assert row["thoughts"]
    assert Path("texts/clip.txt").read_text().strip() == row["text"].strip()
    assert "think>" not in row["audit"]["text"]
    exact = lvspec(
        "caption", video_file, *ask, "--out", "exact.jsonl", "--think", "--mode", "exact", "--audit", "100%"
    )
    assert exact.returncode == 0, exact.stderr
    (same,) = rows(Path("exact.jsonl").read_text())
    assert same["audit"]["identical"]
    assert same["audit"]["log_probability"] == pytest.approx(same["audit"]["ar_log_probability"])
    again = lvspec("caption", video_file, *ask, "--think", "--audit", "100%")
    assert "1 done, 0 failed, 0 to do" in again.stderr
    planned = lvspec("caption", video_file, *ask, "--think", "--dry-run")
    assert "0 captions to do, 1 done" in planned.stderr
    other = lvspec("caption", video_file, *ask)
    assert "0 done, 0 failed, 1 to do" in other.stderr
    assert [row["thoughts"] is None for row in rows(Path("rows.jsonl").read_text())] == [False, True]


def test_the_library_thinks(models: Path, video_file: Path, tiny_models: Path) -> None:
    model = lvspec_cli.load("tiny", models=models, mode="exact")
    record = model.ask(video_file, QUESTION, think=True)
    (captioned,) = model.caption([video_file], QUESTION, think=True)
    assert (record.text, record.thoughts) == (captioned.text, captioned.thoughts)
    assert record.thoughts
    assert model.ask(video_file, QUESTION).thoughts is None
    other = lvspec_cli.load("tiny", models=tiny_models)
    with pytest.raises(UsageError, match="has no switch for thinking"):
        other.ask(video_file, QUESTION, think=True)


@pytest.mark.parametrize("command", ["ask", "caption"])
def test_a_template_without_the_switch_is_told_before_anything_is_loaded(
    here: Run, tiny_models: Path, video_file: Path, tmp_path: Path, command: str
) -> None:
    models = Path(shutil.copytree(tiny_models.parent, tmp_path / "models")) / tiny_models.name
    for role in ("target", "draft"):  # would fail to load
        file = models.parent / role / "model.safetensors"
        file.write_bytes(file.read_bytes()[:9])
    question = [QUESTION] if command == "ask" else ["--out", "-"]
    refused = here(command, video_file, *question, "--think", environment={"LVSPEC_MODELS": str(models)})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert [line for line in refused.stderr.splitlines() if line.startswith(("error", "try"))] == [
        f"error: the chat template of {models.parent / 'target'} has no switch for thinking",
        "try: leave out --think, or take a pair whose target has one, such as Qwen3.5",
    ]
