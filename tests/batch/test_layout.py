"""Inputs become works: what is cut, and what is an error at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lvspec_cli.batch.cutting import Stretch
from lvspec_cli.batch.layout import Cutting, lay_out
from lvspec_cli.batch.names import Input
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import DamagedVideoError, DecodeTimeoutError, LvspecError
from lvspec_cli.request import AskRequest
from lvspec_cli.types import DecodeSettings, VideoInfo, VideoRequest
from tests.conftest import demo_plan

LATE = DecodeTimeoutError("a.mp4: reading took longer than 1 s", "raise --decode-timeout")


def works_of(
    path: Path, cutting: Cutting, *, scenes: LvspecError | None = None, **probed: LvspecError
) -> list[Work]:
    base = AskRequest(VideoRequest(path), ("What happens?",), DecodeSettings())
    info = VideoInfo(path, "mp4", "h264", 4, 4, 25.0, 10.0)

    def look(paths: Iterable[Path]) -> Iterator[VideoInfo | LvspecError]:
        return (probed.get("error", info) for _ in paths)

    def find(video: VideoRequest) -> list[Stretch]:
        if scenes is not None:
            raise scenes
        return [Stretch(0.0, 4.0), Stretch(4.0, 10.0)]

    return lay_out([Input(path, b"a.mp4")], demo_plan(), base, cutting, probes=look, scenes=find)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").write_bytes(b"a video")
    return tmp_path / "a.mp4"


def stretches(works: list[Work]) -> list[tuple[float | None, float | None]]:
    return [(work.request.video.start, work.request.video.end) for work in works]


def test_videos_are_cut_by_length_and_by_scene(path: Path) -> None:
    assert stretches(works_of(path, Cutting())) == [(None, None)]
    assert stretches(works_of(path, Cutting(seconds=5.0))) == [(0.0, 5.0), (5.0, 10.0)]
    assert stretches(works_of(path, Cutting(scenes=True))) == [(0.0, 4.0), (4.0, 10.0)]


def test_a_look_that_took_too_long_is_one_error_and_no_caption_of_the_whole(path: Path) -> None:
    for works in (
        works_of(path, Cutting(seconds=5.0), error=LATE),
        works_of(path, Cutting(scenes=True), error=LATE),
        works_of(path, Cutting(scenes=True), scenes=LATE),
    ):
        assert [(work.error, work.numbers) for work in works] == [(LATE, (1,))]


def test_other_errors_are_left_to_decoding(path: Path) -> None:
    damaged = DamagedVideoError("a.mp4: nothing in it can be decoded", "copy it again")
    for works in (
        works_of(path, Cutting(seconds=5.0), error=damaged),
        works_of(path, Cutting(scenes=True), scenes=damaged),
        works_of(path, Cutting(), error=LATE),
    ):
        assert [(work.error, *stretches([work])) for work in works] == [(None, (None, None))]
