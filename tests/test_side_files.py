"""Files that lvspec keeps for itself and reads back: whatever they have become, no read is without a bound.

What only helps is left out, and what is needed is one error. Read in processes of little memory and time.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch.processes import Processes, until

MEMORY = 3 * 2**30  # bytes, with what torch takes
SECONDS = 300


def huge(file: Path) -> None:
    """30 GB that take no room."""
    with file.open("wb") as stream:
        stream.truncate(30_000_000_000)


def device(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


def fifo(file: Path) -> None:
    """Nobody writes to it: who opens it waits."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


READERS = """
import json, sys
from pathlib import Path
from lvspec_cli.batch.history import past_runs
from lvspec_cli.batch.cutting import known_scenes
from lvspec_cli.batch.cutting import Stretch
from lvspec_cli.bench import tune
from lvspec_cli.bench.journal import read_journal
from lvspec_cli.figures.labels import read_scene_labels
from lvspec_cli.errors import LvspecError
from lvspec_cli.pairs.files import broken_file
from lvspec_cli.output.exports import export
from lvspec_cli.types import VideoRequest

video, *folders = map(Path, sys.argv[1:])
def read(name, reader):
    try:
        found[name] = reader()
    except LvspecError as error:
        found[name] = error.cause
all_found = {}
scenes = (Stretch(0.0, 1.0),)
for folder in folders:
    all_found[folder.name] = found = {}
    read("history", lambda: past_runs(folder / "runs.jsonl"))
    read("facts", lambda: read_scene_labels(folder / "clip.mp4"))
    read("ledger", lambda: export._read(folder / "ledger"))
    read("model", lambda: str(broken_file(folder / "model")))
    read("journal", lambda: read_journal(folder))
    read("calibration", lambda: tune._read(folder / "calibration.json", {}))
    read("scenes", lambda: known_scenes(VideoRequest(video), folder / "scenes", lambda _: scenes) == scenes)
print(json.dumps(all_found))
"""


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


SPOILT = {huge: "larger than", device: "is not a regular file", fifo: "is not a regular file"}


def test_files_of_our_own_are_read_within_bounds(video_file: Path, tmp_path: Path) -> None:
    from lvspec_cli.batch.cutting import Stretch, known_scenes
    from lvspec_cli.types import VideoRequest

    names = [
        "runs.jsonl",
        "clip.json",
        "ledger",
        "model/config.json",
        "measurements.jsonl",
        "calibration.json",
    ]
    folders = {spoil: tmp_path / spoil.__name__ for spoil in SPOILT}
    for spoil, folder in folders.items():
        known_scenes(VideoRequest(video_file), folder / "scenes", lambda _: (Stretch(0.0, 1.0),))
        (folder / "model").mkdir()
        for file in (*(folder / name for name in names), *(folder / "scenes").iterdir()):
            spoil(file)
    done = subprocess.run(
        [sys.executable, "-c", READERS, str(video_file), *map(str, folders.values())],
        preexec_fn=limited,
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for spoil, folder in folders.items():
        found = json.loads(done.stdout)[spoil.__name__]
        for name, needed in (("journal", "measurements.jsonl"), ("calibration", "calibration.json")):
            cause = found.pop(name)
            assert cause.startswith(str(folder / needed))
            assert SPOILT[spoil] in cause
        broken = str(folder / "model" / "config.json")
        assert found == {"history": [], "facts": None, "ledger": {}, "model": broken, "scenes": True}


@pytest.mark.sampled
@pytest.mark.parametrize("spoil", [huge, device, fifo])
def test_a_batch_is_planned_beside_a_history_that_has_no_end(
    lvspec: Processes, video_file: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    state = tmp_path / "state" / "lvspec"
    state.mkdir(parents=True)
    spoil(state / "runs.jsonl")
    run = lvspec.start(
        tmp_path, "caption", video_file, "--out", tmp_path / "out.jsonl", "--dry-run",
        limits=((resource.RLIMIT_DATA, MEMORY),),
        before=f"os.environ['XDG_STATE_HOME'] = {str(state.parent)!r}",
    )  # fmt: skip
    assert until(lambda: not run.family(), SECONDS)
    assert run.wait() == 0, run.stderr
    assert (run.stderr.count("error"), (tmp_path / "stdout.txt").read_text().count("clip.mp4")) == (0, 1)
