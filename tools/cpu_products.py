"""Times float32 products on this CPU by torch, and as lvspec computes those of many rows and of few, then
patches of videos through the convolution that embeds them: ``python -m tools.cpu_products --threads 1``.

Both take turns; the fastest of some repeats counts. A column says whether results are the same to the bit.
The weights of few rows are read anew each time, not from the processor's cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from math import inf

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lvspec_cli.models.kernels.cpu_linear import LEAST_WEIGHTS, few_rows_pay
from lvspec_cli.models.kernels.patches import PatchRows
from lvspec_cli.models.kernels.wide_products import by_onednn, is_the_same, least_rows, multiply, pays

SHAPES = ((192, 512), (512, 192), (960, 2560), (2560, 960), (2048, 8192))
ROWS = (17, 136, 300, 1024)
FEW_SHAPES = ((960, 2560), (2048, 2048), (2048, 8192), (8192, 2048), (3584, 18944))
FEW_ROWS = (1, 2, 5, 8, 16, 40, 64)
_READ_ANEW = 5e8  # bytes of weights, more than any cache
PATCHES = ((14, 128, 448), (14, 1280, 2304), (16, 1152, 4096))  # side, outputs, patches


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself if not given")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, threads: {threads}")
    print(f"by oneDNN here: many rows {'yes' if pays() else 'no'}, few {'yes' if few_rows_pay() else 'no'}")
    products(threads, given.repeats)
    few_rows(given.repeats)
    patches(given.repeats)


def products(threads: int, repeats: int) -> None:
    print("inputs\toutputs\trows\ttorch ms\toneDNN ms\tratio\ttaken\tsame")
    for inputs, outputs in SHAPES:
        layer = nn.Linear(inputs, outputs)
        least, same = least_rows(inputs, outputs, threads), "yes" if is_the_same(layer) else "no"
        for rows in ROWS:
            values = torch.randn(rows, inputs)
            run = partial(multiply, values, layer.weight, layer.bias)
            theirs, ours = fastest(partial(layer, values), run, repeats=repeats)
            taken = "yes" if rows >= least else "no"
            print(
                f"{inputs}\t{outputs}\t{rows}\t{theirs:.3f}\t{ours:.3f}\t{theirs / ours:.2f}\t{taken}\t{same}"
            )


def few_rows(repeats: int) -> None:
    print("inputs\toutputs\trows\ttorch ms\toneDNN ms\tratio\ttaken")
    for inputs, outputs in FEW_SHAPES:
        size = inputs * outputs
        weights = cycle([torch.randn(outputs, inputs) for _ in range(max(2, int(_READ_ANEW / (4 * size))))])
        taken = "yes" if size >= LEAST_WEIGHTS else "no"
        for rows in FEW_ROWS:
            values = torch.randn(rows, inputs)
            runs = [partial(by_next, product, values, weights) for product in (linear, by_onednn)]
            theirs, ours = fastest(*runs, repeats=repeats)
            print(f"{inputs}\t{outputs}\t{rows}\t{theirs:.3f}\t{ours:.3f}\t{theirs / ours:.2f}\t{taken}")


def by_next(product: Callable[..., Tensor], values: Tensor, weights: Iterator[Tensor]) -> Tensor:
    return product(values, next(weights), None)


def patches(repeats: int) -> None:
    print("side\toutputs\tpatches\ttorch ms\tin rows ms\tratio\tsame")
    for side, outputs, count in PATCHES:
        old = nn.Conv3d(3, outputs, (2, side, side), (2, side, side), bias=False)
        new, values = PatchRows(old), torch.randn(count, 3, 2, side, side)
        theirs, ours = fastest(partial(old, values), partial(new, values), repeats=repeats)
        same = "yes" if torch.equal(old(values), new(values)) else "no"
        print(f"{side}\t{outputs}\t{count}\t{theirs:.3f}\t{ours:.3f}\t{theirs / ours:.2f}\t{same}")


def fastest(*runs: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each of the runs, which take turns."""
    found = [inf] * len(runs)
    for _ in range(repeats):
        found = [min(least, milliseconds(run)) for least, run in zip(found, runs, strict=True)]
    return found


def milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
