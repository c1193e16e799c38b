"""What a pair's own captions say about its rule. No labels are needed.

A few clips are captioned in mode exact. The gaps at which the draft differs give margins; and which layer's
attention tells facts from fillers can be seen without knowing the facts, because rare tokens mostly are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.statistics import auc
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.probe import video_attention
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.pairs.calibration import PairCalibration
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Clip, DecodeSettings, Mode, Prompt, RelevanceName, Round
from lvspec_cli.video.pool import reading

CAPTIONS = 10
LEAST_MISMATCHES = 50  # for percentiles that mean something
SCALE_PERCENTILE = 90  # of the attention shares: the one that counts as the rarest token does


@dataclass(frozen=True)
class CaptionEvidence:
    """What one caption in mode exact shows. Without its first token, which comes from prefill."""

    ids: tuple[int, ...]
    gaps: tuple[float, ...]  # nats, where the draft's token is not the target's own
    attention: Mapping[int, tuple[float, ...]] = field(default_factory=dict)  # by layer, a share for each id


def calibrate_pair(
    pair: LoadedPair,
    clips: Sequence[BenchClip],
    settings: DecodeSettings,
    *,
    system: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> PairCalibration:
    """Captions the first ``CAPTIONS`` readable clips in mode exact, and reads what they show.

    :raises NoInputError: no clip can be read, or the captions have too few mismatches.
    """
    found: list[CaptionEvidence] = []
    wanted = min(CAPTIONS, len(clips))
    with reading() as read:
        for clip in clips:
            item = clip.items[0]
            try:
                evidence = caption_evidence(pair, read(clip.video), item.prompt, settings, system=system)
            except LvspecError as error:
                warn(f"{item.file_name}: {error.cause}")
                continue
            found.append(evidence)
            progress(len(found), wanted)
            if len(found) == wanted:
                break
    if not found:
        raise NoInputError("no clip could be captioned", "name videos that can be read")
    return calibration_of(found, pair.target.vocabulary)


def caption_evidence(
    pair: LoadedPair, clip: Clip, prompt: str, settings: DecodeSettings, *, system: str | None = None
) -> CaptionEvidence:
    """One caption in mode exact, and the attention of all layers when the target reads it again."""
    prompts = build_prompts(pair, clip, prompt, system=system)
    exact = replace(settings, mode=Mode.EXACT, temperature=0.0, draft_keep=1.0, fallback=False)
    session = Session.of(pair)
    rounds = session.answer(prompts, exact)
    gaps = [gap for round_ in rounds if (gap := mismatch(round_)) is not None]
    tokens = torch.tensor(rounds.generation.tokens, dtype=torch.long, device=pair.target.device)
    decoder, shares = session.target, dict[int, tuple[float, ...]]()
    if len(tokens) > 1 and decoder.attention_layers:
        with torch.inference_mode():
            shares = _attention(decoder, prompts.target, tokens)
    return CaptionEvidence(tuple(tokens[1:].tolist()), tuple(gaps), shares)


def mismatch(round_: Round) -> float | None:
    """The gap in nats at the first drafted token that is not the target's own; None if all are."""
    for drafted, own, gap in zip(round_.drafted, round_.target, round_.gap, strict=False):
        if drafted != own:
            return gap
    return None


def _attention(decoder: Decoder, prompt: Prompt, tokens: torch.Tensor) -> dict[int, tuple[float, ...]]:
    """By layer, the share of attention that the position before each token but the first gives to the video,
    the mean over the heads. The decoder's cache still holds the video."""
    decoder.begin(prompt, len(tokens))
    rows = len(tokens) - 1
    passed = decoder.forward(tokens[:-1], decoder.attention_layers)
    return {
        layer: tuple(video_attention(decoder, passed, layer, rows).mean(dim=0).tolist())
        for layer in decoder.attention_layers
    }


def calibration_of(captions: Sequence[CaptionEvidence], vocabulary: int) -> PairCalibration:
    """What captions show of their pair.

    Frequent and rare tokens are told apart by their ids, which a tokenizer gives by frequency: the border
    leaves least variance of the logarithm within the two classes.

    :raises NoInputError: they have fewer than ``LEAST_MISMATCHES`` mismatches.
    """
    ids = np.array(list(chain.from_iterable(caption.ids for caption in captions)), dtype=float)
    gaps = [gap for caption in captions for gap in caption.gaps if math.isfinite(gap)]
    if len(gaps) < LEAST_MISMATCHES:
        raise NoInputError(
            f"the captions have {len(gaps)} mismatches, too few for percentiles",
            f"name more clips, or allow longer captions: {LEAST_MISMATCHES} are needed",
        )
    ranks = np.log1p(ids) / math.log(vocabulary)
    border = two_classes(ranks)
    rare = ranks >= border
    relaxed = float(1 - rare.mean())
    layer, area, scale, thresholds = None, None, 1.0, {RelevanceName.RANK: min(border, 1.0)}
    if best := _best_layer(captions, rare.tolist()):
        layer, area, shares = best
        scale = min(max(float(np.percentile(shares, SCALE_PERCENTILE)), 1e-6), 1.0)
        sums = (ranks + np.minimum(shares / scale, 1.0)) / 2
        thresholds[RelevanceName.ATTENTION] = float(np.quantile(shares, relaxed))
        thresholds[RelevanceName.RANK_ATTENTION] = float(np.quantile(sums, relaxed))
    return PairCalibration(
        captions=len(captions),
        tokens=len(ids),
        mismatches=len(gaps),
        gaps=tuple(np.percentile(gaps, np.arange(0, 101, 5)).tolist()),
        relaxed=relaxed,
        layer=layer,
        layer_auc=area,
        attention_scale=scale,
        thresholds=thresholds,
    )


def _best_layer(
    captions: Sequence[CaptionEvidence], rare: Sequence[bool]
) -> tuple[int, float, np.ndarray] | None:
    """The layer whose attention tells rare tokens from frequent ones best, its AUC, and its shares."""
    best = None
    seen = [caption.attention for caption in captions if caption.ids]
    for layer in sorted(set.intersection(*map(set, seen))):
        shares = [share for attention in seen for share in attention[layer]]
        area = auc(shares, rare)
        if area is not None and (best is None or area >= best[1]):
            best = layer, area, np.array(shares)
    return best


def two_classes(values: np.ndarray) -> float:
    """The border between low and high values that leaves least variance within the classes (Otsu 1979).

    The values from the border on are the high ones. Equal values are not parted; if all are equal, all are
    high.

    :param values: (n,), at least one.
    """
    ordered = np.sort(values)
    low = np.flatnonzero(np.diff(ordered) > 0) + 1
    if not len(low):
        return float(ordered[0])
    high = len(ordered) - low
    sums = np.cumsum(ordered)[low - 1]
    between = low * high * (sums / low - (ordered.sum() - sums) / high) ** 2
    return float(ordered[low[int(np.argmax(between))]])
