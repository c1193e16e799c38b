"""Holds what docs/throughput.md claims of the bundled pair: ``python -m tools.batch_throughput``.

It runs ``lvspec bench --throughput`` with the bundled pair on clips of its own world, and fails where clips
an hour, in those of one caption at a time, are fewer than they have to be, or where texts differ. Measure on
a machine that does nothing else. While the first captions of a run begin and the last ones end, slots are
empty, which counts the less the more clips there are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lvspec_cli.bench.results import read_results
from lvspec_cli.figures.answers import BenchMode
from lvspec_cli.figures.throughput import Throughput

LEAST = {(BenchMode.LVSPEC, 8): 1.8, (BenchMode.AR, 8): 3.0}  # clips an hour, in those of one at a time


def missed(found: Sequence[Throughput]) -> Iterator[str]:
    """What is not as it has to be, in words."""
    for row in found:
        name, ratio = f"{row.mode}, {row.slots} at once", row.vs_one
        if row.error is not None:
            yield f"{name}: {row.error}"
        elif not row.mode.is_peer and row.same_texts not in (None, 1.0):
            yield f"{name}: {1 - (row.same_texts or 0):.1%} of the texts are not those of one at a time"
        elif ratio is not None and ratio < (least := LEAST.get((row.mode, row.slots), 1.0)):
            yield f"{name}: {ratio:.2f} times the clips an hour of one at a time, not {least}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--modes", type=BenchMode, nargs="+", default=[BenchMode.LVSPEC, BenchMode.AR])
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself if not given")
    parser.add_argument("--folder", type=Path, help="keep the clips and the results here, to go on there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = given.folder or Path(name)
        flags = {
            "--pair": "demo",
            "--limit": given.clips,
            "--repeat": given.repeats,
            "--at-once": ",".join(map(str, given.slots)),
            "--modes": ",".join(given.modes),
            "--out": out,
        }
        if given.threads is not None:
            flags["--threads"] = given.threads
        pairs = (str(part) for pair in flags.items() for part in pair)
        command = [sys.executable, "-m", "lvspec_cli", "bench", "--throughput", *pairs]
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            raise SystemExit(done.returncode)
        misses = list(missed(read_results(out).throughput))
    if misses:
        raise SystemExit("\n".join(misses))
    print("as it has to be")


if __name__ == "__main__":
    main()
