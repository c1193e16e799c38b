from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Printed, write_video

Caption = Callable[..., Printed]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    """What two runs of the same agree on: all but times, and a loss but for the rounding of its sum."""
    stats = row["stats"] and {
        name: value for name, value in row["stats"].items() if not name.endswith("_s") or name == "tokens"
    }
    if stats and stats["loss_per_token"]:
        stats["loss_per_token"] = round(stats["loss_per_token"], 3)
    return {**row, "stats": stats, "created": None}


@pytest.fixture(scope="session")
def some_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five short videos of different lengths, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "more").mkdir()
    for number, name in enumerate(("a.mp4", "b.mp4", "c.mkv", "d.mp4", "more/e.mp4"), start=1):
        write_video(folder / name, seconds=0.5 + 0.25 * number)
    return folder


@pytest.fixture
def clips(some_clips: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    import shutil

    return Path(shutil.copytree(some_clips, tmp_path / "clips"))


@pytest.fixture(scope="session")
def cheap_models(tiny_models: Path) -> Path:
    """The tiny pair with a draft that is said to cost little, so that it pays beside others."""
    models, folder = tiny_models.parent / "cheap.yaml", tiny_models.parent
    models.write_text(
        "default: tiny\npairs:\n  tiny:\n"
        f"    target: {{folder: {folder / 'target'}}}\n"
        f"    draft: {{folder: {folder / 'draft'}}}\n"
        "    defaults: {frames: 4, gamma: 4, max_new_tokens: 24, fallback: false, adaptation:"
        " {costs: {draft: 0.01}}}\n"
    )
    return models


@pytest.fixture
def caption(here: Caption, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caption:
    """Runs ``lvspec caption`` in this process with the tiny pair, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, **options: Any) -> Printed:
        return here("caption", *arguments, environment={"LVSPEC_MODELS": str(tiny_models)}, **options)

    return run
