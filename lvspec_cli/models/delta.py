"""Layers of the gated delta rule (Qwen3.5) with a state that can be rolled back.

In the place of keys and values of all rows such a layer keeps one matrix S a head (Yang, Kautz and
Hatamizadeh, arXiv 2412.06464): with q, k, v the query, key and value of row t, g its decay (log) and b its
rate,

    u_t = b_t (v_t - exp(g_t) S' k_t),    S_t = exp(g_t) S + k_t u_t',    o_t = S_t' q_t

A state cannot be taken back. So it is brought forward over rows that stay for certain, and the newest rows
are kept beside it as k, u and c, the sum of their decays since S. For these the formula reads

    u_t = b_t (v_t - exp(c_t) S' k_t - sum over j < t of exp(c_t - c_j) (k_t . k_j) u_j)
    o_t = exp(c_t) S' q_t + sum over j <= t of exp(c_t - c_j) (q_t . k_j) u_j

where nothing depends on later rows: forgetting the last ones is moving a number, as with keys and values.
No weights are read again, and no state is copied. Later S takes in the oldest m of them,

    S <- exp(c_m) S + sum over j <= m of exp(c_m - c_j) k_j u_j'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, silu, softplus

PASS_ROWS = 80  # rows of a pass that can be rolled back; longer ones are part of a prompt
KEPT_ROWS = 80  # newest rows that stay outside the state: a round takes back at most gamma + 1 = 65
BUFFER = KEPT_ROWS + PASS_ROWS  # newest rows that there is room for

Count = int | Tensor  # of newest rows; where passes are captured it is known on the device only: long, ()


@dataclass(frozen=True)
class Rows:
    """What a layer computes of rows, float32; the number of key heads divides that of heads."""

    queries: Tensor  # (key heads, rows, key size), scaled
    keys: Tensor  # (key heads, rows, key size)
    values: Tensor  # (heads, rows, value size)
    decays: Tensor  # g, (heads, rows)
    rates: Tensor  # b, (heads, rows)

    def split(self, length: int) -> Iterator[Rows]:
        """Pieces of so many rows, the last one of what is left."""
        parts = (self.queries, self.keys, self.values, self.decays, self.rates)
        for pieces in zip(*(part.split(length, dim=1) for part in parts), strict=True):
            yield Rows(*pieces)


@dataclass(frozen=True)
class Newest:
    """Rows that the state has not taken in."""

    keys: Tensor  # k, (key heads, rows, key size)
    updates: Tensor  # u, (heads, rows, value size)
    sums: Tensor  # c, (heads, rows)

    @classmethod
    def blank(cls, state: Tensor, key_heads: int, length: int) -> Newest:
        heads, key_size, value_size = state.shape
        return cls(
            state.new_zeros(key_heads, length, key_size),
            state.new_zeros(heads, length, value_size),
            state.new_zeros(heads, length),
        )

    def part(self, start: int, end: int) -> Newest:
        """Some of the rows, in the same memory."""
        return Newest(self.keys[:, start:end], self.updates[:, start:end], self.sums[:, start:end])


def attended(
    state: Tensor, newest: Newest, before: Tensor, rows: Rows, is_newest: Tensor | None = None
) -> tuple[Tensor, Newest]:
    """Outputs of new rows, float32 (heads, rows, value size), and what is kept of them.

    :param state: S, (heads, key size, value size).
    :param before: c of the last of the newest rows, 0 where there are none, (heads, 1).
    :param is_newest: which rows of ``newest`` there are, bool; None: all.
    """
    sums, length = before + rows.decays.cumsum(dim=1), rows.keys.shape[1]
    is_earlier = torch.ones(length, length, dtype=torch.bool, device=state.device).tril()
    factors, rates = sums.exp().unsqueeze(2), rows.rates.unsqueeze(2)
    # Of later rows, which do not count, the differences may overflow.
    old_spans = _spans(sums, newest.sums, is_newest)
    new_spans = _spans(sums, sums, is_earlier)
    by_old_keys = _per_head(rows.keys @ newest.keys.transpose(1, 2), state) * old_spans
    by_new_keys = _per_head(rows.keys @ rows.keys.transpose(1, 2), state) * new_spans
    predicted = factors * (_per_head(rows.keys, state) @ state) + by_old_keys @ newest.updates
    updates = (rows.values - predicted) * rates
    if length > 1:  # u of a row needs those of the rows before it: a triangular system, ones on its diagonal
        updates = torch.linalg.solve_triangular(
            by_new_keys.tril(-1) * rates, updates, upper=False, unitriangular=True
        )
    by_old = _per_head(rows.queries @ newest.keys.transpose(1, 2), state) * old_spans
    by_new = _per_head(rows.queries @ rows.keys.transpose(1, 2), state) * new_spans
    outputs = factors * (_per_head(rows.queries, state) @ state) + by_old @ newest.updates + by_new @ updates
    return outputs, Newest(rows.keys, updates, sums)


def _spans(sums: Tensor, others: Tensor, allowed: Tensor | None) -> Tensor:
    """How much of other rows is left at rows: (heads, rows, others), 0 where it is not allowed."""
    spans = sums.unsqueeze(2) - others.unsqueeze(1)
    return spans.exp() if allowed is None else spans.masked_fill(~allowed, float("-inf")).exp()


def _per_head(by_key_head: Tensor, state: Tensor) -> Tensor:
    """What belongs to a key head, for each of the heads that share it."""
    groups = state.shape[0] // by_key_head.shape[0]
    return by_key_head.repeat_interleave(groups, dim=0) if groups > 1 else by_key_head


def moved(state: Tensor, rows: Newest) -> Tensor:
    """S behind rows that follow it."""
    last = rows.sums[:, -1:]
    weighted = rows.updates * (last - rows.sums).exp().unsqueeze(2)
    return state * last.exp().unsqueeze(2) + _per_head(rows.keys.transpose(1, 2), state) @ weighted


class LayerState:
    """One layer's state and newest rows, for one sequence. Its memory stays: captured passes use it."""

    def __init__(self, state: Tensor, key_heads: int, channels: Tensor) -> None:
        """
        :param state: S, float32 (heads, key size, value size).
        :param channels: inputs of the convolution before the first row, (kernel size - 1, channels).
        """
        self._state = state
        self._newest = Newest.blank(state, key_heads, BUFFER)
        self._before = channels.shape[0]
        self._channels = channels.new_zeros(self._before + BUFFER, channels.shape[1])
        self._channels[: self._before] = channels

    def tail(self, count: Count) -> Tensor:
        """Inputs of the convolution before the row behind ``count`` newest ones.

        (kernel size - 1, channels).
        """
        if isinstance(count, int):
            return self._channels[count : count + self._before]
        return self._channels.index_select(0, count + torch.arange(self._before, device=count.device))

    def run(self, rows: Rows, channels: Tensor, count: Count) -> Tensor:
        """Outputs of new rows behind ``count`` newest ones, float32 (heads, rows, value size).

        :param channels: the new rows' inputs of the convolution, (rows, channels).
        """
        length = rows.keys.shape[1]
        if length > PASS_ROWS:
            return self._run_long(rows, channels)
        if not isinstance(count, int):
            return self._run_fixed(rows, channels, count)
        newest = self._newest.part(0, count)
        before = newest.sums[:, -1:] if count else newest.sums.new_zeros(len(newest.sums), 1)
        outputs, new = attended(self._state, newest, before, rows)
        self._write(self._newest.part(count, count + length), new)
        self._channels[self._before + count : self._before + count + length] = channels
        return outputs

    def _run_fixed(self, rows: Rows, channels: Tensor, count: Tensor) -> Tensor:
        """The same, with nothing that the host would have to know of ``count``."""
        newest, places = self._newest, torch.arange(BUFFER, device=count.device)
        is_newest = places < count
        before = newest.sums.gather(1, (count - 1).clamp(min=0).expand(len(newest.sums), 1)) * (count > 0)
        outputs, new = attended(self._state, newest, before, rows, is_newest)
        written = count + torch.arange(len(channels), device=count.device)
        for store, values in (
            (newest.keys, new.keys),
            (newest.updates, new.updates),
            (newest.sums, new.sums),
        ):
            store.index_copy_(1, written, values)
        self._channels.index_copy_(0, self._before + written, channels)
        return outputs

    def _run_long(self, rows: Rows, channels: Tensor) -> Tensor:
        """Rows that stay, with no newest ones before them: each piece goes into the state before the next."""
        self._channels[: self._before] = torch.cat((self.tail(0), channels))[-self._before :]
        none, outputs = self._newest.part(0, 0), []
        before = none.sums.new_zeros(len(none.sums), 1)
        for piece in rows.split(PASS_ROWS):
            output, new = attended(self._state, none, before, piece)
            self._state.copy_(moved(self._state, new))
            outputs.append(output)
        return torch.cat(outputs, dim=1)

    @staticmethod
    def _write(store: Newest, values: Newest) -> None:
        store.keys.copy_(values.keys)
        store.updates.copy_(values.updates)
        store.sums.copy_(values.sums)

    def settle(self, settled: int, count: int) -> None:
        """Take the oldest ``settled`` of ``count`` newest rows into the state; the others move up."""
        if not settled:
            return
        oldest = self._newest.part(0, settled)
        last, others = oldest.sums[:, -1:].clone(), self._newest.part(settled, count)
        self._state.copy_(moved(self._state, oldest))
        others = Newest(others.keys.clone(), others.updates.clone(), others.sums - last)
        self._write(self._newest.part(0, count - settled), others)
        self._channels[: self._before + count - settled] = self._channels[
            settled : self._before + count
        ].clone()

    def snapshot(self) -> tuple[Tensor, Tensor]:
        """What ``restore`` needs, of a layer without newest rows."""
        return self._state.clone(), self.tail(0).clone()

    def restore(self, snapshot: tuple[Tensor, Tensor]) -> None:
        """As it was at the snapshot."""
        state, channels = snapshot
        self._state.copy_(state)
        self._channels[: self._before] = channels

    def reset(self) -> None:
        """As before the first row."""
        self._state.zero_()
        self._channels[: self._before].zero_()

    @property
    def bytes(self) -> int:
        newest = self._newest
        parts = (self._state, newest.keys, newest.updates, newest.sums, self._channels)
        return sum(part.numel() * part.element_size() for part in parts)


class LayerStates:
    """The states of a model's delta rule layers, all at the same row of one sequence; of most models none.

    ``length`` is the cache's: how many rows there are; the states stand at ``settled`` of them.
    """

    def __init__(self) -> None:
        self.settled = 0
        self._on_devices: dict[torch.device, Tensor] = {}
        self._layers: dict[int, LayerState] = {}
        self._marks: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}  # by length

    def of(self, layer: int, blank: Callable[[], LayerState]) -> LayerState:
        """The layer's; one that ``blank`` makes where it has none yet."""
        if layer not in self._layers:
            self._layers[layer] = blank()
        return self._layers[layer]

    def settled_on(self, device: torch.device) -> Tensor:
        """``settled`` in memory of a device, long (), where it is always kept right."""
        if device not in self._on_devices:
            self._on_devices[device] = torch.tensor(self.settled, device=device)
        return self._on_devices[device]

    def _set(self, settled: int) -> None:
        self.settled = settled
        for known in self._on_devices.values():
            known.fill_(settled)

    def before(self, length: int, rows: int) -> None:
        """Make room for a pass of so many rows behind ``length`` others."""
        if not self._layers:
            return
        count = length - self.settled
        if rows > PASS_ROWS:
            self._settle(count, count)
        elif count + rows > BUFFER:
            self._settle(count - KEPT_ROWS, count)

    def after(self, length: int, rows: int) -> None:
        """A pass of so many rows has been run, with which there are ``length``."""
        if rows > PASS_ROWS and self._layers:
            self._set(length)

    def mark(self, length: int) -> None:
        """Remember the states at ``length``, where all rows stay: ``rollback`` may come back to them."""
        if not self._layers:
            return
        self._settle(length - self.settled, length - self.settled)
        self._marks[length] = {layer: state.snapshot() for layer, state in self._layers.items()}

    def rollback(self, length: int) -> None:
        """Forget the rows from ``length`` on.

        :raises ValueError: the states have taken in rows behind it, and it is not where they were marked.
        """
        if not length:
            self._set(0)
            for state in self._layers.values():
                state.reset()
        elif length < self.settled:
            if length not in self._marks:
                raise ValueError(f"cannot roll back to {length}: the states hold {self.settled} rows")
            self._set(length)
            for layer, snapshot in self._marks[length].items():
                self._layers[layer].restore(snapshot)
        self._marks = {marked: states for marked, states in self._marks.items() if 0 < marked <= length}

    def _settle(self, settled: int, count: int) -> None:
        for state in self._layers.values():
            state.settle(settled, count)
        self._set(self.settled + settled)

    @property
    def bytes(self) -> int:
        return sum(state.bytes for state in self._layers.values())


class GatedDelta(nn.Module):
    """A delta rule layer of transformers, its weights as they are, over a cache of ours.

    With any other cache, as in transformers' own ``generate``, it is the layer that it was.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(
        self, hidden_states: Tensor, cache: Any = None, *, cache_params: Any = None, **more: Any
    ) -> Any:
        """(1, rows, width) to the same. A mask is for padding, which there is none of.

        The rows may be of several sequences (``JoinedCaches``): then each has a state of its own.

        :param cache_params: the cache, as transformers before 5.24 has it.
        """
        cache = cache_params if cache is None else cache
        caches, rows = getattr(cache, "caches", (cache,)), getattr(cache, "rows", hidden_states.shape[1])
        if not isinstance(getattr(caches[0], "states", None), LayerStates):
            return self.layer(hidden_states, cache, **more)
        layer, channels = self.layer, self.layer.in_proj_qkv(hidden_states)[0]
        parts = zip(caches, hidden_states.split(rows, 1), channels.split(rows), strict=True)
        outputs = torch.cat([self._attended(*part) for part in parts]).to(hidden_states.dtype)
        gates = layer.in_proj_z(hidden_states).reshape(-1, layer.head_v_dim)
        normed = layer.norm(outputs.reshape(-1, layer.head_v_dim), gates)
        return layer.out_proj(normed.reshape(1, hidden_states.shape[1], -1))

    def _attended(self, cache: Any, hidden: Tensor, channels: Tensor) -> Tensor:
        """Outputs of the rows of one sequence, float32 (rows, heads, value size)."""
        count = cache.newest_rows()
        state = cache.states.of(self.layer.layer_idx, partial(self._blank, hidden))
        rows = self._rows(hidden, torch.cat((state.tail(count), channels)))
        return state.run(rows, channels, count).transpose(0, 1)

    def _blank(self, like: Tensor) -> LayerState:
        layer = self.layer
        shape = (layer.num_v_heads, layer.head_k_dim, layer.head_v_dim)
        state = torch.zeros(shape, dtype=torch.float32, device=like.device)
        return LayerState(
            state, layer.num_k_heads, like.new_zeros(layer.conv_kernel_size - 1, layer.conv_dim)
        )

    def _rows(self, hidden: Tensor, channels: Tensor) -> Rows:
        """As transformers computes them. ``channels``: of the rows, and of those before that count."""
        layer, weight = self.layer, self.layer.conv1d.weight
        mixed = conv1d(channels.T[None].to(weight.dtype), weight, layer.conv1d.bias, groups=channels.shape[1])
        mixed = silu(mixed)[0].T.to(channels.dtype)
        sizes = [layer.key_dim, layer.key_dim, layer.value_dim]
        queries, keys, values = (part.float() for part in mixed.split(sizes, dim=1))
        queries, keys = (
            unit(part.view(len(mixed), layer.num_k_heads, layer.head_k_dim)).transpose(0, 1)
            for part in (queries, keys)
        )
        values = values.view(len(mixed), layer.num_v_heads, layer.head_v_dim).transpose(0, 1)
        rates = layer.in_proj_b(hidden)[0].sigmoid().float()
        decays = -layer.A_log.float().exp() * softplus(layer.in_proj_a(hidden)[0].float() + layer.dt_bias)
        return Rows(queries * layer.head_k_dim**-0.5, keys, values, decays.T, rates.T)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, as the layer has them."""
    return vectors * torch.rsqrt((vectors * vectors).sum(dim=-1, keepdim=True) + 1e-6)


def take_states(layers: Any) -> None:
    """Puts :class:`GatedDelta` in the place of the delta rule layers among decoder layers."""
    for layer in layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn = GatedDelta(layer.linear_attn)


def state_bytes(keys: tuple[int, int], values: tuple[int, int], kernel_size: int) -> int:
    """Bytes of one layer's state, of the copy at the end of the video, and of the newest rows.

    In float32 there is another copy, at the end of the prompt; it is small beside such weights.

    :param keys: number and size of the key heads; ``values`` likewise.
    """
    (key_heads, key_size), (heads, value_size) = keys, values
    state, newest = heads * key_size * value_size, key_heads * key_size + heads * (value_size + 1)
    channels = 2 * key_heads * key_size + heads * value_size
    return 4 * (2 * state + BUFFER * newest + (kernel_size - 1 + BUFFER) * channels)
