"""How many threads torch uses for a clip's prefill on a CPU while other videos are decoded there.

A product waits for the slowest of its threads. With a thread on each of two cores, one of them shares its
core with what decodes a video, and the other waits for it. So as long as videos are decoded, torch leaves
them a core.

Results stay the same to the bit. With more threads they would not: torch computes an activation in vectors
of 16 numbers, and by another formula what is left at the end of a thread's share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lvspec_cli.models.load import LoadedModel, LoadedPair

THREADS = 2
# A layer's outputs are a multiple of it, so that half of any number of rows is a whole number of steps of the
# activation's loop, of two vectors each.
_WHOLE = 32 * THREADS


@dataclass(frozen=True)
class SharedCores:
    """The cores that a pair on a CPU shares with what decodes videos."""

    cores: int
    taken: Callable[[], int]  # how many of them decode a video now
    blocks: tuple[nn.Module, ...]  # of both models, in each of which a pass spends a part of its time

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Torch's threads are adjusted as the ``with`` block begins, and before each block of a model in it.

        Afterwards there are as many as before.
        """

        def adjust(*_: object) -> None:
            threads = 1 if self.taken() > self.cores - THREADS else THREADS
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)

        hooks = [block.register_forward_pre_hook(adjust) for block in self.blocks]
        try:
            adjust()
            yield
        finally:
            for hook in hooks:
                hook.remove()
            torch.set_num_threads(THREADS)


def shared_cores(pair: LoadedPair, cores: int, taken: Callable[[], int]) -> SharedCores | None:
    """None where torch does not have two threads, or where their number could change a bit.

    :param taken: says how many of the ``cores`` decode a video.
    """
    loaded = [model for model in (pair.target, pair.draft) if model is not None]
    if torch.get_num_threads() != THREADS or not all(map(_may_change, loaded)):
        return None
    lists = (part for each in loaded for part in each.model.modules() if isinstance(part, nn.ModuleList))
    blocks = tuple(block for blocks in lists for block in blocks)
    layers = (layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear))
    return SharedCores(cores, taken, blocks) if all(map(_is_whole, layers)) else None


def _may_change(loaded: LoadedModel) -> bool:
    return loaded.device.type == "cpu" and loaded.full_precision


def _is_whole(layer: nn.Linear) -> bool:
    return layer.out_features % _WHOLE == 0
