"""Writes clips of the demo world, each with a JSON file of its facts."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from lvspec_cli.demo.captions import caption
from lvspec_cli.demo.questions import questions
from lvspec_cli.demo.render import render_frames
from lvspec_cli.demo.scenes import Scene, sample_scene
from lvspec_cli.errors import OutputError
from lvspec_cli.output.files import has_mark, replacing, sweep

MARK = b'{\n "scene": {'  # first bytes of a clip's JSON file


def scene_of(seed: int, number: int) -> tuple[Scene, random.Random]:
    """Scene ``number`` (from 1) of a seed, and the generator for its texts."""
    rng = random.Random(f"clips/{seed}/{number}")
    return sample_scene(rng), rng


def describe(scene: Scene, rng: random.Random) -> dict[str, Any]:
    """The content of a clip's JSON file: ``scene``, a reference ``caption``, ``questions`` with answers."""
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
    """The path of a clip, counted from 1. Its JSON file has the same name with the suffix ``.json``."""
    return directory / f"clip_{number:04d}.mp4"


def write_clip(directory: Path, seed: int, number: int, *, force: bool = False) -> Path:
    """Write one clip, then its JSON file. If the JSON file exists, the clip is complete.

    A clip with a JSON file by lvspec is replaced.

    :raises OutputError: there is a foreign file of the same name (unless ``force``), or it cannot be written.
    """
    scene, rng = scene_of(seed, number)
    video = BytesIO()
    encode_scene(scene, video)
    text = json.dumps(describe(scene, rng), indent=1, ensure_ascii=False)
    path = clip_path(directory, number)
    facts = path.with_suffix(".json")
    missing = {
        file: content
        for file, content in ((path, video.getvalue()), (facts, text.encode() + b"\n"))
        if not _has_content(file, content)
    }
    if not force and not has_mark(facts, MARK):
        _refuse_others(missing)
    for file, content in missing.items():
        with replacing(file, sync=False) as stream:
            stream.write(content)
    return path


def _has_content(file: Path, content: bytes) -> bool:
    """Whether it is a file with exactly this content."""
    return file.is_file() and file.stat().st_size == len(content) and file.read_bytes() == content


def _refuse_others(files: Iterable[Path]) -> None:
    for file in files:
        if os.path.lexists(file):
            raise OutputError(
                f"{file} was not written by lvspec, and is left alone",
                "name another folder, or move it away; `lvspec demo --force` replaces it",
            )


def write_clips(
    directory: Path,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    force: bool = False,
) -> list[Path]:
    """Write ``clip_0001.mp4`` … and ``clip_0001.json`` …. A seed always gives the same clips.

    :raises OSError: the directory cannot be created or read.
    :raises OutputError: as ``write_clip`` does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sweep(directory)
    paths = []
    for number in range(1, count + 1):
        paths.append(write_clip(directory, seed, number, force=force))
        if progress is not None:
            progress(number, count)
    return paths


HELD_OUT_SEED = 1_000_003  # training draws its scenes from other streams


def encode_scene(
    scene: Scene, to: Path | BinaryIO, *, quality: int = 23, size: tuple[int, int] | None = None
) -> None:
    """Write the scene as H.264 in mp4 at its own size and frame rate. ``quality`` is x264's crf.

    :param size: to enlarge the pictures to, (width, height), even.
    """
    count = max(1, round(scene.duration * scene.frame_rate))
    with av.open(str(to) if isinstance(to, Path) else to, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=scene.frame_rate)
        stream.width, stream.height = size or (scene.width, scene.height)
        stream.pix_fmt = "yuv420p"
        # x264's macroblock tree reads uninitialised memory, so that files would differ.
        stream.options = {"crf": str(quality), "preset": "veryfast", "x264-params": "mbtree=0"}
        stream.thread_count = 1
        for image in render_frames(scene, [index / scene.frame_rate for index in range(count)]):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame.reformat(*size, "yuv420p") if size else frame))
        container.mux(stream.encode())
