"""Frames of long files by lvspec and by its peers, each in its own way and at the same times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from lvspec_cli.types import VideoRequest
from lvspec_cli.video.pool import DecodePool
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS
from tools.hours import RATE, SECONDS

_CLOSE = 0.002  # seconds: some containers count milliseconds
_ALIKE = 4.0  # of 255: ways to make RGB of a frame differ by less, two frames of these files by more


@dataclass(frozen=True)
class Asked:
    """A frame at each of ``times``, of a stretch. Seconds from the file's first frame on."""

    start: float
    end: float
    times: tuple[float, ...]


@dataclass(frozen=True)
class Got:
    times: NDArray[np.float64]  # seconds since the file's first frame
    frames: NDArray[np.uint8]  # (frames, height, width, 3), RGB


Read = Callable[[Asked], Got]
Open = Callable[[Path, int], Read]  # a file, with so many threads


@contextmanager
def ours(threads: int, other: Path) -> Iterator[Callable[[], Open]]:
    """lvspec as ``caption`` reads: one process serves request after request.

    Each call gives a reader that knows of no file but ``other``: the process remembers only the last one.
    """
    waiting: deque[VideoRequest] = deque()
    with (
        DecodePool(0, 0, threads=threads) as pool,
        closing(pool.clips(iter(waiting.popleft, None))) as clips,
    ):

        def read(path: Path, asked: Asked) -> Got:
            waiting.append(
                VideoRequest(
                    path, asked.start, asked.end, max_frames=len(asked.times), max_pixels=DEFAULT_MAX_PIXELS
                )
            )
            decoded = next(clips)
            if decoded.clip is None:
                raise decoded.error or RuntimeError("nothing was decoded")
            clip = decoded.clip
            return Got(np.asarray(clip.timestamps) - clip.begins, clip.frames)

        def fresh() -> Open:
            read(other, Asked(0.0, 1.0, (0.0,)))
            return lambda path, _: lambda asked: read(path, asked)

        yield fresh


def open_decord(path: Path, threads: int) -> Read:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(path), num_threads=threads)
    first = float(reader.get_frame_timestamp(0)[0])

    def read(asked: Asked) -> Got:
        places = [round(time * RATE) for time in asked.times]
        frames = reader.get_batch(places).asnumpy()
        return Got(reader.get_frame_timestamp(places)[:, 0] - first, frames)

    return read


def open_torchcodec(mode: str) -> Open:
    def opened(path: Path, threads: int) -> Read:
        from torchcodec.decoders import VideoDecoder

        reader: Any = VideoDecoder(
            str(path), dimension_order="NHWC", num_ffmpeg_threads=threads, seek_mode=mode
        )
        first = reader.metadata.begin_stream_seconds or 0.0

        def read(asked: Asked) -> Got:
            # In the middle of the time for which a frame is shown: its beginning may be rounded.
            found = reader.get_frames_played_at([first + time + 0.5 / RATE for time in asked.times])
            return Got(found.pts_seconds.numpy() - first, found.data.numpy())

        return read

    return opened


PEERS: dict[str, Open] = {
    "decord": open_decord,
    "torchcodec exact": open_torchcodec("exact"),
    "torchcodec approximate": open_torchcodec("approximate"),
}


def faults_of(peers: dict[str, Open], short: Path, asked: Asked, right: Got) -> dict[str, str]:
    """What is wrong with each of the ``peers`` that does not read ``short`` as it should."""
    wrong = {}
    for name, opened in peers.items():
        try:
            found = fault([asked], [opened(short, 1)(asked)], [right])
        except Exception as error:  # whatever a library of binaries says
            found = first_line(error)
        if found:
            wrong[name] = found
    return wrong


def missing() -> dict[str, str]:
    """Why a peer's library cannot be used here, by its name: it is not installed, or does not load."""
    found = {}
    for library, module in (("decord", "decord"), ("torchcodec", "torchcodec.decoders")):
        if find_spec(library) is None:
            found[library] = "it is not installed"
            continue
        try:
            import_module(module)
        except Exception as error:  # binaries that do not fit say so in many ways
            found[library] = f"it does not load: {first_line(error)}"
    return found


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def truth_of(short: Path, asked: Sequence[Asked]) -> list[Got]:
    """What is right for a file of copies of ``short``, which is decoded from its beginning."""
    places = [[round(time * RATE) % (SECONDS * RATE) for time in each.times] for each in asked]
    wanted = {place for each in places for place in each}
    with av.open(str(short)) as container:
        frames = {
            number: frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(video=0))
            if number in wanted
        }
    return [
        Got(np.asarray(each.times), np.stack([frames[place] for place in found]).astype(np.uint8))
        for each, found in zip(asked, places, strict=True)
    ]


def fault(expected: Sequence[Asked], got: Sequence[Got], truth: Sequence[Got]) -> str | None:
    """What is wrong with what was read, by the times asked for and the frames that are right; or None."""
    late = wrong = total = 0
    for asked, found, right in zip(expected, got, truth, strict=True):
        if found.frames.shape != right.frames.shape:
            return f"gives frames of shape {found.frames.shape}"
        total += len(asked.times)
        late += int((np.abs(found.times - np.asarray(asked.times)) > _CLOSE).sum())
        wrong += int((differences(found.frames, right.frames) > _ALIKE).sum())
    said = [f"{wrong} of {total} frames are others"] if wrong else []
    said += [f"{late} of {total} times are wrong"] if late else []
    return ", ".join(said) or None


def differences(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean absolute difference of each frame to the other one in its place, of 255."""
    return np.asarray(
        [
            np.abs(one.astype(np.int16) - other).mean(dtype=np.float64)
            for one, other in zip(some, others, strict=True)
        ]
    )
