"""LLaVA-OneVision: pooled frames one after the other, then a newline token; plain positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.families.base import Family, VideoFeatures
from lvspec_cli.types import VisionSize


class LlavaOnevision(Family):
    model_type = "llava_onevision"
    float16_is_safe = True  # its files are float16

    def vision_size(self, config: Any) -> VisionSize:
        vision = super().vision_size(config)
        side = math.isqrt(vision.patches(1, 0))
        # Pooling halves each side, rounded up.
        return replace(vision, merge=2, tokens_a_frame=((side + 1) // 2) ** 2)

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        inner: Any = model.model
        config: Any = model.config
        outputs = inner.get_video_features(
            video_inputs["pixel_values_videos"].to(inner.image_newline.dtype),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        )
        features = outputs.pooler_output.flatten(0, 1)
        if len(features) == count - 1:
            # Early releases of transformers 5 add the newline in the model's forward.
            features = torch.cat((features, inner.image_newline[None].to(features)))
        return VideoFeatures(features)
