"""Frames that are neither wanted nor referred to are not decoded, and those that are wanted do not change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvspec_cli.errors import LvspecError
from lvspec_cli.types import VideoLimits, VideoRequest
from lvspec_cli.video import pyav_frames
from lvspec_cli.video.container import open_video
from lvspec_cli.video.messages import Finished, Job, Opened
from lvspec_cli.video.pyav_frames import PyavReader
from lvspec_cli.video.reading import read_file
from lvspec_cli.video.scan import scan
from lvspec_cli.video.survey import Surveyor
from tests.video.clips import make_clip

COUNT = 90
H264 = {"preset": "fast", "bf": "3", "x264-params": "b-adapt=0:scenecut=0:b-pyramid=normal"}
FILES: dict[str, dict[str, Any]] = {
    "pyramid.mp4": {"options": H264},
    "open_groups.mkv": {
        "options": {**H264, "bf": "8", "x264-params": "b-adapt=0:scenecut=0:open-gop=1:b-pyramid=strict"}
    },
    "interlaced.ts": {
        "options": {**H264, "flags": "+ildct+ilme", "x264-params": "b-adapt=0:scenecut=0:tff=1"}
    },
    "no_times.avi": {"options": H264},
    "no_b_frames.mp4": {"options": {"bf": "0"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2", "b": "900000"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2", "b": "900000"}},
    "h265.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=0:bframes=3"}},
}
FEWER = {"pyramid.mp4", "open_groups.mkv", "interlaced.ts", "mpeg4.mp4", "mpeg2.mpg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("left_out")
    for name, kind in FILES.items():
        make_clip(folder / name, **{"count": COUNT, "noise": True, "size": (160, 96), "group": 30, **kind})
    return folder


@contextmanager
def reader_of(path: Path, threads: int | None = None) -> Iterator[PyavReader]:
    with path.open("rb", buffering=0) as file:
        with open_video(file, path, VideoLimits()) as (container, stream):
            timeline = scan(container, stream, path)
        with open_video(file, path, VideoLimits(), threads) as (container, stream):
            yield PyavReader(container, stream, timeline)


def pictures(path: Path, wanted: list[int], threads: int, *, sure: bool) -> list[tuple[int, np.ndarray]]:
    with reader_of(path, threads) as reader:
        frames = reader.sure_frames(wanted) if sure else reader.frames(wanted)
        return [(tick, frame.to_ndarray(format="rgb24")) for tick, frame in frames]


def same(found: list[tuple[Any, np.ndarray]], expected: list[tuple[Any, np.ndarray]]) -> bool:
    return [time for time, _ in found] == [time for time, _ in expected] and all(
        np.array_equal(one, other) for (_, one), (_, other) in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", FILES)
@given(
    wanted=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=12, unique=True).map(sorted),
    threads=st.sampled_from([1, 3]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wanted_frames_are_the_same(folder: Path, name: str, wanted: list[int], threads: int) -> None:
    found, expected = (pictures(folder / name, wanted, threads, sure=sure) for sure in (True, False))
    assert len(expected) == len(wanted)
    assert same(found, expected)


@pytest.mark.parametrize("name", FILES)
def test_fewer_frames_are_decoded(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    decode = PyavReader._decode

    def counted(self: PyavReader, packet: Any) -> Any:
        frames = decode(self, packet)
        counts[-1] += len(frames)
        return frames

    monkeypatch.setattr(PyavReader, "_decode", counted)
    for sure in (True, False):
        counts.append(0)
        assert len(pictures(folder / name, list(range(3, COUNT, 12)), 1, sure=sure)) == 8
    fewer, all_of_them = counts
    assert fewer < 0.8 * all_of_them if name in FEWER else fewer == all_of_them


def test_only_what_is_marked_as_not_referred_to_can_be_left_out(folder: Path) -> None:
    for name in FILES:
        with reader_of(folder / name) as reader:
            assert reader.leaves_out == (name in FEWER or name == "no_b_frames.mp4")


def sent(path: Path) -> list[tuple[float, np.ndarray]] | str:
    """What a child process sends of a file: times and pictures; or why it sends none."""
    ours, theirs = Pipe()
    frames: list[tuple[float, np.ndarray]] = []

    def receive() -> None:
        opened: Opened = ours.recv()
        while not isinstance(message := ours.recv(), Finished):
            data = b""
            while len(data) < opened.frame_bytes:
                data += os.read(ours.fileno(), opened.frame_bytes - len(data))
            frames.append((message, np.frombuffer(data, np.uint8)))

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        with path.open("rb", buffering=0) as file:
            read_file(file.fileno(), Job("read", VideoRequest(path, max_frames=10), 1), theirs, Surveyor())
    except LvspecError as error:
        return error.cause
    thread.join()
    return frames


@pytest.mark.parametrize("name", sorted(FEWER - {"interlaced.ts"}))
@given(place=st.floats(0.1, 0.95), damage=st.binary(min_size=1, max_size=300))
@settings(suppress_health_check=list(HealthCheck), deadline=None)
def test_damage_costs_no_more_frames_than_it_did(
    folder: Path, tmp_path: Path, name: str, place: float, damage: bytes
) -> None:
    """Where something is wrong, all is decoded again. What the decoder does not notice looks as it will."""
    whole = sent(folder / name)
    assert not isinstance(whole, str)
    data = bytearray((folder / name).read_bytes())
    at = int(place * len(data))
    data[at : at + len(damage)] = damage
    path = tmp_path / name
    path.write_bytes(data)
    found = sent(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyav_frames, "_MARKS_REFERRED", frozenset())
        expected = sent(path)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    right = dict(whole)
    assert len(found) >= len(expected)
    for time, picture in expected:
        if time in right and np.array_equal(picture, right[time]):
            assert any(same([(time, picture)], [each]) for each in found)


def test_it_ends_where_another_frame_arrives_than_the_wanted_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = PyavReader.frames
    monkeypatch.setattr(PyavReader, "frames", lambda self, wanted: frames(self, [3, 6, 8, 9]))
    with reader_of(folder / "pyramid.mp4", 1) as reader:
        found = [tick for tick, _ in reader.sure_frames([3, 6, 7, 9])]
        assert found == [reader.timeline.ticks[ordinal] for ordinal in (3, 6)]


def test_the_packet_behind_a_wanted_one_is_decoded_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold the second field of the same picture."""
    taken: list[tuple[int | None, str]] = []
    decode = PyavReader._decode

    def noted(self: PyavReader, packet: Any) -> Any:
        taken.append((packet and packet.pts, self.decoder.skip_frame))
        return decode(self, packet)

    monkeypatch.setattr(PyavReader, "_decode", noted)
    with reader_of(folder / "pyramid.mp4", 1) as reader:
        ticks = {int(reader.timeline.ticks[ordinal]) for ordinal in (20, 50)}
        list(reader.sure_frames([20, 50]))
    whole = [at for at, (_, skipped) in enumerate(taken) if skipped == "DEFAULT"]
    wanted = [at for at, (tick, _) in enumerate(taken) if tick in ticks]
    assert len(wanted) == 2
    assert whole == sorted({*wanted, *(at + 1 for at in wanted)})
    assert {skipped for _, skipped in taken} == {"DEFAULT", "NONREF"}
