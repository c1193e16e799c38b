"""What the project set itself for the bundled pair, and what came out."""

from __future__ import annotations

from dataclasses import dataclass

from lvspec_cli.bench.lines import retention
from lvspec_cli.bench.results import Results
from lvspec_cli.figures.answers import BenchMode, Contrast, Estimate, ModeResult, Spread
from lvspec_cli.figures.summary import MIN_RETENTION, Measured, best_gammas, keeps_quality, speedup
from lvspec_cli.types import RelevanceName

CONTROLS = (RelevanceName.PLAUSIBLE, RelevanceName.RANDOM, RelevanceName.LEXICON)
OTHERS = (
    RelevanceName.ATTENTION,
    *CONTROLS,
)  # where a control is the pair's own rule, anchors stand against it


@dataclass(frozen=True)
class Goal:
    """One figure that the project set itself. ``met``: None where it was not measured."""

    what: str
    wanted: str
    found: str
    met: bool | None


def goals(texts: Results, speed: Results) -> tuple[Goal, ...]:
    """What was aimed at, and what came out. Quality is that of ``texts``, all else that of ``speed``."""
    own = next((each for each in texts.modes if is_own(each)), None)
    kept = own.retention if own else None
    best = best_own(speed)
    pruned, assisted = (_against(speed, name) for name in (BenchMode.EXACT_PRUNED, BenchMode.HF_ASSISTED))
    return (
        Goal(
            "quality kept, lower end",
            f"{100 * MIN_RETENTION:g} %",
            retention(kept, 2),
            None if own is None or kept is None else keeps_quality(own),
        ),
        _at_least("accepted length against exact-pruned", 2.6, pruned.accepted_length if pruned else None),
        _at_least("decode speed against exact-pruned", 2.4, pruned.speed if pruned else None),
        _at_least(f"decode speed against {speed.reference}", 4.0, best.speedup_vs_ar if best else None),
        _at_least("decode speed against hf-assisted", 1.6, assisted.speed if assisted else None),
        *(_beats(texts, speed, other) for other in OTHERS if other in CONTROLS or own_rule(texts)),
        _auto(speed),
    )


def is_own(result: ModeResult) -> bool:
    return result.mode is BenchMode.LVSPEC and result.label is None and result.relevance is None


def best_own(results: Results) -> ModeResult | None:
    best = best_gammas(results.modes).get(BenchMode.LVSPEC.value)
    return next((each for each in results.modes if each.variant == best), None)


def _against(results: Results, *names: str) -> Contrast | None:
    """The contrast with the line of one of these names, whatever its gamma."""
    return next((each for each in results.contrasts if each.other.split(" γ=")[0] in names), None)


def _at_least(what: str, wanted: float, found: Spread | Estimate | None) -> Goal:
    if found is None:
        return Goal(what, f"{wanted:g}", "", None)
    value = found.median if isinstance(found, Spread) else found.value
    return Goal(what, f"{wanted:g}", _with_ends(value, found), value >= wanted)


def _beats(texts: Results, speed: Results, control: RelevanceName) -> Goal:
    """Whether the rule is faster than another, whose quality stands beside it."""
    if texts.settings.rule.get("relevance") == control:
        return Goal(f"decode speed against {control}", "above 1", "it is the rule itself", met=False)
    names = (f"lvspec/{control}", f"lvspec:{control}")
    faster, quality = _against(speed, *names), _against(texts, *names)
    found = faster.speed if faster else None
    if found is None:
        return Goal(f"decode speed against {control}", "above 1", "", None)
    text = _with_ends(found.median, found)
    if quality is not None:
        text += f", quality {retention(quality.quality, 2)} of its"
    return Goal(
        f"decode speed against {control}",
        "above 1",
        text,
        (found.low if found.low is not None else found.median) > 1,
    )


def _auto(speed: Results) -> Goal:
    """Gamma auto against the best fixed one that was timed on as many clips, answer by answer.

    The ratio of two medians would be half as sure.
    """
    what = "gamma auto against the best fixed one"
    lines = [each for each in speed.modes if is_own(each)]
    most = max((each.answers for each in lines), default=0)
    gammas = {each.gamma: each.variant for each in lines if each.answers == most}
    measured = Measured({item.id: item for item in speed.items}, speed.blocks)
    auto = gammas.pop("auto", None)
    found = [speedup(measured, auto, fixed) for fixed in gammas.values()] if auto else []
    worst = min((each for each in found if each is not None), key=lambda each: each.median, default=None)
    if worst is None:
        return Goal(what, "0.97", "", None)
    return Goal(what, "0.97", _with_ends(worst.median, worst), worst.median >= 0.97)


def _with_ends(value: float, found: Spread | Estimate) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:.2f}-{found.high:.2f})"
    return f"{value:.2f}{ends}"


def own_rule(texts: Results) -> str | None:
    """Says so where a control won."""
    relevance = texts.settings.rule.get("relevance")
    if relevance not in tuple(CONTROLS):
        return None
    why = "the margin alone" if relevance == RelevanceName.PLAUSIBLE else "a control"
    said = (
        f"The pair's own rule is `{relevance}` ({why}): no rule with anchors was"
        " faster at the quality that was asked for, so this is the default."
    )
    if idle := without_anchors(texts):
        names = " and ".join(f"`{name}`" for name in idle)
        said += (
            f" As they are set here, anchors of {names} are held to no narrower margin than fillers: what is"
            " left is the margin alone, too."
        )
    return said


def without_anchors(texts: Results) -> tuple[str, ...]:
    """Controls that read a relevance, and are set so that a token may be as far off whatever it says."""
    return tuple(
        name
        for name, rule in texts.settings.rules.items()
        if name == rule["relevance"] != RelevanceName.RANDOM
        and float(rule["anchor_margin"]) >= float(rule["filler_margin"])
    )
