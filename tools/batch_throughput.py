"""Clips captioned per hour by how many are decoded together: ``python -m tools.batch_throughput``.

The loop of ``lvspec caption`` runs over scenes of the demo world with the bundled pair, in each mode with
each number of slots, alternately in this process. Times are from the first request to the last record.
Beside the clips per hour, which suffer from other work on the machine, stand the seconds of this process's
own processor time a clip. Texts must be those of one slot.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from lvspec_cli.batch.serve import WorkerPlan, serving
from lvspec_cli.batch.slots import Finished
from lvspec_cli.batch.work import Work, make_work
from lvspec_cli.demo.write import encode_scene, scene_of
from lvspec_cli.host import usable_cores
from lvspec_cli.request import AskRequest, Company, LoadPlan
from lvspec_cli.types import Mode
from tools.overlap import bundled

_SEED = 3


@dataclass(frozen=True)
class Timed:
    """One run over all clips."""

    clips: int
    seconds: float
    own_seconds: float  # processor time of this process, which does not decode the videos
    texts: frozenset[tuple[str, str | None]]

    @property
    def rate(self) -> float:
        """Clips an hour."""
        return 3600 * self.clips / self.seconds

    @property
    def own(self) -> float:
        """Seconds of processor time a clip."""
        return self.own_seconds / self.clips


def scenes_in(folder: Path, count: int) -> list[Path]:
    """Videos of so many scenes; those that are there are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.mp4" for number in range(1, count + 1)]
    for number, path in enumerate(paths, start=1):
        if not path.exists():
            encode_scene(scene_of(_SEED, number)[0], path.with_suffix(".new.mp4"))
            path.with_suffix(".new.mp4").replace(path)
    return paths


def works_of(load_plan: LoadPlan, base: AskRequest, videos: Sequence[Path]) -> list[Work]:
    return [make_work(load_plan, replace(base, video=replace(base.video, path=path))) for path in videos]


def run(load_plan: LoadPlan, works: Sequence[Work], slots: int, threads: int | None) -> Timed:
    """Captions all ``works``.

    :raises RuntimeError: one of them failed.
    """
    plan = WorkerPlan(
        load_plan=replace(load_plan, choice=replace(load_plan.choice, threads=threads)),
        base=works[0].request,
        decode_workers=1,
        decode_bytes=1 << 30,
        on_out_of_memory="fail",
        company=Company(slots),
    )
    with serving(plan, lambda event: None, lambda: False) as serve:
        began, own = time.perf_counter(), time.process_time()
        records = [done for done in serve(works) if not isinstance(done, Finished)]
        seconds, own_seconds = time.perf_counter() - began, time.process_time() - own
    failed = next((record.error.message for record in records if record.error), None)
    if failed or len(records) != len(works):
        raise RuntimeError(f"not all clips were captioned: {failed}")
    return Timed(len(works), seconds, own_seconds, frozenset((record.id, record.text) for record in records))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--modes", type=Mode, nargs="+", default=[Mode.LVSPEC, Mode.AR])
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself if not given")
    parser.add_argument("--folder", type=Path, help="keep the clips here")
    given = parser.parse_args()
    print(f"{usable_cores()} cores, {platform.machine()}, Python {platform.python_version()}")
    load_plan, base = bundled()
    timed: dict[tuple[Mode, int], list[Timed]] = {}
    with tempfile.TemporaryDirectory() as name:
        videos = scenes_in(given.folder or Path(name), given.clips)
        for repeat in range(given.repeats):
            for mode in given.modes:
                request = replace(base, settings=replace(base.settings, mode=mode))
                works = works_of(load_plan, request, videos)
                for slots in given.slots if repeat % 2 == 0 else reversed(given.slots):
                    timed.setdefault((mode, slots), []).append(run(load_plan, works, slots, given.threads))
    for mode in given.modes:
        first = timed[mode, given.slots[0]]
        for slots in given.slots:
            found = timed[mode, slots]
            rates, own = [run.rate for run in found], median(run.own for run in found)
            faster = median(one.seconds / run.seconds for one, run in zip(first, found, strict=True))
            less = median(run.own for run in first) / own
            spread = f"{median(rates):.0f} clips/h ({min(rates):.0f} to {max(rates):.0f}), x{faster:.2f}"
            print(f"{mode}, {slots} at once: {spread}; {own:.3f} s of processor a clip, x{less:.2f}")
        if len({run.texts for slots in given.slots for run in timed[mode, slots]}) > 1:
            raise SystemExit(f"{mode}: texts depend on how many clips are decoded together")


if __name__ == "__main__":
    main()
