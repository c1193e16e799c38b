"""Products of few rows in Triton (Tillet et al. 2019), and what all of them share: the sums of their splits.

Compile-time constants are in capitals.
"""

# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv

from lvspec_cli.models.kernels.products import INPUTS, OUTPUTS, splits_of

ROWS = tl.constexpr(16)  # rows of a product in a program
ADDED = 512  # outputs of a row that a program of ``add_up`` adds


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """Comes first in each kernel. With EARLY it is launched before the one before it has ended, and lets the
    next one be launched (programmatic dependent launch, CUDA). It goes on when the one before it has ended,
    which has waited in the same way: so it may read what all of them wrote, and write over what they read."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    inputs,  # (rows, width)
    weight,  # (outputs, width), in the type of the inputs, or in fp8, which it takes without rounding
    scales,  # float32 (outputs,), used with SCALED
    bias,  # (outputs,), used with BIAS
    result,  # (rows, outputs); float32 (splits, rows, outputs) unless WHOLE
    rows,
    outputs,
    width,
    steps,  # of a program, each of INPUTS columns
    WHOLE: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Sums of a tile of outputs over a range of the inputs, for 16 rows.

    Tile and range depend on the matrix alone, so that a row's sums do not depend on the rows beside it.
    """
    wait_for_inputs(EARLY)
    # Programs for the same weights run at the same time, so that memory is read once.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output, split = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS), tl.program_id(2)
    column = split * steps * INPUTS + tl.arange(0, INPUTS)
    read = tl.minimum(output, outputs - 1).to(tl.int64)  # beyond the last output: it again, not stored
    is_row, is_output = row < rows, output < outputs
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for step in tl.range(0, steps, num_stages=4):
        at = column + step * INPUTS
        is_valid = at < width
        some = tl.load(weight + read[:, None] * width + at[None, :], is_valid[None, :], other=0.0)
        cells = inputs + row[None, :] * width + at[:, None]
        values = tl.load(cells, is_valid[:, None] & is_row[None, :], other=0.0)
        if SCALED:
            some = some.to(tl.float32)  # to bfloat16 from here is much faster than from float16
        total = tl.dot(some.to(values.dtype), values, total)
    if SCALED:
        total *= tl.load(scales + output, is_output, other=0.0)[:, None]
    if WHOLE and BIAS:
        total += tl.load(bias + output, is_output, other=0.0).to(tl.float32)[:, None]
    cell = (split * rows + row[None, :]) * outputs + output[:, None]
    tl.store(result + cell, total.to(result.dtype.element_ty), is_output[:, None] & is_row[None, :])


@triton.jit(do_not_specialize=["rows"])
def add_up(
    sums,  # float32 (splits, rows, outputs)
    bias,  # (outputs,)
    result,  # (rows, outputs)
    rows,
    outputs,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The sums of a row over all splits, always in the same order."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    in_range = output < outputs
    total = tl.zeros((OUTPUTS,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(sums + (split * rows + row) * outputs + output, in_range, other=0.0)
    if BIAS:
        total += tl.load(bias + output, in_range, other=0.0).to(tl.float32)
    tl.store(result + row * outputs + output, total.to(result.dtype.element_ty), in_range)


def product(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scales: Tensor | None = None,
    *,
    early: bool = False,
) -> Tensor:
    """A linear layer, (rows, inputs) -> (rows, outputs), in 16 bits.

    :param scales: float32 (outputs,), of weights in fp8.
    :param early: see ``wait_for_inputs``.
    """
    (rows, width), outputs = inputs.shape, len(weight)
    splits, steps = splits_of(outputs, width)
    result = unused = inputs.new_empty(rows, outputs)
    sums = result if splits == 1 else result.new_empty(splits, rows, outputs, dtype=torch.float32)
    with torch.cuda.device_of(inputs):  # Triton launches on the current device
        product_kernel[(cdiv(rows, ROWS.value), cdiv(outputs, OUTPUTS), splits)](
            inputs.contiguous(), weight, unused if scales is None else scales,
            unused if bias is None else bias, sums, rows, outputs, width, steps,
            WHOLE=splits == 1, SCALED=scales is not None, BIAS=bias is not None,
            INPUTS=INPUTS, OUTPUTS=OUTPUTS, EARLY=early, num_warps=4, launch_pdl=early,
        )  # fmt: skip
        return result if splits == 1 else added_up(sums, bias, result, early=early)


def added_up(sums: Tensor, bias: Tensor | None, result: Tensor, *, early: bool = False) -> Tensor:
    """The result (rows, outputs), written from float32 sums (splits, rows, outputs) and a bias."""
    splits, rows, outputs = sums.shape
    add_up[(rows, cdiv(outputs, ADDED))](
        sums, result if bias is None else bias, result, rows, outputs,
        SPLITS=splits, BIAS=bias is not None, OUTPUTS=ADDED, EARLY=early, launch_pdl=early,
    )  # fmt: skip
    return result
