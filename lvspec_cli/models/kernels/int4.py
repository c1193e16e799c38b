"""Weights in even steps of 4 bits, packed while a model is loaded from files in 16 bits.

A draft's step is bound by reading its weights, and a code of even steps is unpacked by few instructions,
which nf4's is not. Each group of weights has a scale, chosen among a few for the least squared error. Only
what the draft proposes depends on that: exact mode stays the target's.

On a GPU a kernel of our own multiplies a few rows (``int4_kernels``). Elsewhere, and for many rows, one
matrix at a time is unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvspec_cli.models.kernels.packed import Packed

GROUP = 64  # weights of a row that share a scale
WORD = 8  # codes in 32 bits
WORDS = 16  # of a block: code i of word j is of column 16 i + j, so that all codes i are a tile's columns
BLOCK = WORD * WORDS
_EXTREME = 8  # code of a group's extreme value, if its scale is not made smaller
_FACTORS = (8 / 7, 1.0, 0.95, 0.9, 0.85)  # of scales that are tried


@dataclass(frozen=True)
class Packed4(Packed):
    """A matrix (outputs, inputs)."""

    words: Tensor  # int32 (outputs, 16 a block): code i of a word is in its bits from 4 i on, 8 added
    scales: Tensor  # bfloat16 (outputs, inputs / 64)
    GROUP: ClassVar[int] = GROUP

    @property
    def outputs(self) -> int:
        return len(self.words)

    @property
    def inputs(self) -> int:
        return self.scales.shape[1] * GROUP

    @classmethod
    def of_rows(cls, rows: Tensor) -> Self:
        groups = rows.float().unflatten(1, (-1, GROUP))
        extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
        least, best, scales = torch.full_like(extreme, torch.inf), torch.zeros_like(groups), extreme
        for factor in _FACTORS:
            scale = (extreme * (-factor / _EXTREME)).bfloat16().float()
            codes = (groups / scale.masked_fill(scale == 0, 1)).round().clamp(-8, 7)
            error = (codes * scale - groups).square().sum(dim=2, keepdim=True)
            is_better = error < least
            least, scales = torch.where(is_better, error, least), torch.where(is_better, scale, scales)
            best = torch.where(is_better, codes, best)
        codes = pad(best.flatten(1).long().add_(8), (0, -rows.shape[1] % BLOCK))
        codes = codes.unflatten(1, (-1, WORD, WORDS)).transpose(2, 3)
        words = (codes << 4 * torch.arange(WORD, device=rows.device)).sum(dim=3).flatten(1)
        return cls(words.to(torch.int32), scales.squeeze(2).bfloat16())

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        shifts = 4 * torch.arange(WORD, dtype=torch.int32, device=self.words.device)
        codes = (self.words.unsqueeze(2) >> shifts & 15).to(torch.int8)  # which is small
        columns = codes.unflatten(1, (-1, WORDS)).transpose(2, 3).flatten(1)[:, : self.inputs]
        groups = (columns - 8).unflatten(1, (-1, GROUP)).to(dtype)
        return (groups * self.scales.unsqueeze(2).to(dtype)).flatten(1)
