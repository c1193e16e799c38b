"""Rows of several sequences in one pass: where each of them is, and attention to its own sequence.

Everything in a layer but attention, and the states of Qwen3.5, is by rows. So such a pass reads the weights
once for all sequences, which are in slots of one memory. Rows are in the order of the slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.attention import packed_attention
from lvspec_cli.models.cache import SlotCache, SlotMemory

PACKED_ROWS = 16  # of a key head, in a block of the fused attention
KEYS = 16  # attended in multiples of this, the last of them masked: others take a CPU longer

Grid = tuple[int, int, int]  # its first slot, how many, and rows of each


@dataclass(frozen=True)
class Part:
    """The rows of one sequence."""

    slot: int
    length: int  # of the sequence before the pass
    rows: int


@dataclass(frozen=True)
class Layout:
    """Where the rows of a pass are; one number each.

    Attention that is not fused runs over a grid with as many rows for each slot. A row of padding goes on
    after the last sequence, and has the cell behind the grid.
    """

    sequences: tuple[int, ...]  # the row's slot
    places: tuple[int, ...]  # in its sequence
    cells: tuple[int, ...]  # in the grid

    @classmethod
    def of(cls, parts: Sequence[Part], grid: Grid, width: int) -> Layout:
        """
        :param width: rows of the pass, with those of padding.
        """
        first, count, most = grid
        rows = [
            (part.slot, part.length + row, (part.slot - first) * most + row)
            for part in parts
            for row in range(part.rows)
        ]
        last = parts[-1]
        padding = (
            (last.slot, last.length + last.rows + row, count * most) for row in range(width - len(rows))
        )
        sequences, places, cells = zip(*rows, *padding, strict=True)
        return cls(sequences, places, cells)


def blocks_of(rows: Sequence[int], groups: int) -> list[tuple[int, int, int]]:
    """How the fused attention shares the rows out, a block for each key head's programs.

    A key head's group of query heads is packed: first the rows of its first head. A block has 16 of these
    rows, all of one sequence.

    :param rows: of each sequence.
    :param groups: query heads a key head.
    :returns: of each block the sequence's first row in the pass, its number of rows, and the block's first
        packed row.
    """
    starts = itertools.accumulate(rows, initial=0)
    return [
        (start, count, packed)
        for start, count in zip(starts, rows, strict=False)
        for packed in range(0, groups * count, PACKED_ROWS)
    ]


@dataclass(frozen=True)
class JoinedRows:
    """Where the rows of a pass are, on its device: see :class:`Layout` and :func:`blocks_of`."""

    sequences: Tensor  # long (rows,)
    places: Tensor  # long (rows,)
    cells: Tensor  # long (rows,)
    blocks: Tensor  # long (blocks, 3); one of no rows is left out

    @classmethod
    def of(cls, told: Tensor, width: int) -> JoinedRows:
        """Views of one tensor, long (3 * width + 3 * blocks,), so that one copy tells the device of all."""
        sequences, places, cells, blocks = told.split([width] * 3 + [len(told) - 3 * width])
        return cls(sequences, places, cells, blocks.view(-1, 3))


def told_of(
    layout: Layout, blocks: Sequence[tuple[int, int, int]] = (), room: int = 0, *, pinned: bool = False
) -> Tensor:
    """What :meth:`JoinedRows.of` reads, on the host.

    :param room: blocks of the tensor.
    :param pinned: in memory from which a GPU copies without making the host wait.
    """
    empty = [(0, 0, 0)] * (room - len(blocks))
    numbers = (layout.sequences, layout.places, layout.cells, *blocks, *empty)
    return torch.tensor(list(itertools.chain.from_iterable(numbers)), pin_memory=pinned)


class SlotRows:
    """The cache of a joined pass: writes rows to their slots, and attends over the grid of a :class:`Layout`.

    Attention runs over all slots of the grid, each with ``length`` keys: what is too much is masked, or not
    looked at. Room for the rows must be reserved before.
    """

    def __init__(
        self,
        memory: SlotMemory,
        rows: JoinedRows,
        grid: Grid,
        *,
        length: int,
        groups: int,
        dtype: torch.dtype,
        is_full: bool,
        split_k: bool = False,
    ) -> None:
        """
        :param groups: query heads a key head.
        :param dtype: of the hidden states.
        :param is_full: the rows are the grid's cells, in order.
        :param split_k: see ``attention.packed_attention``; ``length`` is the memory's capacity.
        """
        self._memory, self._rows, (self._first, self._count, self._most) = memory, rows, grid
        self._length, self._is_full, self._split_k = length, is_full, split_k
        self._cells = self._count * self._most
        last = rows.places
        if not is_full:
            # A cell without a row takes the first one's query, and what comes of it is not looked at.
            self._row_of_cell = self._by_cell(torch.arange(len(last), device=last.device))
            self._cell_of_row = rows.cells.clamp_max(self._cells - 1)
            last = self._by_cell(last)
        allowed = torch.arange(length, device=last.device) <= last.view(self._count, 1, self._most, 1)
        added = torch.full(allowed.shape, float("-inf"), dtype=dtype, device=last.device)
        self._mask = added.masked_fill_(allowed, 0.0).expand(-1, groups, -1, -1).flatten(1, 2).unsqueeze(1)
        self._layer = 0  # that was updated last

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write a layer's rows of all sequences, each to its slot. Returns them as they are."""
        if layer not in self._memory.keys:
            self._memory.add_layer(layer, keys, values)
        sequences, places = (part.to(keys.device) for part in (self._rows.sequences, self._rows.places))
        self._memory.keys[layer][sequences, :, places] = keys[0].transpose(0, 1)
        self._memory.values[layer][sequences, :, places] = values[0].transpose(0, 1)
        self._layer = layer
        return keys, values

    def attended(self, query: Tensor, scaling: float | None) -> Tensor:
        """As ``attention.Together`` has it, in the layer that was updated last."""
        _, heads, _, size = query.shape
        by_row = query[0].transpose(0, 1)
        if not self._is_full:
            by_row = by_row.index_select(0, self._row_of_cell.to(query.device))
        queries = by_row.view(self._count, self._most, heads, size).transpose(1, 2)
        keys, values = (
            stores[self._layer].narrow(0, self._first, self._count).narrow(2, 0, self._length)
            for stores in (self._memory.keys, self._memory.values)
        )
        mask = self._mask.to(query.device)
        output = packed_attention(None, queries, keys, values, mask, 0.0, scaling, self._split_k)[0]
        output = output.reshape(self._cells, heads, size)
        if not self._is_full:
            output = output.index_select(0, self._cell_of_row.to(query.device))
        return output.unsqueeze(0)

    def _by_cell(self, of_rows: Tensor) -> Tensor:
        """Numbers of the rows, long (rows,), as those of the grid's cells; 0 where a cell has no row."""
        by_cell = of_rows.new_zeros(self._cells + 1)  # the last one is that of padding
        return by_cell.index_copy_(0, self._rows.cells, of_rows)[:-1]


class JoinedCaches(SlotRows):
    """Several sequences of one memory, in ascending order of their slots, for a pass that is not captured."""

    def __init__(self, caches: Sequence[SlotCache], rows: Sequence[int], groups: int, like: Tensor) -> None:
        """
        :param rows: of each sequence.
        :param groups: query heads a key head.
        :param like: the rows' embeddings.
        """
        self.caches, self.rows = tuple(caches), tuple(rows)
        grid = caches[0].slot, caches[-1].slot - caches[0].slot + 1, max(rows)
        layout = Layout.of(parts_of(caches, rows), grid, sum(rows))
        longest = max(cache.length + more for cache, more in zip(caches, rows, strict=True))
        super().__init__(
            caches[0].memory,
            JoinedRows.of(told_of(layout).to(like.device), sum(rows)),
            grid,
            length=-(-longest // KEYS) * KEYS,
            groups=groups,
            dtype=like.dtype,
            is_full=grid[1] * grid[2] == sum(rows),
        )

    def advance(self) -> None:
        """Add the rows that every layer has written to the lengths."""
        for cache, rows in zip(self.caches, self.rows, strict=True):
            cache.advance(rows)


def parts_of(caches: Sequence[SlotCache], rows: Sequence[int]) -> list[Part]:
    """The rows of each of the sequences."""
    return [Part(cache.slot, cache.length, more) for cache, more in zip(caches, rows, strict=True)]


@dataclass(frozen=True)
class OneOfSeveral:
    """Rows of one slot in a layer."""

    keys: Tensor  # (key heads, capacity, size)
    values: Tensor
    video: Tensor  # uint8 (capacity,)


@dataclass(frozen=True)
class StoredTogether:
    """A layer's rows of all slots, wherever they are when they are read."""

    memory: SlotMemory
    layer: int
    rows: JoinedRows

    @property
    def keys(self) -> Tensor:
        """(slots, key heads, capacity, size)."""
        return self.memory.keys[self.layer]

    @property
    def values(self) -> Tensor:
        return self.memory.values[self.layer]

    @property
    def table(self) -> Tensor:
        """As ``cache.Stored.table``, of the first slot. The others' rows, and masks, follow its own."""
        table = self.memory.located()
        assert table is not None
        return table

    def write(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write rows, (key heads, rows, size) each, to their places, long (rows,), in their slots."""
        self.keys[self.rows.sequences, :, places] = keys.transpose(0, 1)
        self.values[self.rows.sequences, :, places] = values.transpose(0, 1)

    def apart(self) -> Iterator[tuple[slice, OneOfSeveral]]:
        """The rows of each sequence, and what is stored of it. The host waits for the device."""
        start, video = 0, self.memory.video
        assert video is not None
        for slot, rows in itertools.groupby(self.rows.sequences.tolist()):
            count = len(list(rows))
            yield slice(start, start + count), OneOfSeveral(self.keys[slot], self.values[slot], video[slot])
            start += count


@dataclass(frozen=True)
class FusedRows:
    """The rows of a joined pass through fused layers."""

    memory: SlotMemory
    rows: JoinedRows

    @property
    def slots(self) -> Tensor:
        """Their places, long (rows,)."""
        return self.rows.places

    def of_layer(self, layer: int) -> StoredTogether:
        """As ``steps.FixedRows.of_layer``."""
        return StoredTogether(self.memory, layer, self.rows)


@dataclass(frozen=True)
class JoinedInputs:
    """The inputs of a captured joined pass, which are overwritten before each replay."""

    ids: Tensor  # long (width,)
    told: Tensor  # long (3 * width + 3 * blocks,)
    cosines: Tensor  # (1, width, head size)
    sines: Tensor

    @classmethod
    def blank(cls, width: int, blocks: int, cosines: Tensor) -> JoinedInputs:
        """Empty inputs. ``cosines``: rotary factors with the right head size, dtype and device."""
        factors = cosines.new_zeros(1, width, cosines.shape[-1])
        ids, told = (factors.new_zeros(n, dtype=torch.long) for n in (width, 3 * (width + blocks)))
        return cls(ids, told, factors, factors.clone())

    @property
    def rows(self) -> JoinedRows:
        return JoinedRows.of(self.told, len(self.ids))

    def fill(self, tokens: Tensor, told: Tensor, cosines: Tensor, sines: Tensor) -> None:
        """Write tokens, long (rows,), and where they are (``told_of``). Padding repeats the last token."""
        rows = len(tokens)
        self.ids[:rows].copy_(tokens)
        self.ids[rows:].copy_(tokens[-1:].expand(len(self.ids) - rows))
        self.told.copy_(told, non_blocking=True)
        self.cosines[:, :rows].copy_(cosines)
        self.sines[:, :rows].copy_(sines)
