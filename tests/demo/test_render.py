import json
import os
import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from lvspec_cli.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    SceneObject,
    is_visible,
    position,
    sample_scene,
    scene_from_dict,
)
from lvspec_cli.demo.write import encode_scene, render_frames, write_clips


def _still(shape: str, **changes: object) -> Scene:
    item = SceneObject("red", shape, "large", "middle", "centre", "still", (0.5, 0.5), (0.5, 0.5), 0.3)
    values = {
        "objects": (item,), "events": (), "background": "white", "texture": "plain", "duration": 2.0,
        "frame_rate": 12, "width": 160, "height": 120, "noise": 0.0, "seed": 1,
    }  # fmt: skip
    return Scene(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_painted_in_its_colour_and_differs_from_the_others(shape: str) -> None:
    frame = render_frames(_still(shape), [0.0])[0]
    assert tuple(frame[60, 80]) == COLOURS["red"]
    assert tuple(frame[2, 2]) == BACKGROUNDS["white"]
    for other in SHAPES:
        if other != shape:
            differs = np.abs(frame.astype(int) - render_frames(_still(other), [0.0])[0]).max(-1) > 60
            assert differs.mean() > 0.01


def test_rendering_at_another_size_is_a_resize() -> None:
    small = render_frames(_still("star"), [0.0], 80, 60)[0].astype(float)
    large = render_frames(_still("star"), [0.0])[0].astype(float)
    assert np.abs(large.reshape(60, 2, 80, 2, 3).mean((1, 3)) - small).mean() < 2.0


def test_a_scene_becomes_a_real_mp4_that_shows_it(tmp_path: Path) -> None:
    scene = sample_scene(random.Random(5))
    encode_scene(scene, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == scene.frame_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == round(scene.duration * scene.frame_rate)
    assert frames[0].shape == (scene.height, scene.width, 3)
    for item in scene.objects:
        if is_visible(item, 0.0) and item.shape != "star":
            x, y = position(item, 0.0, scene.duration)
            seen = frames[0][int(y * scene.height), int(x * scene.width)].astype(int)
            assert np.abs(seen - COLOURS[item.colour]).max() < 60


def test_a_scene_is_written_enlarged(tmp_path: Path) -> None:
    scene = sample_scene(random.Random(5))
    size = (3 * scene.width, 3 * scene.height)
    encode_scene(scene, tmp_path / "clip.mp4")
    encode_scene(scene, tmp_path / "large.mp4", size=size)
    shown = []
    for name in ("clip.mp4", "large.mp4"):
        with av.open(str(tmp_path / name)) as container:
            shown.append(next(container.decode(video=0)))
    assert (shown[1].width, shown[1].height) == size
    small, large = (frame.reformat(80, 60, "rgb24").to_ndarray().astype(float) for frame in shown)
    assert np.abs(small - large).mean() < 4.0


def test_clips_are_written_with_their_facts_and_the_same_each_time(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    paths = write_clips(tmp_path / "a", 2, 3, lambda done, total: calls.append((done, total)))
    again = write_clips(tmp_path / "b", 2, 3)
    other = write_clips(tmp_path / "c", 1, 4)
    assert [path.name for path in paths] == ["clip_0001.mp4", "clip_0002.mp4"]
    assert calls == [(1, 2), (2, 2)]
    for path, twin in zip(paths, again, strict=True):
        assert path.with_suffix(".json").read_bytes() == twin.with_suffix(".json").read_bytes()
    told = json.loads(paths[0].with_suffix(".json").read_text())
    assert told != json.loads(other[0].with_suffix(".json").read_text())
    assert {"scene", "caption", "questions"} <= told.keys()
    assert {"question", "answer", "any_of"} <= told["questions"][0].keys()
    assert len(scene_from_dict(told["scene"]).objects) >= 2


WRITE = """
import sys
from pathlib import Path
from lvspec_cli.demo.write import write_clip
write_clip(Path(sys.argv[1]), 1_000_003, 3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc fills fresh memory with a value of one's choice")
def test_a_file_does_not_depend_on_what_was_in_memory(tmp_path: Path) -> None:
    found = set()
    for value in ("0", "85", "170"):
        folder = tmp_path / value
        folder.mkdir()
        environment = {**os.environ, "MALLOC_PERTURB_": value}
        subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, env=environment)
        found.add((folder / "clip_0003.mp4").read_bytes())
    assert len(found) == 1
