"""The vision tower computed otherwise for training: the same numbers, much sooner."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision


def use_linear_patches(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Compute the patch embedding, a convolution that never overlaps, as the product that it is.

    The gradient of the convolution alone takes a fifth of a training step on a CPU.
    """
    embed = model.model.visual.patch_embed

    def product(pixels: Tensor) -> Tensor:
        return functional.linear(pixels, embed.proj.weight.flatten(1))

    embed.forward = product


def use_padded_slices(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Attend within all slices of a batch at once, padded to the longest.

    transformers attends slice by slice: a thousand calls a step, which a GPU mostly waits for.
    """
    for block in model.model.visual.blocks:
        block.attn.forward = partial(_attend, block.attn)


def _attend(
    attention: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> Tensor:
    """What the layer makes of hidden states (P, width), whose slices begin and end at ``cu_seqlens``."""
    count, heads = hidden_states.shape[0], attention.num_heads
    query, key, value = attention.qkv(hidden_states).reshape(count, 3, heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    lengths = cu_seqlens.diff()
    there = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]

    def padded(rows: Tensor) -> Tensor:
        filled = rows.new_zeros(*there.shape, *rows.shape[1:])
        filled[there] = rows
        return filled.transpose(1, 2)

    attended = functional.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), attn_mask=there[:, None, None]
    )
    rows: Tensor = attention.proj(attended.transpose(1, 2)[there].flatten(1))
    return rows
