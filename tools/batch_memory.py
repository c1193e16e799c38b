"""Memory of a long batch: ``python -m tools.batch_memory --clips 2000``.

``lvspec caption`` runs in a process of its own over that many clips, with short captions by the bundled pair.
As rows come, the memory that it and its decoding processes hold is read: a batch that leaks would grow.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lvspec_cli.demo.write import encode_scene, scene_of

_DISTINCT = 20  # scenes; the clips are copies of them, for drawing takes longer than captioning


@dataclass(frozen=True)
class Reading:
    rows: int
    main: int  # bytes that the process itself holds
    workers: int  # and its decoding processes together


def write_copies(folder: Path, count: int) -> None:
    """``count`` clips in ``folder``."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:06}.mp4"
        if number < _DISTINCT:
            encode_scene(scene_of(5, number + 1)[0], path)
        else:
            shutil.copyfile(folder / f"{number % _DISTINCT:06}.mp4", path)


def read_memory(process: psutil.Process, rows: int) -> Reading:
    held = [child.memory_info().rss for child in process.children(recursive=True)]
    return Reading(rows, process.memory_info().rss, sum(held))


def readings(process: subprocess.Popen[bytes], out: Path, marks: Sequence[int]) -> Iterator[Reading]:
    """One reading as ``out`` reaches each of ``marks`` rows, ascending; none for those after the end."""
    watched, left = psutil.Process(process.pid), list(marks)
    while left and process.poll() is None:
        rows = out.read_bytes().count(b"\n") if out.exists() else 0
        if rows >= left[0]:
            left = [mark for mark in left if mark > rows]
            try:
                yield read_memory(watched, rows)
            except psutil.NoSuchProcess:
                return
        time.sleep(0.05)


def growth(found: Sequence[Reading]) -> int:
    """Bytes that process and workers hold more at the last reading than at the first after a quarter."""
    settled = next(reading for reading in found if reading.rows >= found[-1].rows / 4)
    return (found[-1].main + found[-1].workers) - (settled.main + settled.workers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=12, help="of a caption")
    given = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {given.clips} clips")
    marks = [given.clips * step // 10 for step in range(1, 10)] + [given.clips - 4]
    with tempfile.TemporaryDirectory() as name:
        clips, out = Path(name) / "clips", Path(name) / "captions.jsonl"
        write_copies(clips, given.clips)
        command = [sys.executable, "-m", "lvspec_cli", "caption", str(clips), "--out", str(out), "--quiet"]
        began = time.perf_counter()
        with subprocess.Popen([*command, "--max-new-tokens", str(given.tokens)]) as process:
            found = []
            for reading in readings(process, out, [mark for mark in marks if mark > 0]):
                found.append(reading)
                print(
                    f"{reading.rows:6} rows: {reading.main / 2**20:7.0f} MiB, "
                    f"decoding {reading.workers / 2**20:6.0f} MiB"
                )
        if process.returncode != 0 or not found:
            sys.exit(f"lvspec caption ended with {process.returncode}")
    print(f"{time.perf_counter() - began:.0f} s; grown after a quarter: {growth(found) / 2**20:+.1f} MiB")


if __name__ == "__main__":
    main()
