"""The commands with a tiny pair of Qwen3.5, most of whose layers keep a state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Printed
from tests.tiny_models import save_pair


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    save_pair(folder, "qwen3_5")
    (folder / "models.yaml").write_text(
        "default: tiny\npairs:\n  tiny:\n    target: {folder: target}\n    draft: {folder: draft}\n"
        "    defaults: {frames: 4, gamma: 4, max_new_tokens: 100, fallback: false}\n"
    )
    return folder / "models.yaml"


@pytest.fixture
def lvspec(here: Callable[..., Printed], models: Path) -> Callable[..., Printed]:
    def run(*arguments: object) -> Printed:
        return here(*arguments, environment={"LVSPEC_MODELS": str(models)})

    return run


def test_exact_is_ar_for_several_questions_and_captions(
    lvspec: Callable[..., Printed], video_file: Path, tmp_path: Path
) -> None:
    """Over a hundred tokens: the states take in rows on the way, and come back to the end of the video."""
    questions = ("What moves?", "--question", "Why?", "--json", "--quiet")
    texts = []
    for mode in ("ar", "exact"):
        asked = lvspec("ask", video_file, *questions, "--mode", mode)
        assert asked.returncode == 0, asked.stderr
        texts.append([json.loads(line)["text"] for line in asked.stdout.splitlines()])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 2
    out = tmp_path / "captions.jsonl"
    done = lvspec("caption", video_file, "--out", out, "--audit", "100%")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["audit"]["output_tokens"] > 0


@pytest.mark.thorough
def test_a_bench_measures_it(lvspec: Callable[..., Printed], video_file: Path, tmp_path: Path) -> None:
    """transformers itself refuses a draft for such a model: that line says so."""
    flags = ("--prompt", "What?", "--modes", "ar,exact,lvspec,hf-ar,hf-assisted", "--max-new-tokens", 24)
    done = lvspec("bench", video_file, *flags, "--out", tmp_path / "bench")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    texts = {
        each["mode"]: each["text"] for each in results["blocks"][0]["measurements"] if not each.get("error")
    }
    assert texts["ar"] == texts["exact"] == texts["hf-ar"]
    assert "lvspec" in texts
    assert "hf-assisted" not in texts


def test_relevance_attention_reads_layers_that_attend(
    lvspec: Callable[..., Printed], video_file: Path
) -> None:
    refused = lvspec("ask", video_file, "What?", "--relevance", "attention", "--layer", 0)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-2:] == [
        "error: layer 0 of the target attends to nothing: it keeps a state",
        "try: choose among 3, 7 with --layer",
    ]
    assert lvspec("ask", video_file, "What?", "--relevance", "attention", "--layer", 3).returncode == 0
