"""Decoder layers of Llama's shape in few kernels, for captured passes of few rows in 16 bits.

A step of a small draft is mostly small kernels: transformers' modules take about 34 a layer. Here it is ten,
and what torch adds to the four products. Queries, keys and values are one product, as are gate and up; a
residual is added where the next normalisation reads it; the rotation writes keys and values where they stay;
attention is split over stretches of keys at fixed places, of which only those are read that have keys (flash
decoding, Dao et al. 2023). A row's sums have the same order whatever rows are beside it, except in the
products, which are torch's.

Every kernel (``fused_kernels``) has a twin here, in PyTorch, of the same signature.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from lvspec_cli.models.attention import packed_mask
from lvspec_cli.models.cache import KeyValueCache, cache_argument
from lvspec_cli.models.steps import FixedRows

MOST_ROWS = 33  # of a pass; wider ones are bound by their products
LEAST = (8, 0)  # compute capability: of bfloat16
_COMPILERS = ("cc", "gcc", "clang")  # Triton needs one of them to compile its launchers
_PROBE_ROWS, _PROBE_START = 3, 140  # of the pass that is compared, behind more than one stretch of keys
_TOLERANCE = 8  # times the dtype's precision, of the largest value
_LEAST_TOLERANCE = 1e-4


class Operations(Protocol):
    """What a layer is made of besides its products. Rows are those of a pass."""

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """The sum of two (rows, width), and its RMSNorm (Zhang and Sennrich 2019)."""

    def rotate_and_write(
        self,
        projected: Tensor,
        factors: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        epsilon: float,
        cache: tuple[Tensor, Tensor],
        slots: Tensor,
    ) -> Tensor:
        """Write rotated keys, and values, to ``slots`` of a cache; return the rotated queries.

        :param projected: queries, keys and values side by side, (rows, (heads + 2 * key heads) * size).
        :param factors: cosines and sines, (rows, size).
        :param norms: weights of the normalisation of each query's and each key's head, (size,).
        :param cache: keys and values, (key heads, capacity, size).
        :param slots: long (rows,).
        :returns: (heads, rows, size).
        """

    def attend(self, queries: Tensor, cache: tuple[Tensor, Tensor], slots: Tensor, scaling: float) -> Tensor:
        """Attention of each row to the keys up to its own slot: (rows, heads * size)."""

    def gated(self, both: Tensor) -> Tensor:
        """silu of the first half of each row times the second: (rows, 2 * n) -> (rows, n)."""


class Twins:
    """The operations in PyTorch, on any device."""

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        total = hidden if added is None else hidden + added
        return total, _normed(total, weight, epsilon)

    def rotate_and_write(
        self,
        projected: Tensor,
        factors: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        epsilon: float,
        cache: tuple[Tensor, Tensor],
        slots: Tensor,
    ) -> Tensor:
        key_heads, _, size = cache[0].shape
        heads = projected.unflatten(-1, (-1, size)).transpose(0, 1)
        queries, keys, values = heads.split([len(heads) - 2 * key_heads, key_heads, key_heads])
        if norms is not None:
            queries, keys = _normed(queries, norms[0], epsilon), _normed(keys, norms[1], epsilon)
        cache[0].index_copy_(1, slots, _rotated(keys, factors))
        cache[1].index_copy_(1, slots, values)
        return _rotated(queries, factors)

    def attend(self, queries: Tensor, cache: tuple[Tensor, Tensor], slots: Tensor, scaling: float) -> Tensor:
        groups = len(queries) // len(cache[0])
        keys, values = (part.repeat_interleave(groups, dim=0).float() for part in cache)
        is_later = torch.arange(keys.shape[1], device=slots.device) > slots[:, None]
        scores = (queries.float() @ keys.transpose(1, 2) * scaling).masked_fill(is_later, -math.inf)
        return (scores.softmax(dim=-1) @ values).to(queries.dtype).transpose(0, 1).flatten(1)

    def gated(self, both: Tensor) -> Tensor:
        gate, up = both.float().chunk(2, dim=-1)
        return (silu(gate) * up).to(both.dtype)


def _normed(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    values = rows.float()
    scale = torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + epsilon)
    return (values * scale * weight.float()).to(rows.dtype)


def _rotated(heads: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
    """Heads (heads, rows, size) at their positions."""
    values, (cosines, sines) = heads.float(), (part.float() for part in factors)
    first, second = values.chunk(2, dim=-1)
    return (values * cosines + torch.cat((-second, first), dim=-1) * sines).to(heads.dtype)


@dataclass(frozen=True)
class Product:
    """The weights of one or of several linear layers that read the same input."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)

    @classmethod
    def of(cls, *layers: Any) -> Product:
        """The layers' weights in one tensor, which the layers share from now on.

        :raises TypeError: one is no plain linear layer, or only some have a bias.
        """
        if any(type(layer) is not nn.Linear for layer in layers):
            raise TypeError("weights that are packed cannot be joined")
        biases = [layer.bias for layer in layers]
        if len({bias is None for bias in biases}) > 1:
            raise TypeError("only some of the layers have a bias")
        if len(layers) == 1:
            return cls(layers[0].weight, biases[0])
        return cls(_joined(layers, "weight"), None if biases[0] is None else _joined(layers, "bias"))


def _joined(layers: Sequence[nn.Linear], name: str) -> Tensor:
    parts = [getattr(layer, name) for layer in layers]
    whole = torch.cat([part.detach() for part in parts])
    for layer, view in zip(layers, whole.split([len(part) for part in parts]), strict=True):
        setattr(layer, name, nn.Parameter(view, requires_grad=False))
    return whole


@dataclass(frozen=True)
class FusedLayer:
    """A decoder layer's weights as its operations read them."""

    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]]  # before attention and MLP: weight, epsilon
    projection: Product  # of queries, keys and values
    head_norms: tuple[Tensor, Tensor] | None
    head_epsilon: float
    scaling: float
    output: Product
    gate_up: Product
    down: Product

    @classmethod
    def of(cls, layer: Any) -> FusedLayer:
        """The weights of transformers' layer, which shares them.

        :raises TypeError, AttributeError: it is of another kind.
        """
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        head_norms = (_norm_of(attention.q_norm), _norm_of(attention.k_norm)) if has_norms else None
        return cls(
            norms=(_norm_of(layer.input_layernorm), _norm_of(layer.post_attention_layernorm)),
            projection=Product.of(attention.q_proj, attention.k_proj, attention.v_proj),
            head_norms=None if head_norms is None else (head_norms[0][0], head_norms[1][0]),
            head_epsilon=0.0 if head_norms is None else head_norms[0][1],
            scaling=float(attention.scaling),
            output=Product.of(attention.o_proj),
            gate_up=Product.of(mlp.gate_proj, mlp.up_proj),
            down=Product.of(mlp.down_proj),
        )


def _norm_of(norm: Any) -> tuple[Tensor, float]:
    epsilon: Any = norm.eps if isinstance(norm, nn.RMSNorm) else norm.variance_epsilon
    return norm.weight, float(epsilon)


@dataclass(frozen=True)
class FusedLayers:
    """All decoder layers of a language model, for captured passes."""

    layers: tuple[FusedLayer, ...]
    operations: Operations
    size: int  # of a head

    def takes(self, cosines: Tensor) -> bool:
        """Whether a pass is narrow enough, and rotates whole heads. ``cosines``: (1, rows, size)."""
        return cosines.shape[1] <= MOST_ROWS and cosines.shape[2] == self.size

    def __call__(
        self,
        embeddings: Tensor,
        rotary: tuple[Tensor, Tensor],
        rows: FixedRows,
        watch: Collection[int] = (),
        first: int = 0,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Hidden states (1, rows, width) behind the last layer, and the inputs of the watched ones.

        :param rotary: cosines and sines, (1, rows, head size).
        :param first: the number of the first of these layers, in the cache and in ``watch``.
        """
        hidden, inputs = embeddings[0], {}
        factors = (rotary[0][0], rotary[1][0])
        added: Tensor | None = None
        for number, layer in enumerate(self.layers, start=first):
            hidden, normed = self.operations.add_norm(hidden, added, *layer.norms[0])
            if number in watch:
                inputs[number] = hidden[None]
            hidden, added = self._layer(layer, hidden, normed, factors, rows.of_layer(number), rows.slots)
        if added is not None:
            hidden = hidden + added
        if first + len(self.layers) in watch:
            inputs[first + len(self.layers)] = hidden[None]
        return hidden[None], inputs

    def _layer(
        self,
        layer: FusedLayer,
        hidden: Tensor,
        normed: Tensor,
        factors: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        slots: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The residual before the MLP, and what is to be added to it."""
        run = self.operations
        queries = run.rotate_and_write(
            layer.projection(normed), factors, layer.head_norms, layer.head_epsilon, cache, slots
        )
        attended = layer.output(run.attend(queries, cache, slots, layer.scaling))
        hidden, normed = run.add_norm(hidden, attended, *layer.norms[1])
        return hidden, layer.down(run.gated(layer.gate_up(normed)))


def triton_operations(device: torch.device, dtype: torch.dtype) -> Operations | None:
    """The kernels, if Triton can compile them for the device, in 16 bits."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return None
    has_compiler = any(shutil.which(name) for name in _COMPILERS)
    if not has_compiler or dtype not in (torch.bfloat16, torch.float16):
        return None
    if torch.cuda.get_device_capability(device) < LEAST:
        return None
    from lvspec_cli.models.kernels.fused_kernels import Kernels

    return Kernels()


def fuse_layers(layers: Sequence[Any], operations: Operations) -> FusedLayers | None:
    """The layers with these operations; None if one of them would not compute what transformers' layer does.

    Weights that are joined are shared with the layers: their old names become views.
    """
    fused: list[FusedLayer] = []
    for layer in layers:
        try:
            single = FusedLayers((FusedLayer.of(layer),), operations, layer.self_attn.head_dim)
            if not _is_the_same(layer, single):
                return None
        except Exception:  # a layer of another kind, or whatever Triton, a compiler or the device raise
            return None
        fused += single.layers
    return FusedLayers(tuple(fused), operations, layers[0].self_attn.head_dim)


@torch.inference_mode()
def _is_the_same(layer: Any, fused: FusedLayers) -> bool:
    attention, width = layer.self_attn, layer.self_attn.q_proj.in_features
    like, size = attention.q_proj.weight, attention.head_dim
    key_heads, number = attention.k_proj.out_features // size, attention.layer_idx
    draw = torch.Generator().manual_seed(number)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(like)

    hidden, turns = drawn(1, _PROBE_ROWS, width), drawn(1, _PROBE_ROWS, size // 2).repeat(1, 1, 2)
    rotary, outputs = (turns.cos(), turns.sin()), []
    earlier = drawn(2, 1, key_heads, _PROBE_START, size)
    for is_fused in (False, True):
        cache = KeyValueCache()
        cache.reserve(_PROBE_START + _PROBE_ROWS)
        cache.update(earlier[0], earlier[1], number)
        slots = torch.arange(_PROBE_START, _PROBE_START + _PROBE_ROWS, device=like.device)
        rows = FixedRows(cache, slots)
        if is_fused:
            found = fused(hidden, rotary, rows, first=number)[0]
        else:
            allowed = torch.arange(cache.capacity, device=like.device) <= slots[:, None]
            mask = packed_mask(allowed, attention.q_proj.out_features // size // key_heads, like.dtype)
            found = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                split_k=True,
                **{cache_argument(layer): rows},
            )
        outputs.append((found, *(part[:, slots] for part in rows.of_layer(number))))
    return all(_is_close(one, other) for one, other in zip(*outputs, strict=True))


def _is_close(expected: Tensor, found: Tensor) -> bool:
    tolerance = max(_LEAST_TOLERANCE, _TOLERANCE * torch.finfo(expected.dtype).eps)
    off = (found.float() - expected.float()).abs().max()
    return bool(off <= tolerance * expected.float().abs().max())
