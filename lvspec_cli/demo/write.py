"""Write clips of the demo world, each with its facts beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvspec_cli.demo.captions import caption
from lvspec_cli.demo.encode import encode_scene
from lvspec_cli.demo.questions import questions
from lvspec_cli.demo.scenes import Scene, sample_scene


def scene_of(seed: int, number: int) -> tuple[Scene, random.Random]:
    """Scene ``number`` (from 1) of a seed, and the generator to draw its texts from."""
    rng = random.Random(f"clips/{seed}/{number}")
    return sample_scene(rng), rng


def describe(scene: Scene, rng: random.Random) -> dict[str, Any]:
    """What a clip's JSON file says: ``scene``, a reference ``caption``, and ``questions`` with answers."""
    return {
        "scene": scene.as_dict(),
        "caption": caption(scene, rng),
        "questions": [
            {
                "kind": item.kind,
                "question": item.question,
                "answer": item.answer,
                "any_of": list(item.any_of),
                "none_of": list(item.none_of),
            }
            for item in questions(scene, rng)
        ],
    }


def clip_path(directory: Path, number: int) -> Path:
    """Where a clip stands, counted from 1; what it shows stands beside it (``.json``)."""
    return directory / f"clip_{number:04d}.mp4"


def write_clip(directory: Path, seed: int, number: int) -> Path:
    """Write one clip, then its JSON file: where that is, the clip is whole."""
    scene, rng = scene_of(seed, number)
    path = clip_path(directory, number)
    encode_scene(scene, path)
    text = json.dumps(describe(scene, rng), indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path


def write_clips(
    directory: Path, count: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Write ``clip_0001.mp4`` … with ``clip_0001.json`` … beside them; a seed gives the same clips each time.

    Raises ``OSError`` when the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(1, count + 1):
        paths.append(write_clip(directory, seed, number))
        if progress is not None:
            progress(number, count)
    return paths
