"""A stand-in for GPUs: tensors that say they are on one, and compute on the CPU.

An operation over tensors of two devices raises as it does there, and what the host waits for is counted. So
code that is right here needs of a GPU only that it computes the same.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lvspec_cli.models.load import LoadedModel

aten = torch.ops.aten
COPIES = frozenset({aten._to_copy, aten.copy_, aten.to, aten.copy})
_INDEXING = frozenset({aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_})
# The host has to know a result's size, or its value.
_WAITING = frozenset(
    {
        aten._local_scalar_dense,
        aten.item,
        aten.is_nonzero,
        aten.equal,
        aten.nonzero,
        aten.masked_select,
        aten.bincount,
        aten._unique2,
        aten.unique_dim,
        aten.unique_consecutive,
    }
)
_CPU = torch.device("cpu")


class OnGpu(Tensor):
    """A tensor that says it is on a GPU, and the one on the CPU that it is."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> OnGpu:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cuda", device.index or 0),
        )
        made.on_cpu = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func}: there is no GPU outside of Gpus")

    def data_ptr(self) -> int:
        return self.on_cpu.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Gpus(TorchDispatchMode):
    """The devices ``cuda:0``, ``cuda:1`` and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()  # of the host, by what it waits for

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        leaves = tree_leaves((args, given))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        named = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        if func.overloadpacket is aten._has_compatible_shallow_copy_type:
            return len({type(tensor) for tensor in tensors}) == 1
        self._check(func, args, given, tensors)
        inner_args, inner_given = tree_map(inside, (args, given))
        if func is aten.histc.default and not inner_args[0].is_floating_point():  # GPUs count integers, too
            inner_args = inner_args[0].float(), *inner_args[1:]
        outputs = func(*inner_args, **inner_given)
        of_tensors = next((tensor.device for tensor in tensors if tensor.device != _CPU), _CPU)
        device = named[-1] if named else of_tensors
        if func.overloadpacket in COPIES:
            source, other = tensors[-1], tensors[0].device if len(tensors) > 1 else device
            self._copied(source, _whole(other), given.get("non_blocking") or args[-1] is True)
            if _is_elsewhere(source, other) and len(tensors) == 1:
                outputs = outputs.clone()
        known = {id(tensor.on_cpu): tensor for tensor in tensors if isinstance(tensor, OnGpu)}
        return tree_map(lambda output: _outside(output, device, known), outputs)

    def _check(self, func: Any, args: Any, given: Any, tensors: Sequence[Tensor]) -> None:
        """
        :raises RuntimeError: the tensors are on several devices.
        """
        if func.overloadpacket in COPIES or all(tensor.device == _CPU for tensor in tensors):
            return
        indices = _indices(func, args)
        if waits_for(func, args, given) or any(index.device == _CPU for index in indices):
            self.waits[str(func)] += 1
        others = (tensor for tensor in tensors if not any(tensor is index for index in indices))
        # Of the CPU's tensors, single numbers go along with a launch.
        devices = {tensor.device for tensor in others if tensor.device != _CPU or tensor.dim()}
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found {found}")

    def _copied(self, source: Tensor, device: torch.device, unblocked: bool) -> None:
        """Between the GPU and the host only pinned memory is copied without a wait, and not to the host:
        there it is needed."""
        if _is_elsewhere(source, device) and _CPU in (source.device, device):
            is_pinned = source.device == _CPU and unblocked and getattr(source, "is_in_pinned_memory", False)
            if not is_pinned:
                self.waits["to the host" if device == _CPU else "from the host"] += 1


class _Making(TorchFunctionMode):
    """What torch does before it asks any mode: it would look for a driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is Tensor.pin_memory:
            copy = args[0].clone()
            copy.is_in_pinned_memory = True
            return copy
        if func not in (torch.tensor, torch.as_tensor):
            return func(*args, **given)
        device, pinned = torch.device(given.pop("device", None) or _CPU), given.pop("pin_memory", False)
        made = func(*args, **given)
        if pinned:
            made.is_in_pinned_memory = True
        return made if device.type == "cpu" else made.to(device)


class _Generator(torch.Generator):
    """One of the CPU, whatever device it is asked for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls)


# What torch.cuda tells of each.
_CARD = {
    "_lazy_init": None,
    "is_available": True,
    "is_initialized": True,
    "device_count": 2,
    "current_device": 0,
    "get_device_capability": (9, 0),
    "get_device_name": "one that computes on the CPU",
    "get_device_properties": SimpleNamespace(
        major=9, minor=0, total_memory=8 << 30, multi_processor_count=132
    ),
    "mem_get_info": (7 << 30, 8 << 30),
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "memory_reserved": 0,
    "reset_peak_memory_stats": None,
    "empty_cache": None,
    "synchronize": None,
}


@contextlib.contextmanager
def gpus() -> Iterator[Gpus]:
    """Inside it there are GPUs."""
    import torch._dynamo  # else modes import it, while a class of torch is another

    torch._C._ensureCUDADeviceGuardSet()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in _CARD.items():
            patched.setattr(torch.cuda, name, lambda *_, found=value, **__: found)
        patched.setattr(torch, "Generator", _Generator)
        patched.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # modes are those of this thread
        with torch.inference_mode(), _Making(), Gpus() as made:
            yield made


def placed(loaded: LoadedModel, device: str = "cuda", last: str | None = None) -> LoadedModel:
    """The model on a GPU; its last decoder layer on ``last``."""
    model = copy.deepcopy(loaded.model)
    in_last = {id(part) for part in loaded.family.layers(model)[-1].modules()}
    for part in model.modules():
        there = torch.device(last if last is not None and id(part) in in_last else device)
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(OnGpu(value.detach(), there), requires_grad=False)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else OnGpu(value, there)
    return replace(loaded, model=model, device=torch.device(device))


def waits_for(func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """Whether the host has to know what an operation gives before it can go on."""
    by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in _indices(func, args))
    is_unsized = func is aten.repeat_interleave.Tensor and given.get("output_size") is None
    return func.overloadpacket in _WAITING or by_mask or is_unsized


def _indices(func: Any, args: Sequence[Any]) -> list[Tensor]:
    is_indexing = func.overloadpacket in _INDEXING
    return [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)] if is_indexing else []


def inside(value: Any) -> Any:
    if isinstance(value, OnGpu):
        return value.on_cpu
    return _CPU if isinstance(value, torch.device) and value.type == "cuda" else value


def _outside(output: Any, device: torch.device, known: dict[int, OnGpu]) -> Any:
    if not isinstance(output, Tensor) or device.type != "cuda":
        return output
    return known[id(output)] if id(output) in known else OnGpu(output, device)


def _whole(device: torch.device) -> torch.device:
    """With its number: ``cuda`` is ``cuda:0``."""
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _is_elsewhere(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device != _whole(device)
