"""Memory of a batch: ``python -m tools.batch_memory --clips 2000``, or ``--at-once 1 8``.

``lvspec caption`` runs in a process of its own over that many clips, with short captions by the bundled pair.
As rows come, the memory that it and its decoding processes hold is read: a batch that leaks would grow.

With ``--at-once`` it captions with so many slots, each with a prompt and an answer as long as ``lvspec models
fit`` reckons with, and the most memory that the process has held is compared with what that says. It fails
where they differ by more than a tenth.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from lvspec_cli.demo.write import encode_scene, scene_of
from lvspec_cli.memory.machine import this_machine
from lvspec_cli.memory.plan import CONTEXT, TEXT_TOKENS
from lvspec_cli.memory.resolve import fit_pair, workload_of_pair
from lvspec_cli.pairs.registry import BUNDLED, load_registry

_NEAR = 0.1  # by how much the memory may differ from what models fit says
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


def fitted(slots: int) -> int:
    """Bytes that the bundled pair needs by ``lvspec models fit`` with so many slots, libraries included."""
    pair = load_registry(environment={}).pairs[BUNDLED]
    load = replace(workload_of_pair(pair), slots=slots)
    return CONTEXT["cpu"] + fit_pair(BUNDLED, pair, this_machine("cpu"), load).rows[0].plan.needed


def peak_of(command: Sequence[str]) -> int:
    """The most bytes that a process holds until it ends, as Linux counts them.

    :raises SystemExit: it failed.
    """
    peak = 0
    with subprocess.Popen(command) as process:
        # Not what the system tells of a process that has ended: that is at least what its parent held.
        while process.poll() is None:
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak, *(int(held) * 1024 for held in re.findall(r"VmHWM:\s+(\d+) kB", status))])
            time.sleep(0.01)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command[:4])} ended with {process.returncode}")
    return peak


def check_fit(at_once: Sequence[int]) -> None:
    """Prints what each number of slots has held, and what it should."""
    far = False
    with tempfile.TemporaryDirectory() as name:
        clips, out = Path(name) / "clips", Path(name) / "captions.jsonl"
        write_copies(clips, max(at_once))
        prompt = "x " * (TEXT_TOKENS - 20)  # the template takes the others
        for slots in at_once:
            flags = ["--pair", BUNDLED, "--at-once", str(slots), "--out", str(out), "--redo", "--quiet"]
            command = [sys.executable, "-m", "lvspec_cli", "caption", str(clips), "--prompt", prompt]
            peak, expected = peak_of([*command, *flags]), fitted(slots)
            off = peak / expected - 1
            far = far or abs(off) > _NEAR
            print(f"{slots:2} at once: {peak / 1e6:.0f} MB; fit says {expected / 1e6:.0f} MB: {off:+.1%}")
    if far:
        sys.exit("more than a tenth from what models fit says")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=12, help="of a caption")
    parser.add_argument("--at-once", type=int, nargs="+", help="compare with models fit, for so many slots")
    given = parser.parse_args()
    if given.at_once:
        check_fit(given.at_once)
        return
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
