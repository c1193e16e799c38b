"""A stand-in for CUDA graphs on a CPU: a pass is recorded operation by operation, and a replay runs these.

What the host knew when a pass was recorded stays as it was, results lie where they lay, nothing is computed
while a pass is recorded, an operation for which the host would wait is refused then, and a replay spoils what
other recordings of the same memory gave. So a pass that is right here needs of a graph only that the device
runs its operations.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
)
from torch.utils._pytree import tree_leaves

from lvspec_cli.models.cache import Stored
from lvspec_cli.models.joined import StoredTogether
from lvspec_cli.models.kernels.fused import Operations, Twins
from lvspec_cli.models.kernels.packed import Packed
from lvspec_cli.models.steps import Replay, StepOutputs
from tests.stand_in import COPIES, inside, waits_for

Output = TypeVar("Output")

# The host would wait for the device in these, or copy numbers of its own to it.
_READING = frozenset({"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"})
_MAKING = frozenset({"tensor", "as_tensor", "from_numpy"})


class _Reads(TorchFunctionMode):
    """Refuses what reads tensors, or makes them of numbers, without an operation that could be recorded."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _MAKING or (name in _READING and isinstance(args[0], Tensor)):
            raise _not_permitted(name)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Operation:
    run: Callable[[], Any]
    results: dict[int, Tensor]  # by their place among its outputs, those that lie in memory of their own

    def again(self) -> None:
        outputs = _tensors(self.run())
        for place, kept in self.results.items():
            kept.copy_(outputs[place])


@dataclass(eq=False)
class Recording(TorchDispatchMode):
    """The operations of a pass."""

    operations: list[_Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._own: set[int] = set()  # addresses of memory that was taken while it was recorded
        self._before: list[tuple[Tensor, Tensor]] = []  # what was written over, and what was there

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        _check(func, args, given)
        written = list(_written(func, args, given))
        return self.done(lambda: func(*args, **given), (args, given), written)

    def done(self, run: Callable[[], Output], read: Any, written: Sequence[Tensor]) -> Output:
        """Run an operation, and record it if it is not a view.

        :param read: its arguments.
        :param written: those that it writes into.
        """
        for tensor in written:
            if _address(tensor) not in self._own:
                self._before.append((tensor, tensor.clone()))
        outputs, taken = run(), set(map(_address, _tensors(read)))
        fresh = {
            place: tensor for place, tensor in enumerate(_tensors(outputs)) if _address(tensor) not in taken
        }
        if fresh or written:
            self._own |= set(map(_address, fresh.values()))
            self.operations.append(_Operation(run, fresh))
        return outputs

    def undo(self) -> None:
        """Leave all memory as it was: a graph computes nothing before it is replayed."""
        for written, before in reversed(self._before):
            written.copy_(before)
        self._before.clear()
        self.spoil()

    def spoil(self) -> None:
        for operation in self.operations:
            for result in operation.results.values():
                if result.is_floating_point():
                    result.fill_(torch.nan)


class Recorder:
    """Captures passes by recording them. They share their memory, as graphs do."""

    def __init__(self) -> None:
        self.recorded = 0  # passes
        self._kept: weakref.WeakSet[Recording] = weakref.WeakSet()

    def __call__(self, run: Callable[[], StepOutputs]) -> Replay:
        run()  # the warm-up
        recording = Recording()
        with _Reads(), recording:
            outputs = run()
        recording.undo()
        self._kept.add(recording)
        self.recorded += 1

        def replay() -> StepOutputs:
            for other in self._kept:
                if other is not recording:
                    other.spoil()
            for operation in recording.operations:
                operation.again()
            return outputs

        return replay


@dataclass(frozen=True)
class AsKernels:
    """Operations as kernels: one each, which finds keys and values where the device is told that they are."""

    twins: Operations = field(default_factory=Twins)

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        return _kernel(lambda: self.twins.add_norm(hidden, added, weight, epsilon), hidden)

    def rotate_and_write(
        self,
        projected: Tensor,
        factors: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        epsilon: float,
        stored: Stored | StoredTogether,
        slots: Tensor,
    ) -> Tensor:
        there, written = _found(stored), (stored.keys, stored.values)
        return _kernel(
            lambda: self.twins.rotate_and_write(projected, factors, norms, epsilon, there(), slots),
            written=written,
        )

    def attend(
        self,
        queries: Tensor,
        stored: Stored | StoredTogether,
        slots: Tensor,
        scaling: float,
        *,
        watched: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        there = _found(stored)
        return _kernel(lambda: self.twins.attend(queries, there(), slots, scaling, watched=watched))

    def gated(self, both: Tensor) -> Tensor:
        return _kernel(lambda: self.twins.gated(both))

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        return _kernel(lambda: self.twins.multiply(inputs, weight, bias))

    def early(self, device: torch.device) -> Operations | None:
        return self.twins.early(device)


def _kernel(run: Callable[[], Output], *read: Tensor, written: Sequence[Tensor] = ()) -> Output:
    """Run something, which is recorded as one operation.

    :param read: what it may give back as it is.
    """
    mode = _get_current_dispatch_mode()
    if not isinstance(mode, Recording):
        return run()
    with _pop_mode_temporarily(), torch._C.DisableTorchFunction():
        return mode.done(run, read, written)


def _found(stored: Stored | StoredTogether) -> Callable[[], Any]:
    """Finds rows again by the table, and the shape of a layer's: all else may have changed."""
    table, layer, (heads, _, size), dtype = (
        stored.table, stored.layer, stored.keys.shape[-3:], stored.keys.dtype,
    )  # fmt: skip

    def there() -> Stored | StoredTogether:
        (capacity, video_at), places = table[0].tolist(), table[1 + layer].tolist()
        count = int(stored.rows.sequences.max()) + 1 if isinstance(stored, StoredTogether) else 1
        keys, values = (_at(place, (count, heads, capacity, size), dtype) for place in places)
        video = _at(video_at, (count, capacity), torch.uint8)
        if isinstance(stored, StoredTogether):
            memory: Any = SimpleNamespace(keys={layer: keys}, values={layer: values}, video=video)
            return replace(stored, memory=memory)
        cache: Any = SimpleNamespace(_keys={layer: keys}, _values={layer: values}, _video=video[0])
        return replace(stored, cache=cache)

    return there


def _at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor that lies there."""
    size = torch.Size(shape).numel()
    if not address:  # nothing is: no clip was marked
        return torch.zeros(shape, dtype=dtype)
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _check(func: Any, args: Sequence[Any], given: dict[str, Any]) -> None:
    """
    :raises RuntimeError: the host would wait for the device.
    """
    leaves = tree_leaves((args, given))
    kinds = {
        leaf.device.type if isinstance(leaf, Tensor) else leaf.type
        for leaf in leaves
        if isinstance(leaf, Tensor | torch.device)
    }
    is_moved = func.overloadpacket in COPIES and len(kinds) > 1
    if is_moved or waits_for(func, args, given):
        raise _not_permitted(str(func))


def _not_permitted(name: str) -> RuntimeError:
    return RuntimeError(f"{name}: operation not permitted when stream is capturing")


def _written(func: Any, args: Sequence[Any], given: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operation writes into."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[index] if index < len(args) else given.get(argument.name))


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return inside(tensor).untyped_storage().data_ptr()
