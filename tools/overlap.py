"""Clips captioned per second, with and without decoding ahead: ``python -m tools.overlap``.

Scenes of the demo world, without camera noise, are enlarged to as many pixels as take about as long to
decode as a caption takes, the same number in each. The loop of ``lvspec caption`` runs over them with the
bundled pair: in turn, where one process decodes each clip when the one before is captioned, and ahead. Each
side first finds its own best threads, then both run alternately in this process. Times are from the first
request to the last record, and hold the start of the decoding processes.
"""

from __future__ import annotations

import argparse
import itertools
import math
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
from lvspec_cli.demo.scenes import Scene
from lvspec_cli.demo.write import scene_of
from lvspec_cli.host import usable_cores
from lvspec_cli.memory.choose import choose_pair
from lvspec_cli.output.records import Record
from lvspec_cli.pairs.registry import BUNDLED, load_registry, settings_of_pair
from lvspec_cli.pipeline import prepared
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import DEFAULT_PROMPT, VideoRequest

_SEED = 3
_SAMPLE = 3  # scenes whose times stand for all when the size is chosen
_CLOSE = 1.1  # decoding and captioning differ by this factor at most
_ROUNDS = 5  # of looking for the size
_TRIED = 8  # clips on which threads are chosen
_FIRST = 5e8  # pixels, tried first


@dataclass(frozen=True)
class Setup:
    """``decode_workers`` 0 is decoding in turn."""

    decode_workers: int
    torch_threads: int
    decode_threads: int

    def __str__(self) -> str:
        way = f"ahead in {self.decode_workers}" if self.decode_workers else "in turn"
        return f"{way}, threads: torch {self.torch_threads}, decoding {self.decode_threads}"


@dataclass(frozen=True)
class Timed:
    ends: tuple[float, ...]  # seconds from the first request to each record
    records: tuple[Record, ...]

    @property
    def rate(self) -> float:
        """Clips a second."""
        return len(self.ends) / self.ends[-1]

    @property
    def decode_seconds(self) -> tuple[float, ...]:
        """Of each clip."""
        return tuple(record.stats.decode_video_s for record in self.records if record.stats)

    @property
    def caption_seconds(self) -> tuple[float, ...]:
        """Of each clip decoded in turn, all that is not decoding."""
        spans = (end - begin for begin, end in itertools.pairwise((0.0, *self.ends)))
        return tuple(span - decoding for span, decoding in zip(spans, self.decode_seconds, strict=True))


def enlarged(scene: Scene, pixels: float) -> tuple[int, int]:
    """Width and height at which all frames together have about so many pixels; even, as the codec wants."""
    frames = max(1, round(scene.duration * scene.frame_rate))
    scale = math.sqrt(pixels / (frames * scene.width * scene.height))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (scene.width, scene.height))
    return width, height


def better_size(pixels: float, decode_seconds: float, caption_seconds: float) -> float:
    """Where decoding should take as long as captioning: its time goes with the pixels."""
    return pixels * min(16.0, max(1 / 16, caption_seconds / decode_seconds))


def run(load_plan: LoadPlan, works: Sequence[Work], setup: Setup) -> Timed:
    """Captions all ``works``."""
    plan = WorkerPlan(
        load_plan=replace(load_plan, choice=replace(load_plan.choice, threads=setup.torch_threads)),
        base=works[0].request,
        decode_workers=setup.decode_workers,
        decode_bytes=1 << 30,
        on_out_of_memory="fail",
        decode_threads=setup.decode_threads,
    )
    with serving(plan, lambda event: None, lambda: False) as serve:
        began = time.perf_counter()
        done = [
            (time.perf_counter() - began, record)
            for record in serve(works)
            if not isinstance(record, Finished)
        ]
    ends, records = zip(*done, strict=True)
    failed = next((record.error.message for record in records if record.error), None)
    if failed or len(records) != len(works):
        raise RuntimeError(f"not all clips were captioned: {failed}")
    return Timed(ends, records)


def bundled() -> tuple[LoadPlan, AskRequest]:
    """How the bundled pair is loaded, and what it is asked of each clip."""
    choice = choose_pair(load_registry(environment={}), BUNDLED)
    defaults, settings = choice.pair.defaults, replace(settings_of_pair(choice.pair), fallback=False)
    video = VideoRequest(Path(), max_frames=defaults.frames, fps=defaults.fps, max_pixels=defaults.max_pixels)
    return prepared(choice, AskRequest(video, (DEFAULT_PROMPT,), settings, task="caption"))


def make_works(load_plan: LoadPlan, base: AskRequest, folder: Path, count: int, pixels: float) -> list[Work]:
    """Clips of ``count`` scenes in ``folder``, each to be captioned. Those that are there are used again."""
    from lvspec_cli.demo.write import encode_scene

    folder.mkdir(parents=True, exist_ok=True)
    works = []
    for number in range(1, count + 1):
        path = folder / f"{number:03}.mp4"
        if not path.exists():
            scene = replace(scene_of(_SEED, number)[0], noise=0.0)  # which costs some clips much more
            encode_scene(scene, path.with_suffix(".new.mp4"), size=enlarged(scene, pixels))
            path.with_suffix(".new.mp4").replace(path)
        works.append(make_work(load_plan, replace(base, video=replace(base.video, path=path))))
    return works


def fitting_size(load_plan: LoadPlan, base: AskRequest, folder: Path) -> float:
    """The pixels of which decoding takes about as long as captioning the clip, with one thread each."""
    pixels = _FIRST
    for _ in range(_ROUNDS):
        works = make_works(load_plan, base, _clips_of_size(folder, pixels), _SAMPLE, pixels)
        timed = run(load_plan, [works[0], *works], Setup(0, 1, 1))  # what the first one takes is to warm up
        decoding, captioning = median(timed.decode_seconds[1:]), median(timed.caption_seconds[1:])
        megapixels = f"{pixels / 1e6:.1f} megapixels"
        print(f"{megapixels}: decoding takes {decoding:.3f} s a clip, its caption {captioning:.3f} s")
        if 1 / _CLOSE < decoding / captioning < _CLOSE:
            break
        pixels = better_size(pixels, decoding, captioning)
    return pixels


def _clips_of_size(folder: Path, pixels: float) -> Path:
    return folder / f"{pixels / 1e6:.1f}"


def best_setups(
    load_plan: LoadPlan, works: Sequence[Work], workers: Sequence[int], threads: Sequence[int]
) -> tuple[Setup, Setup]:
    """The fastest setup without decoding ahead, and the fastest with, of all combinations."""
    in_turn = [Setup(0, *pair) for pair in itertools.product(threads, threads)]
    ahead = [Setup(count, *pair) for count in workers for pair in itertools.product(threads, threads)]
    if len(in_turn) == len(ahead) == 1:
        return in_turn[0], ahead[0]
    rates: dict[Setup, list[float]] = {setup: [] for setup in (*in_turn, *ahead)}
    for order in (list(rates), list(reversed(rates))):
        for setup in order:
            rates[setup].append(run(load_plan, works, setup).rate)
    for setup, found in rates.items():
        print(f"{setup}: {max(found):.2f} clips/s")
    best = [max(side, key=lambda setup: max(rates[setup])) for side in (in_turn, ahead)]
    return best[0], best[1]


def compare(
    load_plan: LoadPlan, works: Sequence[Work], sides: tuple[Setup, Setup], repeats: int
) -> tuple[list[float], list[float]]:
    """Clips per second of both sides, which take turns at being first. Both have to say the same."""
    rates: tuple[list[float], list[float]] = ([], [])
    texts: set[tuple[str | None, ...]] = set()
    for repeat in range(repeats):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            timed = run(load_plan, works, sides[side])
            rates[side].append(timed.rate)
            texts.add(tuple(record.text for record in timed.records))
    if len(texts) > 1:
        raise RuntimeError("the captions differ between the runs")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--megapixels", type=float, help="of all frames of a clip; found by measuring if not given"
    )
    parser.add_argument("--folder", type=Path, help="keep the clips here, a folder a size")
    parser.add_argument("--decode-workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, usable_cores()}))
    given = parser.parse_args()
    print(f"{usable_cores()} cores, {platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        folder, (load_plan, base) = given.folder or Path(name), bundled()
        pixels = 1e6 * given.megapixels if given.megapixels else fitting_size(load_plan, base, folder)
        works = make_works(load_plan, base, _clips_of_size(folder, pixels), given.clips, pixels)
        sides = best_setups(load_plan, works[:_TRIED], given.decode_workers, given.threads)
        rates = compare(load_plan, works, sides, given.repeats)
    print(
        f"\n{given.clips} clips of {pixels / 1e6:.1f} megapixels, {given.repeats} runs of each side in turns:"
    )
    for setup, found in zip(sides, rates, strict=True):
        print(f"{setup}: {median(found):.2f} clips/s ({min(found):.2f} to {max(found):.2f})")
    print(f"ahead / in turn: {median(rates[1]) / median(rates[0]):.2f}")


if __name__ == "__main__":
    main()
