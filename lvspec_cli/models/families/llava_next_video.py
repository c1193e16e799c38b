"""LLaVA-NeXT-Video: pooled frames one after the other, plain positions, no times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lvspec_cli.models.families.base import Family, VideoFeatures
from lvspec_cli.types import VisionSize


class LlavaNextVideo(Family):
    model_type = "llava_next_video"

    def vision_size(self, config: Any) -> VisionSize:
        vision, merge = super().vision_size(config), config.spatial_pool_stride
        return replace(vision, merge=merge, tokens_a_frame=(math.isqrt(vision.patches(1, 0)) // merge) ** 2)

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        outputs = model.model.get_video_features(
            video_inputs["pixel_values_videos"],
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            return_dict=True,
        )
        # (1, tokens, width); in early releases of transformers 5 one tensor (frames, tokens, width) a clip.
        return VideoFeatures(outputs.pooler_output[0].reshape(count, -1))
