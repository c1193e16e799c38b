"""The kernels of ``int4`` in Triton (Tillet et al. 2019). Compile-time constants are in capitals."""

# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear
from triton import cdiv

from lvspec_cli.models.kernels import int4
from lvspec_cli.models.kernels.int4 import Packed4
from lvspec_cli.models.kernels.products import OUTPUTS, splits_of
from lvspec_cli.models.kernels.small_batch_kernels import ADDED, add_up

GROUP = tl.constexpr(int4.GROUP)
WORD = tl.constexpr(int4.WORD)
ROWS = tl.constexpr(16)  # rows of a product in a program
COLUMNS = 1024  # of a row that a program of ``unpack_kernel`` writes


@triton.jit(do_not_specialize=["rows"])
def packed_product_kernel(
    inputs,  # (rows, width)
    words,  # int32 (outputs, width / WORD)
    scales,  # (outputs, width / GROUP)
    bias,  # (outputs,), used with BIAS
    result,  # (rows, outputs); float32 (splits, rows, outputs) unless WHOLE
    rows,
    outputs,
    width,
    steps,  # of a program, a group each
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Sums of a tile of outputs over a range of the inputs, for 16 rows.

    Codes are multiplied as they are, which is exact, and each group's sum gets its scale. Tile and range
    depend on the matrix alone, so that a row's sums do not depend on the rows beside it.
    """
    # Programs for the same weights run at the same time, so that memory is read once.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output, split = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS), tl.program_id(2)
    word, column, bit = tl.arange(0, GROUP // WORD), tl.arange(0, GROUP), 4 * tl.arange(0, WORD)
    read = tl.minimum(output, outputs - 1).to(tl.int64)  # beyond the last output: it again, not stored
    is_row, is_output, groups = row < rows, output < outputs, width // GROUP
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for step in tl.range(0, steps, num_stages=4):
        group = split * steps + step
        is_valid = (group + word * 0 < groups)[None, :]
        packed = tl.load(words + read[:, None] * (width // WORD) + group * (GROUP // WORD) + word[None, :],
                         is_valid, other=0)  # fmt: skip
        codes = ((packed[:, :, None] >> bit[None, None, :]) & 15) - 8
        some = tl.reshape(codes, (OUTPUTS, GROUP)).to(inputs.dtype.element_ty)
        cells = inputs + row[None, :] * width + group * GROUP + column[:, None]
        values = tl.load(cells, (group + column * 0 < groups)[:, None] & is_row[None, :], other=0.0)
        scale = tl.load(scales + read * groups + group, group + output * 0 < groups, other=0.0)
        total += tl.dot(some, values) * scale.to(tl.float32)[:, None]
    if WHOLE and BIAS:
        total += tl.load(bias + output, is_output, other=0.0).to(tl.float32)[:, None]
    cell = (split * rows + row[None, :]) * outputs + output[:, None]
    tl.store(result + cell, total.to(result.dtype.element_ty), is_output[:, None] & is_row[None, :])


@triton.jit
def unpack_kernel(words, scales, result, width, WIDTH: tl.constexpr):
    """A part of a row of the matrix, (outputs, width)."""
    output = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_valid = column < width
    packed = tl.load(words + output * (width // WORD) + column // WORD, is_valid, other=0)
    codes = ((packed >> (4 * (column % WORD))) & 15) - 8
    scale = tl.load(scales + output * (width // GROUP) + column // GROUP, is_valid, other=0.0)
    values = codes.to(tl.float32) * scale.to(tl.float32)
    tl.store(result + output * width + column, values.to(result.dtype.element_ty), is_valid)


def multiply(inputs: Tensor, matrix: Packed4, bias: Tensor | None) -> Tensor:
    """A linear layer, (rows, inputs) -> (rows, outputs), in 16 bits: packed for few rows, else unpacked."""
    if len(inputs) > int4.ROWS:
        return linear(inputs, unpacked(matrix, inputs.dtype), bias)
    rows, outputs, width = len(inputs), matrix.outputs, matrix.inputs
    splits, steps = splits_of(outputs, width, int4.GROUP)
    result = inputs.new_empty(rows, outputs)
    sums = result if splits == 1 else result.new_empty(splits, rows, outputs, dtype=torch.float32)
    bias_or_any = matrix.scales if bias is None else bias
    with torch.cuda.device_of(inputs):  # Triton launches on the current device
        packed_product_kernel[(cdiv(rows, ROWS.value), cdiv(outputs, OUTPUTS), splits)](
            inputs.contiguous(), matrix.words, matrix.scales, bias_or_any, sums, rows, outputs, width, steps,
            WHOLE=splits == 1, BIAS=bias is not None, OUTPUTS=OUTPUTS, num_warps=4,
        )  # fmt: skip
        if splits > 1:
            add_up[(rows, cdiv(outputs, ADDED))](
                sums, bias_or_any, result, rows, outputs,
                SPLITS=splits, BIAS=bias is not None, OUTPUTS=ADDED,
            )  # fmt: skip
    return result


def unpacked(matrix: Packed4, dtype: torch.dtype) -> Tensor:
    """As ``Packed4.unpacked``, in one kernel."""
    result = torch.empty(matrix.outputs, matrix.inputs, dtype=dtype, device=matrix.words.device)
    with torch.cuda.device_of(result):
        unpack_kernel[(matrix.outputs, cdiv(matrix.inputs, COLUMNS))](
            matrix.words, matrix.scales, result, matrix.inputs, WIDTH=COLUMNS
        )
    return result
