"""What ``--modes`` and ``--gamma`` name: the lines of the report, and the settings of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lvspec_cli.bench.results import BenchMode, Gamma, Variant
from lvspec_cli.errors import UsageError
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName

# ar first: it is what the others are held against, and decides whether a clip can be measured at all.
ALL_MODES = tuple(map(str, BenchMode))
GREATEST_GAMMA = 64

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
    """Numbers with commas between them, each once, in ascending order.

    :raises UsageError: one is not a number from 1 to 64, or there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = {str(gamma) for gamma in range(1, GREATEST_GAMMA + 1)}
    wrong = next((word for word in words if word not in known), None)
    if wrong is not None or not words:
        raise UsageError(
            f"--gamma {wrong or text!r} is not a number from 1 to {GREATEST_GAMMA}", "write --gamma 3,5,8"
        )
    return tuple(sorted({int(word) for word in words}))


def variants_of(modes: Sequence[Variant], gammas: Sequence[Gamma]) -> tuple[Variant, ...]:
    """Every mode with every gamma; a plain mode has none.

    ``hf-assisted`` is run with each as well, and once as transformers itself would do it.
    """
    found: list[Variant] = []
    for mode in modes:
        if mode.mode.is_plain or mode.mode is BenchMode.HF_ASSISTED:
            found.append(mode)
        if not mode.mode.is_plain:
            found += [replace(mode, gamma=gamma) for gamma in gammas]
    return tuple(found)


def settings_of(variant: Variant, base: DecodeSettings, draft_keep: float) -> DecodeSettings:
    """How one of our own variants decodes.

    Greedy, and without the guard against repetition, so that every mode and peer has the same budget of
    tokens: a loop shows in the fidelity, not as a short answer.

    :param draft_keep: share of the video's tokens that the draft sees in the pruned modes.
    """
    if variant.mode.is_peer:
        raise ValueError(f"{variant.mode} is not one of our own modes")
    settings = replace(base, mode=_OWN[variant.mode], temperature=0.0, repetition_guard=False)
    if isinstance(variant.gamma, int):
        settings = replace(settings, gamma=variant.gamma)
    if variant.relevance is not None:
        settings = replace(settings, rule=replace(settings.rule, relevance=variant.relevance))
    return replace(settings, draft_keep=draft_keep if variant.mode.is_pruned else 1.0)
