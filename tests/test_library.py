"""``import lvspec_cli as lvspec``: it says what the command line says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import lvspec_cli as lvspec
from tests.conftest import Printed, Shell
from tests.warm import WARM

PAGE = Path(__file__).parents[1] / "docs" / "asking.md"
CLIP = Path(__file__).parents[1] / "lvspec_cli" / "demo" / "clips" / "clip_0001.mp4"
QUESTION = "What happens?"


def test_all_that_is_promised_is_there_and_nothing_heavy_until_it_is_used() -> None:
    code = (
        "import sys, lvspec_cli as lvspec\n"
        "assert not {'torch', 'transformers', 'av', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert all(getattr(lvspec, name) is not None for name in lvspec.__all__)\n"
        "assert set(lvspec.__all__) <= set(dir(lvspec))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert lvspec.__all__ == sorted(lvspec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'answer'"):
        _ = lvspec.answer


def test_it_says_what_the_commands_say(
    here: Callable[..., Printed], tiny_models: Path, tmp_path: Path
) -> None:
    own = {"LVSPEC_MODELS": str(tiny_models)}
    asked = json.loads(here("ask", CLIP, QUESTION, "--json", "--quiet", environment=own).stdout)
    here("caption", CLIP, "--out", tmp_path / "rows.jsonl", "--quiet", environment=own)
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    model = lvspec.load("tiny", models=tiny_models)
    one, (other,) = model.ask(CLIP, QUESTION), model.caption([CLIP])
    assert (one.key, one.text, one.task) == (asked["key"], asked["text"], "ask")
    assert (other.key, other.text, other.task) == (row["key"], row["text"], "caption")
    assert lvspec.ask(str(CLIP), QUESTION, pair=model).text == one.text
    assert [record.text for record in lvspec.caption([CLIP, CLIP], pair=model)] == [other.text] * 2


def test_a_video_that_cannot_be_read_is_an_error_or_its_record(tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "none.mp4").write_text("no video")
    model = lvspec.load("tiny", models=tiny_models, mode="ar")
    assert model.pair.draft is None
    with pytest.raises(lvspec.VideoError, match=r"none\.mp4"):
        model.ask(tmp_path / "none.mp4", QUESTION)
    first, second = model.caption([tmp_path / "none.mp4", CLIP])
    assert (first.status, second.status) == ("error", "ok")
    with pytest.raises(lvspec.PairError):
        lvspec.load("nobody knows it")


def test_what_is_taken_and_how_it_is_decoded_can_be_said(tiny_models: Path) -> None:
    model = lvspec.load("tiny", models=tiny_models)
    short = model.with_settings(replace(model.settings, max_new_tokens=3, fallback=False))
    record = short.ask(CLIP, QUESTION, sampling=lvspec.Sampling(frames=2, start=1.0, end=3.0))
    assert record.sampling.decoded == 2
    assert record.segment.start == 1.0
    assert record.stats is not None
    assert record.stats.output_tokens == 3


def test_the_pages_example_is_what_the_command_says(
    here: Callable[..., Printed], shell: Shell, tmp_path: Path
) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## From Python")[2].partition("\n## ")[0]
    example = "\n".join(line[4:] for line in section.splitlines() if re.match("    ", line))
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mp4").write_bytes(CLIP.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", WARM + example],
        env=shell.environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    command = ("ask", tmp_path / "clip.mp4", QUESTION, "--json", "--quiet", "--pair", "demo")
    asked = json.loads(here(*command).stdout)
    first, _, captions = done.stdout.partition("\n")
    assert first == f"{asked['text']} {asked['stats']['mean_accepted_length']}"
    assert captions.startswith("one.mp4: ")
