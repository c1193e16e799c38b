"""lvspec ask with a draft that is slower than its target: what flags, file and record say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Printed
from tests.tiny_families import TinyShape
from tests.tiny_models import save_model, set_generation


@pytest.fixture(scope="module")
def slow_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slow")
    save_model(folder / "target", "qwen2_5_vl", shape=TinyShape(layers=1))
    save_model(folder / "draft", "qwen2_5_vl", shape=TinyShape(layers=6), seed=5)
    for name in ("target", "draft"):
        set_generation(folder / name, repetition_penalty=1.3)
    models = folder / "models.yaml"
    # Enough tokens for a second look at the clock, should the machine be busy at the first.
    models.write_text(
        "default: slow\npairs:\n  slow:\n    target: {folder: target}\n    draft: {folder: draft}\n"
        "    defaults:\n      {frames: 2, max_new_tokens: 120, adaptation: {most: 6, costs: {draft: 0.01}}}\n"
    )
    return models


def test_the_record_says_that_speculation_was_given_up(
    here: Callable[..., Printed], slow_models: Path, video_file: Path
) -> None:
    common = ("ask", video_file, "What?", "--question", "How?", "--models", slow_models)
    done = here(*common, "--mode", "exact", "--json")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["settings"]["gamma"] == "auto"
    assert first["settings"]["adaptation"]["costs"]["draft"] == 0.01
    assert (first["stats"]["fallback"], first["stats"]["drafted"] > 0) == (True, True)
    assert (second["stats"]["fallback"], second["stats"]["drafted"]) == (True, 0)
    assert 1 <= first["stats"]["gamma"] <= 6
    alone = here(*common, "--mode", "ar", "--json", "--quiet")
    assert [json.loads(line)["text"] for line in alone.stdout.splitlines()] == [first["text"], second["text"]]


def test_it_is_said_once_and_can_be_turned_off(
    here: Callable[..., Printed], slow_models: Path, video_file: Path
) -> None:
    common = ("ask", video_file, "What?", "--question", "How?", "--models", slow_models, "--mode", "exact")
    assert here(*common).stderr.count("slower than the large model alone") == 1
    kept = here(*common, "--no-fallback", "--gamma", "auto", "--json", "--quiet")
    assert [json.loads(line)["stats"]["fallback"] for line in kept.stdout.splitlines()] == [False, False]
