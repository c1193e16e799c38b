"""The kernels of ``small_batch`` in Triton (Tillet et al. 2019). Compile-time constants are in capitals."""

# ruff: noqa: N803

from __future__ import annotations

import struct

import triton
import triton.language as tl

from lvspec_cli.models.kernels.nf4 import LEVELS


def _table(byte: int) -> list[str]:
    """The lower (0) or upper (1) bytes of all levels as float16, four in a register."""
    column = [struct.pack("<e", level)[byte] for level in LEVELS]
    return [f"0x{int.from_bytes(column[start : start + 4], 'little'):08x}" for start in range(0, 16, 4)]


def _four(first: int) -> str:
    """PTX that unpacks the four codes in the lower half of ``s`` and ``t`` to outputs from ``first`` on.

    ``prmt`` selects four bytes out of eight by three bits of each code. The fourth bit then selects between
    the lower and the upper eight levels, and pairs of bytes become float16.
    """
    return f"""
    and.b32 u, t, 0x4444; or.b32 u, u, 0x3210;
    prmt.b32 h, h0, h1, s; prmt.b32 g, h2, h3, s; prmt.b32 h, h, g, u;
    prmt.b32 l, l0, l1, s; prmt.b32 g, l2, l3, s; prmt.b32 l, l, g, u;
    prmt.b32 g, l, h, 0x5140; mov.b32 {{x, y}}, g; cvt.f32.f16 ${first}, x; cvt.f32.f16 ${first + 1}, y;
    prmt.b32 g, l, h, 0x7362; mov.b32 {{x, y}}, g; cvt.f32.f16 ${first + 2}, x; cvt.f32.f16 ${first + 3}, y;
    """


# PTX that turns a word into its eight levels, from the lowest four bits to the highest, in registers only.
UNPACK = tl.constexpr(
    "{.reg .b16 x, y; .reg .b32 s, t, u, g, h, l, h0, h1, h2, h3, l0, l1, l2, l3;\n"
    + "".join(f"mov.b32 l{index}, {word}; " for index, word in enumerate(_table(0)))
    + "".join(f"mov.b32 h{index}, {word}; " for index, word in enumerate(_table(1)))
    + "and.b32 s, $8, 0x77777777; shr.b32 t, $8, 1;"
    + _four(0)
    + "shr.b32 s, s, 16; shr.b32 t, t, 16;"
    + _four(4)
    + "}"
)


@triton.jit
def partial_sums(
    inputs,  # (rows, 8 * a_row), 16 bits
    words,  # int32 (outputs * a_row,)
    scales,  # uint8, one for 8 words
    outer,  # float32, one for 256 scales
    outer_levels,  # float32 (256,)
    offset,  # float32, a single one
    levels,  # float32 (16,), used with BY_TABLE
    sums,  # float32 (splits, rows, outputs)
    rows,
    outputs,
    a_row,  # words in a row of the matrix
    steps,  # steps of a program, each of WORDS words
    BY_TABLE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Partial sums of a tile of outputs over a range of the inputs, for all rows."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    split = tl.program_id(1)
    row = tl.arange(0, ROWS)
    word, block, column = tl.arange(0, WORDS), tl.arange(0, WORDS // 8), tl.arange(0, WORDS * 8)
    read = tl.minimum(output, outputs - 1)[:, None]  # beyond the last output: read it again, do not store it
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    begin, end = split * steps * WORDS, tl.minimum((split + 1) * steps * WORDS, a_row)
    zero = tl.load(offset)
    # Words and scales of the next step are loaded while the current one is computed.
    packed = tl.load(words + read * a_row + begin + word[None, :], (begin + word < end)[None, :], other=0)
    index = read * (a_row // 8) + begin // 8 + block[None, :]
    code = tl.load(scales + index, (begin + block * 8 < end)[None, :], other=0).to(tl.int32)
    for step in tl.range(0, steps, num_stages=1):
        first = begin + step * WORDS
        in_range = (first + block * 8 < end)[None, :]
        scale = tl.load(outer_levels + code) * tl.load(outer + index // 256, in_range, other=0.0) + zero
        scale = tl.reshape(tl.broadcast_to(scale[:, :, None], (OUTPUTS, WORDS // 8, 8)), (OUTPUTS, WORDS))
        current, later = packed, first + WORDS
        packed = tl.load(words + read * a_row + later + word[None, :], (later + word < end)[None, :], other=0)
        index += WORDS // 8
        code = tl.load(scales + index, (later + block * 8 < end)[None, :], other=0).to(tl.int32)
        valid = (first * 8 + column < end * 8)[:, None] & (row < rows)[None, :]
        values = tl.load(inputs + row[None, :] * (a_row * 8) + first * 8 + column[:, None], valid, other=0.0)
        if BY_TABLE:
            v0, v1 = tl.load(levels + (current & 15)), tl.load(levels + ((current >> 4) & 15))
            v2, v3 = tl.load(levels + ((current >> 8) & 15)), tl.load(levels + ((current >> 12) & 15))
            v4, v5 = tl.load(levels + ((current >> 16) & 15)), tl.load(levels + ((current >> 20) & 15))
            v6, v7 = tl.load(levels + ((current >> 24) & 15)), tl.load(levels + ((current >> 28) & 15))
        else:
            v0, v1, v2, v3, v4, v5, v6, v7 = tl.inline_asm_elementwise(
                UNPACK, "=f,=f,=f,=f,=f,=f,=f,=f,r", [current], dtype=(tl.float32,) * 8, is_pure=True, pack=1
            )
        # The first weight of a byte is in its upper half, so the order is 1, 0, 3, 2, 5, 4, 7, 6.
        kind: tl.constexpr = values.dtype
        w0 = (v1 * scale).to(kind)
        w1 = (v0 * scale).to(kind)
        w2 = (v3 * scale).to(kind)
        w3 = (v2 * scale).to(kind)
        w4 = (v5 * scale).to(kind)
        w5 = (v4 * scale).to(kind)
        w6 = (v7 * scale).to(kind)
        w7 = (v6 * scale).to(kind)
        weights = tl.join(
            tl.join(tl.join(w0, w4), tl.join(w2, w6)), tl.join(tl.join(w1, w5), tl.join(w3, w7))
        )
        total = tl.dot(tl.reshape(weights, (OUTPUTS, WORDS * 8)), values, total)
    cell = (split * rows + row[None, :]) * outputs + output[:, None]
    tl.store(sums + cell, total, (output < outputs)[:, None] & (row < rows)[None, :])
