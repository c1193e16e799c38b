from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from lvspec_cli.demo.write import write_clip
from lvspec_cli.errors import OutputError
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import read_clip
from tests.conftest import Printed


def test_demo_writes_clips_with_their_facts(here: Callable[..., Printed], tmp_path: Path):
    done = here("demo", "--dir", tmp_path / "clips", "--count", 2, "--seed", 7)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == ["clip_0001.mp4", "clip_0002.mp4"]
    for path in paths:
        assert len(read_clip(VideoRequest(path, max_frames=3)).timestamps) == 3
        facts = json.loads(path.with_suffix(".json").read_text())
        assert {"scene", "caption", "questions"} <= facts.keys()
        assert {"question", "answer", "any_of"} <= facts["questions"][0].keys()


@pytest.mark.parametrize("name", ["clip_0001.mp4", "clip_0001.json", "clip_0002.json"])
def test_files_of_others_stay_unless_they_are_to_be_replaced(
    here: Callable[..., Printed], tmp_path: Path, name: str
):
    (tmp_path / name).write_text('{"camera": "mine"}')
    done = here("demo", "--dir", tmp_path, "--count", 2)
    assert done.returncode == 5
    assert f"error: {tmp_path / name} was not written by lvspec, and is left alone\n" in done.stderr
    assert "--force" in done.stderr
    assert (tmp_path / name).read_text() == '{"camera": "mine"}'
    assert here("demo", "--dir", tmp_path, "--count", 2, "--force").returncode == 0
    assert "mine" not in (tmp_path / name).read_bytes().decode("latin-1")


def test_clips_of_its_own_are_kept_or_give_way_to_those_of_another_seed(
    here: Callable[..., Printed], tmp_path: Path
):
    assert here("demo", "--dir", tmp_path, "--count", 1).returncode == 0
    clip, facts = tmp_path / "clip_0001.mp4", tmp_path / "clip_0001.json"
    first, when = clip.read_bytes(), clip.stat().st_mtime_ns
    facts.unlink()  # as if it had been stopped in the middle of it
    assert here("demo", "--dir", tmp_path, "--count", 1).returncode == 0
    assert (clip.read_bytes(), clip.stat().st_mtime_ns) == (first, when)
    assert here("demo", "--dir", tmp_path, "--count", 1, "--seed", 5).returncode == 0
    assert clip.read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [facts.name, clip.name]
    clip.write_bytes(first)  # somebody's own, although it stands beside lvspec's facts of another clip
    refused = here("demo", "--dir", tmp_path, "--count", 1, "--seed", 6)
    assert (refused.returncode, clip.read_bytes()) == (5, first)
    assert f"{clip} was not written by lvspec" in refused.stderr


def test_a_folder_that_cannot_be_written_is_a_5(here: Callable[..., Printed], tmp_path: Path):
    (tmp_path / "file").touch()
    done = here("demo", "--dir", tmp_path / "file", "--count", 1)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith(f"error: {tmp_path}/file: ")


def test_a_large_file_in_the_way_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "clip_0001.mp4").open("wb") as stream:
        stream.truncate(2**28)
    tracemalloc.start()
    try:
        with pytest.raises(OutputError, match="not written by lvspec"):
            write_clip(tmp_path, 0, 1)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
