"""Language models of Llama's shape in few kernels, for captured passes of few rows in 16 bits.

A step of a small draft is mostly small kernels: transformers' modules take about 34 a layer. Here it is ten,
and one more for a product of a small matrix. Queries, keys and values are one product, as are gate and up; a
residual is added where the next normalisation reads it; the rotation writes keys and values where they stay;
attention is split over stretches of keys at fixed places, of which only those are read that have keys (flash
decoding, Dao et al. 2023), and tells how much of it goes to the video. Where keys are, and how many, is read
on the device.

A row's sums have the same order whatever rows are beside it, so that a verification has the step's very
results (batch invariance, He and Thinking Machines Lab 2025). Torch's products have not; they are taken where
ours are slower.

Every kernel (``fused_kernels``) has a twin here, in PyTorch, of the same signature.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from lvspec_cli.models.attention import packed_mask
from lvspec_cli.models.cache import KeyValueCache, SlotMemory, Stored, cache_argument
from lvspec_cli.models.joined import (
    FusedRows,
    JoinedRows,
    Layout,
    OneOfSeveral,
    Part,
    StoredTogether,
    blocks_of,
    told_of,
)
from lvspec_cli.models.kernels.cpu_linear import CpuLinear
from lvspec_cli.models.kernels.fp8 import Packed8, is_right_over_clips
from lvspec_cli.models.kernels.packed import Multiply, Packed, PackedLinear, by_unpacking, is_right
from lvspec_cli.models.steps import JOINED_WIDTHS, FixedRows, Replay, StepOutputs, cuda_graphs

MOST_ROWS = 33  # of a pass; wider ones are bound by their products
MOST_JOINED = JOINED_WIDTHS[-1]  # of a pass over several sequences, so that it has the results of one
LEAST = (8, 0)  # compute capability: of bfloat16
_COMPILERS = ("cc", "gcc", "clang")  # Triton needs one of them to compile its launchers
_PROBE_ROWS, _PROBE_START = 3, 140  # of the pass that is compared, behind more than one stretch of keys
_PROBE_PARTS = (Part(0, _PROBE_START, 3), Part(2, 20, 2))  # of a pass over two sequences
_TOLERANCE = 8  # times the dtype's precision, of the largest value
_LEAST_TOLERANCE = 1e-4
_TIMED_ROWS, _IN_A_ROW, _TIMED = 5, 8, 20  # rows of products that are timed, how many of each, how often
_SLOWER_BY = 1.15  # than torch's; what comes of it is that exact mode in 16 bits is ar to the letter


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
        stored: Stored | StoredTogether,
        slots: Tensor,
    ) -> Tensor:
        """Write rotated keys, and values, to ``slots`` of a layer's cache; return the rotated queries.

        :param projected: queries, keys and values side by side, (rows, (heads + 2 * key heads) * size).
        :param factors: cosines and sines, (rows, size).
        :param norms: weights of the normalisation of each query's and each key's head, (size,).
        :param slots: long (rows,).
        :returns: (heads, rows, size).
        """

    def attend(
        self,
        queries: Tensor,
        stored: Stored | StoredTogether,
        slots: Tensor,
        scaling: float,
        *,
        watched: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of each row to the keys up to its own slot, (rows, heads * size); if it is watched, the
        share of it that goes to the video, float32 (heads, rows)."""

    def gated(self, both: Tensor) -> Tensor:
        """silu of the first half of each row times the second: (rows, 2 * n) -> (rows, n)."""

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        """A linear layer: (rows, width) -> (rows, outputs)."""

    def early(self, device: torch.device) -> Operations | None:
        """The same, each launched before the one before it has ended; None: not on this device."""


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
        stored: Stored | StoredTogether,
        slots: Tensor,
    ) -> Tensor:
        key_heads, _, size = stored.keys.shape[-3:]
        heads = projected.unflatten(-1, (-1, size)).transpose(0, 1)
        queries, keys, values = heads.split([len(heads) - 2 * key_heads, key_heads, key_heads])
        if norms is not None:
            queries, keys = _normed(queries, norms[0], epsilon), _normed(keys, norms[1], epsilon)
        stored.write(slots, _rotated(keys, factors), values)
        return _rotated(queries, factors)

    def attend(
        self,
        queries: Tensor,
        stored: Stored | StoredTogether | OneOfSeveral,
        slots: Tensor,
        scaling: float,
        *,
        watched: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(stored, StoredTogether):
            parts = [
                self.attend(queries[:, rows], one, slots[rows], scaling, watched=watched)
                for rows, one in stored.apart()
            ]
            shares = [share for _, share in parts if share is not None]
            return torch.cat([part for part, _ in parts]), torch.cat(shares, 1) if watched else None
        groups = len(queries) // len(stored.keys)
        keys, values = (
            part.repeat_interleave(groups, dim=0).float() for part in (stored.keys, stored.values)
        )
        is_later = torch.arange(keys.shape[1], device=slots.device) > slots[:, None]
        scores = (queries.float() @ keys.transpose(1, 2) * scaling).masked_fill(is_later, -math.inf)
        weights = scores.softmax(dim=-1)
        attended = (weights @ values).to(queries.dtype).transpose(0, 1).flatten(1)
        return attended, weights @ stored.video.float() if watched else None

    def gated(self, both: Tensor) -> Tensor:
        gate, up = both.float().chunk(2, dim=-1)
        return (silu(gate) * up).to(both.dtype)

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        if isinstance(weight, Packed):
            return by_unpacking(inputs, weight, bias)
        return linear(inputs, weight, bias)

    def early(self, device: torch.device) -> Operations | None:
        return None


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

    weight: Tensor | Packed
    bias: Tensor | None

    @property
    def inputs(self) -> int:
        return self.weight.inputs if isinstance(self.weight, Packed) else self.weight.shape[1]

    @classmethod
    def of(cls, *layers: Any) -> Product:
        """The layers' weights in one tensor, which the layers share from now on.

        :raises TypeError: they are not all plain, nor all packed in one way, or only some have a bias.
        """
        packed = {layer.kind for layer in layers if type(layer) is PackedLinear}
        kinds = {type(layer) for layer in layers}
        if not (kinds <= {nn.Linear, CpuLinear} or kinds == {PackedLinear}) or len(packed) > 1:
            raise TypeError("weights that are packed otherwise cannot be joined")
        biases = [layer.bias for layer in layers]
        if len({bias is None for bias in biases}) > 1:
            raise TypeError("only some of the layers have a bias")
        bias = None if biases[0] is None else _joined(layers, "bias")
        if not packed:
            return cls(_joined(layers, "weight"), bias)
        kind = packed.pop()
        return cls(kind(*(_joined(layers, name) for name in kind.names())), bias)


def _joined(layers: Sequence[nn.Module], name: str) -> Tensor:
    if len(layers) == 1:
        return getattr(layers[0], name)
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
    """All decoder layers of a language model, and what follows them, for captured passes."""

    layers: tuple[FusedLayer, ...]
    norm: tuple[Tensor, float]  # the last one: weight, epsilon
    head: Product
    operations: Operations
    size: int  # of a head of attention
    rows_stand_alone: bool = False  # it was seen here that a row is to the bit what it is without the others
    joins: int = 0  # rows of a pass over several sequences up to which they were seen to be the same, too

    def takes(self, cosines: Tensor) -> bool:
        """Whether a pass is narrow enough, and rotates whole heads. ``cosines``: (1, rows, size)."""
        return cosines.shape[1] <= MOST_ROWS and cosines.shape[2] == self.size

    def takes_joined(self, cosines: Tensor, rows: int) -> bool:
        """The same of a pass over rows of several sequences."""
        return rows <= self.joins and cosines.shape[2] == self.size

    def __call__(
        self,
        embeddings: Tensor,
        rotary: tuple[Tensor, Tensor],
        rows: FixedRows | FusedRows,
        watch: Collection[int] = (),
        first: int = 0,
    ) -> StepOutputs:
        """A pass through the layers, the last normalisation and the head. ``embeddings``: (1, rows, width).

        :param rotary: cosines and sines, (1, rows, head size).
        :param first: the number of the first of these layers, in the cache and in ``watch``.
        """
        run, factors = self.operations, (rotary[0][0], rotary[1][0])
        hidden, added = embeddings[0], None
        inputs: dict[int, Tensor] = {}
        shares: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers, start=first):
            hidden, normed = run.add_norm(hidden, added, *layer.norms[0])
            if number in watch:
                inputs[number] = hidden[None]
            stored = rows.of_layer(number)
            attended, share = self._attention(layer, normed, factors, stored, rows.slots, number in watch)
            if share is not None:
                shares[number] = share
            hidden, normed = run.add_norm(hidden, attended, *layer.norms[1])
            both = run.multiply(normed, layer.gate_up.weight, layer.gate_up.bias)
            added = run.multiply(run.gated(both), layer.down.weight, layer.down.bias)
        hidden, normed = run.add_norm(hidden, added, *self.norm)
        if first + len(self.layers) in watch:
            inputs[first + len(self.layers)] = hidden[None]
        logits = run.multiply(normed, self.head.weight, self.head.bias).float()
        return StepOutputs(normed[None], logits, inputs, shares)

    def _attention(
        self,
        layer: FusedLayer,
        normed: Tensor,
        factors: tuple[Tensor, Tensor],
        stored: Stored | StoredTogether,
        slots: Tensor,
        watched: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What attention adds to the residual, (rows, width), and the share of a watched one to the video."""
        run = self.operations
        projected = run.multiply(normed, layer.projection.weight, layer.projection.bias)
        norms, epsilon = layer.head_norms, layer.head_epsilon
        queries = run.rotate_and_write(projected, factors, norms, epsilon, stored, slots)
        attended, share = run.attend(queries, stored, slots, layer.scaling, watched=watched)
        return run.multiply(attended, layer.output.weight, layer.output.bias), share


def triton_operations(device: torch.device, dtype: torch.dtype) -> tuple[Operations, ...]:
    """The kernels, if Triton can compile them for the device, in 16 bits: with our own products, and with
    torch's. Nothing: they cannot be used."""
    if not can_compile(device, dtype):
        return ()
    from lvspec_cli.models.kernels.fused_kernels import Kernels

    return Kernels(), Kernels(products=False)


def can_compile(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton can compile kernels in the dtype, of 16 bits, for the device."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    has_compiler = any(shutil.which(name) for name in _COMPILERS)
    if not has_compiler or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= LEAST


def packed_product(kind: type[Packed], device: torch.device, dtype: torch.dtype) -> Multiply:
    """How packed weights are multiplied there: by our kernels, if they compile and are right, else by torch,
    one matrix at a time unpacked."""
    found: Multiply = by_unpacking
    if can_compile(device, dtype):
        with contextlib.suppress(Exception):  # whatever Triton, a compiler or the device raise
            from lvspec_cli.models.kernels.fp8_kernels import multiply_clips
            from lvspec_cli.models.kernels.fused_kernels import PRODUCTS

            if is_right(PRODUCTS[kind], kind, device, dtype):
                found = PRODUCTS[kind]
                if kind is Packed8 and is_right_over_clips(multiply_clips, device, dtype):
                    found = multiply_clips
    return found


def fuse_layers(
    layers: Sequence[Any], norm: Any, head: Any, operations: Sequence[Operations]
) -> FusedLayers | None:
    """A language model by the first of these operations by which its layers, its last normalisation and its
    head compute what transformers' modules do; None if there are none.

    Weights that are joined are shared with the modules: their old names become views.

    :param operations: the first are taken only if a row's results then do not depend on the others, and
        products take hardly longer than the last ones'.
    """
    size = layers[0].self_attn.head_dim if layers and hasattr(layers[0], "self_attn") else 0
    try:
        parts = tuple(FusedLayer.of(layer) for layer in layers)
        last, words = _norm_of(norm), Product.of(head)
    except (TypeError, AttributeError):  # a layer of another kind
        return None
    for run in operations:
        made = FusedLayers(parts, last, words, run, size)
        with contextlib.suppress(Exception):  # whatever Triton, a compiler or the device raise
            if not all(_is_the_same(*one, made, norm, head) for one in zip(layers, parts, strict=True)):
                continue
            stands_alone = widest_alone(made, layers[0], MOST_ROWS) >= MOST_ROWS
            if run is operations[-1] or (stands_alone and _is_fast_enough(made, operations[-1])):
                made = _launched_early(made, layers)
                joins = _most_joined(made, layers[0], stands_alone)
                return replace(made, rows_stand_alone=stands_alone, joins=joins)
    return None


@torch.inference_mode()
def _is_the_same(layer: Any, part: FusedLayer, made: FusedLayers, norm: Any, head: Any) -> bool:
    attention, single = layer.self_attn, replace(made, layers=(part,))
    number, probe = attention.layer_idx, _Probe.of(layer, _PROBE_ROWS)
    outputs = []
    for is_fused in (False, True):
        rows = probe.rows()
        if is_fused:
            found = single(probe.hidden, probe.rotary, rows, (number,), first=number)
            values = [found.hidden, found.logits, found.shares[number]]
        else:
            allowed = torch.arange(rows.cache.capacity, device=rows.slots.device) <= rows.slots[:, None]
            groups = attention.q_proj.out_features // attention.k_proj.out_features
            hidden = layer(
                probe.hidden,
                attention_mask=packed_mask(allowed, groups, probe.hidden.dtype),
                position_embeddings=probe.rotary,
                split_k=True,
                **{cache_argument(layer): rows},
            )
            normed, twins = norm(hidden), replace(single, operations=Twins())  # a layer tells no shares
            shares = twins(probe.hidden, probe.rotary, probe.rows(), (number,), first=number).shares
            values = [normed, head(normed[0]).float(), shares[number]]
        outputs.append((*values, *probe.written(rows)))
    eps = torch.finfo(probe.hidden.dtype).eps
    return all(_is_close(one, other, eps) for one, other in zip(*outputs, strict=True))


@torch.inference_mode()
def widest_alone(made: FusedLayers, layer: Any, most: int) -> int:
    """The greatest captured width, of ``most`` at most, up to which each row is to the bit what it is alone.

    The order of a layer's sums does not depend on its weights, so the first of the layers shows it for all.
    """
    single, probe = replace(made, layers=made.layers[:1]), _Probe.of(layer, most)
    number, rows = layer.self_attn.layer_idx, probe.rows()

    def run(first: int, count: int) -> tuple[Tensor, Tensor]:
        some, rotary = slice(first, first + count), [part[:, first : first + count] for part in probe.rotary]
        there = FixedRows(rows.cache, rows.slots[some])
        found = single(probe.hidden[:, some], (rotary[0], rotary[1]), there, first=number)
        return found.hidden[0], found.logits

    alone = [run(row, 1) for row in range(most)]
    written = [part.clone() for part in probe.written(rows)]
    widest = 1
    for width in (width for width in JOINED_WIDTHS if 1 < width <= most):
        found = zip(run(0, width), *alone[:width], strict=True)
        if not all(torch.equal(one, torch.cat(others)) for one, *others in found):
            break
        if not all(map(torch.equal, written, probe.written(rows))):
            break
        widest = width
    return widest


def _most_joined(made: FusedLayers, layer: Any, stands_alone: bool) -> int:
    """The most rows of a pass over several sequences, in which a row is what it is in a pass of its own."""
    try:
        found = joined_beside_alone(made, layer)
        most = widest_alone(made, layer, MOST_JOINED) if stands_alone else MOST_JOINED
    except Exception:  # whatever Triton, a compiler or the device raise
        return 0
    eps = torch.finfo(made.norm[0].dtype).eps
    is_same = all(torch.equal(*pair) if stands_alone else _is_close(*pair, eps) for pair in found)
    return most if is_same else 0


@torch.inference_mode()
def joined_beside_alone(made: FusedLayers, layer: Any) -> list[tuple[Tensor, Tensor]]:
    """What the first layer gives and writes for rows of two sequences, in passes of their own and in one."""
    single, number = replace(made, layers=made.layers[:1]), layer.self_attn.layer_idx
    probe, memory = _Probe.of(layer, sum(part.rows for part in _PROBE_PARTS)), SlotMemory()
    caches = [memory.cache() for _ in range(_PROBE_PARTS[-1].slot + 1)]
    memory.reserve(_PROBE_START + probe.hidden.shape[1], 0)
    alone, first = [], 0
    for part in _PROBE_PARTS:
        rows = slice(first, first := first + part.rows)
        there = probe.rows()
        own = FixedRows(there.cache, torch.arange(part.rows, device=there.slots.device) + part.length)
        rotary = probe.rotary[0][:, rows], probe.rotary[1][:, rows]
        done = single(probe.hidden[:, rows], rotary, own, (number,), first=number)
        alone.append((done.hidden[0], done.logits, done.shares[number].T, *probe.written(own)))
        slot = caches[part.slot]
        slot.update(probe.earlier[0], probe.earlier[1], number)
        slot.mark_video(there.of_layer(number).video[:_PROBE_START])
    groups = layer.self_attn.q_proj.out_features // layer.self_attn.k_proj.out_features
    width = probe.hidden.shape[1]
    layout = Layout.of(_PROBE_PARTS, (0, len(caches), width), width)
    blocks = blocks_of([part.rows for part in _PROBE_PARTS], groups)
    told = told_of(layout, blocks, len(blocks) + 1).to(probe.hidden.device)
    joined = FusedRows(memory, JoinedRows.of(told, width))
    found = single(probe.hidden, probe.rotary, joined, (number,), first=number)
    stored, at = joined.of_layer(number), (joined.rows.sequences, slice(None), joined.rows.places)
    written = stored.keys[at].transpose(0, 1), stored.values[at].transpose(0, 1)
    together = (found.hidden[0], found.logits, found.shares[number].T, *written)
    # Keys and values are by head first.
    whole = [torch.cat(parts, int(place > 2)) for place, parts in enumerate(zip(*alone, strict=True))]
    # A layer that is not watched has a kernel of its own.
    unwatched = single(probe.hidden, probe.rotary, joined, first=number)
    others = ((whole[0], unwatched.hidden[0]), (whole[1], unwatched.logits))
    return [*zip(whole, together, strict=True), *others]


@dataclass(frozen=True)
class _Probe:
    """Inputs for a layer, the same each time, behind keys that are in more than one stretch."""

    hidden: Tensor  # (1, rows, width)
    rotary: tuple[Tensor, Tensor]
    earlier: Tensor  # keys and values, (2, 1, key heads, _PROBE_START, size)
    number: int  # of the layer

    @classmethod
    def of(cls, layer: Any, rows: int) -> _Probe:
        attention = layer.self_attn
        size, draw = attention.head_dim, torch.Generator().manual_seed(attention.layer_idx)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw).to(layer.input_layernorm.weight)

        hidden, turns = drawn(1, rows, attention.q_proj.in_features), drawn(1, rows, size // 2)
        earlier = drawn(2, 1, attention.k_proj.out_features // size, _PROBE_START, size)
        turns = turns.repeat(1, 1, 2)
        return cls(hidden, (turns.cos(), turns.sin()), earlier, attention.layer_idx)

    def rows(self, *others: int) -> FixedRows:
        """A cache that holds what is earlier, and room for the rows.

        :param others: numbers of other layers, for which it holds the same.
        """
        cache, rows = KeyValueCache(), self.hidden.shape[1]
        cache.reserve(_PROBE_START + rows)
        for number in (self.number, *others):
            cache.update(self.earlier[0], self.earlier[1], number)
        cache.mark_video(torch.arange(_PROBE_START, device=self.hidden.device) % 3 == 0)
        return FixedRows(cache, torch.arange(_PROBE_START, _PROBE_START + rows, device=self.hidden.device))

    def written(self, rows: FixedRows) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows."""
        stored = rows.of_layer(self.number)
        return stored.keys[:, rows.slots], stored.values[:, rows.slots]


def _is_close(expected: Tensor, found: Tensor, epsilon: float) -> bool:
    off = (found.float() - expected.float()).abs().max()
    return bool(off <= max(_LEAST_TOLERANCE, _TOLERANCE * epsilon) * expected.float().abs().max())


@torch.inference_mode()
def _is_fast_enough(made: FusedLayers, others: Operations) -> bool:
    """By the products of the first layer, on a GPU, for as many rows as a verification has."""
    layer = made.layers[0]
    products = (layer.projection, layer.output, layer.gate_up, layer.down)
    inputs = [made.norm[0].new_ones(_TIMED_ROWS, part.inputs) for part in products]
    capture = cuda_graphs(inputs[0].device)

    def milliseconds(run: Operations) -> float:
        def multiply() -> StepOutputs:
            for _ in range(_IN_A_ROW):
                for some, part in zip(inputs, products, strict=True):
                    last = run.multiply(some, part.weight, part.bias)
            return StepOutputs(last, last, {})

        return _milliseconds(capture(multiply))  # as in a step: the host launches once

    return pays(milliseconds(made.operations), milliseconds(others))


def _milliseconds(replay: Replay) -> float:
    times = []
    for _ in range(_TIMED):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[_TIMED // 4]


@torch.inference_mode()
def _launched_early(made: FusedLayers, layers: Sequence[Any]) -> FusedLayers:
    """The same by operations that are launched early, where captured passes through all layers then take less
    time, and give the same to the bit every time."""
    early = made.operations.early(made.norm[0].device)
    if early is None:
        return made
    with contextlib.suppress(Exception):  # whatever Triton, a compiler or the device raise
        quick = replace(made, operations=early)
        (expected, before), (found, after) = (captured_passes(one, layers) for one in (made, quick))
        if after < before and all(map(torch.equal, expected, found)):
            return quick
    return made


@torch.inference_mode()
def captured_passes(made: FusedLayers, layers: Sequence[Any]) -> tuple[list[Tensor], float]:
    """What captured passes over three rows give and write, each time anew, and the milliseconds of one.

    :param layers: those of transformers, which the fused ones are made of.
    """
    probe, last = _Probe.of(layers[0], _PROBE_ROWS), len(layers) - 1
    rows = probe.rows(*range(1, last + 1))
    rows.cache.located()  # nothing is told to the device during a capture
    replay = cuda_graphs(made.norm[0].device)(partial(made, probe.hidden, probe.rotary, rows))
    given = list[Tensor]()

    def kept() -> StepOutputs:
        found = replay()
        given.append(found.logits.clone())
        return found

    milliseconds = _milliseconds(kept)
    stored = rows.of_layer(last)
    return [*given, stored.keys[:, rows.slots], stored.values[:, rows.slots]], milliseconds


def pays(own: float, others: float) -> bool:
    """Whether products of our own, which took so long, are taken rather than others."""
    return own <= _SLOWER_BY * others
