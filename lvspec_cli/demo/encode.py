"""Frames -> a real H.264 mp4, through PyAV."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from lvspec_cli.demo.render import render_frames
from lvspec_cli.demo.scenes import Scene


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
        # x264's macroblock tree reads memory that nothing was written to: no two files would be the same.
        stream.options = {"crf": str(quality), "preset": "veryfast", "x264-params": "mbtree=0"}
        stream.thread_count = 1
        for image in render_frames(scene, [index / scene.frame_rate for index in range(count)]):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame.reformat(*size, "yuv420p") if size else frame))
        container.mux(stream.encode())
