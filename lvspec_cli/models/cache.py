"""The key-value cache of one sequence, in memory that is allocated in advance."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor

from lvspec_cli.models.attention import SPLIT_KEYS
from lvspec_cli.models.delta import LayerStates

SPARE = 384  # extra rows of each allocation, so that the cache grows rarely
BLOCK = SPLIT_KEYS  # rows; the capacity is a multiple of it


def cache_argument(layer: Any) -> str:
    """The name of a decoder layer's cache argument, which transformers 5.24 renamed; the old name warns."""
    return "cache" if "cache" in signature(type(layer).forward).parameters else "past_key_values"


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
            self._keys[layer], self._values[layer] = self._blank(keys), self._blank(values)
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

    @property
    def bytes(self) -> int:
        """Allocated bytes, for all layers."""
        stores = (*self._keys.values(), *self._values.values())
        return sum(store.numel() * store.element_size() for store in stores) + self.states.bytes

    def keys(self, layer: int, length: int) -> Tensor:
        """The first ``length`` keys of a layer, ``(1, key heads, length, head size)``."""
        return self._keys[layer].narrow(2, 0, length)

    def stored(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer that has some, valid or not: (key heads, capacity, head size)."""
        return self._keys[layer][0], self._values[layer][0]

    def reserve(self, capacity: int, spare: int = SPARE) -> None:
        """Make room for at least ``capacity`` rows plus ``spare``. Valid rows are kept."""
        self.states.before(self.length, capacity - self.length)
        if capacity <= self.capacity:
            return
        self.capacity = -(-(capacity + spare) // BLOCK) * BLOCK
        if not self.length:  # free the old memory before new memory is allocated
            self._keys.clear()
            self._values.clear()
        for store in (self._keys, self._values):
            for layer, old in store.items():
                store[layer] = self._blank(old)
                store[layer].narrow(2, 0, self.length).copy_(old.narrow(2, 0, self.length))

    def _blank(self, like: Tensor) -> Tensor:
        batch, heads, _, size = like.shape
        # Zeros, because a masked row is multiplied by 0, and 0 * NaN would be NaN.
        return like.new_zeros(batch, heads, self.capacity, size)
