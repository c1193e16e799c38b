"""Linear layers in float32 on CPUs, each product by what is fastest there for its number of rows.

Of many rows oneDNN may be faster than torch's own product by MKL (``models.kernels.wide_products``), and of
few rows, too, where the weights are large. On AMD's processors MKL hardly shares such a product among
threads, and four rows take it about three times as long as one, so that a verification would cost what it
saves. oneDNN reads the weights once, by all threads. It sums in another order: results are MKL's but for
rounding. It is taken where each of several rows is the same to the bit beside any others, and with one
thread.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lvspec_cli.models.kernels import wide_products
from lvspec_cli.models.kernels.wide_products import by_onednn, has_onednn, is_the_same, least_rows, seconds

# Both chosen on two cores of an AMD EPYC without AVX-512: smaller products gain little (tools.cpu_products).
MOST_ROWS = 64  # that are few
LEAST_WEIGHTS = 2**21
_GAIN = 1.5  # by which a product has to be faster, as results are not the same to the bit
_TRIED = 5, 2048, 4096  # rows, inputs, outputs


class CpuLinear(nn.Linear):
    """A linear layer's weights and bias."""

    most: int  # rows of a product of few, 0: none is
    least: int  # rows of a product of many

    @classmethod
    def of(cls, old: nn.Linear, *, most: int, least: int) -> CpuLinear:
        """The layer with the same weights."""
        new = cls(old.in_features, old.out_features, bias=False, device="meta")
        new.weight, new.bias = old.weight, old.bias
        new.most, new.least = most, least
        return new.train(old.training)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.numel() // self.in_features
        if rows <= self.most:
            return by_onednn(inputs, self.weight, self.bias)
        if rows >= self.least:
            return wide_products.multiply(inputs, self.weight, self.bias)
        return linear(inputs, self.weight, self.bias)


def replace_linear_layers(model: Any) -> int:
    """Replace a model's linear layers in float32 on a CPU, in place, where that pays. Returns their number.

    Weights are shared. A layer of which a product of many rows would be another one keeps its own.
    """
    layers = {name: layer for name, layer in model.named_modules() if name and _is_plain(layer)}
    large = {name for name, layer in layers.items() if layer.weight.numel() >= LEAST_WEIGHTS}
    few = large if large and few_rows_pay() else set()
    wide = _wide(layers) if layers and wide_products.pays() else set()
    for name in few | wide:
        old = layers[name]
        least = least_rows(old.in_features, old.out_features, torch.get_num_threads())
        new = CpuLinear.of(
            old, most=MOST_ROWS if name in few else 0, least=least if name in wide else sys.maxsize
        )
        model.set_submodule(name, new)
    return len(few | wide)


def _wide(layers: dict[str, nn.Linear]) -> set[str]:
    """Those whose products of many rows are the same to the bit; one of each shape is tried."""
    kinds = {name: (*layer.weight.shape, layer.bias is not None) for name, layer in layers.items()}
    one_of = {kind: layers[name] for name, kind in kinds.items()}
    same = {kind for kind, layer in one_of.items() if is_the_same(layer)}
    return {name for name, kind in kinds.items() if kind in same}


def _is_plain(layer: Any) -> bool:
    """Whether it is a linear layer in float32 on a CPU, and not packed by a library."""
    if type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor:
        return False
    return layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"


@torch.inference_mode()
def few_rows_pay() -> bool:
    """Whether oneDNN multiplies few rows by large weights faster on this processor, each row for itself."""
    if not has_onednn():
        return False
    rows, inputs, outputs = _TRIED
    values, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    by_torch, other = (seconds(partial(run, values, weight, None)) for run in (linear, by_onednn))
    return by_torch >= _GAIN * other and rows_stand_alone()


@torch.inference_mode()
def rows_stand_alone() -> bool:
    """Whether each of several rows is the same to the bit beside any others, with one thread or with all."""
    draw, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    _, inputs, outputs = _TRIED
    values, weight = (torch.randn(rows, inputs, generator=draw) for rows in (MOST_ROWS, outputs))
    found = list[Tensor]()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found += [by_onednn(values[:rows], weight, None)[:2] for rows in (2, 3, 5, 16, MOST_ROWS)]
    finally:
        torch.set_num_threads(threads)
    return all(torch.equal(each, found[0]) for each in found)
