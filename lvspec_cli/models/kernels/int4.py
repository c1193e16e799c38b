"""Weights in even steps of 4 bits, packed while a model is loaded from files in 16 bits.

A draft's step is bound by reading its weights, and a code of even steps is unpacked by few instructions,
which nf4's is not. Each group of weights has a scale, chosen among a few for the least squared error. Only
what the draft proposes depends on that: exact mode stays the target's.

On a GPU a kernel of our own multiplies a few rows (``int4_kernels``). Elsewhere, and for many rows, one
matrix at a time is unpacked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

GROUP = 64  # weights of a row that share a scale
WORD = 8  # codes in 32 bits
WORDS = 16  # of a block: code i of word j is of column 16 i + j, so that all codes i are a tile's columns
BLOCK = WORD * WORDS
ROWS = 80  # the most rows that are multiplied packed: a verification with the greatest gamma has 65
_EXTREME = 8  # code of a group's extreme value, if its scale is not made smaller
_FACTORS = (8 / 7, 1.0, 0.95, 0.9, 0.85)  # of scales that are tried
_AT_ONCE = 4096  # rows that are packed at once
_TOLERANCE = 4  # times the dtype's precision, of the largest value

Multiply = Callable[[Tensor, "Packed4", Tensor | None], Tensor]


@dataclass(frozen=True)
class Packed4:
    """A matrix (outputs, inputs)."""

    words: Tensor  # int32 (outputs, 16 a block): code i of a word is in its bits from 4 i on, 8 added
    scales: Tensor  # bfloat16 (outputs, inputs / 64)

    @property
    def outputs(self) -> int:
        return len(self.words)

    @property
    def inputs(self) -> int:
        return self.scales.shape[1] * GROUP

    @classmethod
    def of(cls, weight: Tensor) -> Packed4:
        """A matrix whose inputs are a multiple of the group."""
        parts = [cls._of(rows) for rows in weight.detach().split(_AT_ONCE)]
        return cls(torch.cat([part.words for part in parts]), torch.cat([part.scales for part in parts]))

    @classmethod
    def _of(cls, weight: Tensor) -> Packed4:
        groups = weight.float().unflatten(1, (-1, GROUP))
        extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
        least, best, scales = torch.full_like(extreme, torch.inf), torch.zeros_like(groups), extreme
        for factor in _FACTORS:
            scale = (extreme * (-factor / _EXTREME)).bfloat16().float()
            codes = (groups / scale.masked_fill(scale == 0, 1)).round().clamp(-8, 7)
            error = (codes * scale - groups).square().sum(dim=2, keepdim=True)
            is_better = error < least
            least, scales = torch.where(is_better, error, least), torch.where(is_better, scale, scales)
            best = torch.where(is_better, codes, best)
        codes = pad(best.flatten(1).long().add_(8), (0, -weight.shape[1] % BLOCK))
        codes = codes.unflatten(1, (-1, WORD, WORDS)).transpose(2, 3)
        words = (codes << 4 * torch.arange(WORD, device=weight.device)).sum(dim=3).flatten(1)
        return cls(words.to(torch.int32), scales.squeeze(2).bfloat16())

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix that it stands for."""
        shifts = 4 * torch.arange(WORD, dtype=torch.int32, device=self.words.device)
        codes = (self.words.unsqueeze(2) >> shifts & 15).to(torch.int8)  # which is small
        columns = codes.unflatten(1, (-1, WORDS)).transpose(2, 3).flatten(1)[:, : self.inputs]
        groups = (columns - 8).unflatten(1, (-1, GROUP)).to(dtype)
        return (groups * self.scales.unsqueeze(2).to(dtype)).flatten(1)


def by_unpacking(inputs: Tensor, matrix: Packed4, bias: Tensor | None) -> Tensor:
    """A linear layer, by torch: (rows, inputs) -> (rows, outputs)."""
    return linear(inputs, matrix.unpacked(inputs.dtype), bias)


class Int4Linear(nn.Module):
    """A linear layer with packed weights."""

    def __init__(self, matrix: Packed4, bias: Tensor | None, multiply: Multiply) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.inputs, matrix.outputs
        self.words = nn.Parameter(matrix.words, requires_grad=False)
        self.scales = nn.Parameter(matrix.scales, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._multiply = multiply

    @property
    def matrix(self) -> Packed4:
        return Packed4(self.words, self.scales)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self._multiply(inputs.reshape(-1, self.in_features), self.matrix, self.bias)
        return outputs.view(*inputs.shape[:-1], -1)


def pack_linear_layers(blocks: Any, device: torch.device | None, multiply: Multiply) -> int:
    """Replace the linear layers in a model's blocks, in place, one after the other. Returns their number.

    Those whose inputs are no multiple of the group stay.

    :param device: where they are packed and stay; None: where they are.
    """
    packed = 0
    for name, layer in list(blocks.named_modules()):
        if type(layer) is nn.Linear and layer.in_features % GROUP == 0:
            weight, bias = layer.weight, layer.bias
            there = weight.device if device is None else device
            new = Int4Linear(Packed4.of(weight.to(there)), None if bias is None else bias.to(there), multiply)
            blocks.set_submodule(name, new.train(layer.training))
            packed += 1
    return packed


@torch.inference_mode()
def is_right(multiply: Multiply, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products are those of the unpacked matrix, for few rows and for many."""
    draw = torch.Generator().manual_seed(0)
    weight, bias, inputs = (
        torch.randn(shape, generator=draw).to(device, dtype)
        for shape in ((200, 9 * GROUP), (200,), (ROWS + 1, 9 * GROUP))
    )
    matrix = Packed4.of(weight)
    for rows in (inputs[:3], inputs):
        expected = linear(rows.float(), matrix.unpacked(torch.float32), bias.float())
        off = (multiply(rows, matrix, bias).float() - expected).abs().max()
        if not off <= _TOLERANCE * torch.finfo(dtype).eps * expected.abs().max():
            return False
    return True
