"""Linear layers whose weights are packed while a model is loaded from files in 16 bits, matrix by matrix.

A format of our own (``int4``, ``fp8``) is a matrix of tensors that knows what it stands for. Kernels multiply
it packed where they are right; elsewhere one matrix at a time is unpacked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

PACKED_ROWS = 80  # the most rows that are multiplied packed: a verification with the greatest gamma has 65
_AT_ONCE = 4096  # rows that are packed at once
_TOLERANCE = 4  # times the dtype's precision, of the largest value


@dataclass(frozen=True)
class Packed(ABC):
    """A matrix (outputs, inputs). Its fields are tensors whose rows are those of the matrix."""

    GROUP: ClassVar[int]  # inputs are a multiple of it

    @property
    @abstractmethod
    def outputs(self) -> int: ...

    @property
    @abstractmethod
    def inputs(self) -> int: ...

    @classmethod
    @abstractmethod
    def of_rows(cls, rows: Tensor) -> Self:
        """Rows of a matrix whose inputs are a multiple of the group."""

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """A whole matrix, some rows at a time, because that takes several times their memory."""
        parts = [cls.of_rows(rows) for rows in weight.detach().split(_AT_ONCE)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.names()))

    @abstractmethod
    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix that it stands for."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


Multiply = Callable[[Tensor, Any, Tensor | None], Tensor]  # of inputs, a packed matrix and a bias


def by_unpacking(inputs: Tensor, matrix: Packed, bias: Tensor | None) -> Tensor:
    """A linear layer, by torch: (rows, inputs) -> (rows, outputs)."""
    return linear(inputs, matrix.unpacked(inputs.dtype), bias)


class PackedLinear(nn.Module):
    """A linear layer with packed weights."""

    def __init__(self, matrix: Packed, bias: Tensor | None, multiply: Multiply) -> None:
        super().__init__()
        self.kind = type(matrix)
        self.in_features, self.out_features = matrix.inputs, matrix.outputs
        for name in matrix.names():
            self.register_parameter(name, nn.Parameter(getattr(matrix, name), requires_grad=False))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._multiply = multiply

    @property
    def matrix(self) -> Packed:
        return self.kind(**{name: getattr(self, name) for name in self.kind.names()})

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self._multiply(inputs.reshape(-1, self.in_features), self.matrix, self.bias)
        return outputs.view(*inputs.shape[:-1], -1)


def pack_linear_layers(
    blocks: Any, device: torch.device | None, kind: type[Packed], multiply: Multiply
) -> int:
    """Replace the linear layers in a model's blocks, in place, one after the other. Returns their number.

    Those whose inputs are no multiple of the group stay.

    :param device: where they are packed and stay; None: where they are.
    :raises ValueError: weights cannot be packed.
    """
    packed = 0
    for name, layer in list(blocks.named_modules()):
        if type(layer) is nn.Linear and layer.in_features % kind.GROUP == 0:
            weight, bias = layer.weight, layer.bias
            there = weight.device if device is None else device
            new = PackedLinear(kind.of(weight.to(there)), None if bias is None else bias.to(there), multiply)
            blocks.set_submodule(name, new.train(layer.training))
            packed += 1
    return packed


@torch.inference_mode()
def is_right(multiply: Multiply, kind: type[Packed], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products are those of the unpacked matrix, for few rows and for many."""
    matrix, bias, inputs = drawn(kind, PACKED_ROWS + 1, device, dtype)
    unpacked = matrix.unpacked(torch.float32)
    return all(
        is_near(multiply(rows, matrix, bias), linear(rows.float(), unpacked, bias.float()))
        for rows in (inputs[:3], inputs)
    )


def drawn(
    kind: type[Packed], rows: int, device: torch.device, dtype: torch.dtype
) -> tuple[Packed, Tensor, Tensor]:
    """A matrix, a bias and inputs, the same each time, to try a product with."""
    draw = torch.Generator().manual_seed(0)
    weight, bias, inputs = (
        torch.randn(shape, generator=draw).to(device, dtype)
        for shape in ((208, 576), (208,), (rows, 576))  # parts of tiles, whole groups
    )
    return kind.of(weight), bias, inputs


def is_near(found: Tensor, expected: Tensor) -> bool:
    """Whether results are those that were expected but for rounding to their dtype."""
    off = (found.float() - expected).abs().max()
    return bool(off <= _TOLERANCE * torch.finfo(found.dtype).eps * expected.abs().max())
