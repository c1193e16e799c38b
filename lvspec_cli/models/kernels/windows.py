"""Attention of video towers within frames or windows: one call for all windows of one length.

transformers calls torch's attention once for each window in each layer: 14,464 times for 64 frames of
448 x 448 in Qwen2.5-VL's tower, which costs a GPU's host more time than the attention itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_PARTS = ("qkv", "proj", "num_heads", "scaling", "config")  # that a tower's attention has to have
_ARGUMENTS = {"cu_seqlens", "position_embeddings"}  # and those of its forward
_PROBE = (0, 4, 8, 10, 14)  # where windows begin and end: two lengths, mixed
_TOLERANCE = 4  # times the dtype's precision; on a GPU another kernel may be taken for several windows


@dataclass(frozen=True)
class Windows:
    """All windows of one length. ``rows``: long (windows * length,), where their rows are; None: all rows."""

    length: int
    rows: Tensor | None = None


def windows_of(bounds: Tensor) -> tuple[Windows, ...]:
    """Windows by length.

    :param bounds: where windows begin and end, ascending from 0, (windows + 1,). They are read on the host.
    """
    starts = bounds.cpu().long()
    lengths = starts.diff()
    kinds = [length for length in lengths.unique().tolist() if length]
    if len(kinds) == 1 and int(lengths.min()):
        return (Windows(kinds[0]),)
    return tuple(
        Windows(
            length, (starts[:-1][lengths == length, None] + torch.arange(length)).flatten().to(bounds.device)
        )
        for length in kinds
    )


def attend_in_windows(
    query: Tensor, key: Tensor, value: Tensor, windows: Sequence[Windows], scaling: float
) -> Tensor:
    """Attention of each row to the rows of its own window. All tensors are (rows, heads, head size)."""
    output = torch.empty_like(query)
    for group in windows:
        rows = slice(None) if group.rows is None else group.rows
        queries, keys, values = (
            part[rows].unflatten(0, (-1, group.length)).transpose(1, 2) for part in (query, key, value)
        )
        attended = scaled_dot_product_attention(queries, keys, values, scale=scaling)
        output[rows] = attended.transpose(1, 2).flatten(0, 1)
    return output


class WindowAttention(nn.Module):
    """A tower's attention with the weights, names and arguments of transformers' own."""

    def __init__(self, old: Any, rotate: Callable[..., tuple[Tensor, Tensor]], plan: Any) -> None:
        """
        :param rotate: the tower's rotary embedding of queries and keys.
        :param plan: :func:`windows_of`, remembered for the bounds that a tower gives to all of its layers:
            they are read on the host once a clip, not once a layer.
        """
        super().__init__()
        self.qkv, self.proj, self.config = old.qkv, old.proj, old.config
        self._heads, self._scaling = old.num_heads, old.scaling
        self._rotate, self._plan = rotate, plan
        self.train(old.training)

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any
    ) -> Tensor:
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self._heads, -1)).unbind(1)
        query, key = self._rotate(query, key, *position_embeddings)
        output = attend_in_windows(query, key, value, self._plan(cu_seqlens), self._scaling)
        return self.proj(output.flatten(1))


def join_windows(model: Any) -> int:
    """Replace the attention of a video tower that is called once for each window; in place.

    Weights are shared. On a CPU the results are the same to the bit. A module that would compute something
    else stays, as does one that uses flash-attn, which takes all windows at once. Returns the number of
    replaced modules.
    """
    plan, joined = lru_cache(maxsize=2)(windows_of), 0  # whole frames, and windows of them
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("VisionAttention") and (new := _joined(module, plan)) is not None:
            model.set_submodule(name, new)
            joined += 1
    return joined


@torch.inference_mode()
def _joined(old: Any, plan: Any) -> WindowAttention | None:
    """The module's replacement; None if it would not compute the same."""
    rotate = getattr(sys.modules[type(old).__module__], "apply_rotary_pos_emb_vision", None)
    takes = set(signature(type(old).forward).parameters)
    is_known = all(hasattr(old, part) for part in _PARTS) and takes >= _ARGUMENTS
    # On Apple's GPUs torch keeps all scores of a call, which for the windows of a whole video are many.
    if (
        rotate is None
        or not is_known
        or old.config._attn_implementation != "sdpa"
        or old.qkv.weight.device.type == "mps"
    ):
        return None
    new = WindowAttention(old, rotate, plan)
    weight, width = old.qkv.weight, old.qkv.in_features
    probe = torch.linspace(-2, 2, _PROBE[-1] * width, device=weight.device, dtype=weight.dtype)
    turns = torch.linspace(0, 3, _PROBE[-1] * width // old.num_heads, device=weight.device)
    turns = turns.view(_PROBE[-1], -1).to(weight.dtype)
    bounds = torch.tensor(_PROBE, device=weight.device, dtype=torch.int32)
    inputs = {"cu_seqlens": bounds, "position_embeddings": (turns.cos(), turns.sin())}
    expected, actual = (part(probe.view(-1, width), **inputs) for part in (old, new))
    if weight.device.type == "cpu":
        return new if torch.equal(actual, expected) else None
    tolerance = _TOLERANCE * torch.finfo(weight.dtype).eps * float(expected.abs().max())
    return new if torch.allclose(actual, expected, rtol=0, atol=tolerance) else None
