"""What stretches of a long video cost, beside decord and torchcodec: ``python -m tools.seek``.

A clip of 20 s is made, and its packets are copied to an hour in each container. Of each file 8 frames are
taken of each of ten stretches of ten seconds, which begin between key frames, and 64 of all of it, as `lvspec
caption` and `lvspec ask` do. lvspec's decoding process runs already, but has seen nothing of the file. All
read in turns from this process, with the same number of threads, at the size of the file, from the system's
cache. Besides the seconds that passed it tells those that processors worked, which other programs disturb
less. Peers are asked for the very frames that lvspec takes. What all of them give is held against the clip.

A second table tells how lvspec's cost grows: one stretch a third of the way into the file, all of the file in
segments of ten seconds, and what decoding each frame of the file once costs.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median

import av
import numpy as np
import psutil

from lvspec_cli import __version__
from lvspec_cli.host import usable_cores
from lvspec_cli.table import Table, markdown_lines
from lvspec_cli.video.sample import Sampling, choose
from tools.hours import KINDS, RATE, SECONDS, long_file, short_clip
from tools.readers import PEERS, Asked, Got, Open, fault, faults_of, first_line, missing, ours, truth_of

OURS = "lvspec"
HEADINGS = ("file", "frames taken of it", OURS, *PEERS, "lvspec / best peer")
PASS_HEADINGS = ("file", "one stretch", "all in segments", "every frame once", "segments / once")
STRETCHES, LENGTH, FRAMES = 10, 10.0, 8  # how many, seconds of each, frames of each
ALL_FRAMES = 64  # of the whole file
HOUR = 3600 // SECONDS  # copies of the clip
_PHASE = 0.37  # where in its tenth of the file a stretch begins: between key frames
_BLOCK = re.compile(r"(<!-- seek -->\n).*?(<!-- /seek -->)", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """Frames to take of one file. ``is_kept``: it is opened once, not anew for each stretch."""

    name: str
    asked: tuple[Asked, ...]
    is_kept: bool = False


@dataclass(frozen=True)
class Files:
    """A long file of one kind and what it is made of."""

    kind: str
    short: Path  # the clip whose packets were copied
    once: Path  # of the same kind as the long one, a single copy
    path: Path
    seconds: float  # length of the long one


@dataclass(frozen=True)
class Cost:
    """Seconds: of the clock, and of all processors together."""

    passed: float
    worked: float

    def __str__(self) -> str:
        return f"{self.passed:.2f} ({self.worked:.2f})"


@dataclass(frozen=True)
class Row:
    """What one task cost on one kind of file."""

    kind: str
    task: str
    costs: dict[str, Cost]  # by reader
    faults: dict[str, str]  # by reader: what is wrong with what it gives

    @property
    def ratio(self) -> Cost | None:
        """lvspec's cost over the least of the peers that give the right frames, None without one."""
        peers = [cost for name, cost in self.costs.items() if name != OURS and name not in self.faults]
        if not peers:
            return None
        own = self.costs[OURS]
        return Cost(
            own.passed / min(cost.passed for cost in peers), own.worked / min(cost.worked for cost in peers)
        )


@dataclass(frozen=True)
class Passes:
    """How lvspec's cost grows with what is asked of one kind of file: seconds of the clock.

    Those that processors worked are not known: in so long a run one decoding process takes over from another.
    """

    kind: str
    stretch: float  # 64 frames of ten seconds, a third of the way into the file
    segments: float  # 8 frames of each ten seconds of all of it
    once: float  # each of its frames decoded, by PyAV

    @property
    def cells(self) -> tuple[str, ...]:
        figures = (self.stretch, self.segments, self.once, self.segments / self.once)
        return (self.kind, *(f"{figure:.2f}" for figure in figures))


@dataclass(frozen=True)
class Readers:
    ours: Callable[[], Open]  # as it is when it has not seen the file
    peers: dict[str, Open]
    threads: int  # of each

    def open(self, name: str) -> Open:
        return self.ours() if name == OURS else self.peers[name]


def files_of(kind: str, folder: Path, copies: int) -> Files:
    made = KINDS[kind]
    short = short_clip(folder, made.encoder)
    once, path = (long_file(folder, made, count) for count in (1, copies))
    return Files(kind, short, once, path, float(copies * SECONDS))


def asked_of(start: float, end: float, count: int) -> Asked:
    """``count`` frames, evenly spread over the stretch, of a file that shows one each 1/25 s from 0 on."""
    first, after = (int(np.ceil(round(each * RATE, 6))) for each in (start, end))
    times = np.arange(first, after) / RATE
    return Asked(start, end, tuple(times[choose(times, Sampling(None, count))].tolist()))


def stretches(seconds: float) -> tuple[Asked, ...]:
    """Ten stretches of ten seconds, evenly spread; of short files they are shorter."""
    apart = seconds / STRETCHES
    length = min(LENGTH, apart / 2)
    begins = (round((number + _PHASE) * apart + 0.013, 3) for number in range(STRETCHES))
    return tuple(asked_of(begin, round(begin + length, 3), FRAMES) for begin in begins)


def tasks(seconds: float) -> tuple[Task, ...]:
    parts, whole = stretches(seconds), (asked_of(0.0, seconds, ALL_FRAMES),)
    return (
        Task(f"{STRETCHES} stretches, reopened", parts),
        Task(f"{STRETCHES} stretches, kept open", parts, is_kept=True),
        Task(f"{ALL_FRAMES} frames of all", whole, is_kept=True),
    )


def segments(seconds: float) -> tuple[Asked, ...]:
    """All of the file, ten seconds at a time."""
    return tuple(
        asked_of(begin, begin + LENGTH, FRAMES) for begin in np.arange(0.0, seconds, LENGTH).tolist()
    )


def run(opened: Open, path: Path, task: Task, threads: int) -> tuple[list[Got], Cost]:
    """What was read, and what that cost."""
    worked, began = processor_seconds(), time.perf_counter()
    if task.is_kept:
        read = opened(path, threads)
        got = [read(asked) for asked in task.asked]
    else:
        got = [opened(path, threads)(asked) for asked in task.asked]
    passed = time.perf_counter() - began
    return got, Cost(passed, processor_seconds() - worked)


def processor_seconds() -> float:
    """Of this process and of those that it has started and that still run."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def typical(costs: Sequence[Cost]) -> Cost:
    """The medians."""
    return Cost(median(cost.passed for cost in costs), median(cost.worked for cost in costs))


def measure(files: Files, task: Task, readers: Readers, known: dict[str, str], repeats: int) -> Row:
    """One row: all readers in turns, and in each repeat another one begins.

    :param known: peers that are not tried, and why.
    """
    right = truth_of(files.short, task.asked)
    names = [OURS, *(name for name in readers.peers if name not in known)]
    found: dict[str, list[Cost]] = {name: [] for name in names}
    faults = dict(known)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            opened = readers.open(name)
            try:
                got, cost = run(opened, files.path, task, readers.threads)
            except Exception as error:  # a peer may give up in any way
                if name == OURS:
                    raise
                faults[name] = first_line(error)
                continue
            found[name].append(cost)
            if wrong := fault(task.asked, got, right):
                faults[name] = wrong
    return Row(files.kind, task.name, {name: typical(each) for name, each in found.items() if each}, faults)


def rows_of(files: Files, readers: Readers, repeats: int) -> Iterator[Row]:
    """The rows of one kind of file. A peer that gets the short one wrong is not tried on the long one."""
    middle = asked_of(0.365 * SECONDS, 0.615 * SECONDS, FRAMES)
    known = faults_of(readers.peers, files.once, middle, *truth_of(files.short, [middle]))
    with files.path.open("rb") as file:  # into the system's cache
        while file.read(1 << 24):
            pass
    for task in tasks(files.seconds):
        yield measure(files, task, readers, known, repeats)


def passes_of(files: Files, readers: Readers, repeats: int) -> Passes:
    """The second table's row of one kind of file: the stretch often, what takes minutes once.

    :raises RuntimeError: what was read is not what is there.
    """
    begin = files.seconds / 3
    stretch = Task("one stretch", (asked_of(begin, begin + LENGTH, ALL_FRAMES),))
    every = Task("segments", segments(files.seconds), is_kept=True)

    def seconds_of(task: Task) -> float:
        got, cost = run(readers.ours(), files.path, task, readers.threads)
        if wrong := fault(task.asked, got, truth_of(files.short, task.asked)):
            raise RuntimeError(f"{files.kind}, {task.name}: {wrong}")
        return cost.passed

    part = median(seconds_of(stretch) for _ in range(repeats))
    return Passes(files.kind, part, seconds_of(every), decoded_once(files.path, readers.threads))


def decoded_once(path: Path, threads: int) -> float:
    """Seconds to decode each frame of the file, and to do nothing with it."""
    began = time.perf_counter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", threads
        for _ in container.decode(stream):
            pass
    return time.perf_counter() - began


def cells(row: Row) -> tuple[str, ...]:
    """What each costs, with a star where what was read is wrong, and nothing where a peer is not here."""
    texts = []
    for name in (OURS, *PEERS):
        mark = "*" if name in row.faults else ""
        texts.append(f"{row.costs[name]}{mark}" if name in row.costs else mark)
    return (row.kind, row.task, *texts, "" if row.ratio is None else str(row.ratio))


def faults_in(rows: Sequence[Row]) -> Iterator[str]:
    """What the stars mean, a line for each reader and kind of file."""
    seen = set()
    for row in rows:
        for name, wrong in row.faults.items():
            if (row.kind, name) not in seen:
                seen.add((row.kind, name))
                untimed = "" if name in row.costs else " It was not timed."
                yield f"\\* {row.kind} by {name}: {wrong}.{untimed}"


def report(rows: Sequence[Row], grows: Sequence[Passes], lead: str, absent: dict[str, str]) -> str:
    """The block of the page, in Markdown."""
    lines = [lead, "", *markdown_lines(Table(HEADINGS, [cells(row) for row in rows]))]
    for sentence in faults_in(rows):
        lines += [sentence, ""]
    for library, reason in absent.items():
        lines += [f"{library} is not in the table: {reason}.", ""]
    lines += ["How lvspec's seconds grow with what is asked; what takes minutes was run once.", ""]
    lines += markdown_lines(Table(PASS_HEADINGS, [row.cells for row in grows]))
    return "\n".join(lines)


def lead_of(command: str, threads: int, repeats: int, load: float) -> str:
    """What was measured where, when and how."""
    return (
        f"Seconds (and, in brackets, those that processors worked), the median of {repeats} runs in turns,"
        f" with {threads} decoding threads each, by `{command}`."
        f" {date.today():%Y-%m-%d}, {processor()}, {usable_cores()} cores, load {load:.1f} when it began;"
        f" {', '.join(versions())}."
    )


def versions() -> Iterator[str]:
    yield f"lvspec {__version__}"
    yield f"PyAV {av.__version__} (libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))})"
    for library in ("decord", "torchcodec"):
        try:
            yield f"{library} {metadata.version(library)}{_ffmpeg_of(library)}"
        except metadata.PackageNotFoundError:
            continue


def _ffmpeg_of(library: str) -> str:
    """The FFmpeg of the system that torchcodec has found; decord brings its own."""
    module = sys.modules.get(library)
    version = getattr(module, "ffmpeg_major_version", None)
    return f" (FFmpeg {version})" if version else ""


def processor() -> str:
    """The processor's name: Linux says it in a file, other systems through ``platform``."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def with_block(page: str, block: str) -> str:
    """``page`` with ``block`` between its two marks.

    :raises ValueError: the marks are not there.
    """
    new, count = _BLOCK.subn(lambda marks: f"{marks[1]}{block}{marks[2]}", page)
    if count != 1:
        raise ValueError(
            "the page needs <!-- seek --> and <!-- /seek -->, once and each on a line of its own"
        )
    return new


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.seek",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, help="keep the files here, and use those that are here")
    parser.add_argument("--copies", type=int, default=HOUR, help=f"length of the files, in {SECONDS} s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each decoder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--page", type=Path, help="write the table between the marks of this page")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    absent = missing()
    peers = {name: opened for name, opened in PEERS.items() if name.partition(" ")[0] not in absent}
    rows: list[Row] = []
    grows: list[Passes] = []
    with tempfile.TemporaryDirectory() as name:
        folder = given.work or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        other = short_clip(folder, "libx264")
        with ours(given.threads, other) as fresh:
            readers = Readers(fresh, peers, given.threads)
            for kind in given.kinds:
                files = files_of(kind, folder, given.copies)
                for row in rows_of(files, readers, given.repeats):
                    print(*cells(row), sep="\t", file=sys.stderr, flush=True)
                    rows.append(row)
                grows.append(passes_of(files, readers, given.repeats))
                print(*grows[-1].cells, sep="\t", file=sys.stderr, flush=True)
    block = report(rows, grows, lead_of(command_of(given), given.threads, given.repeats, load), absent)
    print(block)
    if given.page:
        given.page.write_text(with_block(given.page.read_text("utf-8"), block), "utf-8")


def command_of(given: argparse.Namespace) -> str:
    """The command that does it again, without folders of this machine."""
    flags = [] if given.copies == HOUR else [f"--copies {given.copies}"]
    flags += [] if given.repeats == 3 else [f"--repeats {given.repeats}"]
    flags += [] if given.kinds == list(KINDS) else [f"--kinds {' '.join(given.kinds)}"]
    return " ".join(["python -m tools.seek", *flags])


if __name__ == "__main__":
    main()
