"""Files that only help: broken, of another user or without a place, they cost nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lvspec_cli.batch.cutting import Stretch, known_scenes
from lvspec_cli.batch.history import PastRun, past_runs, remember, seconds_a_row
from lvspec_cli.host import config_folder, state_folder
from lvspec_cli.types import VideoRequest
from tests.batch.conftest import Caption, rows
from tests.warm import LEAN_PATH

RUN = PastRun("tiny", "lvspec", "auto", 1, 4, 3, 2.5)
BROKEN = [
    b"\xff\n",
    b"[" * 100_000 + b"\n",
    b"3\n{}\n[1]\n",
    b'{"pair":"tiny","mode":"lvspec","device":"auto","workers":1,"frames":4,"rows":"x","seconds":NaN}\n',
]


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_of_a_history_is_passed_over_and_not_kept(broken: bytes, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    remember(RUN, file)
    file.write_bytes(broken + file.read_bytes())
    remember(replace(RUN, rows=4), file)
    assert past_runs(file) == [RUN, replace(RUN, rows=4)]
    assert len(rows(file)) == 2


def test_no_history_without_a_place_for_it() -> None:
    remember(RUN, None)
    assert past_runs(None) == []


@pytest.mark.parametrize(
    "broken", [b"\xff", b"", b"[]", b'[{"start": 0, "end": "Infinity"}]', b'[{"start": 5, "end": 1}]']
)
def test_scenes_that_cannot_be_are_found_again(broken: bytes, video_file: Path, tmp_path: Path) -> None:
    found = (Stretch(0.0, 1.0), Stretch(1.0, 2.0))
    request = VideoRequest(video_file)
    assert known_scenes(request, tmp_path, lambda video: found) == found
    (file,) = tmp_path.iterdir()
    file.write_bytes(broken)
    assert known_scenes(request, tmp_path, lambda video: found) == found
    assert json.loads(file.read_bytes())[1] == {"start": 1.0, "end": 2.0}
    assert known_scenes(request, None, lambda video: found) == found


def test_a_broken_history_stops_no_batch(caption: Caption, clips: Path, tmp_path: Path) -> None:
    history = tmp_path / "state" / "lvspec" / "runs.jsonl"
    history.parent.mkdir(parents=True)
    history.write_bytes(b"\xff\n")
    done = caption(clips / "a.mp4", "--out", "out.jsonl", "--to", "csv", "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "captions.csv").is_file() or (tmp_path / "out.csv").is_file()
    assert [row["rows"] for row in rows(history)] == [1]


DRAFTER = """
import sys, time
from pathlib import Path
from lvspec_cli.output.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_drafts_that_killed_runs_left_in_the_folder_for_state_go_with_the_next_run(
    caption: Caption, clips: Path, tmp_path: Path
) -> None:
    scenes = tmp_path / "state" / "lvspec" / "scenes"
    scenes.mkdir(parents=True)
    drafters = []
    for file in (scenes.parent / "runs.jsonl", scenes / "a.json", scenes / "b.json"):
        command = [sys.executable, "-c", DRAFTER, str(file)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        drafters.append(process)
    *killed, living = drafters
    for process in killed:
        process.kill()
        process.communicate()
    assert len(list(scenes.parent.rglob(".lvspec-*.tmp"))) == 3
    assert caption(clips / "a.mp4", "--out", "out.jsonl", "--dry-run").returncode == 0
    (left,) = scenes.parent.rglob(".lvspec-*.tmp")
    assert left.parent == scenes
    living.communicate()
    assert sorted(path.name for path in scenes.parent.rglob("*")) == ["b.json", "libraries.log", "scenes"]


def test_folders_of_the_user_are_named_by_the_environment_or_lie_at_home() -> None:
    given = {"XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c"}
    assert (state_folder(given), config_folder(given)) == (Path("/s/lvspec"), Path("/c/lvspec"))
    assert state_folder({}) == Path.home() / ".local/state/lvspec"


ONE_BY_ONE = """
import contextlib, io, json, sys
from lvspec_cli.cli.main import main

said = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lvspec", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as end:
            assert not end.code, arguments
    said.append(out.getvalue())
print(json.dumps(said))
"""
STRANGER = ("unshare", "--user", "--map-user=54321")  # the same files are there, and another user


@pytest.mark.thorough
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*STRANGER, "true"], check=False).returncode != 0,
    reason="the system lets nobody be another user",
)
def test_a_user_without_a_home_folder_can_do_everything(
    tiny_models: Path, clips: Path, tmp_path: Path
) -> None:
    """A real process of a user whom the system does not know, as containers start them."""
    users = ("LVSPEC", "XDG", "HF_", "HOME")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(users)}
    kept |= {"PYTHONPATH": LEAN_PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    caption = ("caption", str(clips / "a.mp4"), "--max-new-tokens", "4", "--scenes", "--out", "out.jsonl")
    command = [*STRANGER, sys.executable, "-c", ONE_BY_ONE, json.dumps([["models"], ["doctor"], caption])]
    kept |= {"LVSPEC_MODELS": str(tiny_models)}
    done = subprocess.run(command, env=kept, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    models, doctor, _ = json.loads(done.stdout)
    assert "demo\t" in models
    assert "set HF_HOME to a folder of your own" in doctor
    assert [row["status"] for row in rows(tmp_path / "out.jsonl")] == ["ok"]
    assert not (tmp_path / "~").exists()


def ran(rows: int, seconds: float, *, mode: str = "lvspec") -> PastRun:
    return replace(RUN, rows=rows, seconds=seconds, mode=mode)


@pytest.mark.parametrize(
    ("runs", "seconds"),
    [
        ([], None),
        ([ran(8, 2.0, mode="exact"), ran(0, 9.0)], None),
        ([ran(8, 2.0)], 0.25),
        ([ran(60, 15.0), ran(4, 1.0)], 0.25),
        ([ran(96, 24.0), ran(4, 11.0)], 0.35),  # few rows, of which the first waited for what is made once
        ([ran(1000, 900.0), ran(200, 20.0)], 0.1),  # what is newest counts, if it has rows enough
        ([ran(40, 20.0), ran(100, 1.0, mode="ar"), ran(10, 5.0), ran(30, 15.0, mode="ar")], 0.5),
    ],
)
def test_a_forecast_is_of_the_newest_rows_with_the_same_settings(
    runs: list[PastRun], seconds: float | None
) -> None:
    assert seconds_a_row(runs, ran(1, 0.0)) == pytest.approx(seconds)
