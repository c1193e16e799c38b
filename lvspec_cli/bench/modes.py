"""What ``--modes`` and ``--gamma`` name: the lines of the report, and the settings of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lvspec_cli.bench.results import BenchMode, Variant
from lvspec_cli.errors import UsageError
from lvspec_cli.types import DecodeSettings, Gamma, Mode, RelevanceName, RuleSettings, read_gamma

# ar first: it is what the others are held against, and decides whether a clip can be measured at all.
ALL_MODES = tuple(map(str, BenchMode))

_OWN = {
    BenchMode.AR: Mode.AR,
    BenchMode.EXACT: Mode.EXACT,
    BenchMode.EXACT_PRUNED: Mode.EXACT,
    BenchMode.LVSPEC: Mode.LVSPEC,
    BenchMode.LVSPEC_PRUNED: Mode.LVSPEC,
}


def parse_modes(text: str) -> tuple[Variant, ...]:
    """Modes with commas between them, each once; ``lvspec:random`` is the rule with another relevance.

    :raises UsageError: a word is no mode, or nothing among them goes token by token as ``ar`` does.
    """
    found = tuple(dict.fromkeys(_parse_mode(word.strip()) for word in text.split(",") if word.strip()))
    if not any(variant.mode.is_plain for variant in found):
        raise UsageError("--modes has nothing to compare with", "add ar or hf-ar")
    return found


def _parse_mode(word: str) -> Variant:
    name, colon, scheme = word.partition(":")
    if name not in ALL_MODES:
        raise UsageError(f"--modes does not know {name!r}", f"choose among {', '.join(ALL_MODES)}")
    mode = BenchMode(name)
    if not colon:
        return Variant(mode)
    if not mode.is_loose:
        raise UsageError(f"--modes {word}: only loose modes have a relevance", "write lvspec:random")
    if scheme not in list(RelevanceName):
        raise UsageError(
            f"--modes {word}: there is no relevance {scheme!r}", f"choose among {', '.join(RelevanceName)}"
        )
    return Variant(mode, relevance=RelevanceName(scheme))


def parse_gammas(text: str) -> tuple[Gamma, ...]:
    """Numbers and ``auto`` with commas between them, each once, in ascending order.

    :raises UsageError: one is neither, or there is none.
    """
    remedy = "write --gamma auto,3,5,8"
    try:
        found = {read_gamma(word.strip()) for word in text.split(",") if word.strip()}
    except ValueError as error:
        raise UsageError(f"--gamma: {error}", remedy) from None
    if not found:
        raise UsageError(f"--gamma {text!r} names none", remedy)
    return tuple(sorted(found, key=gamma_order))


def gamma_order(gamma: Gamma) -> float:
    """``auto`` stands behind all numbers."""
    return float("inf") if gamma == "auto" else float(gamma)


def variants_of(modes: Sequence[Variant], gammas: Sequence[Gamma]) -> tuple[Variant, ...]:
    """Every mode with every gamma, unless it has its own; a plain mode has none.

    ``hf-assisted`` is run with each number as well, and once as transformers itself would do it.
    """
    found: list[Variant] = []
    for mode in modes:
        own = mode.gamma is not None
        if own or mode.mode.is_plain or mode.mode is BenchMode.HF_ASSISTED:
            found.append(mode)
        if not own and not mode.mode.is_plain:
            peer = mode.mode is BenchMode.HF_ASSISTED
            found += [replace(mode, gamma=gamma) for gamma in gammas if not (peer and gamma == "auto")]
    return tuple(found)


def settings_of(
    variant: Variant, base: DecodeSettings, draft_keep: float, rules: Mapping[str, RuleSettings] | None = None
) -> DecodeSettings:
    """How one of our own variants decodes.

    Greedy, and without the guard against repetition, so that every mode and peer has the same budget of
    tokens: a loop shows in the fidelity, not as a short answer. Without falling back: what a mode costs is
    what is asked.

    :param draft_keep: share of the video's tokens that the draft sees in the pruned modes.
    :param rules: of variants with a label, by that.
    """
    if variant.mode.is_peer:
        raise ValueError(f"{variant.mode} is not one of our own modes")
    settings = replace(base, mode=_OWN[variant.mode], temperature=0.0, repetition_guard=False, fallback=False)
    if variant.gamma is not None:
        settings = replace(settings, gamma=variant.gamma)
    if variant.label is not None:
        settings = replace(settings, rule=(rules or {})[variant.label])
    if variant.relevance is not None:
        settings = replace(settings, rule=replace(settings.rule, relevance=variant.relevance))
    return replace(settings, draft_keep=draft_keep if variant.mode.is_pruned else 1.0)
