"""NF4 matrix products for small batches: packed weights are read once, however many rows.

bitsandbytes is fast for one row and for many. In between it reads the weights again for each row, or first
dequantises them to 16 bits, so that on a large GPU a verification of a few rows takes as long as several
steps (docs/real-size.md). Here a tile of weights is unpacked in registers and multiplied with all rows at
once by tensor cores, as Marlin does for other formats (Frantar et al. 2024, arXiv 2408.11743).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lvspec_cli.models.kernels.nf4 import LEVELS, ROWS, WORD, Packed

MEASURED = (9, 0)  # compute capability of the GPUs on which this was measured to be faster
_COMPILERS = ("cc", "gcc", "clang")  # Triton needs one of them to compile its launchers
_TYPES = (torch.bfloat16, torch.float16)  # dtypes of inputs


@dataclass(frozen=True)
class Tile:
    """The tiling of a product. It depends on the matrix alone, so that sums do not depend on the rows."""

    splits: int  # programs that share one sum (split-K); each has a range of the inputs
    steps: int  # steps of a program, each of ``words`` words
    outputs: int = 64  # outputs of a program
    words: int = 8  # words of each matrix row that are unpacked in one step

    @classmethod
    def of(cls, outputs: int, inputs: int) -> Tile:
        """The fastest tiling with 1 to 16 splits on an H200: many programs of at least four steps."""
        steps = -(-inputs // (WORD * cls.words))
        programs, splits = -(-outputs // cls.outputs), 1
        while splits < _SPLITS and programs * splits < _PROGRAMS and steps // (2 * splits) >= _STEPS:
            splits *= 2
        return cls(splits, -(-steps // splits))


_PROGRAMS, _SPLITS, _STEPS = 2048, 16, 4


class SmallBatch4bit(nn.Module):
    """A linear layer of bitsandbytes with these kernels for few rows; many rows use the layer itself."""

    def __init__(self, layer: Any, matrix: Packed) -> None:
        super().__init__()
        self.layer = layer
        self._matrix = matrix

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.shape[:-1].numel()
        if not 0 < rows <= ROWS or inputs.dtype not in _TYPES:
            return self.layer(inputs)
        outputs = multiply(inputs.reshape(rows, -1), self._matrix, self.layer.bias)
        return outputs.view(*inputs.shape[:-1], -1)


def is_usable(device: torch.device) -> bool:
    """Whether these kernels are faster on the device, and Triton can compile them."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    compiler = any(shutil.which(name) for name in _COMPILERS)
    return compiler and torch.cuda.get_device_capability(device) == MEASURED


def use_small_batch_kernels(model: Any) -> int:
    """Replace a model's nf4 layers by ``SmallBatch4bit``, in place. Returns their number."""
    from bitsandbytes.nn import Linear4bit

    count = 0
    for name, layer in list(model.named_modules()):
        matrix = Packed.of(layer.weight.data, layer.weight.quant_state) if type(layer) is Linear4bit else None
        if matrix is not None:
            model.set_submodule(name, SmallBatch4bit(layer, matrix))
            count += 1
    return count


def multiply(inputs: Tensor, matrix: Packed, bias: Tensor | None = None, *, by_table: bool = False) -> Tensor:
    """``inputs`` (rows, inputs) times the transposed matrix: (rows, outputs), in the dtype of the inputs.

    Weights are rounded to that dtype, sums are in float32. A row's sums do not depend on the other rows.

    :param bias: (outputs,), added before the sum is rounded.
    :param by_table: look up levels in memory. This is slow, but Triton's interpreter can do nothing else.
    """
    with torch.cuda.device_of(inputs):  # Triton launches on the current device
        return _multiplied(inputs.contiguous(), matrix, bias, by_table)


def _multiplied(inputs: Tensor, matrix: Packed, bias: Tensor | None, by_table: bool) -> Tensor:
    from triton import cdiv, next_power_of_2

    from lvspec_cli.models.kernels import small_batch_kernels as kernels
    from lvspec_cli.models.kernels.product_kernels import added_up

    device, rows = inputs.device, inputs.shape[0]
    tile = Tile.of(matrix.outputs, matrix.inputs)
    sums = torch.empty(tile.splits, rows, matrix.outputs, dtype=torch.float32, device=device)
    levels = torch.tensor(LEVELS, device=device) if by_table else matrix.outer_levels
    kernels.partial_sums[(cdiv(matrix.outputs, tile.outputs), tile.splits)](
        inputs, matrix.words, matrix.scales, matrix.outer, matrix.outer_levels, matrix.offset,
        levels, sums, rows, matrix.outputs, matrix.inputs // WORD, tile.steps,
        BY_TABLE=by_table, ROWS=max(16, next_power_of_2(rows)), OUTPUTS=tile.outputs, WORDS=tile.words,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return added_up(sums, bias, inputs.new_empty(rows, matrix.outputs))
