"""Demo clips drawn by several processes, before the bench asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lvspec_cli.demo.write import HELD_OUT_SEED, clip_path, write_clip
from lvspec_cli.errors import OutputError
from lvspec_cli.output.files import make_folder, sweep


def draw_clips(
    folder: Path,
    numbers: Iterable[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    seed: int = HELD_OUT_SEED,
    processes: int = 1,
) -> list[Path]:
    """Demo clips that were not used in training, with their scene files; existing ones are not written again.

    :raises OutputError: the folder cannot be written.
    """
    paths = {number: clip_path(folder, number) for number in numbers}
    make_folder(folder)
    sweep(folder)
    missing = [
        number
        for number, path in paths.items()
        if not (path.is_file() and path.with_suffix(".json").is_file())
    ]
    progress(len(paths) - len(missing), len(paths))
    try:
        with parallel_map(min(processes, len(missing))) as run_all:
            drawn = run_all(partial(write_clip, folder, seed), missing)
            for done, _ in enumerate(drawn, len(paths) - len(missing) + 1):
                progress(done, len(paths))
    except BrokenProcessPool as error:
        raise OutputError(
            f"{folder}: a process that drew clips was ended from outside",
            "give the command again, it resumes where it left off; fewer --processes need less memory",
        ) from error
    return list(paths.values())


@contextmanager
def parallel_map(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yields a ``map`` that runs here or in other processes; at the end, calls not begun are cancelled."""
    if processes < 2:
        yield map
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)
