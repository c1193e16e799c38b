"""Forward passes of a few rows, captured once as CUDA graphs and replayed: one launch instead of hundreds.

In eager mode the host needs about the same time for a layer of any size, so that a step of the draft takes as
long as one of the target, and speculation gains nothing (docs/real-size.md). A captured pass reads and writes
fixed memory: tokens, cache slots and rotary factors are copied into it, rows are padded to one of a few
widths, and attention spans the whole cache, with a mask for slots that are not filled. gpt-fast (PyTorch,
2023) and nano-vllm capture decoding in the same way. Where a cache has to grow, such passes are captured
anew. Those of ``kernels.fused`` are not: they read on the device where keys and values are, and how many.
Several passes of one row are captured as a chain, in which the device chooses each next token.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from lvspec_cli.models.attention import packed_mask
from lvspec_cli.models.cache import KeyValueCache, SlotMemory, Stored
from lvspec_cli.models.delta import LayerStates
from lvspec_cli.types import Quantisation

# Widths that are captured, few because each costs memory and time. 65 is enough for the greatest gamma.
WIDTHS = (1, 2, 3, 5, 9, 13, 17, 25, 33, 65)
JOINED_WIDTHS = (*WIDTHS, 97, 129)  # of passes over several sequences
MOST_CAPTURED = 48  # captured passes and chains that a model keeps
CHAIN_LENGTHS = (2, 4, 8)  # passes of a chain
# A chain is captured when it was wanted so often: it saves some 25 microseconds a pass, and the capture takes
# some 25 ms a pass (both predicted). So an answer alone never waits for it, and a batch soon has it.
CHAIN_AFTER = 1000
_CAPTURED = frozenset(
    {
        Quantisation.NONE,
        Quantisation.BF16,
        Quantisation.NF4,
        Quantisation.TORCHAO_INT4,
        Quantisation.INT4,
        Quantisation.FP8,
    }
)

Replay = Callable[[], "StepOutputs"]
Capture = Callable[[Callable[[], "StepOutputs"]], Replay]


@dataclass(frozen=True)
class StepInputs:
    """The inputs of a captured pass, which are overwritten before each replay."""

    ids: Tensor  # long (width,)
    slots: Tensor  # long (width,), indices of rows in the cache
    cosines: Tensor  # (1, width, head size)
    sines: Tensor

    @classmethod
    def blank(cls, width: int, cosines: Tensor) -> StepInputs:
        """Empty inputs. ``cosines``: rotary factors with the right head size, dtype and device."""
        ids = torch.zeros(width, dtype=torch.long, device=cosines.device)
        factors = cosines.new_zeros(1, width, cosines.shape[-1])
        return cls(ids, ids.clone(), factors, factors.clone())

    def fill(self, tokens: Tensor, start: int, cosines: Tensor, sines: Tensor) -> None:
        """Write tokens, long (rows,), after ``start`` rows of the cache. Padding repeats the last token.

        :param cosines: those of the rows or, in a chain, of all its passes.
        """
        rows, width = tokens.shape[0], self.ids.shape[0]
        self.ids[:rows].copy_(tokens)
        if rows < width:
            self.ids[rows:].copy_(tokens[-1:].expand(width - rows))
        torch.arange(start, start + width, out=self.slots)
        self.cosines[:, : cosines.shape[1]].copy_(cosines)
        self.sines[:, : sines.shape[1]].copy_(sines)

    def row(self, place: int, token: Tensor) -> StepInputs:
        """The inputs of a pass over one row, which is another token, long (1,)."""
        row = slice(place, place + 1)
        # The slot is copied, as Triton compiles kernels anew for addresses that are not aligned.
        return StepInputs(token, self.slots[row].clone(), self.cosines[:, row], self.sines[:, row])


@dataclass(frozen=True)
class StepOutputs:
    """The outputs of a captured pass, in memory that the model's next replay overwrites."""

    hidden: Tensor  # (1, width, model width), after the last normalisation
    logits: Tensor  # float32 (width, vocabulary)
    inputs: Mapping[int, Tensor]  # watched layers' inputs
    shares: Mapping[int, Tensor] = field(default_factory=dict)  # of ``decoder.Pass``, for all of the width


@dataclass(frozen=True)
class FixedRows:
    """The cache of a captured pass: rows are written to ``slots``, and attention spans the whole cache."""

    cache: KeyValueCache
    slots: Tensor  # long (width,)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As ``KeyValueCache.update``, for slots that only the device knows."""
        return self.cache.write(keys, values, layer, self.slots)

    def of_layer(self, layer: int) -> Stored:
        """As ``KeyValueCache.stored``."""
        return self.cache.stored(layer)

    @property
    def states(self) -> LayerStates:
        """Those of layers that keep a state."""
        return self.cache.states

    def newest_rows(self) -> Tensor:
        """As ``KeyValueCache.newest_rows``, on the device."""
        return self.slots[0] - self.states.settled_on(self.slots.device)


class Chooser(Protocol):
    """Chooses tokens on the device. What earlier tokens change of it is kept in memory that stays."""

    @property
    def kind(self) -> Hashable:
        """Choosers of one kind differ in what they keep alone."""

    def __call__(self, logits: Tensor, /) -> tuple[Tensor, Tensor]:
        """The token after a row, long (1,), and a number about it, (1,). ``logits``: (1, vocabulary)."""

    def copied(self) -> Self:
        """Another one, which keeps the same in memory of its own."""

    def load(self, other: Self, /) -> None:
        """Keep what another one of the kind keeps."""


@dataclass(frozen=True)
class Chain:
    """The memory of a captured chain: passes of one row, each of the token that was chosen after the last.

    The host learns of none of them before all have run. (A loop that ends on the device would need
    conditional nodes of CUDA graphs, which torch 2.11 does not have.)
    """

    inputs: StepInputs  # a row for each pass; of the tokens only the first is read
    choose: Chooser
    tokens: Tensor  # long (passes,), chosen after each
    measured: Tensor  # float32 (passes,), what the chooser tells of them


@dataclass(frozen=True)
class _Captured:
    memory: Any  # that the host writes before a replay
    replay: Replay
    finds_rows: bool


@dataclass
class Captures:
    """Passes that were captured over keys and values in one place."""

    capture: Capture
    kept: dict[Hashable, _Captured] = field(default_factory=dict)
    count: int = 0  # of all captures so far
    _place: Hashable = None

    def get(
        self,
        key: Hashable,
        place: Hashable,
        made: Callable[[], tuple[Any, Callable[[], StepOutputs]]],
        *,
        finds_rows: bool,
    ) -> tuple[Any, Replay]:
        """The memory that the host writes, and the replay, of a pass that is captured at first use.

        :param place: where keys and values are, by a value that changes when they move.
        :param made: the memory, and the pass over it.
        :param finds_rows: it reads on the device where they are, so that it is not captured anew then.
        :raises RuntimeError: it cannot be captured.
        """
        if self._place != place:
            self.kept = {key: captured for key, captured in self.kept.items() if captured.finds_rows}
            self._place = place
        if key not in self.kept:
            while len(self.kept) >= MOST_CAPTURED:
                del self.kept[next(iter(self.kept))]
            memory, run = made()
            self.count += 1  # also where it fails
            self.kept[key] = _Captured(memory, self.capture(run), finds_rows)
        captured = self.kept[key] = self.kept.pop(key)  # the first is the one whose last use is longest ago
        return captured.memory, captured.replay


class Workspace:
    """A model's keys and values in memory that stays allocated, and the passes that were captured with it.

    One decoder uses it at a time: the one that last encoded a clip. ``take`` and ``release`` change the
    ``lease``; a decoder with an older lease has lost its clip. Decoders that run together have a memory of
    their own (``cache.SlotMemory``), and their passes are captured here too.

    If the device cannot capture, passes run eagerly from then on; if memory is too short for it, until the
    next clip, or until the slots are in another place. If it cannot capture chains, single passes are
    replayed.
    """

    def __init__(self, capture: Capture, *, can_capture: bool = True, chain_after: int = CHAIN_AFTER) -> None:
        """
        :param capture: turns a pass into a replay.
        """
        self.cache = KeyValueCache()
        self.can_capture, self.can_chain, self.chain_after = can_capture, True, chain_after
        self.lease = 0
        self.alone, self.together = Captures(capture), Captures(capture)
        self._wanted: Counter[Hashable] = Counter()  # chains that are not captured yet
        self._short_for: int | None = None  # the lease for which memory is short
        self._short_at: Hashable = None  # the place of slots for which it is
        self._slots: weakref.ref[SlotMemory] | None = None  # whose passes were captured last

    @property
    def captures(self) -> int:
        """How many times a pass was captured, which takes as long as many of its replays."""
        return self.alone.count + self.together.count

    @property
    def is_usable(self) -> bool:
        """Whether passes over this clip are captured."""
        return self.can_capture and self._short_for != self.lease

    @property
    def captures_together(self) -> bool:
        """Whether passes over several sequences have been captured wherever they were wanted."""
        return self.can_capture and self._short_at is None

    def is_usable_for(self, slots: SlotMemory) -> bool:
        """Whether passes over sequences in these slots are captured."""
        return self.can_capture and slots.place not in (None, self._short_at)

    def take(self) -> int:
        """Empty the cache and return a new lease. The decoder with the previous lease loses its clip."""
        self.lease += 1
        self.cache.rollback(0)
        return self.lease

    def release(self) -> None:
        """Free the memory. The decoder that used it loses its clip."""
        self.lease += 1
        self._short_at = None
        self.alone.kept.clear()
        self.together.kept.clear()
        self.cache.clear()

    def step(
        self,
        width: int,
        watch: Collection[int],
        like: Tensor,
        run: Callable[[StepInputs, FixedRows], StepOutputs],
        *,
        finds_rows: bool = False,
    ) -> tuple[StepInputs, Replay] | None:
        """The inputs and the replay of a pass, which is captured at first use; None if that is impossible.

        :param like: rotary factors with the right head size, dtype and device.
        :param run: the pass itself; it gets the memory that it reads and writes.
        :param finds_rows: it reads on the device where the cache's rows are (``Stored.table``), so that it is
            not captured anew when they move.
        """
        if not self.is_usable:
            return None

        def made() -> tuple[StepInputs, Callable[[], StepOutputs]]:
            inputs = self._inputs(width, like)
            return inputs, partial(run, inputs, FixedRows(self.cache, inputs.slots))

        self.cache.located()
        key, place = (width, tuple(sorted(watch))), self.cache.capacity
        try:
            return self.alone.get(key, place, made, finds_rows=finds_rows)
        except torch.OutOfMemoryError:
            self._short_for = self.lease
        except Exception:  # an operation that cannot be captured, or a kernel that does not compile
            self.can_capture = False
        self.alone.kept.clear()
        return None

    def step_together(
        self,
        key: Hashable,
        slots: SlotMemory,
        made: Callable[[], tuple[Any, Callable[[], StepOutputs]]],
        *,
        finds_rows: bool,
    ) -> tuple[Any, Replay] | None:
        """As :meth:`step`, of a pass over sequences in slots of one memory. Arguments are those of
        :meth:`Captures.get`."""
        if not self.is_usable_for(slots):
            return None
        if self._slots is None or self._slots() is not slots:
            self.together.kept.clear()
            self._slots = weakref.ref(slots)
        slots.located()
        try:
            return self.together.get(key, slots.place, made, finds_rows=finds_rows)
        except torch.OutOfMemoryError:
            self._short_at = slots.place
        except Exception:  # an operation that cannot be captured, or a kernel that does not compile
            self.can_capture = False
        self.together.kept.clear()
        return None

    def chain(
        self,
        length: int,
        like: Tensor,
        choose: Chooser,
        run: Callable[[Chain], StepOutputs],
        *,
        finds_rows: bool = False,
    ) -> tuple[Chain, Replay] | None:
        """The memory and the replay of so many passes of one row; None if that is impossible, or does not pay
        yet. Arguments are those of :meth:`step`.

        :param choose: one of the kind that the chain is for.
        """
        key = "chain", length, choose.kind
        self._wanted[key] += 1
        if not (self.is_usable and self.can_chain) or self._wanted[key] <= self.chain_after:
            return None

        def made() -> tuple[Chain, Callable[[], StepOutputs]]:
            tokens, measured = (like.new_zeros(length, dtype=dtype) for dtype in (torch.long, torch.float32))
            chain = Chain(self._inputs(length, like), choose.copied(), tokens, measured)
            return chain, partial(run, chain)

        self.cache.located()
        try:
            return self.alone.get(key, self.cache.capacity, made, finds_rows=finds_rows)
        except RuntimeError:  # single passes go on as they were captured
            self.can_chain = False
            return None

    def _inputs(self, rows: int, like: Tensor) -> StepInputs:
        """Inputs for a capture. It may write to the cache itself, so it gets slots after all valid rows."""
        inputs = StepInputs.blank(rows, like)
        torch.arange(self.cache.length, self.cache.length + rows, out=inputs.slots)
        return inputs


def width_of(rows: int, widths: Sequence[int] = WIDTHS) -> int | None:
    """The smallest captured width for so many rows, or None."""
    return next((width for width in widths if width >= rows), None)


def mask_of(slots: Tensor, capacity: int, groups: int, dtype: torch.dtype) -> Tensor:
    """``attention.packed_mask`` for rows in ``slots`` of a cache: (1, 1, groups * width, capacity)."""
    return packed_mask(torch.arange(capacity, device=slots.device) <= slots.unsqueeze(1), groups, dtype)


def workspace_for(devices: Sequence[torch.device], quantisation: Quantisation) -> Workspace | None:
    """A workspace if passes can be captured: on a single GPU, with no kernel that waits for the host."""
    if len(devices) != 1 or devices[0].type != "cuda" or quantisation not in _CAPTURED:
        return None
    return Workspace(cuda_graphs(devices[0]))


def cuda_graphs(device: torch.device) -> Capture:
    """Captures passes as CUDA graphs of one device. They share their memory: only one may run at a time."""
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    @cache
    def stream_of_captures() -> torch.cuda.Stream:
        # One for all of them: what a pass has freed is taken again on the same stream alone. And not torch's
        # own, which is one for all devices.
        return torch.cuda.Stream(device)

    def capture(run: Callable[[], StepOutputs]) -> Replay:
        with torch.cuda.device(device):
            side, stream = stream_of_captures(), torch.cuda.current_stream(device)
            side.wait_stream(stream)
            try:
                with torch.cuda.stream(side):  # a warm-up: libraries initialise themselves at the first run
                    run()
            finally:  # what a failed one has launched still reads memory that is freed now
                stream.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # A pool is freed with the last graph that uses it, so its id is taken from a live graph.
            pool = next((captured.pool() for captured in graphs), None)
            # The outer context goes back to the other stream where a capture fails.
            with torch.cuda.stream(side), torch.cuda.graph(graph, pool=pool, stream=side):
                outputs = run()
            graphs.add(graph)

        def replay() -> StepOutputs:
            graph.replay()
            return outputs

        return replay

    return capture


def run_again(run: Callable[[], StepOutputs]) -> Replay:
    """A replacement for a capture, on any device: every replay runs the pass again."""
    return run
