"""The families of Video-LLMs, one small file each, and the table of families by model type."""

from __future__ import annotations

from lvspec_cli.errors import PairError
from lvspec_cli.models.families.base import Family
from lvspec_cli.models.families.internvl import InternVL
from lvspec_cli.models.families.llava_next_video import LlavaNextVideo
from lvspec_cli.models.families.llava_onevision import LlavaOnevision
from lvspec_cli.models.families.qwen2_5_vl import Qwen2_5VL
from lvspec_cli.models.families.qwen3_5 import Qwen3_5, Qwen3_5Moe
from lvspec_cli.models.families.qwen3_vl import Qwen3VL
from lvspec_cli.models.families.smolvlm import SmolVLM

_ALL = (
    Qwen2_5VL(),
    Qwen3VL(),
    Qwen3_5(),
    Qwen3_5Moe(),
    LlavaOnevision(),
    LlavaNextVideo(),
    SmolVLM(),
    InternVL(),
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}


def family_of(model_type: str, source: str) -> Family:
    """The family of a config's ``model_type``.

    :raises PairError: the family is not supported.
    """
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise PairError(
            f"{source} is a {model_type or 'nameless'} model, a family that is not supported",
            f"choose a pair of one of these: {known}",
        ) from None
