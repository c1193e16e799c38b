"""The kernels of ``fp8`` in Triton (Tillet et al. 2019), and torch's product of two matrices in fp8.

Few rows are multiplied by the kernel of unpacked weights (``product_kernels``), which takes the codes as they
are, in the same tiles, and gives each sum its scale: a row does not depend on those beside it.
"""

# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear
from triton import cdiv, next_power_of_2

from lvspec_cli.models.kernels import fp8
from lvspec_cli.models.kernels.fp8 import Packed8
from lvspec_cli.models.kernels.packed import PACKED_ROWS
from lvspec_cli.models.kernels.product_kernels import product

CARRY, LESS, LEAST = tl.constexpr(fp8.CARRY), tl.constexpr(fp8.LESS), tl.constexpr(fp8.LEAST)
COLUMNS = 2048  # of a row that a program of ``unpack_kernel`` writes


@triton.jit
def unpack_kernel(codes, scales, result, width, WIDTH: tl.constexpr):
    """A part of a row of the matrix, (outputs, width)."""
    output = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_valid = column < width
    values = tl.load(codes + output * width + column, is_valid, other=0.0).to(tl.float32)
    values *= tl.load(scales + output)
    tl.store(result + output * width + column, values.to(result.dtype.element_ty), is_valid)


@triton.jit
def round_kernel(rows, codes, scales, width, WIDTH: tl.constexpr):
    """The codes of a row and its scale, as ``Packed8.of_rows`` has them."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    is_valid = column < width
    values = tl.load(rows + row * width + column, is_valid, other=0.0).to(tl.float32)
    bits = tl.max(tl.abs(values), axis=0).to(tl.int32, bitcast=True)
    exponent = tl.maximum(((bits + CARRY) >> 23) - LESS, LEAST)
    scale = (exponent << 23).to(tl.float32, bitcast=True)
    tl.store(codes + row * width + column, (values / scale).to(codes.dtype.element_ty), is_valid)
    tl.store(scales + row, scale)


def multiply(inputs: Tensor, matrix: Packed8, bias: Tensor | None, *, early: bool = False) -> Tensor:
    """A linear layer, (rows, inputs) -> (rows, outputs), in 16 bits: packed for few rows, else unpacked."""
    if len(inputs) <= PACKED_ROWS:
        return product(inputs, matrix.codes, bias, matrix.scales, early=early)
    return linear(inputs, unpacked(matrix, inputs.dtype), bias)


def multiply_clips(inputs: Tensor, matrix: Packed8, bias: Tensor | None) -> Tensor:
    """As ``multiply``, but inputs are rounded to 8 bits where they are as many rows as a clip has."""
    if len(inputs) < fp8.CLIP_ROWS or matrix.outputs % Packed8.GROUP:
        return multiply(inputs, matrix, bias)
    rows = rounded(inputs)
    result = torch._scaled_mm(
        rows.codes,
        matrix.codes.t(),
        scale_a=rows.scales[:, None],
        scale_b=matrix.scales[None],
        out_dtype=inputs.dtype,
        # Sums of about 14 bits on Hopper (DeepSeek-V3, arXiv 2412.19437, 3.3.2); tests/gpu has the longest.
        use_fast_accum=True,
    )
    return result if bias is None else result + bias


def unpacked(matrix: Packed8, dtype: torch.dtype) -> Tensor:
    """As ``Packed8.unpacked``, in one kernel."""
    result = matrix.codes.new_empty(matrix.codes.shape, dtype=dtype)
    with torch.cuda.device_of(result):  # Triton launches on the current device
        unpack_kernel[(matrix.outputs, cdiv(matrix.inputs, COLUMNS))](
            matrix.codes, matrix.scales, result, matrix.inputs, WIDTH=COLUMNS
        )
    return result


def rounded(inputs: Tensor) -> Packed8:
    """As ``Packed8.of``, in one kernel, of inputs (rows, width), whatever they are."""
    rows, width = inputs.shape
    codes, scales = inputs.new_empty(rows, width, dtype=fp8.CODE), inputs.new_empty(rows, dtype=torch.float32)
    with torch.cuda.device_of(inputs):
        round_kernel[(rows,)](
            inputs.contiguous(), codes, scales, width, WIDTH=next_power_of_2(width), num_warps=16
        )
    return Packed8(codes, scales)
