"""The plug-in for lmms-eval, on a base class with the interface of lmms-eval 0.7 (a heavy package)."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import tomllib
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import lvspec_cli as lvspec
from lvspec_cli.demo.texts import is_right
from lvspec_cli.figures.labels import read_scene_labels
from tools.lmms_eval_score import write_task

ROOT = Path(__file__).parents[1]
GREEDY = {"max_new_tokens": 6, "temperature": 0, "until": ["\n\n"]}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    parts: dict[str, dict[str, Any]] = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {}}
    parts["lmms_eval.api.model"] = {"lmms": Base}
    parts["lmms_eval.models.registry_v2"] = {"ModelManifest": SimpleNamespace}
    for name, content in parts.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "lvspec_cli.lmms_eval", raising=False)
    yield importlib.import_module("lvspec_cli.lmms_eval")
    sys.modules.pop("lvspec_cli.lmms_eval", None)


def request(question: str, index: int, **wanted: Any) -> SimpleNamespace:
    return SimpleNamespace(
        args=(question, {**GREEDY, **wanted}, lambda doc: doc["visuals"], index, "clips", "test")
    )


def test_the_entry_point_leads_to_the_class(plugin: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["lmms_eval.models"].items()
    found = EntryPoint(name, value, "lmms_eval.models").load()()
    module, _, cls = found.simple_class_path.rpartition(".")
    assert (found.model_id, getattr(importlib.import_module(module), cls)) == ("lvspec", plugin.Lvspec)
    assert plugin.Lvspec.is_simple


def test_answers_are_those_of_the_library(
    plugin: Any, tiny_models: Path, video_file: Path, tmp_path: Path
) -> None:
    model = plugin.Lvspec("tiny", mode="exact", models=str(tiny_models), frames=2, batch_size=1, device=None)
    picture = Image.new("RGB", (64, 48), "red")
    (tmp_path / "broken.mp4").write_text("no video")
    visuals = [[str(video_file)], [picture], [str(tmp_path / "broken.mp4")]]
    model.task_dict = {"clips": {"test": [{"visuals": visual} for visual in visuals]}}
    asked = [request("What?", 0), request("Why?", 0), request("What?", 1), request("What?", 2)]
    with pytest.warns(UserWarning, match=r"broken\.mp4"):
        *found, broken = model.generate_until(asked)
    own = lvspec.load("tiny", models=tiny_models, mode="exact")
    own = own.with_settings(plugin.replace(own.settings, max_new_tokens=6))
    picture.save(tmp_path / "a.png")
    sampling = lvspec.Sampling(frames=2)
    expected = [
        *(record.text for record in own.ask_all(video_file, ["What?", "Why?"], sampling=sampling)),
        own.ask(tmp_path / "a.png", "What?", sampling=sampling).text,
    ]
    assert found == [plugin.cut(text, ["\n\n"]) for text in expected]
    assert broken == ""


def test_what_cannot_be_asked_is_said(plugin: Any, tiny_models: Path) -> None:
    with pytest.raises(lvspec.UsageError, match="knows no model_args frame, pairs"):
        plugin.Lvspec("tiny", models=str(tiny_models), pairs=1, frame=2)
    for visuals, count in (([], 0), (None, 0), (["a.mp4", "b.mp4"], 2)):
        with pytest.raises(lvspec.UsageError, match=f"about {count} visuals"):
            plugin.as_file(visuals, Path("x.png"))
    assert plugin.cut("A dog.\n\nIt barks. Q:", ("\n\n", "Q:")) == "A dog."
    assert plugin.stops_of({"until": "END"}) == ("END",)


def test_the_local_task_asks_and_judges_what_bench_does(tmp_path: Path) -> None:
    clips = ROOT / "lvspec_cli" / "demo" / "clips"
    count = write_task(clips, tmp_path / "task")
    rows = [json.loads(line) for line in (tmp_path / "task" / "questions.jsonl").read_text().splitlines()]
    own = [label.questions for clip in sorted(clips.glob("*.mp4")) if (label := read_scene_labels(clip))]
    assert count == len(rows) == sum(map(len, own)) > 10
    judge = runpy.run_path(str(tmp_path / "task" / "judge.py"))
    for row, question in zip(rows, chain(*own), strict=True):
        assert (judge["visual"](row), judge["text"](row)) == ([row["path"]], question.question)
        for answer in (question.answer, "I do not know."):
            assert judge["right"](row, [answer]) == {"right": float(is_right(question, answer))}
