"""Whether and how a pair fits a machine: from configs and safetensors headers, no weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvspec_cli.models.memory import Choice, Machine, ModelSize, Plan, Share, Workload, need, plan
from lvspec_cli.models.place import CANDIDATES, Decision, Sizes, Wanted, decide, smallest_change
from lvspec_cli.models.sizes import config_path, size_of
from lvspec_cli.registry import Defaults, Pair, Source
from lvspec_cli.storage import Stored, locate
from lvspec_cli.types import Quantisation

FRAMES, MAX_PIXELS = 64, 200_704  # where the pair has no defaults of its own
GAMMA = 8  # that a decision reckons with


@dataclass(frozen=True)
class FitRow:
    """Both models kept in the same way."""

    quantisation: Quantisation
    plan: Plan


@dataclass(frozen=True)
class PairFit:
    """What a pair needs, by how it is kept, and what ``auto`` would do with it here."""

    name: str
    here: bool  # both models are wholly on this machine
    load: Workload
    visual_tokens: int  # of the target
    rows: tuple[FitRow, ...]
    decision: Decision
    change: str | None  # what would make it fit, where it does not


def workload(defaults: Defaults, frames: int | None = None, max_pixels: int | None = None) -> Workload:
    """A clip and an answer of a pair's defaults, or with other frames."""
    return Workload(
        frames=frames or defaults.frames or FRAMES,
        max_pixels=max_pixels or defaults.max_pixels or MAX_PIXELS,
        new_tokens=defaults.max_new_tokens,
    )


def local_fit(pair: Pair, target: Path, draft: Path, device: str) -> Decision:
    """What ``auto`` would decide for a pair in these folders.

    :raises PairError: their configs describe no models.
    """
    from lvspec_cli.models.machine import this_machine

    machine = this_machine(device)
    sizes = Sizes(size_of(target / "config.json"), size_of(draft / "config.json"))
    return decide(machine, sizes, workload(pair.defaults), _wanted(machine), gamma=GAMMA, width_limit=None)


def fit_pair(
    name: str, pair: Pair, machine: Machine, load: Workload, width_limit: int | None = None
) -> PairFit:
    """What the pair needs and where it would go on that machine.

    :raises PairError: the size of a model is not known.
    """
    stored = locate(pair.target), locate(pair.draft)
    sizes = Sizes(_size(pair.target, stored[0]), _size(pair.draft, stored[1]))
    wanted = _wanted(machine)
    decision = decide(machine, sizes, load, wanted, gamma=GAMMA, width_limit=width_limit)
    rows = tuple(_row(sizes, load, machine, each, wanted.element) for each in _made_on(machine))
    change = None if decision.plan.fits else smallest_change(machine, sizes, load, wanted)
    return PairFit(
        name=name,
        here=all(each.folder is not None for each in stored),
        load=load,
        visual_tokens=sizes.target.vision.tokens(load.frames, load.max_pixels),
        rows=rows,
        decision=decision,
        change=change,
    )


def largest_that_fits(pairs: Mapping[str, Pair], machine: Machine) -> str | None:
    """Of the pairs whose least memory is known, the largest that fits with a clip of its defaults."""
    room = sum(device.usable for device in machine.devices)
    known = [name for name, pair in pairs.items() if pair.memory and min(pair.memory.values()) * 1e9 <= room]
    for name in sorted(known, key=lambda name: -max(pairs[name].memory.values())):
        if fit_pair(name, pairs[name], machine, workload(pairs[name].defaults)).decision.plan.fits:
            return name
    return None


def _made_on(machine: Machine) -> tuple[Quantisation, ...]:
    """What plain weights can be packed into there, while they are loaded."""
    on_gpus = (Quantisation.FP8,) if machine.gpus else ()
    return (*CANDIDATES, *on_gpus, Quantisation.TORCHAO_INT4)


def _row(sizes: Sizes, load: Workload, machine: Machine, quantisation: Quantisation, element: int) -> FitRow:
    choice = Choice(quantisation, element)
    draft = need(sizes.draft, load, choice) if sizes.draft else None
    return FitRow(quantisation, plan(machine, need(sizes.target, load, choice), draft))


def _wanted(machine: Machine) -> Wanted:
    """Computed in bfloat16 on GPUs, in float32 on a CPU."""
    return Wanted(element=2 if machine.gpus else 4)


def _size(source: Source, stored: Stored) -> ModelSize:
    """By the config; where the files are here, with the parameters that their headers say."""
    size = size_of(config_path(source, stored.folder), source.name)
    return replace(size, parameters=stored.parameters) if stored.parameters else size


def nf4_rows(machine: Machine) -> int | None:
    """Rows that nf4 takes at once where the target goes: on the machine's first GPU, if it has one."""
    import torch

    from lvspec_cli.models.quantise import width_limit_of

    return width_limit_of(torch.device(machine.devices[0].name))


def places(target: Sequence[Share], draft: Sequence[Share]) -> str:
    """Where the parts go, in words."""
    if len(target) == 1:
        words = target[0].device
    else:
        words = " + ".join(f"{share.device} ({share.layers} layers)" for share in target)
    if draft and (len(target) > 1 or draft[0].device != target[0].device):
        words += f"; draft {draft[0].device}"
    return words
