"""Key-value caches of one sequence or several, in memory that is allocated in advance."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.attention import SPLIT_KEYS
from lvspec_cli.models.delta import LayerStates

SPARE = 384  # extra rows of each allocation, so that the cache grows rarely
BLOCK = SPLIT_KEYS  # rows; the capacity is a multiple of it


def cache_argument(layer: Any) -> str:
    """The name of a decoder layer's cache argument, which transformers 5.24 renamed; the old name warns."""
    return "cache" if "cache" in signature(type(layer).forward).parameters else "past_key_values"


class Addresses:
    """Tells a device where keys and values are now, in a table that stays where it is."""

    def __init__(self) -> None:
        self.are_known = False  # not after rows have moved
        self._table: Tensor | None = None

    def told(
        self, capacity: int, video: Tensor | None, keys: Mapping[int, Tensor], values: Mapping[int, Tensor]
    ) -> Tensor | None:
        """The table: see ``Stored.table``. None: there are no rows yet."""
        if not keys:
            return None
        if self._table is None or not self.are_known:
            places = [(capacity, 0 if video is None else video.data_ptr())]
            for layer in range(max(keys) + 1):
                first, second = (
                    stores[layer].data_ptr() if layer in stores else 0 for stores in (keys, values)
                )
                places.append((first, second))
            table = torch.tensor(places)
            if self._table is None or len(self._table) != len(table):
                self._table = table.to(next(iter(keys.values())).device)
            else:
                self._table.copy_(table)
            self.are_known = True
        return self._table


class KeyValueCache:
    """Keys and values of one sequence, with the same length in every layer.

    Call :meth:`reserve` before a pass, with room for its last row.

    A pass writes its rows after ``length``, and :meth:`advance` adds them to the length. Rolling back only
    changes this number: nothing is copied, and nothing depends on how a release of transformers crops.
    Keys and values of a layer are ``(1, key heads, capacity, head size)``.
    """

    def __init__(self) -> None:
        self.capacity = 0
        self.length = 0
        self.states = LayerStates()
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._video: Tensor | None = None  # uint8 (capacity,), 1 where a row is of the video
        self._addresses = Addresses()

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write a layer's rows ``(1, key heads, rows, head size)``; return all its keys and values so far.

        Name and arguments are those that attention layers of transformers use.
        """
        start, rows = self.length, keys.shape[2]
        all_keys, all_values = self._stores(layer, keys, values)
        all_keys.narrow(2, start, rows).copy_(keys)
        all_values.narrow(2, start, rows).copy_(values)
        return all_keys.narrow(2, 0, start + rows), all_values.narrow(2, 0, start + rows)

    def write(self, keys: Tensor, values: Tensor, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows to ``slots``, long (rows,) on their device; return the keys and values of all slots."""
        all_keys, all_values = self._stores(layer, keys, values)
        all_keys.index_copy_(2, slots, keys)
        all_values.index_copy_(2, slots, values)
        return all_keys, all_values

    def _stores(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._keys:
            self._keys[layer] = self._blank(keys, self.capacity)
            self._values[layer] = self._blank(values, self.capacity)
            self._addresses.are_known = False
        return self._keys[layer], self._values[layer]

    def advance(self, rows: int) -> None:
        """Add the rows that every layer has written to the length."""
        self.length += rows
        self.states.after(self.length, rows)

    def rollback(self, length: int) -> None:
        """Remove all rows from ``length`` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot roll back to {length}: the cache holds {self.length}")
        self.states.rollback(length)
        self.length = length

    def newest_rows(self) -> int:
        """How many rows the states have not taken in."""
        return self.length - self.states.settled

    def mark(self) -> None:
        """Make this length one that can be rolled back to, also by layers that keep no rows but a state."""
        self.states.mark(self.length)

    def clear(self) -> None:
        """Remove all rows and free their memory."""
        self.capacity = self.length = 0
        self.states = LayerStates()
        self._keys.clear()
        self._values.clear()
        self._video, self._addresses.are_known = None, False

    @property
    def bytes(self) -> int:
        """Allocated bytes, for all layers."""
        stores = (*self._keys.values(), *self._values.values())
        return sum(store.numel() * store.element_size() for store in stores) + self.states.bytes

    def keys(self, layer: int, length: int) -> Tensor:
        """The first ``length`` keys of a layer, ``(1, key heads, length, head size)``."""
        return self._keys[layer].narrow(2, 0, length)

    def stored(self, layer: int) -> Stored:
        """All rows of a layer that has some, valid or not."""
        return Stored(self, layer)

    def mark_video(self, video: Tensor) -> None:
        """Note which of the first rows are the video's, bool (n,), for :attr:`Stored.video`."""
        self._video = torch.zeros(self.capacity, dtype=torch.uint8, device=video.device)
        self._video[: len(video)] = video
        self._addresses.are_known = False

    def located(self) -> Tensor | None:
        """Tell the device where the rows are now. Returns what it is told: see :attr:`Stored.table`.

        None: there are no rows yet.
        """
        return self._addresses.told(self.capacity, self._video, self._keys, self._values)

    def reserve(self, capacity: int, spare: int = SPARE) -> None:
        """Make room for at least ``capacity`` rows plus ``spare``. Valid rows are kept."""
        self.states.before(self.length, capacity - self.length)
        if capacity <= self.capacity:
            return
        larger = -(-(capacity + spare) // BLOCK) * BLOCK
        self._addresses.are_known = False
        if not self.length:  # free the old memory before new memory is allocated
            self._keys.clear()
            self._values.clear()
            self._video = None
        for store in (self._keys, self._values):
            for layer, old in store.items():
                store[layer] = self._blank(old, larger)
                store[layer].narrow(2, 0, self.length).copy_(old.narrow(2, 0, self.length))
        self.capacity = larger  # after the stores, of which one may not fit into memory
        if self._video is not None:
            self.mark_video(self._video[: self.length])

    def _blank(self, like: Tensor, capacity: int) -> Tensor:
        batch, heads, _, size = like.shape
        # Zeros, because a masked row is multiplied by 0, and 0 * NaN would be NaN.
        return like.new_zeros(batch, heads, capacity, size)


@dataclass(frozen=True)
class Stored:
    """A layer's rows, wherever they are when they are read: a cache that grows moves them."""

    cache: KeyValueCache
    layer: int

    @property
    def keys(self) -> Tensor:
        """(key heads, capacity, head size)."""
        return self.cache._keys[self.layer][0]

    @property
    def values(self) -> Tensor:
        return self.cache._values[self.layer][0]

    def write(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write rows, (key heads, rows, size) each, to their places, long (rows,)."""
        self.keys.index_copy_(1, places, keys)
        self.values.index_copy_(1, places, values)

    @property
    def video(self) -> Tensor:
        """1 where a row is of the video, else 0: uint8 (capacity,)."""
        if self.cache._video is None:
            raise RuntimeError("mark_video() comes before")
        return self.cache._video

    @property
    def table(self) -> Tensor:
        """Where a device finds the rows, long (1 + layers, 2): the capacity and the address of :attr:`video`,
        then addresses of each layer's keys and values.

        It stays where it is, and :meth:`KeyValueCache.located` writes it anew. So a captured pass that reads
        it finds rows that have moved since.
        """
        table = self.cache.located()
        assert table is not None
        return table


class SlotMemory:
    """Keys and values of several sequences of one model, a slot each, with the same room for all of them.

    In one tensor a layer, ``(slots, key heads, capacity, head size)``: one call attends for all of them.
    """

    def __init__(self) -> None:
        self.capacity = 0  # rows of a slot
        self._slots = 0
        self._free: list[int] = []
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.video: Tensor | None = None  # uint8 (slots, capacity), 1 where a row is of the slot's video
        self._addresses = Addresses()
        self._place: Hashable = None  # as long as the rows have not moved

    @property
    def slots(self) -> int:
        """Those that have memory, in use or not."""
        return self._slots

    @property
    def place(self) -> Hashable:
        """Changes when the rows move; None while layers differ in their room, after a growth that failed."""
        if self._place is None:
            stores = (*self.keys.values(), *self.values.values())
            if any((store.shape[0], store.shape[2]) != (self._slots, self.capacity) for store in stores):
                return None
            self._place = self._slots, self.capacity, tuple(store.data_ptr() for store in stores)
        return self._place

    def _move(self) -> None:
        """Take note that rows are about to move."""
        self._addresses.are_known, self._place = False, None

    def located(self) -> Tensor | None:
        """As ``KeyValueCache.located``, of the first slot's rows; those of the others follow."""
        return self._addresses.told(self.capacity, self.video, self.keys, self.values)

    def mark_video(self, slot: int, video: Tensor) -> None:
        """Note which of a slot's first rows are the video's, bool (n,)."""
        if self.video is None:
            self.video = torch.zeros(self._slots, self.capacity, dtype=torch.uint8, device=video.device)
            self._move()
        self.video[slot].zero_()
        self.video[slot, : len(video)] = video

    def cache(self) -> SlotCache:
        """A cache in a free slot, which is free again when the cache is dropped."""
        if not self._free:
            self._resize(self._slots + 1, self.capacity)
            self._free.append(self._slots - 1)
        self._free.sort()
        slot = self._free.pop(0)
        cache = SlotCache(self, slot)
        weakref.finalize(cache, self._free.append, slot)
        return cache

    def reserve(self, capacity: int, spare: int) -> None:
        """Make room for so many rows in every slot."""
        if capacity > self.capacity:
            self._resize(self._slots, -(-(capacity + spare) // BLOCK) * BLOCK)

    def add_layer(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Make the stores of a layer. ``keys``, ``values``: rows like those to come."""
        for stores, like in ((self.keys, keys), (self.values, values)):
            shape = (self._slots, like.shape[1], self.capacity, like.shape[3])
            stores[layer] = like.new_zeros(shape)
        self._move()

    def trim(self) -> None:
        """Free the memory of slots that are free behind the last one in use; all of it if none is in use."""
        slots = self._slots
        while slots and slots - 1 in self._free:
            slots -= 1
            self._free.remove(slots)
        if slots == self._slots:
            return
        self._slots = slots
        self._move()
        if not slots:
            self.capacity, self.video = 0, None
            self.keys.clear()
            self.values.clear()
        if self.video is not None:
            self.video = self.video[:slots]
        with suppress(RuntimeError, MemoryError):  # no room for the copy of a layer: then it stays as it is
            for stores in (self.keys, self.values):
                for layer, old in stores.items():
                    stores[layer] = old[:slots].clone()

    def _resize(self, slots: int, capacity: int) -> None:
        """Give all stores so many slots and rows, which are no fewer than are in use.

        Where memory is short in between, some have them, and nothing is lost.
        """
        self._move()
        for stores in (self.keys, self.values):
            for layer, old in stores.items():
                if (old.shape[0], old.shape[2]) != (slots, capacity):
                    new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
                    kept, rows = min(slots, len(old)), min(capacity, old.shape[2])
                    new[:kept, :, :rows].copy_(old[:kept, :, :rows])
                    stores[layer] = new
        if self.video is not None:
            old, new = self.video, self.video.new_zeros(slots, capacity)
            kept, rows = min(slots, len(old)), min(capacity, old.shape[1])
            new[:kept, :rows].copy_(old[:kept, :rows])
            self.video = new
        self._slots, self.capacity = slots, capacity


class SlotCache(KeyValueCache):
    """The cache of one sequence in a slot."""

    def __init__(self, memory: SlotMemory, slot: int) -> None:
        super().__init__()
        self.memory, self.slot = memory, slot

    def _stores(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.memory.keys:
            self.memory.add_layer(layer, keys, values)
        memory, slot = self.memory, self.slot
        return memory.keys[layer].narrow(0, slot, 1), memory.values[layer].narrow(0, slot, 1)

    def reserve(self, capacity: int, spare: int = SPARE) -> None:
        self.states.before(self.length, capacity - self.length)
        self.memory.reserve(capacity, spare)

    def keys(self, layer: int, length: int) -> Tensor:
        return self.memory.keys[layer].narrow(0, self.slot, 1).narrow(2, 0, length)

    def copied(self) -> SlotCache:
        """The same rows in another slot."""
        other = self.memory.cache()
        other.length, other.states = self.length, copy.deepcopy(self.states)
        for stores in (self.memory.keys, self.memory.values):
            for store in stores.values():
                store[other.slot, :, : self.length].copy_(store[self.slot, :, : self.length])
        if self.memory.video is not None:
            self.memory.video[other.slot].copy_(self.memory.video[self.slot])
        return other

    def mark_video(self, video: Tensor) -> None:
        self.memory.mark_video(self.slot, video)

    def clear(self) -> None:
        self.length, self.states = 0, LayerStates()

    @property
    def bytes(self) -> int:
        """The slot's share of the allocated bytes."""
        stores = (*self.memory.keys.values(), *self.memory.values.values())
        return sum(store[0].numel() * store.element_size() for store in stores) + self.states.bytes
