"""What a pair is kept in and where its parts go: decided on values, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from lvspec_cli.models.memory import (
    CONTEXT,
    SLACK,
    TEXT_TOKENS,
    Choice,
    Device,
    Machine,
    ModelSize,
    Need,
    Plan,
    Share,
    Workload,
    matrix_bytes,
    need,
    plan,
    together,
)
from lvspec_cli.types import Quantisation

# What ``auto`` may decide for, without files that were made for it: what bitsandbytes does on any device.
CANDIDATES = (Quantisation.NONE, Quantisation.INT8, Quantisation.NF4)
ACCEPTED = 0.8  # chance that a drafted token is kept, where none is known: what the estimates of speed assume


@dataclass(frozen=True)
class Sizes:
    """A pair's two models; no draft in mode ar."""

    target: ModelSize
    draft: ModelSize | None


@dataclass(frozen=True)
class Wanted:
    """What was asked for. ``element``: bytes of a value that the target computes in.

    ``draft_element``: the same of the draft, whose device may be another; None: as the target's.
    ``draft_device``: as ``--draft-device`` says; None leaves it to the plan.
    """

    target: Quantisation = Quantisation.AUTO
    draft: Quantisation = Quantisation.AUTO
    element: int = 2
    draft_device: str | None = None
    draft_element: int | None = None

    @property
    def elements(self) -> tuple[int, int]:
        """Of the target and of the draft."""
        return self.element, self.element if self.draft_element is None else self.draft_element


@dataclass(frozen=True)
class Decision:
    """What each model is kept in, and where; ``why`` in one line. It may not fit: see ``plan.fits``."""

    target: Quantisation
    draft: Quantisation | None
    plan: Plan
    why: str


def decide(
    machine: Machine, sizes: Sizes, load: Workload, wanted: Wanted, *, gamma: int, width_limit: int | None
) -> Decision:
    """What fits, and of that what is fast at the width of a verification.

    The target is quantised only where it does not fit otherwise. Then the least bytes read for a token count,
    by DESIGN's section 6 with bytes in place of seconds. What was asked for by name stays.

    ``gamma``: tokens a round proposes. ``width_limit``: rows that nf4 takes at once on this device, 0 for
    none; a round then proposes no more than goes into them.
    """
    options = [
        Decision(target, draft, _planned(machine, sizes, load, wanted, target, draft), "")
        for target, draft in product(
            _options(wanted.target), _options(wanted.draft) if sizes.draft else (None,)
        )
    ]
    fitting = [each for each in options if each.plan.fits]
    if not fitting:
        least = min(options, key=lambda each: each.plan.needed)
        return replace(least, why="nothing that may be chosen fits")
    if wanted.target is Quantisation.AUTO and any(each.target is Quantisation.NONE for each in fitting):
        fitting = [each for each in fitting if each.target is Quantisation.NONE]
    best = min(fitting, key=lambda each: _bytes_a_token(sizes, each, gamma, wanted.elements, width_limit))
    return replace(best, why=_why(best, wanted, options, width_limit))


def bytes_a_round(
    size: ModelSize, quantisation: Quantisation, element: int, rows: int, width_limit: int | None
) -> float:
    """Bytes of weights that one pass of ``rows`` reads and writes.

    Beyond its limit nf4 is written out in the type computed in, and read again. LLM.int8() counts as no
    faster than the weights unpacked: it also packs the inputs of every layer.
    """
    packed = matrix_bytes(quantisation, element)
    if quantisation is Quantisation.INT8:
        packed = float(element)
    if quantisation is Quantisation.NF4 and width_limit is not None and rows > width_limit:
        packed += 2 * element
    return size.layers * (size.layer_matrices * packed + (size.layer - size.layer_matrices) * element)


def gamma_within(gamma: int, width_limit: int | None) -> int:
    """A gamma whose verification, one row wider, stays within the limit, where that leaves any."""
    return gamma if width_limit is None or width_limit < 2 else min(gamma, width_limit - 1)


def expected_tokens(gamma: int, accepted: float = ACCEPTED) -> float:
    """Accepted length of a round when every token is kept with the same chance: (1 - a^(gamma + 1)) / (1 - a)
    (Leviathan et al. 2023, arXiv 2211.17192, equation 1)."""
    return (1 - accepted ** (gamma + 1)) / (1 - accepted)


def _bytes_a_token(
    sizes: Sizes, option: Decision, gamma: int, elements: tuple[int, int], width_limit: int | None
) -> float:
    element, draft_element = elements
    if option.draft is None or sizes.draft is None:
        return bytes_a_round(sizes.target, option.target, element, 1, width_limit)
    if option.target is Quantisation.NF4:
        gamma = gamma_within(gamma, width_limit)
    verified = bytes_a_round(sizes.target, option.target, element, gamma + 1, width_limit)
    drafted = gamma * bytes_a_round(sizes.draft, option.draft, draft_element, 1, width_limit)
    return (verified + drafted) / expected_tokens(gamma)


def _options(wanted: Quantisation) -> tuple[Quantisation, ...]:
    return CANDIDATES if wanted is Quantisation.AUTO else (wanted,)


def _planned(
    machine: Machine,
    sizes: Sizes,
    load: Workload,
    wanted: Wanted,
    target: Quantisation,
    draft: Quantisation | None,
) -> Plan:
    element, draft_element = wanted.elements
    one = need(sizes.target, load, Choice(target, element))
    other = (
        None
        if draft is None or sizes.draft is None
        else need(sizes.draft, load, Choice(draft, draft_element))
    )
    return plan_on(machine, one, other, wanted.draft_device)


def plan_on(machine: Machine, target: Need, draft: Need | None, draft_device: str | None) -> Plan:
    """As ``memory.plan``, with the draft on a device of the user's choice."""
    if draft is None or draft_device is None:
        return plan(machine, target, draft)
    home = device_named(machine, draft_device)
    short = draft.total - home.usable
    alone = plan(_with_less(machine, home, draft), target, None)
    if short > 0 or not alone.fits:
        return Plan(target, draft, missing=max(0, short) + alone.missing)
    return replace(alone, draft_need=draft, draft=(Share(home.name, draft.layers),))


def device_named(machine: Machine, name: str) -> Device:
    """The device of a machine that torch calls so; ``cuda`` is the first GPU. KeyError when there is none."""
    gpus = sorted((*machine.gpus, *machine.drafts), key=lambda gpu: gpu.name)
    devices = {device.name: device for device in (*gpus, machine.cpu)}
    devices["mps"] = machine.cpu  # whose memory it shares
    if gpus:
        devices.setdefault("cuda", gpus[0])
    return devices[name]


def _with_less(machine: Machine, home: Device, draft: Need) -> Machine:
    """What is left beside a draft that is loaded."""

    def left(device: Device) -> Device:
        taken = draft.kept if device.name == home.name else 0
        return replace(device, free=max(0, device.free - taken))

    return Machine(left(machine.cpu), tuple(left(gpu) for gpu in machine.gpus))


def _why(best: Decision, wanted: Wanted, options: Sequence[Decision], width_limit: int | None) -> str:
    if Quantisation.AUTO not in (wanted.target, wanted.draft):
        return "as asked for"
    parts = []
    if wanted.target is Quantisation.AUTO:
        if best.target is Quantisation.NONE:
            parts.append("the target fits as it is")
        else:
            full = next(each for each in options if each.target is Quantisation.NONE)
            parts.append(f"the target as it is would need {gigabytes(full.plan.needed)} in all")
            if best.target is Quantisation.NF4 and width_limit:
                rows = f"nf4 takes {width_limit} rows at once here"
                parts.append(rows + (f", so gamma is {width_limit - 1} at most" if width_limit > 1 else ""))
            elif width_limit == 0:
                parts.append("packed weights are slow on a CPU")
    if wanted.draft is Quantisation.AUTO and best.draft is not None:
        parts.append(
            f"the draft reads least as {best.draft}"
            if best.draft is not Quantisation.NONE
            else "so does the draft"
            if "the target fits as it is" in parts
            else "the draft fits as it is"
        )
    return ", ".join(parts)


def gigabytes(count: float) -> str:
    """Bytes for people: 66.9 GB."""
    return f"{count / 1e9:.1f} GB"


@dataclass(frozen=True)
class Change:
    """A smaller way to do what was asked, in the words of the command line."""

    words: str
    load: Workload
    wanted: Wanted


def beside_weights(sizes: Sizes, load: Workload, wanted: Wanted) -> int:
    """Bytes that a pair which is loaded takes for a clip, both models on one device."""
    of_target, of_draft = wanted.elements
    target = need(sizes.target, load, Choice(wanted.target, of_target))
    draft = need(sizes.draft, load, Choice(wanted.draft, of_draft)) if sizes.draft else None
    return together(target, draft) - target.weights - (draft.weights if draft else 0)


def smallest_change(machine: Machine, sizes: Sizes, load: Workload, wanted: Wanted) -> str | None:
    """The mildest of a list of changes with which the pair fits; None: with none of them."""
    for change in _changes(load, wanted):
        if decide(machine, sizes, change.load, change.wanted, gamma=1, width_limit=None).plan.fits:
            return change.words
    return None


def _changes(load: Workload, wanted: Wanted) -> list[Change]:
    """A short text in place of a long one; half and a quarter of the frames, then of the pixels; then weights
    of 4 bits; then all but the first."""
    found = []
    if load.text_tokens > TEXT_TOKENS:
        found.append(Change("a shorter prompt", replace(load, text_tokens=TEXT_TOKENS), wanted))
    for part in (2, 4):
        if load.frames // part >= 2:
            fewer = replace(load, frames=load.frames // part)
            found.append(Change(f"--frames {fewer.frames}", fewer, wanted))
        smaller = replace(load, max_pixels=load.max_pixels // part)
        found.append(Change(f"--max-pixels {smaller.max_pixels}", smaller, wanted))
    packed = replace(wanted, draft=Quantisation.NF4)
    found.append(Change("--quant-draft nf4", load, packed))
    packed = replace(packed, target=Quantisation.NF4)
    found.append(Change("--quant-target nf4 --quant-draft nf4", load, packed))
    least = replace(load, frames=max(2, load.frames // 4))
    words = f"--quant-target nf4 --quant-draft nf4 --frames {least.frames}"
    found.append(Change(words, least, packed))
    return found


def shortage(plan: Plan, machine: Machine, load: Workload) -> str:
    """One line: what the pair needs for a clip, libraries and fragments included, and what is free."""
    needed = (plan.needed + CONTEXT[machine.devices[0].kind]) / (1 - SLACK)
    free = ", ".join(
        f"{gigabytes(device.free)} of {gigabytes(device.total)} on {device.name}"
        for device in machine.devices
    )
    clip = f"{load.frames} frames of {load.max_pixels} pixels"
    if load.text_tokens > TEXT_TOKENS:
        clip += f" and about {load.text_tokens} tokens of text"
    return f"too little memory: the pair needs about {gigabytes(needed)} with {clip}; free: {free}"


def device_map(kept: Sequence[str], layers: str, shares: Sequence[Share]) -> dict[str, str]:
    """Devices of a model's parts by their full names: all but the later shares' layers goes to the first.

    ``kept``: what lies beside the decoder layers; ``layers``: the name of their list.
    """
    found = dict.fromkeys(kept, shares[0].device)
    devices = [share.device for share in shares for _ in range(share.layers)]
    return found | {f"{layers}.{number}": device for number, device in enumerate(devices)}
