"""Float32 products of many rows on CPUs by oneDNN, where it is faster than torch's own and sums in the same
order.

torch multiplies by MKL, which leaves the wide registers (AVX-512) of processors that are not Intel's unused;
oneDNN, which torch brings too, computes about twice as much in them. A row's sum over the inputs is taken in
blocks, as MKL takes it there, so that results are the same to the bit: the order of sums may decide a token,
which has to be that of transformers. Where a product is not the same, for example on another processor, the
layer stays as it is.

For each number of rows oneDNN compiles kernels, and keeps them. So rows are padded to one of a few numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

BLOCK = 192  # inputs that MKL sums at once on AMD's processors; fewer than twice as many are halved
WIDTHS = (32, *range(48, 256, 16), *range(256, 512, 64), *range(512, 1025, 128))  # rows for oneDNN
# A call of oneDNN takes longer to begin: so many products of a thread it has to have. One of several blocks
# copies its weights, too. Chosen by tools.cpu_products on an AMD EPYC (Zen 5).
_LEAST_PRODUCTS, _LEAST_PRODUCTS_A_BLOCK = 1.5e6, 2.5e6
_LEAST_ROWS, _LEAST_ROWS_IN_BLOCKS = 24, 64  # of fewer, too many would be padding
_LEAST_ROWS_OF_A_THREAD = 8  # of fewer, MKL sums in other orders
_ADDED_AT_ONCE = 2**20  # numbers of a block's results, so that they stay in the cache
_GAIN = 1.3  # by which a product has to be faster
_TRIED_ROWS = (9, 67, 131)  # of a thread
_REPEATS = 5


def block_of(inputs: int) -> int:
    """How many inputs are summed at once."""
    if inputs <= BLOCK:
        return inputs
    return BLOCK if inputs >= 2 * BLOCK else inputs // 2


def least_rows(inputs: int, outputs: int, threads: int) -> int:
    """From how many rows on a product has so much to do that oneDNN is faster."""
    blocks = -(-inputs // block_of(inputs))
    products = _LEAST_PRODUCTS if blocks == 1 else blocks * _LEAST_PRODUCTS_A_BLOCK
    fewest = _LEAST_ROWS if blocks == 1 else _LEAST_ROWS_IN_BLOCKS
    return max(fewest, _LEAST_ROWS_OF_A_THREAD * threads, ceil(threads * products / (inputs * outputs)))


def width_of(rows: int) -> int:
    """To how many rows so many are padded; there are no more than the greatest width."""
    return next(width for width in WIDTHS if width >= rows)


def rows_added_at_once(outputs: int) -> int:
    """Rows of a piece whose blocks are added up."""
    return max((width for width in WIDTHS if width * outputs <= _ADDED_AT_ONCE), default=WIDTHS[0])


def multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer by oneDNN, with sums in blocks: float32 (..., inputs) -> (..., outputs)."""
    outputs, count = weight.shape
    rows, block = inputs.reshape(-1, count), block_of(count)
    most = WIDTHS[-1] if block == count else rows_added_at_once(outputs)
    pieces = [_widened(piece) for piece in (rows.split(most) if len(rows) > most else (rows,))]
    if block == count:
        sums = [by_onednn(piece, weight, bias) for piece in pieces]
    else:
        sums = [piece.new_empty(len(piece), outputs) for piece in pieces]
        for first in range(0, count, block):
            # oneDNN is slow with weights that are parts of longer rows.
            some = weight[:, first : first + block].contiguous()
            for piece, sum_ in zip(pieces, sums, strict=True):
                found = by_onednn(piece[:, first : first + block], some, None if first else bias)
                sum_.add_(found) if first else sum_.copy_(found)
    whole = sums[0] if len(sums) == 1 else torch.cat(sums)
    return whole[: len(rows)].view(*inputs.shape[:-1], outputs)


def _widened(rows: Tensor) -> Tensor:
    padding = width_of(len(rows)) - len(rows)
    return pad(rows, (0, 0, 0, padding)) if padding else rows  # pad copies even if it adds nothing


def has_onednn() -> bool:
    """Whether torch has the product of :func:`by_onednn`."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def by_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer: float32 (..., inputs) -> (..., outputs)."""
    return torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")


@torch.inference_mode()
def pays() -> bool:
    """Whether torch has oneDNN, and this processor multiplies many rows faster by it."""
    if not has_onednn():
        return False
    inputs, weight = torch.ones(WIDTHS[-1], BLOCK), torch.ones(2 * BLOCK, BLOCK)
    by_torch, other = (seconds(partial(run, inputs, weight, None)) for run in (linear, by_onednn))
    return by_torch >= _GAIN * other


def seconds(run: Callable[[], object]) -> float:
    """Of the fastest of some runs, after one that does not count."""

    def once() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(_REPEATS))


@torch.inference_mode()
def is_the_same(layer: nn.Linear) -> bool:
    """Whether products of several numbers of rows are the layer's own, to the bit."""
    draw, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    inputs = torch.randn(threads * max(_TRIED_ROWS), layer.in_features, generator=draw)
    return all(
        torch.equal(multiply(some, layer.weight, layer.bias), layer(some))
        for some in (inputs[: threads * rows] for rows in _TRIED_ROWS)
    )
