"""What happens where memory turns out to be short."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lvspec_cli.errors import NoRoomError
from lvspec_cli.memory.plan import Workload
from lvspec_cli.memory.resolve import no_room_for
from lvspec_cli.request import LoadPlan


@contextmanager
def memory_errors(plan: LoadPlan, workload: Workload) -> Iterator[None]:
    """Turns errors of too little memory into a NoRoomError with a change that would fit."""
    try:
        yield
        return
    except (NoRoomError, MemoryError, RuntimeError) as error:
        if not isinstance(error, NoRoomError) and not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # the frames refer to memory of the failed attempt
    raise no_room_for(plan, workload) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error means too little memory, of the device or of the machine."""
    import torch

    # torch has no exception class for the machine's memory.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
