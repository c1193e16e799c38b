"""What a search needs to know of a pair first: the costs of a round, and what its relevance schemes give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.own import measure_own, profile_own
from lvspec_cli.bench.relevance import LAYERED, Scored, score_caption
from lvspec_cli.bench.search import thresholds
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.answers import BenchMode, Item, Part, Profile, Variant
from lvspec_cli.figures.separation import auc
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Clip, DecodeSettings, Gamma, Mode, RelevanceName, RoundCosts
from lvspec_cli.video.decode import read_clip

CLIPS = 3  # that are looked at
PROFILED = (4, 8, 16)  # gammas whose rounds are timed, where none is given


class Calibration(Part):
    """Costs in steps of the target alone, and borders to try between anchors and fillers, by relevance."""

    ar_step_s: float
    costs: dict[RelevanceName, RoundCosts]
    borders: dict[RelevanceName, tuple[float, ...]]
    layers: dict[RelevanceName, tuple[int, ...]]  # that each reads, where it reads any


@dataclass(frozen=True)
class _Seen:
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
    """Times some answers about the first clips that can be read.

    :param find_layers: of a scheme that reads layers, take the one that tells facts from fillers best in the
        target's own captions of these clips, where their facts are known.
    :raises NoInputError: none can be read.
    """
    seen = _first_readable(clips)
    timed = sorted({gamma for gamma in gammas if isinstance(gamma, int)}) or PROFILED
    ends = tuple(sorted({timed[0], timed[len(timed) // 2], timed[-1]}))
    step = _step(pair, seen, settings, system)
    profiles: dict[RelevanceName, list[Profile]] = {}
    borders, layers = {}, {}
    for number, relevance in enumerate(relevances):
        progress(number, len(relevances))
        found = best_layer(_captions(pair, seen, settings, relevance, system)) if find_layers else None
        layers[relevance] = settings.rule.layers if found is None else (found,)
        rule = replace(settings.rule, relevance=relevance, layers=layers[relevance])
        loose = replace(settings, mode=Mode.LVSPEC, rule=rule, repetition_guard=False)
        profiles[relevance] = [
            profile_own(
                pair,
                each.clip,
                each.item,
                Variant(BenchMode.LVSPEC, gamma),
                replace(loose, gamma=gamma),
                system=system,
            )
            for gamma in ends
            for each in seen
        ]
        borders[relevance] = thresholds(
            [score for each in seen for score in _scores(pair, each, loose, system)]
        )
    costs = costs_of_rounds(profiles, step)
    return Calibration(ar_step_s=step, costs=costs, borders=borders, layers=layers)


def _captions(
    pair: LoadedPair,
    seen: Sequence[_Seen],
    settings: DecodeSettings,
    relevance: RelevanceName,
    system: str | None,
) -> list[Scored]:
    """What each layer says of the target's captions whose facts are known."""
    if relevance not in LAYERED:
        return []
    scored = (
        score_caption(pair, each.clip, each.item.prompt, settings, system=system, schemes=(relevance,))
        for each in seen
        if each.item.scene is not None
    )
    return [each for each in scored if each is not None]


def best_layer(captions: Sequence[Scored]) -> int | None:
    """The layer whose scores tell facts from fillers best (AUC, over all tokens); None where none can."""
    schemes = {scheme for each in captions for scheme in each.scores if scheme.head is None}
    found: dict[int, float] = {}
    for scheme in schemes:
        area = auc(
            [score for each in captions for score in each.scores[scheme]],
            [fact for each in captions for fact in each.facts],
        )
        if scheme.layer is not None and area is not None:
            found[scheme.layer] = area
    return max(found, key=lambda layer: (found[layer], layer), default=None)


def costs_of_rounds(
    profiles: Mapping[RelevanceName, Sequence[Profile]], step: float
) -> dict[RelevanceName, RoundCosts]:
    """Medians over answers, in steps of ``step`` seconds; a row's share from a line through the gammas.

    What the models cost is the same whatever the relevance, which is in the overhead.

    :raises NoInputError: no answer has rounds.
    """
    drafted = [each for many in profiles.values() for each in many if each.draft_steps and each.rounds]
    if not drafted:
        raise NoInputError("no answer is long enough to be timed", "allow more tokens, or ask for captions")
    rows, seconds = [], []
    for gamma in {each.gamma for each in drafted}:
        some = [each for each in drafted if each.gamma == gamma]
        rows.append(median(each.draft_steps / each.rounds + 1 for each in some))
        seconds.append(median(each.verification_s / each.rounds for each in some))
    slope = max(0.0, float(np.polyfit(rows, seconds, 1)[0])) if len(set(rows)) > 1 else 0.0
    fixed = float(np.mean(seconds)) - slope * float(np.mean(rows))
    models = RoundCosts(
        draft=_rounded(median(each.draft_s / each.draft_steps for each in drafted) / step),
        verification=_rounded(fixed / step),
        row=round(slope / step, 4),
    )

    def overhead(many: Sequence[Profile]) -> float:
        own = [each for each in many if each.rounds] or drafted
        return round(median(each.overhead_s / each.rounds for each in own) / step, 4)

    return {relevance: replace(models, overhead=overhead(many)) for relevance, many in profiles.items()}


def _rounded(value: float) -> float:
    return max(round(value, 4), 0.0001)


def _first_readable(clips: Sequence[BenchClip]) -> list[_Seen]:
    found: list[_Seen] = []
    why = "nothing was asked"
    for clip in clips:
        try:
            found.append(_Seen(read_clip(clip.video), clip.items[0]))
        except LvspecError as error:
            why = error.cause
        if len(found) == CLIPS:
            break
    if not found:
        raise NoInputError(f"nothing could be measured: {why}", "name videos that can be read")
    return found


def _step(pair: LoadedPair, seen: Sequence[_Seen], settings: DecodeSettings, system: str | None) -> float:
    """Seconds of a step of the target alone; the first answer warms up."""
    plain = replace(settings, mode=Mode.AR, repetition_guard=False)
    answers = [
        measure_own(pair, each.clip, each.item, Variant(BenchMode.AR), plain, system=system)
        for each in (*seen[:1], *seen)
    ]
    steps = [each.seconds_per_token for each in answers[1:] if each.seconds_per_token]
    if not steps:
        raise NoInputError("no answer is long enough to be timed", "allow more tokens, or ask for captions")
    return median(steps)


def _scores(pair: LoadedPair, seen: _Seen, settings: DecodeSettings, system: str | None) -> list[float]:
    """Relevance of every drafted token of an answer."""
    prompts = build_prompts(pair, seen.clip, seen.item.prompt, system=system)
    rounds = Session.of(pair).answer(prompts, settings)
    return [score for done in rounds for score in done.relevance]
