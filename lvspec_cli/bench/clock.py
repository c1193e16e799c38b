"""Time on a device that works behind the program's back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was given."""
    synchronise(device)
    return time.perf_counter()


class Watch:
    """Adds up the seconds of several stretches of work.

    A CUDA device is not waited for: events in its own queue tell the time. Every other device is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """What happens in the block counts."""
        if self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            began = now(self._device)
            yield
            self._seconds += now(self._device) - began

    @property
    def seconds(self) -> float:
        """All of it so far; waits for the device."""
        synchronise(self._device)
        return self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
