"""How a pair is loaded on this machine, and whether it fits: settled before any weights are read.

torch is not imported for a pair that plainly fits a machine without a GPU.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from lvspec_cli.pairs.files import Stored, config_path, locate, read_object
from lvspec_cli.pairs.registry import Pair, Source
from lvspec_cli.types import Loading, Placement, Quantisation, Share, VideoRequest
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, most_frames

if TYPE_CHECKING:
    from lvspec_cli.request import AskRequest

LEAST = Workload(frames=2, max_pixels=112 * 112, new_tokens=64)  # with less there is nothing to answer about
_DEVICE_FILES = ("nvidiactl", "nvidia0", "kfd", "dxg")
_PLENTY = 4  # times the files' size: bfloat16 computed in float32, and as much again for the clip
_CHARACTERS_A_TOKEN = 4  # of English, about
_SCALED = 384 * 384  # pixels that some processors make of every frame
_AS_PIXELS = 28 * 28  # a token of text takes what a token of video does
_A_PIXEL = 2000  # bytes, with all that is made of it: a 72B takes up to 1600 in float32


@dataclass(frozen=True)
class Settled:
    """What is settled, and the lines about it that are worth saying."""

    loading: Loading
    width_limit: int | None = None  # rows of a verification that the target's kernels take at once
    notes: tuple[str, ...] = ()


def settle(request: AskRequest, target: Path, draft: Path | None, duration: float | None = None) -> Settled:
    """How the pair in these folders is loaded on this machine.

    :param duration: as in ``workload_of``.
    :raises PairError: files are broken, or do not go with what was asked for.
    """
    kind = device_kind(request.device)
    wanted = (request.quant_target, request.quant_draft)
    folders = [folder for folder in (target, draft) if folder is not None]
    plain = kind == "cpu" and all(each in (Quantisation.AUTO, Quantisation.NONE) for each in wanted)
    if plain and request.draft_device is None and _plainly_fit(folders, request.side_by_side):
        none, dtype = Quantisation.NONE, "float32" if request.dtype == "auto" else request.dtype
        return Settled(Loading(none, none if draft else None, dtype, kind))
    return _settle(request, target, draft, kind, duration)


def device_kind(name: str) -> str:
    """cpu, cuda or mps. Without torch where that is plain."""
    if name != "auto":
        return name.partition(":")[0]
    if sys.platform == "linux" and not any((Path("/dev") / file).exists() for file in _DEVICE_FILES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _plainly_fit(folders: list[Path], times: int) -> bool:
    """Files that are not quantised and, so many times over, far smaller than what is free."""
    from lvspec_cli.memory.machine import cpu_memory

    if any(_quantised(folder) for folder in folders):
        return False
    taken = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return taken * _PLENTY * times <= cpu_memory().free


def _quantised(folder: Path) -> Any:
    """What a model's config says of how its files are quantised; None: they are not."""
    return read_object(folder / "config.json").get("quantization_config")


def _settle(
    request: AskRequest, target: Path, draft: Path | None, kind: str, duration: float | None
) -> Settled:
    from lvspec_cli.models.families import family_of
    from lvspec_cli.models.load import choose_device, choose_dtype
    from lvspec_cli.models.quantise import (
        agreed,
        check_usable,
        held_as,
        quantisation_of_files,
        width_limit_of,
    )

    device = choose_device(request.device)
    home = choose_device(request.draft_device) if request.draft_device else device
    asked, dtypes = [], []
    for folder, quantisation, place in (
        (target, request.quant_target, device),
        (draft, request.quant_draft, home),
    ):
        if folder is None:
            continue
        files = quantisation_of_files(_quantised(folder), str(folder))
        auto = quantisation is Quantisation.AUTO and files is None
        agreed_on = quantisation if auto else agreed(quantisation, files, str(folder))
        asked.append(held_as(agreed_on, files, place.type))
        check_usable(asked[-1], place, files)
        safe = family_of(
            read_object(folder / "config.json").get("model_type", ""), str(folder)
        ).float16_is_safe
        dtypes.append(choose_dtype(request.dtype, place, asked[-1], float16_is_safe=safe))
    dtype = dtypes[0]
    limit = width_limit_of(device, captured=request.cuda_graphs)
    chosen: tuple[Quantisation, Quantisation | None] = (asked[0], asked[1] if draft else None)
    element = dtypes[1].itemsize if draft else None
    why = ""
    if Quantisation.AUTO in asked:
        decision = decide(
            _machine(request),
            sizes_of(target, draft),
            workload_of(request, duration),
            Wanted(asked[0], asked[-1], dtype.itemsize, request.draft_device, element),
            gamma=request.settings.greatest_gamma,
            width_limit=limit,
        )
        chosen, why = (decision.target, decision.draft), decision.why
    loading = Loading(*chosen, str(dtype).removeprefix("torch."), kind)
    return Settled(
        loading, limit if loading.target is Quantisation.NF4 else None, _notes(loading, asked, why)
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


def has_room(
    request: AskRequest, target: Path, draft: Path | None, held: int, tokens_of_two: Callable[[], int]
) -> bool:
    """Whether a loaded pair can read a clip that is decoded.

    Asked of a CPU: the system ends what takes too much of its memory, where a GPU says no and can be tried.
    By then the weights are among what is held.

    :param request: with as many frames and pixels as the clip has.
    :param held: bytes of its frames; the processor takes a copy.
    :param tokens_of_two: the target's, of two frames: its processor may make them of another size.
    """
    from lvspec_cli.memory.machine import spare_memory

    if request.loading is None or request.loading.device != "cpu":
        return True
    load = workload_of(request)
    spare = int(spare_memory()[0] * (1 - SLACK)) // request.side_by_side - held
    pixels = load.frames * max(load.max_pixels, _SCALED) + (load.text_tokens - TEXT_TOKENS) * _AS_PIXELS
    if pixels * _A_PIXEL <= spare:
        return True
    sizes, wanted = sizes_of(target, draft), wanted_of(request, request.loading)
    share = tokens_of_two() / max(1, sizes.target.vision.tokens(2, load.max_pixels))
    seen = replace(load, frames=math.ceil(load.frames * share))
    return beside_weights(sizes, seen, wanted) <= spare


def sizes_of(target: Path, draft: Path | None) -> Sizes:
    """The sizes of the models in these folders, from their configs."""
    from lvspec_cli.memory.sizes import size_of

    return Sizes(
        size_of(target / "config.json", str(target)),
        None if draft is None else size_of(draft / "config.json", str(draft)),
    )


def placed(request: AskRequest, target: Path, draft: Path | None) -> Placement:
    """Where the pair's parts go on the machine as it is now; no shares where there is nothing to choose.

    On GPUs a clip that is too large for what is free then does not keep the pair from being loaded: it can be
    made smaller. A CPU's memory gives no such warning, the system ends what takes too much of it.

    :raises NoRoomError: the weights themselves do not fit, or on a CPU the largest clip that is asked for.
    """
    loading, on_gpus = request.loading, request.loading is not None and request.loading.device == "cuda"
    if loading is None or not (on_gpus or _may_be_short(request, target, draft)):
        return Placement()
    machine, sizes = _machine(request), sizes_of(target, draft)
    load, wanted = workload_of(request), wanted_of(request, loading)
    for each in (load, LEAST) if on_gpus else (load,):
        plan = decide(machine, sizes, each, wanted, gamma=1, width_limit=None).plan
        if plan.fits:
            return Placement(plan.target, plan.draft) if on_gpus else Placement()
    error = no_room(machine, sizes, load, wanted)
    if request.side_by_side == 1:
        raise error
    raise NoRoomError(
        f"{error.cause}, for each of {request.side_by_side} side by side",
        f"take fewer --workers, or {error.remedy}",
    )


def _machine(request: AskRequest) -> Machine:
    """The memory of this machine, or the part of it that is this request's."""
    from lvspec_cli.memory.machine import this_machine

    return this_machine(request.device, request.draft_device).shared(request.side_by_side)


def _may_be_short(request: AskRequest, target: Path, draft: Path | None) -> bool:
    folders = [folder for folder in (target, draft) if folder is not None]
    return not _plainly_fit(folders, request.side_by_side)


def wanted_of(request: AskRequest, loading: Loading) -> Wanted:
    """What was settled, as something to plan for; the draft in the type that its own device computes in."""
    from lvspec_cli.models.quantise import DTYPES, compute_dtype

    draft = loading.draft or Quantisation.NONE
    home = device_kind(request.draft_device) if request.draft_device else loading.device
    # The target shows whether these GPUs have a narrow type that the family bears: float16 is as wide.
    has_narrow = loading.device == "cpu" or loading.dtype != "float32"
    dtype = compute_dtype(request.dtype, draft, home, has_bfloat16=has_narrow)
    return Wanted(loading.target, draft, DTYPES[loading.dtype].itemsize, request.draft_device, dtype.itemsize)


def no_room_for(request: AskRequest, target: Path, draft: Path | None) -> NoRoomError:
    """What to say after memory did not suffice, while loading or later."""
    from lvspec_cli.memory.machine import this_machine

    loading = request.loading or settle(request, target, draft).loading
    machine, sizes = this_machine(request.device, request.draft_device), sizes_of(target, draft)
    return no_room(machine, sizes, workload_of(request), wanted_of(request, loading))


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
    sizes = sizes_of(target, draft)
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
