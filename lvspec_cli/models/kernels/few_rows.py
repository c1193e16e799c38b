"""Products of a few rows with weights in nf4, which are read once, packed, whatever the rows.

bitsandbytes is made for one row and for many. In between it reads the weights anew for each row, or writes
them out in 16 bits first, so that on a large card a verification of a few rows takes several steps
(docs/real-size.md). Here a tile of weights is unpacked in registers and multiplied with all rows at once by
tensor cores, as Marlin does for other formats (Frantar et al. 2024, arXiv 2408.11743).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lvspec_cli.models.kernels.nf4 import LEVELS, ROWS, WORD, Packed

MEASURED = (9, 0)  # the capability of the cards that this was found to be faster on
_COMPILERS = ("cc", "gcc", "clang")  # one of which Triton wants, for what launches a kernel
_TYPES = (torch.bfloat16, torch.float16)  # that are multiplied here


@dataclass(frozen=True)
class Tile:
    """How a product is cut, by its matrix alone, so that sums are added in one order whatever the rows."""

    splits: int  # programs that share a sum, each a stretch of the inputs
    steps: int  # of ``WORDS`` words, that a program takes
    outputs: int = 64  # of a program
    words: int = 8  # of each row, that are unpacked at once

    @classmethod
    def of(cls, outputs: int, inputs: int) -> Tile:
        """As was fastest on an H200 among 1 to 16 splits: many programs, of a few steps each at least."""
        steps = -(-inputs // (WORD * cls.words))
        programs, splits = -(-outputs // cls.outputs), 1
        while splits < _SPLITS and programs * splits < _PROGRAMS and steps // (2 * splits) >= _STEPS:
            splits *= 2
        return cls(splits, -(-steps // splits))


_PROGRAMS, _SPLITS, _STEPS = 2048, 16, 4


class FewRows4bit(nn.Module):
    """A linear layer of bitsandbytes, which has the weights, and multiplies many rows."""

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
    """Whether a device is of those that this is faster on, and Triton can make the kernels for it."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    compiler = any(shutil.which(name) for name in _COMPILERS)
    return compiler and torch.cuda.get_device_capability(device) == MEASURED


def take_few_rows(model: Any) -> int:
    """Has a model's layers in nf4 multiply few rows here; in place. Gives how many there are."""
    from bitsandbytes.nn import Linear4bit

    taken = 0
    for name, part in [each for each in model.named_modules() if type(each[1]) is Linear4bit]:
        matrix = Packed.of(part.weight.data, part.weight.quant_state)
        if matrix is not None:
            model.set_submodule(name, FewRows4bit(part, matrix))
            taken += 1
    return taken


def multiply(inputs: Tensor, matrix: Packed, bias: Tensor | None = None, *, by_table: bool = False) -> Tensor:
    """``inputs`` (rows, inputs) by the matrix transposed: (rows, outputs), in the inputs' type.

    Weights are rounded to that type, sums are in float32. A row's sum does not depend on the rows beside it.

    :param bias: (outputs,), added before the sum is rounded.
    :param by_table: look levels up in memory: slow, and all that Triton's interpreter can do.
    """
    with torch.cuda.device_of(inputs):  # Triton launches on the current device
        return _multiplied(inputs.contiguous(), matrix, bias, by_table)


def _multiplied(inputs: Tensor, matrix: Packed, bias: Tensor | None, by_table: bool) -> Tensor:
    from triton import cdiv, next_power_of_2

    from lvspec_cli.models.kernels import few_rows_kernels as kernels

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
    outputs = torch.empty(rows, matrix.outputs, dtype=inputs.dtype, device=device)
    kernels.add_up[(rows, cdiv(matrix.outputs, kernels.ADDED))](
        sums, sums if bias is None else bias, outputs, rows, matrix.outputs,
        SPLITS=tile.splits, BIAS=bias is not None, OUTPUTS=kernels.ADDED,
    )  # fmt: skip
    return outputs
