"""Qwen3.5, 3.6 and 3.8: three of four layers keep a state and no keys and values, the fourth has a gate.

The video enters as in Qwen3-VL, times as text before every pair of frames, but at the first layer only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lvspec_cli.models.delta import state_bytes, take_states
from lvspec_cli.models.families.base import Rotary, VideoFeatures, rotated
from lvspec_cli.models.families.qwen3_vl import Qwen3VL


class Qwen3_5(Qwen3VL):  # noqa: N801 - the family's own name
    model_type = "qwen3_5"
    has_states = True

    def prepare(self, model: Any) -> None:
        take_states(self.layers(model))

    def prediction_parts(self, text: Any) -> tuple[nn.Module, Callable[[], nn.Module]] | None:
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

        return Qwen3_5DecoderLayer(text, 0), partial(Qwen3_5RMSNorm, text.hidden_size, text.rms_norm_eps)

    def attention_layers(self, config: Any) -> tuple[int, ...]:
        kinds = config.get_text_config().layer_types
        return tuple(index for index, kind in enumerate(kinds) if kind == "full_attention")

    def state_bytes(self, config: Any) -> int:
        text = config.get_text_config()
        layers = text.num_hidden_layers - len(self.attention_layers(config))
        return layers * state_bytes(
            (text.linear_num_key_heads, text.linear_key_head_dim),
            (text.linear_num_value_heads, text.linear_value_head_dim),
            text.linear_conv_kernel_dim,
        )

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        outputs = model.model.get_video_features(
            video_inputs["pixel_values_videos"], video_inputs["video_grid_thw"], return_dict=True
        )
        return VideoFeatures(torch.cat(tuple(outputs.pooler_output)))

    def queries(self, model: Any, layer: int, hidden: Tensor, rotary: Rotary) -> Tensor:
        """Each head's query has its gate behind it, and only its first part is rotated."""
        block = self.layers(model)[layer]
        attention = block.self_attn
        rows = attention.q_proj(block.input_layernorm(hidden))
        rows = rows.view(1, hidden.shape[1], -1, 2 * attention.head_dim)[..., : attention.head_dim]
        return rotated(attention.q_norm(rows).transpose(1, 2), rotary)


class Qwen3_5Moe(Qwen3_5):  # noqa: N801 - the family's own name
    """The same with experts in the place of each MLP, such as Qwen3.5-35B-A3B. They are not packed."""

    model_type = "qwen3_5_moe"
    waits_for_host = True  # to know which experts the rows go to

    def prediction_parts(self, text: Any) -> None:
        """Its files' prediction layer has experts, too, which ``models.mtp`` does not read."""

    def active_experts(self, config: Any) -> float:
        text = config.get_text_config()
        return float(text.num_experts_per_tok / text.num_experts)

    def mlp_width(self, config: Any) -> int:
        """Of its experts and the shared one, and copies of its input and output for each of its experts.

        The plan has three values for each of this width.
        """
        text = config.get_text_config()
        copies = 2 * text.num_experts_per_tok * text.hidden_size // 3
        experts = text.num_experts_per_tok * text.moe_intermediate_size
        return int(experts + text.shared_expert_intermediate_size + copies)
