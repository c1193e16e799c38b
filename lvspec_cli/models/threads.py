"""How many threads torch uses for a clip's prefill on a CPU while other videos are decoded there.

A product waits for the slowest of its threads. With a thread on each core, one of them shares its core with
what decodes a video, and all others wait for it. So as long as videos are decoded, torch leaves them cores,
but not more than half of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lvspec_cli.models.load import LoadedModel, LoadedPair


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
        most = torch.get_num_threads()

        def adjust(*_: object) -> None:
            threads = threads_beside(most, self.cores, self.taken())
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)

        hooks = [block.register_forward_pre_hook(adjust) for block in self.blocks]
        try:
            adjust()
            yield
        finally:
            for hook in hooks:
                hook.remove()
            torch.set_num_threads(most)


def threads_beside(most: int, cores: int, taken: int) -> int:
    """How many of ``most`` threads are used while so many of the cores are taken.

    Those that still have a core of their own, and at least half.
    """
    spare = max(0, cores - most)
    return max(most - max(0, taken - spare), most // 2, 1)


def shared_cores(pair: LoadedPair, cores: int, taken: Callable[[], int]) -> SharedCores | None:
    """None where the number of threads does not matter, or could decide a token by its rounding.

    :param taken: says how many of the ``cores`` decode a video.
    """
    loaded = [model for model in (pair.target, pair.draft) if model is not None]
    if torch.get_num_threads() == 1 or not all(map(_may_change, loaded)):
        return None
    lists = (part for each in loaded for part in each.model.modules() if isinstance(part, nn.ModuleList))
    return SharedCores(cores, taken, tuple(block for blocks in lists for block in blocks))


def _may_change(loaded: LoadedModel) -> bool:
    return loaded.device.type == "cpu" and loaded.full_precision
