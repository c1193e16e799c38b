"""From flags to what is asked of the video and of the decoding: the same for every command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvspec_cli.errors import UsageError
from lvspec_cli.types import DecodeSettings, Mode, RuleSettings, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.registry import Defaults, Pair

LEAST_TEMPERATURE = 1e-3  # logits divided by less are beyond what half precision holds


def quieten_libraries() -> None:
    """Their advice to programmers is not for the user's terminal. Errors still come through."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # where torchao is installed
    warnings.simplefilter("ignore")


def loading_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags say of how the pair is loaded, as fields of an AskRequest."""
    return {name: given[name] for name in ("quant_target", "quant_draft", "draft_device", "cuda_graphs")}


def video_request(given: Mapping[str, Any], defaults: Defaults) -> VideoRequest:
    """What the flags ask of the video, the pair's defaults where they are silent.

    :raises UsageError: a value is out of range.
    """
    from lvspec_cli.video.times import parse_time

    start, end = (parse_time(given[name]) if given[name] is not None else None for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise UsageError("--end is not after --start", "choose a later end")
    _check(given, "fps", above=0.0)
    _check(given, "decode_timeout", above=0.0, most=1e6)
    sampled = given["frames"] is not None or given["fps"] is not None
    return VideoRequest(
        path=Path(given["video"]),
        start=start,
        end=end,
        max_frames=given["frames"] if sampled else defaults.frames,
        fps=given["fps"] if sampled else defaults.fps,
        max_pixels=given["max_pixels"] or defaults.max_pixels,
        decoder=given["decoder"],
        background=_colour(given.get("background", "black")),
        timeout=given["decode_timeout"],
    )


def _colour(text: str) -> tuple[int, int, int]:
    """RGB of a colour's name or of its #rrggbb."""
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        alpha = [0]
    if alpha:
        raise UsageError(f"--background {text} is not an opaque colour", "give a name or #rrggbb")
    return red, green, blue


def decode_settings(given: Mapping[str, Any], pair: Pair) -> DecodeSettings:
    """How the flags want answers decoded, the pair's defaults where they are silent.

    :raises UsageError: a value is out of range, or flags do not go together.
    """
    from lvspec_cli.registry import settings_of_pair

    _check(given, "temperature", least=0.0, most=100.0)
    if 0 < given["temperature"] < LEAST_TEMPERATURE:
        raise UsageError(
            f"--temperature {given['temperature']:g} is out of range", "give 0 for greedy, or 0.001 and more"
        )
    _check(given, "draft_keep", above=0.0, most=1.0)
    if given["temperature"] > 0 and given["mode"] is Mode.LVSPEC:
        raise UsageError("--temperature has no rule in mode lvspec yet", "add --mode exact or --mode ar")
    defaults, fallback = settings_of_pair(pair), given.get("fallback")
    return replace(
        defaults,
        mode=given["mode"],
        gamma=given["gamma"] or defaults.gamma,
        fallback=defaults.fallback if fallback is None else fallback,
        rule=_rule(given, pair),
        max_new_tokens=given["max_new_tokens"] or defaults.max_new_tokens,
        temperature=given["temperature"],
        seed=given["seed"],
        draft_keep=given["draft_keep"],
        draft_keep_by=given.get("draft_keep_by", defaults.draft_keep_by),
    )


def _rule(given: Mapping[str, Any], pair: Pair) -> RuleSettings:
    from dataclasses import asdict, fields

    from pydantic import TypeAdapter, ValidationError

    from lvspec_cli.registry import rule_of

    flags = {field.name: given.get(field.name) for field in fields(RuleSettings)}
    flags["layers"] = given["layer"] or None
    changes = {name: value for name, value in flags.items() if value is not None}
    try:
        return TypeAdapter(RuleSettings).validate_python(
            {**asdict(rule_of(pair, given["looseness"])), **changes}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{flag}: {first['msg']}, not {first['input']}", "see --help") from None


def _check(
    given: Mapping[str, Any],
    name: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """A number that has a range: NaN and infinity are in none."""
    value = given[name]
    if value is not None and not (math.isfinite(value) and value > above and least <= value <= most):
        bound = f"above {above:g}" if above > -math.inf else f"{least:g} or more"
        end = f", {most:g} at most" if most < math.inf else ""
        raise UsageError(
            f"--{name.replace('_', '-')} {value:g} is out of range", f"give a number {bound}{end}"
        )
