"""Writes clips of the demo world, each with a JSON file of its facts.

Shapes are drawn as signed distance functions, so that edges are smooth at any size.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from lvspec_cli.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    Scene,
    colour_at,
    is_visible,
    position,
    sample_scene,
    scene_from_dict,
)
from lvspec_cli.demo.texts import caption, questions
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.output.files import has_mark, replacing, sweep
from lvspec_cli.text_file import SETTINGS, read_own

Pixels = NDArray[np.floating]


def distance(shape: str, x: Pixels, y: Pixels) -> Pixels:
    """Signed distance (below 0 inside, in radii) of points to a shape of radius 1 at the origin."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82
    if shape == "diamond":
        return (np.abs(x) * 1.25 + np.abs(y) * 0.85) * 0.75 - 0.75
    if shape == "cross":
        arms = np.minimum(
            np.maximum(np.abs(x) - 0.3, np.abs(y) - 0.98), np.maximum(np.abs(x) - 0.98, np.abs(y) - 0.3)
        )
        return np.asarray(arms, dtype=x.dtype)
    if shape == "triangle":
        return np.maximum(y - 0.75, 0.89 * np.abs(x) - 0.45 * y - 0.45)
    if shape == "star":
        # Five points: fold the plane into one tenth of a turn, then one straight edge.
        angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5)
        angle = np.minimum(angle, 2 * np.pi / 5 - angle)
        radius = np.hypot(x, y)
        tip, inner, half = 1.08, 0.42, np.pi / 5
        along, across = radius * np.cos(angle), radius * np.sin(angle)
        edge = np.array([inner * np.cos(half) - tip, inner * np.sin(half)])
        normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
        return np.asarray((along - tip) * normal[0] + across * normal[1], dtype=x.dtype)
    raise ValueError(f"no shape named {shape!r}")


def background(scene: Scene, width: int, height: int) -> Pixels:
    """The scene without its objects, float32 (height, width, 3), 0 to 255."""
    base = np.array(BACKGROUNDS[scene.background], dtype=np.float32)
    other = base + (26.0 if base.mean() < 128 else -26.0)
    unit = min(scene.width, scene.height) / 7
    x = np.floor((np.arange(width) + 0.5) * scene.width / width / unit)
    y = np.floor((np.arange(height) + 0.5) * scene.height / height / unit)
    if scene.texture == "striped":
        mask = np.broadcast_to((x % 2)[None, :], (height, width))
    elif scene.texture == "checkered":
        mask = (x[None, :] + y[:, None]) % 2
    else:
        mask = np.zeros((height, width))
    return (base + mask[..., None] * (other - base)).astype(np.float32)


def render_frames(
    scene: Scene, times: list[float], width: int | None = None, height: int | None = None
) -> NDArray[np.uint8]:
    """Frames at ``times`` (seconds), uint8 (len(times), height, width, 3), at the scene's size by default.

    At another size the picture is stretched, as if frames of the scene's own size were resized.
    """
    width, height = width or scene.width, height or scene.height
    ground = background(scene, width, height)
    shorter = min(scene.width, scene.height)
    stretch = (shorter * width / scene.width, shorter * height / scene.height)
    rng = np.random.default_rng(scene.seed)
    # A frame's noise is a window into one random array, because new noise for each frame would be too slow.
    pool = rng.standard_normal(2 * ground.size if scene.noise else 0, dtype=np.float32) * scene.noise
    frames = np.empty((len(times), height, width, 3), dtype=np.uint8)
    for index, time in enumerate(times):
        frame = ground.copy()
        for item in scene.objects:
            if is_visible(item, time):
                centre = position(item, time, scene.duration)
                _paint(frame, item.shape, COLOURS[colour_at(item, time)], centre, item.radius, stretch)
        if scene.noise:
            offset = int(rng.integers(ground.size))
            frame += pool[offset : offset + ground.size].reshape(frame.shape)
        frames[index] = np.clip(frame, 0, 255)
    return frames


def _paint(
    frame: Pixels,
    shape: str,
    colour: tuple[int, int, int],
    centre: tuple[float, float],
    radius: float,
    stretch: tuple[float, float],
) -> None:
    (left, right, x), (top, bottom, y) = (
        _span(share * length, radius * unit, length)
        for share, unit, length in zip(centre, stretch, (frame.shape[1], frame.shape[0]), strict=True)
    )
    x, y = np.broadcast_arrays(x[None, :], y[:, None])
    pixels = radius * (stretch[0] * stretch[1]) ** 0.5
    cover = np.clip(0.5 - distance(shape, x, y) * pixels, 0, 1)[..., None]
    patch = frame[top:bottom, left:right]
    patch += cover * (np.array(colour, dtype=np.float32) - patch)


def _span(centre: float, reach: float, length: int) -> tuple[int, int, Pixels]:
    """The range of pixels that a shape can touch along one axis, and their positions in radii."""
    first, last = max(0, int(centre - 1.2 * reach) - 1), min(length, int(centre + 1.2 * reach) + 2)
    return first, last, (np.arange(first, last, dtype=np.float32) + 0.5 - centre) / reach


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
            {name: value for name, value in asdict(item).items() if name != "about"}
            for item in questions(scene, rng)
        ],
    }


def clip_path(directory: Path, number: int) -> Path:
    """The path of a clip, counted from 1. Its JSON file has the same name with the suffix ``.json``."""
    return directory / f"clip_{number:04d}.mp4"


def write_clip(directory: Path, seed: int, number: int, *, force: bool = False) -> Path:
    """Write one clip, then its JSON file. If the JSON file exists, the clip is complete.

    Another clip that lvspec wrote, of another seed, is replaced: it shows the scene of its JSON file.

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
    for file in () if force else missing:
        if os.path.lexists(file) and not (has_mark(facts, MARK) and (file == facts or _shows(path, facts))):
            raise OutputError(
                f"{file} was not written by lvspec, and is left alone",
                "name another folder, or move it away; `lvspec demo --force` replaces it",
            )
    for file, content in missing.items():
        with replacing(file, sync=False) as stream:
            stream.write(content)
    return path


def _has_content(file: Path, content: bytes) -> bool:
    """Whether it is a file with exactly this content."""
    return file.is_file() and file.stat().st_size == len(content) and file.read_bytes() == content


def _shows(clip: Path, facts: Path) -> bool:
    """Whether ``clip`` is the very file that lvspec writes for the scene of ``facts``."""
    try:
        scene = scene_from_dict(json.loads(read_own(facts, SETTINGS))["scene"])
    except (UsageError, ValueError, KeyError, TypeError, RecursionError):  # somebody changed it
        return False
    video = BytesIO()
    encode_scene(scene, video)
    return _has_content(clip, video.getvalue())


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
