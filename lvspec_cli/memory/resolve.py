"""How a pair is loaded on this machine, and whether it fits: decided before any weights are read.

torch is not imported for a pair that plainly fits a machine without a GPU.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvspec_cli.errors import NoRoomError
from lvspec_cli.memory.plan import (
    CANDIDATES,
    SLACK,
    TEXT_TOKENS,
    Choice,
    Decision,
    Machine,
    ModelSize,
    Plan,
    Sizes,
    Wanted,
    Workload,
    beside_weights,
    decide,
    need,
    plan,
    shortage,
    smallest_change,
)
from lvspec_cli.pairs.files import Stored, config_path, locate, pinned, read_object, require
from lvspec_cli.pairs.registry import Pair, Source
from lvspec_cli.request import AskRequest, LoadPlan, PairChoice
from lvspec_cli.types import DecodeSettings, Loading, Mode, Placement, Quantisation, Share, VideoRequest
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, most_frames

LEAST = Workload(frames=2, max_pixels=112 * 112, new_tokens=64)  # with less there is nothing to answer about
_DEVICE_FILES = ("nvidiactl", "nvidia0", "kfd", "dxg")
_PLENTY = 4  # times the files' size: bfloat16 computed in float32, and as much again for the clip
_CHARACTERS_A_TOKEN = 4  # of English, about
_SCALED = 384 * 384  # pixels that some processors make of every frame
_AS_PIXELS = 28 * 28  # a token of text takes what a token of video does
_A_PIXEL = 2000  # bytes, with all that is made of it: a 72B takes up to 1600 in float32


def resolve(choice: PairChoice, settings: DecodeSettings, load: Workload) -> LoadPlan:
    """What is loaded of the pair on this machine, and how: the revisions that are here, and what is kept in
    what. Where its parts go is decided last (``place``): by then the clip is known.

    :param settings: mode ar needs no draft; the greatest gamma tells how a round's cost is planned.
    :raises PairError: not all of the pair is here, files are broken, or do not go with what was asked for.
    """
    pair, with_draft = choice.pair, settings.mode is not Mode.AR
    target = require(pair.target, choice.name)
    draft = require(pair.draft, choice.name) if with_draft else None
    read = {"target": pinned(pair.target, target)} | ({"draft": pinned(pair.draft, draft)} if draft else {})
    choice = replace(choice, pair=pair.model_copy(update=read))
    kind = device_kind(choice.device)
    wanted = (choice.quant_target, choice.quant_draft)
    plain = kind == "cpu" and all(each in (Quantisation.AUTO, Quantisation.NONE) for each in wanted)
    if plain and choice.draft_device is None and _plainly_fit((target, draft), choice.side_by_side):
        none, dtype = Quantisation.NONE, "float32" if choice.dtype == "auto" else choice.dtype
        return LoadPlan(choice, target, draft, Loading(none, none if draft else None, dtype, kind))
    return _decided(choice, target, draft, kind, settings.greatest_gamma, load)


def device_kind(name: str) -> str:
    """cpu, cuda or mps. Without torch where that is plain."""
    if name != "auto":
        return name.partition(":")[0]
    if sys.platform == "linux" and not any((Path("/dev") / file).exists() for file in _DEVICE_FILES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _plainly_fit(models: Sequence[Path | None], times: int) -> bool:
    """Files that are not quantised and, so many times over, far smaller than what is free."""
    from lvspec_cli.memory.machine import cpu_memory

    folders = [folder for folder in models if folder is not None]
    if any(_quantised(folder) for folder in folders):
        return False
    taken = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return taken * _PLENTY * times <= cpu_memory().free


def _quantised(folder: Path) -> Any:
    """What a model's config says of how its files are quantised; None: they are not."""
    return read_object(folder / "config.json").get("quantization_config")


def _decided(
    choice: PairChoice, target: Path, draft: Path | None, kind: str, gamma: int, load: Workload
) -> LoadPlan:
    """What the models are kept in is as was asked for, or what fits and is fast."""
    from lvspec_cli.models.families import family_of
    from lvspec_cli.models.load import choose_device, choose_dtype
    from lvspec_cli.models.quantise import (
        agreed,
        check_usable,
        held_as,
        quantisation_of_files,
        width_limit_of,
    )

    device = choose_device(choice.device)
    home = choose_device(choice.draft_device) if choice.draft_device else device
    asked, dtypes = [], []
    for folder, quantisation, goes_to in (
        (target, choice.quant_target, device),
        (draft, choice.quant_draft, home),
    ):
        if folder is None:
            continue
        files = quantisation_of_files(_quantised(folder), str(folder))
        auto = quantisation is Quantisation.AUTO and files is None
        agreed_on = quantisation if auto else agreed(quantisation, files, str(folder))
        asked.append(held_as(agreed_on, files, goes_to.type))
        check_usable(asked[-1], goes_to, files)
        safe = family_of(
            read_object(folder / "config.json").get("model_type", ""), str(folder)
        ).float16_is_safe
        dtypes.append(choose_dtype(choice.dtype, goes_to, asked[-1], float16_is_safe=safe))
    dtype = dtypes[0]
    limit = width_limit_of(device, captured=choice.cuda_graphs)
    chosen: tuple[Quantisation, Quantisation | None] = (asked[0], asked[1] if draft else None)
    why = ""
    if Quantisation.AUTO in asked:
        element = dtypes[1].itemsize if draft else None
        decision = decide(
            _machine(choice),
            _sizes(target, draft),
            load,
            Wanted(asked[0], asked[-1], dtype.itemsize, choice.draft_device, element),
            gamma=gamma,
            width_limit=limit,
        )
        chosen, why = (decision.target, decision.draft), decision.why
    loading = Loading(*chosen, str(dtype).removeprefix("torch."), kind)
    return LoadPlan(
        choice,
        target,
        draft,
        loading,
        width_limit=limit if loading.target is Quantisation.NF4 else None,
        notes=_notes(loading, asked, why),
    )


def _notes(loading: Loading, asked: list[Quantisation], why: str) -> tuple[str, ...]:
    """What was chosen to be packed, and why."""
    halves = zip(("target", "draft"), (loading.target, loading.draft), asked, strict=False)
    kept = [
        f"{role} in {value}"
        for role, value, wanted in halves
        if wanted is Quantisation.AUTO and value not in (None, Quantisation.NONE)
    ]
    return (f"{', '.join(kept)}: {why}",) if kept and why else ()


def workload_of(request: AskRequest, duration: float | None = None) -> Workload:
    """The clip and the answer that a request asks for, at most.

    :param duration: seconds of the file, where that decides how many frames are taken.
    """
    longest = max(map(len, request.questions), default=0)
    text_tokens = (longest + len(request.system or "")) // _CHARACTERS_A_TOKEN
    return _workload(request.video, request.settings.max_new_tokens, text_tokens, duration)


def workload_of_pair(pair: Pair, frames: int | None = None, max_pixels: int | None = None) -> Workload:
    """A clip and an answer of the pair's defaults, or with other frames."""
    defaults = pair.defaults
    video = VideoRequest(
        Path(),
        max_frames=defaults.frames if frames is None else frames,
        fps=defaults.fps if frames is None else None,
        max_pixels=max_pixels or defaults.max_pixels,
    )
    return _workload(video, defaults.max_new_tokens)


def _workload(
    video: VideoRequest, new_tokens: int, text_tokens: int = 0, duration: float | None = None
) -> Workload:
    return Workload(
        frames=most_frames(video, duration),
        max_pixels=video.max_pixels or DEFAULT_MAX_PIXELS,
        new_tokens=new_tokens,
        text_tokens=max(TEXT_TOKENS, text_tokens),
    )


def has_room(plan: LoadPlan, load: Workload, held: int, tokens_of_two: Callable[[], int]) -> bool:
    """Whether a loaded pair can read a clip that is decoded.

    Asked of a CPU: the system ends what takes too much of its memory, where a GPU says no and can be tried.
    By then the weights are among what is held.

    :param load: with as many frames and pixels as the clip has.
    :param held: bytes of its frames; the processor takes a copy.
    :param tokens_of_two: the target's, of two frames: its processor may make them of another size.
    """
    from lvspec_cli.memory.machine import spare_memory

    if plan.loading.device != "cpu":
        return True
    spare = int(spare_memory()[0] * (1 - SLACK)) // plan.choice.side_by_side - held
    pixels = load.frames * max(load.max_pixels, _SCALED) + (load.text_tokens - TEXT_TOKENS) * _AS_PIXELS
    if pixels * _A_PIXEL <= spare:
        return True
    sizes = sizes_of(plan)
    share = tokens_of_two() / max(1, sizes.target.vision.tokens(2, load.max_pixels))
    seen = replace(load, frames=math.ceil(load.frames * share))
    return beside_weights(sizes, seen, wanted_of(plan)) <= spare


def sizes_of(plan: LoadPlan) -> Sizes:
    """The sizes of the plan's models, from their configs."""
    return _sizes(plan.target, plan.draft)


def _sizes(target: Path, draft: Path | None) -> Sizes:
    from lvspec_cli.memory.sizes import size_of

    return Sizes(
        size_of(target / "config.json", str(target)),
        None if draft is None else size_of(draft / "config.json", str(draft)),
    )


def place(plan: LoadPlan, load: Workload) -> LoadPlan:
    """The plan with where the parts go on the machine as it is now; no shares where nothing is to choose.

    On GPUs a clip that is too large for what is free then does not keep the pair from being loaded: it can be
    made smaller. A CPU's memory gives no such warning, the system ends what takes too much of it.

    :raises NoRoomError: the weights themselves do not fit, or on a CPU the largest clip that is asked for.
    """
    on_gpus, times = plan.loading.device == "cuda", plan.choice.side_by_side
    if not on_gpus and _plainly_fit((plan.target, plan.draft), times):
        return replace(plan, placement=Placement())
    machine, sizes, wanted = _machine(plan.choice), sizes_of(plan), wanted_of(plan)
    for each in (load, LEAST) if on_gpus else (load,):
        found = decide(machine, sizes, each, wanted, gamma=1, width_limit=None).plan
        if found.fits:
            return replace(plan, placement=Placement(found.target, found.draft) if on_gpus else Placement())
    error = no_room(machine, sizes, load, wanted)
    if times == 1:
        raise error
    raise NoRoomError(
        f"{error.cause}, for each of {times} side by side", f"take fewer --workers, or {error.remedy}"
    )


def _machine(choice: PairChoice) -> Machine:
    """The memory of this machine, or the part of it that is this pair's."""
    from lvspec_cli.memory.machine import this_machine

    return this_machine(choice.device, choice.draft_device).shared(choice.side_by_side)


def wanted_of(plan: LoadPlan) -> Wanted:
    """What was decided, as something to plan for; the draft in the type that its own device computes in."""
    from lvspec_cli.models.quantise import DTYPES, compute_dtype

    choice, loading = plan.choice, plan.loading
    draft = loading.draft or Quantisation.NONE
    home = device_kind(choice.draft_device) if choice.draft_device else loading.device
    # The target shows whether these GPUs have a narrow type that the family bears: float16 is as wide.
    has_narrow = loading.device == "cpu" or loading.dtype != "float32"
    dtype = compute_dtype(choice.dtype, draft, home, has_bfloat16=has_narrow)
    return Wanted(loading.target, draft, DTYPES[loading.dtype].itemsize, choice.draft_device, dtype.itemsize)


def no_room_for(plan: LoadPlan, load: Workload) -> NoRoomError:
    """What to say after memory did not suffice, while loading or later."""
    from lvspec_cli.memory.machine import this_machine

    machine = this_machine(plan.choice.device, plan.choice.draft_device)
    return no_room(machine, sizes_of(plan), load, wanted_of(plan))


def no_room(machine: Machine, sizes: Sizes, load: Workload, wanted: Wanted) -> NoRoomError:
    """What was needed, what was free, and the smallest change that would fit."""
    plan = decide(machine, sizes, load, wanted, gamma=1, width_limit=None).plan
    change = smallest_change(machine, sizes, load, wanted) or _smaller_pair(machine)
    return NoRoomError(shortage(plan, machine, load), change)


def _smaller_pair(machine: Machine) -> str:
    """The largest shipped pair that fits, to name where nothing else helps."""
    from lvspec_cli.pairs.registry import read_models_file, shipped_models

    name = largest_that_fits(read_models_file(shipped_models()).pairs, machine)
    return f"--pair {name}, a smaller one" if name else "choose a smaller pair with --pair"


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


def local_fit(pair: Pair, target: Path, draft: Path, device: str) -> Decision:
    """What ``auto`` would decide for a pair in these folders.

    :raises PairError: their configs describe no models.
    """
    from lvspec_cli.memory.machine import this_machine

    machine = this_machine(device)
    sizes = _sizes(target, draft)
    return decide(machine, sizes, workload_of_pair(pair), _wanted(machine), gamma=GAMMA, width_limit=None)


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
        if fit_pair(name, pairs[name], machine, workload_of_pair(pairs[name])).decision.plan.fits:
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
    from lvspec_cli.memory.sizes import size_of

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
