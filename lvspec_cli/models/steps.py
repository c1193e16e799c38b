"""Passes of a few rows, captured once as CUDA graphs and replayed: one launch for the host, not hundreds.

Run eagerly, a layer costs the host about as long whatever its size, so that a draft's step takes as long as
its target's and speculation gains nothing (docs/real-size.md). A captured pass reads and writes fixed memory:
tokens, places and rotary factors go in by copies, rows are padded to one of a few widths, and attention is
over all of the cache, with a mask for what is not said yet. gpt-fast (PyTorch, 2023) and nano-vllm capture
decoding in this way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.attention import packed_mask
from lvspec_cli.models.cache import KeyValueCache
from lvspec_cli.models.delta import LayerStates
from lvspec_cli.types import Quantisation

# Rows that are captured: few, as each takes memory and time once. 65 are those of the greatest gamma.
WIDTHS = (1, 2, 3, 5, 9, 13, 17, 25, 33, 65)
MOST_CAPTURED = 48  # passes of a model that are kept
_CAPTURED = frozenset({Quantisation.NONE, Quantisation.BF16, Quantisation.NF4, Quantisation.TORCHAO_INT4})

Replay = Callable[[], "StepOutputs"]
Capture = Callable[[Callable[[], "StepOutputs"]], Replay]


@dataclass(frozen=True)
class StepInputs:
    """What a captured pass reads, written anew before each replay."""

    ids: Tensor  # long (width,)
    places: Tensor  # long (width,), rows of the cache
    cosines: Tensor  # (1, width, head size)
    sines: Tensor

    @classmethod
    def blank(cls, width: int, cosines: Tensor) -> StepInputs:
        """For rotary factors such as these."""
        whole = torch.zeros(width, dtype=torch.long, device=cosines.device)
        factors = cosines.new_zeros(1, width, cosines.shape[-1])
        return cls(whole, whole.clone(), factors, factors.clone())

    def fill(self, tokens: Tensor, start: int, cosines: Tensor, sines: Tensor) -> None:
        """Tokens, long (rows,), behind ``start`` rows of the cache; further rows repeat the last token."""
        rows, width = tokens.shape[0], self.ids.shape[0]
        self.ids[:rows].copy_(tokens)
        if rows < width:
            self.ids[rows:].copy_(tokens[-1:].expand(width - rows))
        torch.arange(start, start + width, out=self.places)
        self.cosines[:, :rows].copy_(cosines)
        self.sines[:, :rows].copy_(sines)


@dataclass(frozen=True)
class StepOutputs:
    """What a captured pass leaves: fixed memory, until the next replay of the same model."""

    hidden: Tensor  # (1, width, model width), after the last normalisation
    logits: Tensor  # float32 (width, vocabulary)
    inputs: Mapping[int, Tensor]  # watched layers' inputs


@dataclass(frozen=True)
class FixedRows:
    """The cache as a captured pass sees it: rows go where ``places`` says, attention spans all of it."""

    cache: KeyValueCache
    places: Tensor  # long (width,)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As ``KeyValueCache.update``, for a place that is known on the device only."""
        return self.cache.write(keys, values, layer, self.places)

    @property
    def states(self) -> LayerStates:
        """Those of layers that keep a state."""
        return self.cache.states

    def newest_rows(self) -> Tensor:
        """As ``KeyValueCache.newest_rows``, on the device."""
        return self.places[0] - self.states.settled_on(self.places.device)


@dataclass
class Workspace:
    """A model's keys and values, in memory that stays, and the passes captured over them.

    One decoder at a time uses it: the one that encoded a clip last. Each time it is taken or released it has
    another ``lease``; a decoder whose lease is not the current one has lost its clip.

    ``capture`` makes a replay of a pass. Where the device cannot, passes run eagerly from then on.
    """

    capture: Capture
    cache: KeyValueCache = field(default_factory=KeyValueCache)
    is_usable: bool = True
    lease: int = 0
    _capacity: int = 0  # of the cache that the steps are over
    _steps: dict[tuple[int, tuple[int, ...]], tuple[StepInputs, Replay]] = field(default_factory=dict)

    def take(self) -> int:
        """Begin with an empty cache. Gives the new lease: whoever had the last one has lost its clip."""
        self.lease += 1
        self.cache.rollback(0)
        return self.lease

    def release(self) -> None:
        """Give its memory back. The decoder that used it finds its clip gone."""
        self.lease += 1
        self._steps.clear()
        self.cache.clear()

    def step(
        self,
        width: int,
        watch: Collection[int],
        like: Tensor,
        run: Callable[[StepInputs, FixedRows], StepOutputs],
    ) -> tuple[StepInputs, Replay] | None:
        """The inputs and the replay of a pass, captured where it is not there yet; None: it cannot be.

        :param like: rotary factors, for their kind.
        :param run: the pass itself, in memory that is given.
        """
        if self._capacity != self.cache.capacity:
            self._steps.clear()  # what was captured writes to memory that is not the cache's any more
            self._capacity = self.cache.capacity
        key = width, tuple(sorted(watch))
        if key not in self._steps and self.is_usable:
            while len(self._steps) >= MOST_CAPTURED:
                del self._steps[next(iter(self._steps))]
            inputs = StepInputs.blank(width, like)
            # While it is captured it may write, behind all that the cache holds.
            torch.arange(self.cache.length, self.cache.length + width, out=inputs.places)
            try:
                replay = self.capture(partial(run, inputs, FixedRows(self.cache, inputs.places)))
            except RuntimeError:  # an operation that cannot be captured, or too little memory
                self.is_usable = False
                self._steps.clear()
            else:
                self._steps[key] = inputs, replay
        return self._steps.get(key)


def width_of(rows: int) -> int | None:
    """The captured width for so many rows; None where there is none so wide."""
    return next((width for width in WIDTHS if width >= rows), None)


def mask_of(places: Tensor, capacity: int, groups: int, dtype: torch.dtype) -> Tensor:
    """``attention.packed_mask`` for rows at ``places`` of a cache: (1, 1, groups * width, capacity)."""
    return packed_mask(torch.arange(capacity, device=places.device) <= places.unsqueeze(1), groups, dtype)


def workspace_for(places: Sequence[torch.device], quantisation: Quantisation) -> Workspace | None:
    """For a model whose passes can be captured: whole on one CUDA device, no kernel asks the host back."""
    plain = quantisation in _CAPTURED
    if len(places) != 1 or places[0].type != "cuda" or not plain:
        return None
    return Workspace(cuda_graphs(places[0]))


def cuda_graphs(device: torch.device) -> Capture:
    """Captures passes as CUDA graphs of one device, which share their memory: one is replayed at a time."""
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def capture(run: Callable[[], StepOutputs]) -> Replay:
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):  # libraries set themselves up at the first run
                run()
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # A pool goes with the last graph that has it: its name alone cannot be used again.
            pool = next((each.pool() for each in graphs), None)
            with torch.cuda.graph(graph, pool=pool):
                outputs = run()
            graphs.add(graph)

        def replay() -> StepOutputs:
            graph.replay()
            return outputs

        return replay

    return capture


def run_again(run: Callable[[], StepOutputs]) -> Replay:
    """In the place of a capture, on any device: every replay is a pass."""
    return run
