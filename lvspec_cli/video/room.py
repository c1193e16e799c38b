"""The bound on the frames that wait to be taken."""

from __future__ import annotations

from concurrent.futures import CancelledError
from threading import Condition


class Room:
    """Room for ``most`` bytes of clips that are decoded or being decoded, and not yet taken.

    They are taken in the order of their numbers, from 0. The next one always has room, so that all get on:
    by its size there may be more than ``most``.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[int, int] = {}
        self._next = 0
        self._is_closed = False
        self._changed = Condition()

    @property
    def held(self) -> int:
        """Bytes."""
        with self._changed:
            return sum(self._held.values())

    def enter(self, number: int, size: int) -> None:
        """Waits until the clip ``number`` of ``size`` bytes has room. Raises CancelledError once closed."""
        with self._changed:
            self.leave(number)  # what an earlier attempt took
            self._changed.wait_for(lambda: self._is_closed or self._has_room(number, size))
            if self._is_closed:
                raise CancelledError
            self._held[number] = size

    def leave(self, number: int) -> None:
        """The clip's bytes are free again, if it had any."""
        with self._changed:
            self._held.pop(number, None)
            self._changed.notify_all()

    def take(self, number: int) -> None:
        """The clip leaves, and the one after it is next."""
        with self._changed:
            self._next = number + 1
            self.leave(number)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _has_room(self, number: int, size: int) -> bool:
        return number == self._next or sum(self._held.values()) + size <= self._most
