"""Qwen3-VL: a time as text before each pair of frames, and features for the first layers (DeepStack)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.families.base import Family, VideoFeatures
from lvspec_cli.types import VisionSize


class Qwen3VL(Family):
    model_type = "qwen3_vl"

    def position_ids(self, model: Any, input_ids: Tensor, video_inputs: Mapping[str, Tensor]) -> Tensor:
        """Positions (3, 1, length). Text advances by 1 a token, each block of frames by its larger side."""
        kinds = (input_ids == self.video_token(model)).long() * 2
        grid = video_inputs["video_grid_thw"]
        positions, _ = model.model.get_rope_index(input_ids, kinds, video_grid_thw=grid)
        return positions

    def answer_positions(self, start: int, count: int, device: torch.device) -> Tensor:
        return torch.arange(start, start + count, device=device).expand(3, 1, -1)

    def vision_size(self, config: Any) -> VisionSize:
        vision = config.vision_config
        sizes = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        # Each pair of frames has its time as text before it.
        return VisionSize(vision.hidden_size, vision.intermediate_size, *sizes, text_a_frame=5, rotates=True)

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        outputs = model.model.get_video_features(
            video_inputs["pixel_values_videos"], video_inputs["video_grid_thw"], return_dict=True
        )
        # Early releases of transformers 5 do not split the features for the first layers by video.
        deeper = (
            part if isinstance(part, Tensor) else torch.cat(part) for part in outputs.deepstack_features
        )
        return VideoFeatures(torch.cat(tuple(outputs.pooler_output)), tuple(deeper))
