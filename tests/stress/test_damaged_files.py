"""Damaged files of every container through the real command line: a record each, and nothing left behind.

Sixty files; ``LVSPEC_STRESS_FILES=2000`` takes as many.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.batch.processes import Processes, Run, until
from tests.stress.mutants import mutants
from tests.video.clips import make_clip

COUNT = int(os.environ.get("LVSPEC_STRESS_FILES", "60"))
SEED = 11
MEMORY = 2 * 2**20  # KiB that no process may take: the pair, torch and a clip of the largest picture
CONTAINERS: dict[str, dict[str, Any]] = {
    "a.mp4": {"sound": True},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "a.mkv": {"options": {"bf": "2"}},
    "live.mkv": {"container_options": {"live": "1"}},
    "a.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "a.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "a.ts": {"sound": True},
    "a.mpg": {"codec": "mpeg2video", "rate": 25},
    "a.vob": {"codec": "mpeg2video", "rate": 25},
    "a.flv": {},
    "a.wmv": {"codec": "wmv2"},
    "a.gif": {"codec": "gif", "pixel_format": "rgb8", "rate": 10},
    "a.mxf": {"codec": "mpeg2video", "rate": 25},
    "a.ogg": {"codec": "libvpx"},
    "a.ivf": {"codec": "libvpx"},
    "a.nut": {"codec": "ffv1", "pixel_format": "yuv420p"},
    "a.3gp": {},
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, sources = tmp_path_factory.mktemp("damaged"), {}
    for name, made in CONTAINERS.items():
        path = make_clip(folder / name, **{"count": 24, "group": 6, **made})
        sources[name] = path.read_bytes()
        path.unlink()
    for name, data in mutants(sources, COUNT, SEED):
        (folder / name).write_bytes(data)
    return folder


def memory(run: Run) -> int:
    """KiB that the largest of its processes has held so far."""
    most = 0
    for pid in run.family():
        try:
            status = (Path("/proc") / str(pid) / "status").read_text()
        except OSError:
            continue
        held = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        most = max([most, *map(int, held)])
    return most


def finished(run: Run) -> tuple[int, int]:
    """The exit code, and the most KiB that one of its processes held."""
    most = 0

    def has_ended() -> bool:
        nonlocal most
        most = max(most, memory(run))
        return not run.family()

    assert until(has_ended, 1200), "it hangs"
    return run.wait(), most


def left_behind(folder: Path) -> list[str]:
    """Drafts, locks and what is made in the system's folder for such; torch keeps a folder of its own."""
    own = ("out.jsonl", "stdout.txt", "stderr.txt")
    return [path.name for path in folder.iterdir() if path.name not in own and "torch" not in path.name]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_every_damaged_file_gets_one_record(
    lvspec: Processes, damaged: Path, tmp_path: Path, decoder: str
) -> None:
    flags = ["--frames", 2, "--max-new-tokens", 1, "--decode-workers", 2, "--decode-timeout", 10]
    run = lvspec.start(
        tmp_path, "caption", damaged, "--glob", "*", "--out", "out.jsonl", "--decoder", decoder, *flags
    )
    code, most = finished(run)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(row["file_name"] for row in rows) == Counter(path.name for path in damaged.iterdir())
    assert code == (1 if any(row["status"] == "error" for row in rows) else 0)
    assert {row["error"]["kind"] for row in rows if row["error"]} <= {
        *("damaged", "not_a_video", "no_video_stream", "over_limit", "timeout", "video", "encrypted"),
    }
    failures = [row["error"]["message"] for row in rows if row["error"]]
    assert not [message for message in failures if "the decoder failed" in message]
    assert "Traceback" not in run.stderr
    assert not left_behind(tmp_path)
    assert not left_behind(lvspec.temporary)
    assert most < MEMORY


@pytest.mark.thorough
def test_a_plan_of_damaged_files_has_a_few_lines_for_each(
    lvspec: Processes, damaged: Path, tmp_path: Path
) -> None:
    flags = ("--segment", 1, "--dry-run", "--out", "out.jsonl")
    run = lvspec.start(tmp_path, "caption", damaged, "--glob", "*", *flags)
    code, _ = finished(run)
    assert code in (0, 1)
    assert "Traceback" not in run.stderr
    lines = (tmp_path / "stdout.txt").read_text().splitlines()[1:]
    count = Counter(line.split("\t")[0] for line in lines)
    assert count.keys() == {path.name for path in damaged.iterdir()}
    assert not (tmp_path / "out.jsonl").exists()
