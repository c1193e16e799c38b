"""The operations of ``fused`` in Triton (Tillet et al. 2019). Compile-time constants are in capitals.

Tiles depend on shapes of the model alone, and sums have a fixed order, so that a row does not depend on those
beside it. For the same reason nothing is compiled for a number of rows (``do_not_specialize``). How many keys
there are, and where, is read on the device.
"""

# ruff: noqa: N803

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear
from triton import cdiv, next_power_of_2

from lvspec_cli.models.attention import SPLIT_KEYS
from lvspec_cli.models.cache import Stored
from lvspec_cli.models.joined import PACKED_ROWS, StoredTogether
from lvspec_cli.models.kernels import fp8_kernels, int4_kernels
from lvspec_cli.models.kernels.fp8 import Packed8
from lvspec_cli.models.kernels.int4 import Packed4
from lvspec_cli.models.kernels.packed import Packed
from lvspec_cli.models.kernels.product_kernels import product, wait_for_inputs

KEYS = tl.constexpr(SPLIT_KEYS)  # of a stretch
PACKED = tl.constexpr(PACKED_ROWS)  # query rows of a program
PARTS = tl.constexpr(128)  # programs that share a key head's stretches
AT_ONCE = tl.constexpr(16)  # parts that are added at once
COLUMNS = 1024  # of a row of the MLP in a program

LEAST_EARLY = (9, 0)  # compute capability


class PackedProduct(Protocol):
    """How packed weights are multiplied: (rows, inputs) -> (rows, outputs)."""

    def __call__(
        self, inputs: Tensor, matrix: Any, bias: Tensor | None, /, *, early: bool = False
    ) -> Tensor: ...


PRODUCTS: dict[type[Packed], PackedProduct] = {Packed4: int4_kernels.multiply, Packed8: fp8_kernels.multiply}


@triton.jit
def add_norm_kernel(
    hidden,
    added,
    weight,
    total,
    normed,
    width,
    epsilon,
    ADD: tl.constexpr,
    WIDTH: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A row of the sum, rounded, and of its normalisation."""
    wait_for_inputs(EARLY)
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


@triton.jit(do_not_specialize=["rows"])
def rotate_kernel(
    projected,  # (rows, (heads + 2 * key_heads) * size)
    cosines,  # (rows, size)
    sines,
    query_norm,  # (size,), used with NORM
    key_norm,
    table,  # long: the cache's capacity
    places,  # long (2,): addresses of keys and values, (key_heads, capacity, size)
    queries,  # (heads, rows, size)
    slots,  # long (rows,)
    sequences,  # long (rows,), used with JOINED
    epsilon,
    rows,
    heads,
    key_heads,
    size,
    NORM: tl.constexpr,
    JOINED: tl.constexpr,
    HALF: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One head of a row: normalised and rotated, a query stays, a key or a value goes to the cache, with
    JOINED to the row's own sequence of it."""
    wait_for_inputs(EARLY)
    row, head = tl.program_id(0), tl.program_id(1)
    half, column = size // 2, tl.arange(0, HALF)
    is_valid = column < half
    source = projected + (row * (heads + 2 * key_heads) + head) * size + column
    first = tl.load(source, is_valid, other=0.0).to(tl.float32)
    second = tl.load(source + half, is_valid, other=0.0).to(tl.float32)
    slot, capacity = tl.load(slots + row), tl.load(table)
    if JOINED:
        slot += tl.load(sequences + row) * key_heads * capacity
    if head >= heads + key_heads:
        values = tl.load(places + 1).to(queries.dtype)
        target = values + ((head - heads - key_heads) * capacity + slot) * size + column
        tl.store(target, first.to(queries.dtype.element_ty), is_valid)
        tl.store(target + half, second.to(queries.dtype.element_ty), is_valid)
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
            keys = tl.load(places).to(queries.dtype)
            target = keys + ((head - heads) * capacity + slot) * size + column
        tl.store(target, turned, is_valid)
        tl.store(target + half, later, is_valid)


@triton.jit(do_not_specialize=["rows"])
def attend_kernel(
    queries,  # (heads, rows, size): those of a key head's group are packed, of one sequence at a time
    table,  # long (2,): the cache's capacity, and the address of the video's mask, uint8 (capacity,)
    places,  # long (2,): addresses of keys and values, (key heads, capacity, size)
    slots,  # long (rows,), ascending in a sequence
    sequences,  # long (rows,), used with JOINED
    blocks,  # long (blocks, 3), used with JOINED: a sequence's first row and its rows, the first packed row
    parts,  # float32 (heads * rows, PARTS, size)
    maxima,  # float32 (heads * rows, PARTS)
    sums,
    shares,
    scaling,
    rows,
    groups,  # query heads a key head
    size,
    SIZE: tl.constexpr,
    SHARES: tl.constexpr,
    JOINED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Attention of a block of a key head's rows to every PARTS-th stretch of keys: weighted values, maximum,
    sum of the weights and, with SHARES, of those of the video's keys. With JOINED the block's rows are of one
    of several sequences, else of the only one."""
    wait_for_inputs(EARLY)
    key_head, part = tl.program_id(0), tl.program_id(1)
    first, count, start = 0, rows, tl.program_id(2) * PACKED
    if JOINED:
        block = blocks + tl.program_id(2) * 3
        first, count = tl.load(block).to(tl.int32), tl.load(block + 1).to(tl.int32)
        start = tl.load(block + 2).to(tl.int32)
    row, column = start + tl.arange(0, PACKED), tl.arange(0, SIZE)
    last = tl.load(slots + tl.maximum(first + count, 1) - 1)
    stretches = tl.where(count > 0, (last // KEYS).to(tl.int32) + 1, 0)  # a block may be empty
    if part < stretches:
        is_row, is_column = row < groups * count, column < size
        capacity = tl.load(table)
        keys = tl.multiple_of(tl.load(places).to(queries.dtype), 16)
        values = tl.multiple_of(tl.load(places + 1).to(queries.dtype), 16)
        slot = tl.load(slots + first + row % count, is_row, other=0)
        index = (key_head * groups + row // count) * rows + first + row % count
        head_cell = key_head * capacity
        if JOINED:
            sequence_cell = tl.load(sequences + first) * capacity
            head_cell += sequence_cell * tl.num_programs(0)
        query = tl.load(
            queries + index[:, None] * size + column[None, :], is_row[:, None] & is_column[None, :], other=0.0
        )
        top = tl.full((PACKED,), float("-inf"), tl.float32)
        total, of_video = tl.zeros((PACKED,), tl.float32), tl.zeros((PACKED,), tl.float32)
        result = tl.zeros((PACKED, SIZE), tl.float32)
        # A stretch behind a row's last key changes nothing of what the row has so far.
        for stretch in tl.range(part, stretches, PARTS, num_stages=1):
            key = stretch * KEYS + tl.arange(0, KEYS)
            cells = (head_cell + key)[:, None] * size + column[None, :]
            stored = tl.load(keys + cells, is_column[None, :], other=0.0)
            scores = tl.dot(query, tl.trans(stored)).to(tl.float32) * scaling
            scores = tl.where(key[None, :] <= slot[:, None], scores, float("-inf"))
            highest = tl.maximum(top, tl.max(scores, axis=1))
            base = tl.where(highest == float("-inf"), 0.0, highest)
            weights, kept = tl.exp(scores - base[:, None]), tl.exp(top - base)
            value = tl.load(values + cells, is_column[None, :], other=0.0)
            added = tl.dot(weights.to(value.dtype), value).to(tl.float32)
            result = result * kept[:, None] + added
            total = total * kept + tl.sum(weights, axis=1)
            if SHARES:
                mask = tl.load(table + 1).to(tl.pointer_type(tl.uint8))
                if JOINED:
                    mask += sequence_cell
                is_video = tl.load(mask + key).to(tl.float32)
                of_video = of_video * kept + tl.sum(weights * is_video[None, :], axis=1)
            top = highest
        cell = index * PARTS + part
        tl.store(parts + cell[:, None] * size + column[None, :], result, is_row[:, None] & is_column[None, :])
        tl.store(maxima + cell, top, is_row)
        tl.store(sums + cell, total, is_row)
        if SHARES:
            tl.store(shares + cell, of_video, is_row)


@triton.jit(do_not_specialize=["rows"])
def combine_kernel(
    parts,
    maxima,
    sums,
    shares,
    slots,
    attended,  # (rows, heads * size)
    to_video,  # float32 (heads, rows), written with SHARES
    rows,
    heads,
    size,
    SIZE: tl.constexpr,
    SHARES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The sum over a row's parts, as many as it has keys in, always in the same order."""
    wait_for_inputs(EARLY)
    index, column = tl.program_id(0), tl.arange(0, SIZE)
    row, head = index % rows, index // rows
    count = tl.minimum((tl.load(slots + row) // KEYS).to(tl.int32) + 1, PARTS)
    part, is_column = tl.arange(0, PARTS), column < size
    is_valid = part < count
    highest = tl.load(maxima + index * PARTS + part, is_valid, other=float("-inf"))
    top = tl.max(highest, axis=0)
    factors = tl.exp(highest - top)
    whole = tl.sum(factors * tl.load(sums + index * PARTS + part, is_valid, other=0.0), axis=0)
    total = tl.zeros((SIZE,), tl.float32)
    for first in range(0, count, AT_ONCE):
        some = first + tl.arange(0, AT_ONCE)
        is_some = some < count
        cell = index * PARTS + some
        factor = tl.exp(tl.load(maxima + cell, is_some, other=float("-inf")) - top)
        one = tl.load(
            parts + cell[:, None] * size + column[None, :], is_some[:, None] & is_column[None, :], other=0.0
        )
        total += tl.sum(one * factor[:, None], axis=0)
    result = (total / whole).to(attended.dtype.element_ty)
    tl.store(attended + (row * heads + head) * size + column, result, is_column)
    if SHARES:
        of_video = tl.load(shares + index * PARTS + part, is_valid, other=0.0)
        tl.store(to_video + index, tl.sum(factors * of_video, axis=0) / whole)


@triton.jit
def gated_kernel(both, result, width, WIDTH: tl.constexpr, EARLY: tl.constexpr):
    """A part of a row: silu of its gate times its other half."""
    wait_for_inputs(EARLY)
    row, column = tl.program_id(0), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_valid = column < width
    gate = tl.load(both + row * 2 * width + column, is_valid, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * width + width + column, is_valid, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(result + row * width + column, product.to(result.dtype.element_ty), is_valid)


@dataclass(frozen=True)
class Kernels:
    """The operations of ``fused.Operations`` by these kernels, on contiguous tensors.

    ``products``: by a kernel of our own, too; else by torch's, in which a row may depend on others.
    ``is_early``: each is launched before the one before it has ended (``wait_for_inputs``).
    """

    products: bool = True
    is_early: bool = False

    def early(self, device: torch.device) -> Kernels | None:
        can_be = device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_EARLY
        return replace(self, is_early=True) if can_be else None

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        rows, width = hidden.shape
        hidden = hidden.contiguous()
        total, normed = hidden if added is None else torch.empty_like(hidden), torch.empty_like(hidden)
        with torch.cuda.device_of(hidden):  # Triton launches on the current device
            add_norm_kernel[(rows,)](
                hidden, hidden if added is None else added, weight, total, normed, width, epsilon,
                ADD=added is not None, WIDTH=next_power_of_2(width), EARLY=self.is_early,
                num_warps=8, launch_pdl=self.is_early,
            )  # fmt: skip
        return total, normed

    def rotate_and_write(
        self,
        projected: Tensor,
        factors: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        epsilon: float,
        stored: Stored | StoredTogether,
        slots: Tensor,
    ) -> Tensor:
        (key_heads, _, size), rows = stored.keys.shape[-3:], len(projected)
        heads = projected.shape[1] // size - 2 * key_heads
        queries = projected.new_empty(heads, rows, size)
        query_norm, key_norm = norms or (projected, projected)
        joined = stored.rows if isinstance(stored, StoredTogether) else None
        with torch.cuda.device_of(projected):
            rotate_kernel[(rows, heads + 2 * key_heads)](
                projected, factors[0], factors[1], query_norm, key_norm, *_addresses(stored), queries, slots,
                joined.sequences if joined else slots, epsilon, rows, heads, key_heads, size,
                NORM=norms is not None, JOINED=joined is not None, HALF=next_power_of_2(size // 2),
                EARLY=self.is_early, num_warps=1, launch_pdl=self.is_early,
            )  # fmt: skip
        return queries

    def attend(
        self,
        queries: Tensor,
        stored: Stored | StoredTogether,
        slots: Tensor,
        scaling: float,
        *,
        watched: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        (key_heads, _, size), (heads, rows, _) = stored.keys.shape[-3:], queries.shape
        groups, count = heads // key_heads, PARTS.value
        joined = stored.rows if isinstance(stored, StoredTogether) else None
        blocks = len(joined.blocks) if joined else cdiv(groups * rows, PACKED.value)
        parts = queries.new_empty(heads * rows, count, size, dtype=torch.float32)
        maxima, sums, shares = parts.new_empty(3, heads * rows, count)
        attended, to_video = queries.new_empty(rows, heads * size), parts.new_empty(heads, rows)
        padded = max(16, next_power_of_2(size))
        with torch.cuda.device_of(queries):
            attend_kernel[(key_heads, count, blocks)](
                queries, *_addresses(stored), slots, joined.sequences if joined else slots,
                joined.blocks if joined else slots, parts, maxima, sums, shares, scaling, rows, groups, size,
                SIZE=padded, SHARES=watched, JOINED=joined is not None, EARLY=self.is_early,
                num_warps=4, launch_pdl=self.is_early,
            )  # fmt: skip
            combine_kernel[(heads * rows,)](
                parts, maxima, sums, shares, slots, attended, to_video, rows, heads, size,
                SIZE=padded, SHARES=watched, EARLY=self.is_early,
                num_warps=4, launch_pdl=self.is_early,
            )  # fmt: skip
        return attended, to_video if watched else None

    def gated(self, both: Tensor) -> Tensor:
        rows, width = both.shape[0], both.shape[1] // 2
        result = both.new_empty(rows, width)
        with torch.cuda.device_of(both):
            gated_kernel[(rows, cdiv(width, COLUMNS))](
                both, result, width, WIDTH=COLUMNS, EARLY=self.is_early,
                num_warps=4, launch_pdl=self.is_early,
            )  # fmt: skip
        return result

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        if isinstance(weight, Packed):
            return PRODUCTS[type(weight)](inputs, weight, bias, early=self.is_early)
        if self.products:
            return product(inputs, weight, bias, early=self.is_early)
        return linear(inputs, weight, bias)


def _addresses(stored: Stored | StoredTogether) -> tuple[Tensor, Tensor]:
    """Where a layer's rows are: the table's first row, and the layer's own."""
    return stored.table, stored.table[1 + stored.layer]
