"""The operations of ``fused`` in Triton (Tillet et al. 2019). Compile-time constants are in capitals.

Tiles depend on shapes of the model alone, and sums have a fixed order, so that a row does not depend on those
beside it. How many keys there are is read on the device.
"""

# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv, next_power_of_2

from lvspec_cli.models.attention import SPLIT_KEYS

KEYS = tl.constexpr(SPLIT_KEYS)  # of a stretch
PACKED = tl.constexpr(16)  # query rows of a program
AT_ONCE = tl.constexpr(16)  # stretches that are added at once
COLUMNS = 1024  # of a row of the MLP in a program


@triton.jit
def add_norm_kernel(
    hidden, added, weight, total, normed, width, epsilon, ADD: tl.constexpr, WIDTH: tl.constexpr
):
    """A row of the sum, rounded, and of its normalisation."""
    row, column = tl.program_id(0), tl.arange(0, WIDTH)
    is_valid = column < width
    values = tl.load(hidden + row * width + column, is_valid, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(added + row * width + column, is_valid, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * width + column, rounded, is_valid)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / width + epsilon)
    factors = tl.load(weight + column, is_valid, other=0.0).to(tl.float32)
    tl.store(normed + row * width + column, (values * scale * factors).to(normed.dtype.element_ty), is_valid)


@triton.jit
def rotate_kernel(
    projected,  # (rows, (heads + 2 * key_heads) * size)
    cosines,  # (rows, size)
    sines,
    query_norm,  # (size,), used with NORM
    key_norm,
    keys,  # (key_heads, capacity, size)
    values,
    queries,  # (heads, rows, size)
    slots,  # long (rows,)
    epsilon,
    rows,
    heads,
    key_heads,
    capacity,
    size,
    NORM: tl.constexpr,
    HALF: tl.constexpr,
):
    """One head of a row: normalised and rotated, a query stays, a key or a value goes to the cache."""
    row, head = tl.program_id(0), tl.program_id(1)
    half, column = size // 2, tl.arange(0, HALF)
    is_valid = column < half
    source = projected + (row * (heads + 2 * key_heads) + head) * size + column
    first = tl.load(source, is_valid, other=0.0).to(tl.float32)
    second = tl.load(source + half, is_valid, other=0.0).to(tl.float32)
    slot = tl.load(slots + row)
    if head >= heads + key_heads:
        target = values + ((head - heads - key_heads) * capacity + slot) * size + column
        tl.store(target, first.to(values.dtype.element_ty), is_valid)
        tl.store(target + half, second.to(values.dtype.element_ty), is_valid)
    else:
        if NORM:
            scale = tl.rsqrt(
                (tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)) / size + epsilon
            )
            norm = query_norm
            if head >= heads:
                norm = key_norm
            first = first * scale * tl.load(norm + column, is_valid, other=0.0).to(tl.float32)
            second = second * scale * tl.load(norm + half + column, is_valid, other=0.0).to(tl.float32)
        factors = row * size + column
        cosine = tl.load(cosines + factors, is_valid, other=0.0).to(tl.float32)
        sine = tl.load(sines + factors, is_valid, other=0.0).to(tl.float32)
        later_cosine = tl.load(cosines + factors + half, is_valid, other=0.0).to(tl.float32)
        later_sine = tl.load(sines + factors + half, is_valid, other=0.0).to(tl.float32)
        turned = (first * cosine - second * sine).to(queries.dtype.element_ty)
        later = (second * later_cosine + first * later_sine).to(queries.dtype.element_ty)
        target = queries + (head * rows + row) * size + column
        if head >= heads:
            target = keys + ((head - heads) * capacity + slot) * size + column
        tl.store(target, turned, is_valid)
        tl.store(target + half, later, is_valid)


@triton.jit
def attend_kernel(
    queries,  # (heads, rows, size): those of a key head's group are one block of packed rows
    keys,  # (key heads, capacity, size)
    values,
    slots,  # long (rows,), ascending
    parts,  # float32 (heads * rows, stretches, size)
    maxima,  # float32 (heads * rows, stretches)
    sums,
    scaling,
    rows,
    packed,  # rows of a group
    capacity,
    stretches,
    size,
    SIZE: tl.constexpr,
):
    """Attention of a block of a key head's rows to one stretch of keys: weighted values, maximum, sum."""
    key_head, stretch = tl.program_id(0), tl.program_id(1)
    row, column = tl.program_id(2) * PACKED + tl.arange(0, PACKED), tl.arange(0, SIZE)
    key = stretch * KEYS + tl.arange(0, KEYS)
    if stretch * KEYS <= tl.load(slots + rows - 1):
        is_row, is_column = row < packed, column < size
        slot = tl.load(slots + row % rows, is_row, other=0)
        index = key_head * packed + row
        query = tl.load(
            queries + index[:, None] * size + column[None, :], is_row[:, None] & is_column[None, :], other=0.0
        )
        places = (key_head * capacity + key)[:, None] * size + column[None, :]
        stored = tl.load(keys + places, is_column[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(stored)).to(tl.float32) * scaling
        scores = tl.where(key[None, :] <= slot[:, None], scores, float("-inf"))
        highest = tl.max(scores, axis=1)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp(scores - base[:, None])
        value = tl.load(values + places, is_column[None, :], other=0.0)
        part = tl.dot(weights.to(value.dtype), value).to(tl.float32)
        cell = index * stretches + stretch
        tl.store(parts + cell[:, None] * size + column[None, :], part, is_row[:, None] & is_column[None, :])
        tl.store(maxima + cell, highest, is_row)
        tl.store(sums + cell, tl.sum(weights, axis=1), is_row)


@triton.jit
def combine_kernel(
    parts,
    maxima,
    sums,
    slots,
    attended,  # (rows, heads * size)
    rows,
    heads,
    stretches,
    size,
    SIZE: tl.constexpr,
    STRETCHES: tl.constexpr,
):
    """The sum over a row's stretches, as many as it has keys in, always in the same order."""
    index, column = tl.program_id(0), tl.arange(0, SIZE)
    row, head = index % rows, index // rows
    count = tl.load(slots + row) // KEYS + 1
    stretch, is_column = tl.arange(0, STRETCHES), column < size
    is_valid = stretch < count
    highest = tl.load(maxima + index * stretches + stretch, is_valid, other=float("-inf"))
    top = tl.max(highest, axis=0)
    shares = tl.exp(highest - top) * tl.load(sums + index * stretches + stretch, is_valid, other=0.0)
    total = tl.zeros((SIZE,), tl.float32)
    for first in range(0, count, AT_ONCE):
        some = first + tl.arange(0, AT_ONCE)
        is_some = some < count
        cell = index * stretches + some
        share = tl.exp(tl.load(maxima + cell, is_some, other=float("-inf")) - top)
        part = tl.load(
            parts + cell[:, None] * size + column[None, :], is_some[:, None] & is_column[None, :], other=0.0
        )
        total += tl.sum(part * share[:, None], axis=0)
    result = (total / tl.sum(shares, axis=0)).to(attended.dtype.element_ty)
    tl.store(attended + (row * heads + head) * size + column, result, is_column)


@triton.jit
def gated_kernel(both, result, width, WIDTH: tl.constexpr):
    """A part of a row: silu of its gate times its other half."""
    row, column = tl.program_id(0), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_valid = column < width
    gate = tl.load(both + row * 2 * width + column, is_valid, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * width + width + column, is_valid, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(result + row * width + column, product.to(result.dtype.element_ty), is_valid)


class Kernels:
    """The operations of ``fused.Operations`` by these kernels, on contiguous tensors."""

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        rows, width = hidden.shape
        hidden = hidden.contiguous()
        total, normed = hidden if added is None else torch.empty_like(hidden), torch.empty_like(hidden)
        with torch.cuda.device_of(hidden):  # Triton launches on the current device
            add_norm_kernel[(rows,)](
                hidden, hidden if added is None else added, weight, total, normed, width, epsilon,
                ADD=added is not None, WIDTH=next_power_of_2(width), num_warps=8,
            )  # fmt: skip
        return total, normed

    def rotate_and_write(
        self,
        projected: Tensor,
        factors: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        epsilon: float,
        cache: tuple[Tensor, Tensor],
        slots: Tensor,
    ) -> Tensor:
        (key_heads, capacity, size), rows = cache[0].shape, len(projected)
        heads = projected.shape[1] // size - 2 * key_heads
        queries = projected.new_empty(heads, rows, size)
        query_norm, key_norm = norms or (projected, projected)
        with torch.cuda.device_of(projected):
            rotate_kernel[(rows, heads + 2 * key_heads)](
                projected, factors[0], factors[1], query_norm, key_norm, cache[0], cache[1], queries, slots,
                epsilon, rows, heads, key_heads, capacity, size,
                NORM=norms is not None, HALF=next_power_of_2(size // 2), num_warps=1,
            )  # fmt: skip
        return queries

    def attend(self, queries: Tensor, cache: tuple[Tensor, Tensor], slots: Tensor, scaling: float) -> Tensor:
        (key_heads, capacity, size), (heads, rows, _) = cache[0].shape, queries.shape
        packed, stretches = heads // key_heads * rows, capacity // SPLIT_KEYS
        parts = queries.new_empty(heads * rows, stretches, size, dtype=torch.float32)
        maxima, sums = parts.new_empty(2, heads * rows, stretches)
        attended = queries.new_empty(rows, heads * size)
        padded = max(16, next_power_of_2(size))
        with torch.cuda.device_of(queries):
            attend_kernel[(key_heads, stretches, cdiv(packed, PACKED.value))](
                queries, cache[0], cache[1], slots, parts, maxima, sums, scaling, rows, packed, capacity,
                stretches, size, SIZE=padded, num_warps=4,
            )  # fmt: skip
            combine_kernel[(heads * rows,)](
                parts, maxima, sums, slots, attended, rows, heads, stretches, size,
                SIZE=padded, STRETCHES=next_power_of_2(stretches), num_warps=4,
            )  # fmt: skip
        return attended

    def gated(self, both: Tensor) -> Tensor:
        rows, width = both.shape[0], both.shape[1] // 2
        result = both.new_empty(rows, width)
        with torch.cuda.device_of(both):
            gated_kernel[(rows, cdiv(width, COLUMNS))](both, result, width, WIDTH=COLUMNS, num_warps=4)
        return result
