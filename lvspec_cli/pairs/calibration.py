"""What was measured of a pair on a user's own clips, and the rule's numbers that follow from it.

Margins in nats do not carry over from pair to pair, because a larger target is surer; percentiles of the gaps
at which its draft differs do. So models.yaml has percentiles, which take effect when the pair was measured
(``lvspec tune --calibrate``). The measurement is kept in the user's state folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvspec_cli.text_file import SETTINGS, read_own
from lvspec_cli.types import RelevanceName, RuleSettings

Share = Annotated[float, Ge(0), Le(1)]


class PairCalibration(BaseModel):
    """What captions in mode exact showed of a pair.

    ``gaps``: percentiles 0, 5, ... 100 of the gaps in nats between the target's own token and the draft's,
    where they differ. ``layer``: the one whose attention to the video tells rare tokens from frequent ones
    best, with that AUC; None if no layer attends. ``thresholds``: for each relevance that can be calibrated,
    the score that the ``relaxed`` least relevant tokens have at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["lvspec.calibration.1"] = Field(default="lvspec.calibration.1", alias="schema")
    target: str = ""  # the models, as models.yaml names them, with their revisions
    draft: str = ""
    created: str = ""  # a date
    captions: Annotated[int, Ge(1)]
    tokens: Annotated[int, Ge(1)]
    mismatches: Annotated[int, Ge(1)]
    gaps: Annotated[tuple[Annotated[float, Ge(0)], ...], Len(21, 21)]
    relaxed: Share  # share of frequent tokens: how a caption is worded, and not what it tells
    layer: int | None
    layer_auc: float | None
    attention_scale: Annotated[float, Gt(0), Le(1)]
    thresholds: Mapping[RelevanceName, Share]

    def margin(self, percentile: float) -> float:
        """The gap in nats that so many per cent of the mismatches have at most, by linear interpolation."""
        place = min(max(percentile, 0.0), 100.0) / 100 * (len(self.gaps) - 1)
        below = min(int(place), len(self.gaps) - 2)
        low, high = self.gaps[below], self.gaps[below + 1]
        return low + (high - low) * (place - below)


def calibrated(
    rule: RuleSettings,
    calibration: PairCalibration,
    *,
    anchor: float | None = None,
    filler: float | None = None,
) -> RuleSettings:
    """The rule with measured numbers in the place of fixed ones.

    :param anchor: the margin of anchors, as a percentile of the gaps; None: its nats stay.
    :param filler: the same for the margin of fillers.
    """
    if anchor is not None:
        rule = replace(rule, anchor_margin=round(calibration.margin(anchor), 3))
    if filler is not None:
        rule = replace(rule, filler_margin=round(calibration.margin(filler), 3))
    if rule.relevance is RelevanceName.PAPER:
        return replace(rule, anchor_threshold=calibration.relaxed)
    if rule.relevance not in calibration.thresholds:
        return rule
    rule = replace(rule, anchor_threshold=calibration.thresholds[rule.relevance])
    if rule.relevance is RelevanceName.RANK or calibration.layer is None:
        return rule
    return replace(rule, layers=(calibration.layer,), attention_scale=calibration.attention_scale)


def calibration_file(state: Path, pair: str) -> Path:
    """The path of a pair's measurement; it need not exist."""
    return state / "calibrations" / f"{pair}.json"


def read_calibration(path: Path, target: str, draft: str) -> PairCalibration | None:
    """The measurement in a file; None if there is none of these two models, or it is of another version."""
    try:
        found = PairCalibration.model_validate_json(read_own(path, SETTINGS))
    except (OSError, ValidationError):
        return None
    return found if (found.target, found.draft) == (target, draft) else None
