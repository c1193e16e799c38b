"""Frames -> a real H.264 mp4, through PyAV."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from lvspec_cli.demo.render import render_frames
from lvspec_cli.demo.scenes import Scene


def encode_scene(scene: Scene, path: Path, *, quality: int = 23) -> None:
    """Write the scene as H.264 in mp4 at its own size and frame rate. ``quality`` is x264's crf."""
    count = max(1, round(scene.duration * scene.frame_rate))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=scene.frame_rate)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.options = {"crf": str(quality), "preset": "veryfast"}
        stream.thread_count = 1
        for image in render_frames(scene, [index / scene.frame_rate for index in range(count)]):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
            )
        container.mux(stream.encode())
