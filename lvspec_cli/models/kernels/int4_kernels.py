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
from lvspec_cli.models.kernels.packed import PACKED_ROWS
from lvspec_cli.models.kernels.product_kernels import ROWS, added_up, wait_for_inputs
from lvspec_cli.models.kernels.products import OUTPUTS, splits_of

GROUP = tl.constexpr(int4.GROUP)
WORD, WORDS = tl.constexpr(int4.WORD), tl.constexpr(int4.WORDS)
BLOCK = tl.constexpr(int4.BLOCK)
COLUMNS = 1024  # of a row that a program of ``unpack_kernel`` writes
WIDE = 8192  # outputs from which on a program has two tiles of them, with fewer instructions a weight
# The bits of a power of two, to which a code is added by the lowest of them, and what is to be taken from the
# sum. A conversion of integers would take four times as long.
_PLAIN = {torch.bfloat16: (0x4300, 128 + 8), torch.float16: (0x6400, 1024 + 8)}


@triton.jit(do_not_specialize=["rows"])
def packed_product_kernel(
    inputs,  # (rows, width)
    words,  # int32 (outputs, blocks * WORDS)
    scales,  # (outputs, width / GROUP)
    bias,  # (outputs,), used with BIAS
    result,  # (rows, outputs); float32 (splits, rows, outputs) unless WHOLE
    rows,
    outputs,
    width,
    steps,  # of a program, a block each
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PLAIN: tl.constexpr,
    OFFSET: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Sums of a tile of outputs over a range of the inputs, for 16 rows.

    Codes are multiplied as they are, which is exact, and each group's sum gets its scale. Tile and range
    depend on the matrix alone, so that a row's sums do not depend on the rows beside it.
    """
    wait_for_inputs(EARLY)
    # Programs for the same weights run at the same time, so that memory is read once.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output, split = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS), tl.program_id(2)
    word, groups, blocks = tl.arange(0, WORDS), width // GROUP, (width + BLOCK - 1) // BLOCK
    read = tl.minimum(output, outputs - 1).to(tl.int64)  # beyond the last output: it again, not stored
    is_row, is_output = row < rows, output < outputs
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for step in tl.range(0, steps, num_stages=4):
        block = split * steps + step
        packed = tl.load(words + read[:, None] * (blocks * WORDS) + block * WORDS + word[None, :],
                         (block + word * 0 < blocks)[None, :], other=0)  # fmt: skip
        for half in tl.static_range(BLOCK // GROUP):
            part = tl.zeros((OUTPUTS, ROWS), tl.float32)
            for nibble in tl.static_range(GROUP // WORDS):
                place = half * (GROUP // WORDS) + nibble
                bits = (((packed >> (4 * place)) & 15) | PLAIN).to(tl.int16)
                some = bits.to(inputs.dtype.element_ty, bitcast=True) - OFFSET
                column = block * BLOCK + place * WORDS + word
                cells = inputs + row[None, :] * width + column[:, None]
                values = tl.load(cells, (column < width)[:, None] & is_row[None, :], other=0.0)
                part = tl.dot(some.to(values.dtype), values, part)
            group = block * (BLOCK // GROUP) + half
            scale = tl.load(scales + read * groups + group, group + output * 0 < groups, other=0.0)
            total += part * scale.to(tl.float32)[:, None]
    if WHOLE and BIAS:
        total += tl.load(bias + output, is_output, other=0.0).to(tl.float32)[:, None]
    cell = (split * rows + row[None, :]) * outputs + output[:, None]
    tl.store(result + cell, total.to(result.dtype.element_ty), is_output[:, None] & is_row[None, :])


@triton.jit
def unpack_kernel(words, scales, result, width, WIDTH: tl.constexpr):
    """A part of a row of the matrix, (outputs, width)."""
    output = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_valid, blocks = column < width, (width + BLOCK - 1) // BLOCK
    word = column // BLOCK * WORDS + column % WORDS
    packed = tl.load(words + output * (blocks * WORDS) + word, is_valid, other=0)
    codes = ((packed >> (4 * (column % BLOCK // WORDS))) & 15) - 8
    scale = tl.load(scales + output * (width // GROUP) + column // GROUP, is_valid, other=0.0)
    values = codes.to(tl.float32) * scale.to(tl.float32)
    tl.store(result + output * width + column, values.to(result.dtype.element_ty), is_valid)


def multiply(inputs: Tensor, matrix: Packed4, bias: Tensor | None, *, early: bool = False) -> Tensor:
    """A linear layer, (rows, inputs) -> (rows, outputs), in 16 bits: packed for few rows, else unpacked."""
    if len(inputs) > PACKED_ROWS:
        return linear(inputs, unpacked(matrix, inputs.dtype), bias)
    rows, outputs, width = len(inputs), matrix.outputs, matrix.inputs
    tile = 2 * OUTPUTS if outputs >= WIDE else OUTPUTS
    splits, steps = splits_of(outputs, width, int4.BLOCK)
    plain, offset = _PLAIN[inputs.dtype]
    result = inputs.new_empty(rows, outputs)
    sums = result if splits == 1 else result.new_empty(splits, rows, outputs, dtype=torch.float32)
    with torch.cuda.device_of(inputs):  # Triton launches on the current device
        packed_product_kernel[(cdiv(rows, ROWS.value), cdiv(outputs, tile), splits)](
            inputs.contiguous(), matrix.words, matrix.scales, result if bias is None else bias,
            sums, rows, outputs, width, steps,
            WHOLE=splits == 1, BIAS=bias is not None, OUTPUTS=tile, PLAIN=plain, OFFSET=offset, EARLY=early,
            num_warps=4, launch_pdl=early,
        )  # fmt: skip
        return result if splits == 1 else added_up(sums, bias, result, early=early)


def unpacked(matrix: Packed4, dtype: torch.dtype) -> Tensor:
    """As ``Packed4.unpacked``, in one kernel."""
    result = torch.empty(matrix.outputs, matrix.inputs, dtype=dtype, device=matrix.words.device)
    with torch.cuda.device_of(result):
        unpack_kernel[(matrix.outputs, cdiv(matrix.inputs, COLUMNS))](
            matrix.words, matrix.scales, result, matrix.inputs, WIDTH=COLUMNS
        )
    return result
