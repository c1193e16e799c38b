from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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


def test_a_folder_that_cannot_be_written_is_a_5(here: Callable[..., Printed], tmp_path: Path):
    (tmp_path / "file").touch()
    done = here("demo", "--dir", tmp_path / "file", "--count", 1)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith(f"error: {tmp_path}/file: ")
