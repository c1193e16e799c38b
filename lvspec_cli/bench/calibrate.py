"""Measurements before a search: the costs of a round, and the score distribution of each relevance scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median

import numpy as np

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.own import measure_own, profile_own
from lvspec_cli.bench.relevance import ScoredCaption, score_caption
from lvspec_cli.bench.search import candidate_thresholds
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.answers import BenchMode, FrozenModel, Item, Profile, Variant
from lvspec_cli.figures.statistics import auc
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.relevance import LAYERED
from lvspec_cli.types import Clip, DecodeSettings, Gamma, Mode, RelevanceName, RoundCosts
from lvspec_cli.video.decode import read_clip

CLIPS = 3  # measured
PROFILED_GAMMAS = (4, 8, 16)  # where the user names no number


class Calibration(FrozenModel):
    """Round costs in steps of the target alone, and anchor thresholds to try, by relevance."""

    ar_step_s: float
    costs: dict[RelevanceName, RoundCosts]
    borders: dict[RelevanceName, tuple[float, ...]]
    layers: dict[RelevanceName, tuple[int, ...]]  # that the scheme reads, if it reads any


@dataclass(frozen=True)
class _ReadClip:
    clip: Clip
    item: Item


def calibrate(
    pair: LoadedPair,
    clips: Sequence[BenchClip],
    settings: DecodeSettings,
    relevances: Sequence[RelevanceName],
    gammas: Sequence[Gamma],
    *,
    system: str | None = None,
    find_layers: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Times answers about the first readable clips.

    :param find_layers: choose the layer that separates facts from fillers best in the target's captions of
        these clips, for a scheme that reads layers, if the facts are known.
    :raises NoInputError: no clip can be read.
    """
    read_clips = _first_readable(clips)
    numbers = sorted({gamma for gamma in gammas if isinstance(gamma, int)}) or PROFILED_GAMMAS
    profiled = sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})
    step = _step(pair, read_clips, settings, system)
    profiles: dict[RelevanceName, list[Profile]] = {}
    borders, layers = {}, {}
    for number, relevance in enumerate(relevances):
        progress(number, len(relevances))
        layer = best_layer(_captions(pair, read_clips, settings, relevance, system)) if find_layers else None
        layers[relevance] = settings.rule.layers if layer is None else (layer,)
        rule = replace(settings.rule, relevance=relevance, layers=layers[relevance])
        loose = replace(settings, mode=Mode.LVSPEC, rule=rule, repetition_guard=False)
        profiles[relevance] = [
            profile_own(
                pair,
                clip.clip,
                clip.item,
                Variant(BenchMode.LVSPEC, gamma),
                replace(loose, gamma=gamma),
                system=system,
            )
            for gamma in profiled
            for clip in read_clips
        ]
        borders[relevance] = candidate_thresholds(
            [score for clip in read_clips for score in _scores(pair, clip, loose, system)]
        )
    costs = fit_round_costs(profiles, step)
    return Calibration(ar_step_s=step, costs=costs, borders=borders, layers=layers)


def _captions(
    pair: LoadedPair,
    read_clips: Sequence[_ReadClip],
    settings: DecodeSettings,
    relevance: RelevanceName,
    system: str | None,
) -> list[ScoredCaption]:
    """The target's captions of clips with known facts, scored by each layer."""
    if relevance not in LAYERED:
        return []
    scored = (
        score_caption(pair, clip.clip, clip.item.prompt, settings, system=system, schemes=(relevance,))
        for clip in read_clips
        if clip.item.scene is not None
    )
    return [caption for caption in scored if caption.places]


def best_layer(captions: Sequence[ScoredCaption]) -> int | None:
    """The layer whose scores separate facts from fillers best (AUC over all tokens); None without an AUC."""
    tables = [caption.by_scheme for caption in captions]
    facts = [fact for caption in captions for fact in caption.facts]
    areas: dict[int, float] = {}
    for scheme in {scheme for table in tables for scheme in table if scheme.head is None}:
        area = auc([score for table in tables for score in table[scheme].scores], facts)
        if scheme.layer is not None and area is not None:
            areas[scheme.layer] = area
    return max(areas, key=lambda layer: (areas[layer], layer), default=None)


def fit_round_costs(
    profiles: Mapping[RelevanceName, Sequence[Profile]], step: float
) -> dict[RelevanceName, RoundCosts]:
    """Medians over answers, in steps of ``step`` seconds; the cost of a row is a linear fit over the gammas.

    All relevances share the costs of the models; the cost of computing the relevance is in the overhead.

    :raises NoInputError: no answer has rounds.
    """
    drafted = [profile for profile in chain(*profiles.values()) if profile.draft_steps and profile.rounds]
    if not drafted:
        raise NoInputError("no answer is long enough to be timed", "allow more tokens, or ask for captions")
    rows, seconds = [], []
    for gamma in {profile.gamma for profile in drafted}:
        group = [profile for profile in drafted if profile.gamma == gamma]
        rows.append(median(profile.draft_steps / profile.rounds + 1 for profile in group))
        seconds.append(median(profile.verification_s / profile.rounds for profile in group))
    slope = max(0.0, float(np.polyfit(rows, seconds, 1)[0])) if len(set(rows)) > 1 else 0.0
    fixed = float(np.mean(seconds)) - slope * float(np.mean(rows))
    models = RoundCosts(
        draft=_rounded(median(profile.draft_s / profile.draft_steps for profile in drafted) / step),
        verification=_rounded(fixed / step),
        row=round(slope / step, 4),
    )

    def overhead(group: Sequence[Profile]) -> float:
        timed = [profile for profile in group if profile.rounds] or drafted
        return round(median(profile.overhead_s / profile.rounds for profile in timed) / step, 4)

    return {relevance: replace(models, overhead=overhead(group)) for relevance, group in profiles.items()}


def _rounded(value: float) -> float:
    return max(round(value, 4), 0.0001)


def _first_readable(clips: Sequence[BenchClip]) -> list[_ReadClip]:
    read_clips: list[_ReadClip] = []
    why = "nothing was asked"
    for clip in clips:
        try:
            read_clips.append(_ReadClip(read_clip(clip.video), clip.items[0]))
        except LvspecError as error:
            why = error.cause
        if len(read_clips) == CLIPS:
            break
    if not read_clips:
        raise NoInputError(f"nothing could be measured: {why}", "name videos that can be read")
    return read_clips


def _step(
    pair: LoadedPair, read_clips: Sequence[_ReadClip], settings: DecodeSettings, system: str | None
) -> float:
    """Seconds a token of the target alone; the first answer is a warm-up and is dropped."""
    plain = replace(settings, mode=Mode.AR, repetition_guard=False)
    answers = [
        measure_own(pair, clip.clip, clip.item, Variant(BenchMode.AR), plain, system=system)
        for clip in (*read_clips[:1], *read_clips)
    ]
    steps = [answer.seconds_per_token for answer in answers[1:] if answer.seconds_per_token]
    if not steps:
        raise NoInputError("no answer is long enough to be timed", "allow more tokens, or ask for captions")
    return median(steps)


def _scores(pair: LoadedPair, clip: _ReadClip, settings: DecodeSettings, system: str | None) -> list[float]:
    """The relevance of every drafted token of an answer."""
    prompts = build_prompts(pair, clip.clip, clip.item.prompt, system=system, draft_view=settings.draft_view)
    rounds = Session.of(pair).answer(prompts, settings)
    return [score for round_ in rounds for score in round_.relevance]
