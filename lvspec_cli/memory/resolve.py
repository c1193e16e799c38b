"""Decides how a pair is loaded on this machine, and whether it fits, before any weights are read.

torch is not imported for a pair that is far smaller than the memory of a machine without a GPU.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvspec_cli.errors import NoRoomError, UsageError
from lvspec_cli.memory.plan import (
    CANDIDATES,
    GIGABYTE,
    SLACK,
    TEXT_TOKENS,
    Decision,
    Machine,
    ModelSize,
    Plan,
    PlanRequest,
    Sizes,
    Workload,
    decide,
    frames_in_context,
    non_weight_bytes,
    planned,
    shortage,
    slots_that_fit,
    smallest_change,
)
from lvspec_cli.pairs.files import (
    Stored,
    config_path,
    locate,
    locate_draft,
    pinned,
    read_object,
    require,
    require_mtp,
)
from lvspec_cli.pairs.registry import Pair, Source, settings_of_pair
from lvspec_cli.request import AskRequest, LoadPlan, PairChoice, check_draft_view
from lvspec_cli.table import counted
from lvspec_cli.types import Clip, DecodeSettings, Loading, Mode, Placement, Quantisation, Share, VideoRequest
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, most_frames

SMALLEST_WORKLOAD = Workload(frames=2, max_pixels=112 * 112, new_tokens=64)  # the least that makes sense
_DEVICE_FILES = ("nvidiactl", "nvidia0", "nvmap", "kfd", "dxg")
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "xla", "mtia")
_AMPLE_FACTOR = 4  # times the files' size: bfloat16 files computed in float32, and as much for the clip
_CHARACTERS_A_TOKEN = 4  # of English text, roughly
MOST_SLOTS = 32  # answers that are decoded together
_SCALED = 384 * 384  # pixels to which some processors scale every frame
_PIXELS_A_TEXT_TOKEN = 28 * 28  # a text token needs as much memory as a video token of so many pixels
_BYTES_A_PIXEL = 2000  # with all activations: a 72B model in float32 needs up to 1600


def resolve(choice: PairChoice, settings: DecodeSettings, load: Workload) -> LoadPlan:
    """The load plan of a pair on this machine: the local revisions, the quantisation and the dtype.

    The placement is decided later (``place``), when the clip is known.

    :param settings: mode ar needs no draft; the greatest gamma decides the planned cost of a round.
    :raises PairError: a part of the pair is missing, files are broken, or do not match the user's flags.
    """
    pair, with_draft = choice.pair, settings.mode is not Mode.AR
    check_draft_view(settings, mtp=pair.draft.mtp)
    target = require(pair.target, choice.name)
    draft = None
    if with_draft and pair.draft.mtp:
        _check_mtp(choice, settings, target)
        draft, choice = target, replace(choice, quant_draft=Quantisation.NONE)
    elif with_draft:
        draft = require(pair.draft, choice.name)
        _check_draft_pixels(settings, draft)
    read = {"target": pinned(pair.target, target)} | ({"draft": pinned(pair.draft, draft)} if draft else {})
    choice = replace(choice, pair=pair.model_copy(update=read))
    kind = device_kind(choice.device)
    unquantised = {choice.quant_target, choice.quant_draft} <= {Quantisation.AUTO, Quantisation.NONE}
    ample = kind == "cpu" and unquantised and choice.draft_device is None
    if ample and _fit_amply((target, draft), choice.side_by_side):
        none, dtype = Quantisation.NONE, "float32" if choice.dtype == "auto" else choice.dtype
        return LoadPlan(choice, target, draft, Loading(none, none if draft else None, dtype, kind))
    return _decided(choice, target, draft, kind, settings.greatest_gamma, load)


def _check_mtp(choice: PairChoice, settings: DecodeSettings, target: Path) -> None:
    """Checks flags that go with ``--draft mtp``, and that the target's files have a prediction layer.

    :raises UsageError: one of the flags makes no sense for it.
    :raises PairError: there is no such layer.
    """
    own = "--draft mtp is a part of the target"
    if choice.draft_device is not None:
        raise UsageError(
            f"{own} and stays on its device, not on {choice.draft_device}", "leave out --draft-device"
        )
    if choice.quant_draft not in (Quantisation.AUTO, Quantisation.NONE):
        raise UsageError(f"{own} and is small: it is never packed", "leave out --quant-draft")
    require_mtp(choice.pair.target, target)


def _check_draft_pixels(settings: DecodeSettings, draft: Path) -> None:
    """
    :raises UsageError: the draft's processor scales all frames to one size, so that nothing would be saved.
    """
    if settings.draft_pixels is None:
        return
    from lvspec_cli.memory.sizes import size_of

    if size_of(draft / "config.json", str(draft)).vision.patches_a_frame is not None:
        raise UsageError(
            "this pair's draft scales frames of any size to one: --draft-pixels would save nothing",
            "take --draft-frames",
        )


def check_device(name: str, flag: str = "--device") -> None:
    """Refuses a device that this machine certainly lacks, before torch is imported.

    :raises UsageError: see ``device_problem``.
    """
    problem = device_problem(name, flag, sys.platform, has_gpu=_has_gpu_file())
    if problem is not None:
        raise problem


def device_problem(name: str, flag: str, platform: str, *, has_gpu: bool) -> UsageError | None:
    """Why a device cannot be used, as far as that is known without torch.

    :param platform: as ``sys.platform``.
    :param has_gpu: on Linux, whether there is a device file of a GPU. On other systems it says nothing.
    """
    kind, _, number = name.partition(":")
    cause = f"{flag} {name}: there is no such device"
    if name != "auto" and (kind not in _DEVICES or (number and not number.isdecimal())):
        near = "cuda" if kind.lower() in ("gpu", "cuda", "nvidia") else "auto, cpu, cuda, cuda:1 or mps"
        return UsageError(cause, f"did you mean {near}?" if near == "cuda" else f"use {near}")
    lacks_gpu = kind == "cuda" and (platform == "darwin" or (platform == "linux" and not has_gpu))
    if lacks_gpu or (kind == "mps" and platform != "darwin"):
        what = "this machine has no GPU that programs can see" if kind == "cuda" else "mps is of Macs only"
        return UsageError(f"{flag} {name}: {what}", f"leave out {flag}, or use cpu")
    return None


def _has_gpu_file() -> bool:
    return any((Path("/dev") / file).exists() for file in _DEVICE_FILES)


def device_kind(name: str) -> str:
    """cpu, cuda or mps. Imports torch only if it is needed to find out."""
    if name != "auto":
        return name.partition(":")[0]
    if sys.platform == "linux" and not _has_gpu_file():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _fit_amply(models: Sequence[Path | None], copies: int) -> bool:
    """Whether so many copies of these models, not quantised, are far smaller than the free memory."""
    from lvspec_cli.memory.machine import cpu_memory

    folders = [folder for folder in models if folder is not None]
    if any(_quantised(folder) for folder in folders):
        return False
    file_bytes = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return file_bytes * _AMPLE_FACTOR * copies <= cpu_memory().free


def _quantised(folder: Path) -> Any:
    """The ``quantization_config`` of a model's files; None if they are not quantised."""
    return read_object(folder / "config.json").get("quantization_config")


def _decided(
    choice: PairChoice, target: Path, draft: Path | None, kind: str, gamma: int, load: Workload
) -> LoadPlan:
    """The load plan with the quantisation that the user named, or with the fastest one that fits."""
    from lvspec_cli.models.families import family_of
    from lvspec_cli.models.load import choose_device, choose_dtype
    from lvspec_cli.models.quantise import (
        check_usable,
        effective_quantisation,
        in_memory_quantisation,
        quantisation_of_files,
        width_limit_of,
    )

    device = choose_device(choice.device)
    draft_device = choose_device(choice.draft_device) if choice.draft_device else device
    requested: list[Quantisation] = []
    dtypes = []
    for folder, quantisation, model_device in (
        (target, choice.quant_target, device),
        (draft, choice.quant_draft, draft_device),
    ):
        if folder is None:
            continue
        mtp = bool(requested) and choice.pair.draft.mtp  # unpacked, also beside a packed target
        files = None if mtp else quantisation_of_files(_quantised(folder), str(folder))
        if quantisation is not Quantisation.AUTO or files is not None:
            quantisation = effective_quantisation(quantisation, files, str(folder))
        requested.append(in_memory_quantisation(quantisation, files, model_device.type))
        check_usable(requested[-1], model_device, files)
        family = family_of(read_object(folder / "config.json").get("model_type", ""), str(folder))
        dtypes.append(
            choose_dtype(choice.dtype, model_device, requested[-1], float16_is_safe=family.float16_is_safe)
        )
    dtype = dtypes[0]
    limit = width_limit_of(device, captured=choice.cuda_graphs)
    chosen: tuple[Quantisation, Quantisation | None] = (requested[0], requested[1] if draft else None)
    why = ""
    if Quantisation.AUTO in requested:
        element = dtypes[1].itemsize if draft else None
        decision = decide(
            _machine(choice),
            _sizes(target, draft, mtp=choice.pair.draft.mtp),
            load,
            PlanRequest(requested[0], requested[-1], dtype.itemsize, choice.draft_device, element),
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
        notes=_notes(loading, requested, why),
    )


def _notes(loading: Loading, requested: list[Quantisation], why: str) -> tuple[str, ...]:
    """One line about the models that ``auto`` quantises, and the reason; none if there are none."""
    models = zip(("target", "draft"), (loading.target, loading.draft), requested, strict=False)
    quantised = [
        f"{role} in {quantisation}"
        for role, quantisation, request in models
        if request is Quantisation.AUTO and quantisation not in (None, Quantisation.NONE)
    ]
    return (f"{', '.join(quantised)}: {why}",) if quantised and why else ()


def workload_of(request: AskRequest, duration: float | None = None) -> Workload:
    """The largest clip and answer of a request.

    :param duration: seconds of the file, if the number of frames depends on it.
    """
    longest = max(map(len, request.questions), default=0)
    text_tokens = (longest + len(request.system or "")) // _CHARACTERS_A_TOKEN
    load = _workload(request.video, request.settings.max_new_tokens, text_tokens, duration)
    return replace(load, draft_view=request.settings.draft_view)


def clip_workload(request: AskRequest, clip: Clip) -> Workload:
    """The workload of the request, with the clip's actual frames and pixels."""
    video = replace(request.video, max_frames=len(clip.frames), max_pixels=clip.width * clip.height)
    return workload_of(replace(request, video=video))


def workload_of_pair(pair: Pair, frames: int | None = None, max_pixels: int | None = None) -> Workload:
    """The largest clip and answer with the pair's defaults, or with the given frames and pixels."""
    defaults = pair.defaults
    video = VideoRequest(
        Path(),
        max_frames=defaults.frames if frames is None else frames,
        fps=defaults.fps if frames is None else None,
        max_pixels=max_pixels or defaults.max_pixels,
    )
    return replace(_workload(video, defaults.max_new_tokens), draft_view=settings_of_pair(pair).draft_view)


def _workload(
    video: VideoRequest, new_tokens: int, text_tokens: int = 0, duration: float | None = None
) -> Workload:
    return Workload(
        frames=most_frames(video, duration),
        max_pixels=video.max_pixels or DEFAULT_MAX_PIXELS,
        new_tokens=new_tokens,
        text_tokens=max(TEXT_TOKENS, text_tokens),
    )


def has_room(plan: LoadPlan, load: Workload, frame_bytes: int, tokens_of_two: Callable[[], int]) -> bool:
    """Whether a loaded pair has enough memory for a decoded clip.

    Checked on a CPU only: there the system kills a process that takes too much memory, whereas a GPU raises
    an error that can be handled. The weights are already in memory and count as used.

    :param load: with the clip's own number of frames and pixels.
    :param frame_bytes: size of the clip's frames; the processor makes a copy of them.
    :param tokens_of_two: gives the target's video tokens for two frames; its processor may resize frames.
    """
    from lvspec_cli.memory.machine import spare_memory

    if plan.loading.device != "cpu":
        return True
    spare = int(spare_memory()[0] * (1 - SLACK)) // plan.choice.side_by_side - frame_bytes
    text_pixels = (load.text_tokens - TEXT_TOKENS) * _PIXELS_A_TEXT_TOKEN
    pixels = load.frames * max(load.max_pixels, _SCALED) + text_pixels
    if pixels * _BYTES_A_PIXEL <= spare:
        return True
    sizes = sizes_of(plan)
    ratio = tokens_of_two() / max(1, sizes.target.vision.tokens(2, load.max_pixels))
    resized = replace(load, frames=math.ceil(load.frames * ratio))
    return non_weight_bytes(sizes, resized, plan_request_of(plan)) <= spare


def sizes_of(plan: LoadPlan) -> Sizes:
    """The sizes of the plan's models, from their configs."""
    return _sizes(plan.target, plan.draft, mtp=plan.choice.pair.draft.mtp)


def _sizes(target: Path, draft: Path | None, *, mtp: bool) -> Sizes:
    """:param mtp: the draft is the target's prediction layer."""
    from lvspec_cli.memory.sizes import size_of, size_of_mtp

    size = size_of(target / "config.json", str(target))
    if draft is None:
        return Sizes(size, None)
    return Sizes(
        size,
        size_of_mtp(target / "config.json", size) if mtp else size_of(draft / "config.json", str(draft)),
    )


def fitting_slots(plan: LoadPlan, load: Workload, most: int) -> int:
    """How many answers of a workload the pair can decode at a time on this machine, from 1 to ``most``."""
    fitting = slots_that_fit(_machine(plan.choice), sizes_of(plan), load, plan_request_of(plan), most)
    return max(1, fitting)


def place(plan: LoadPlan, load: Workload) -> LoadPlan:
    """The load plan with the placement on the machine as it is now. It has no shares on a single device.

    On GPUs the pair is loaded even if the largest clip would not fit, because clips can be made smaller after
    an error. On a CPU there is no such error: the system kills a process that takes too much memory.

    :raises NoRoomError: the weights do not fit, or, on a CPU, the largest clip does not.
    """
    on_gpus, copies = plan.loading.device == "cuda", plan.choice.side_by_side
    if not on_gpus and _fit_amply((plan.target, plan.draft), copies):
        return replace(plan, placement=Placement())
    machine, sizes, request = _machine(plan.choice), sizes_of(plan), plan_request_of(plan)
    for workload in (load, SMALLEST_WORKLOAD) if on_gpus else (load,):
        fit = decide(machine, sizes, workload, request, gamma=1, width_limit=None).plan
        if fit.fits:
            return replace(plan, placement=Placement(fit.target, fit.draft) if on_gpus else Placement())
    error = no_room(machine, sizes, load, request)
    if copies == 1:
        raise error
    raise NoRoomError(
        f"{error.cause}, for each of {copies} side by side", f"take fewer --workers, or {error.remedy}"
    )


def _machine(choice: PairChoice) -> Machine:
    """The memory of this machine, divided by the number of pairs that share it."""
    from lvspec_cli.memory.machine import this_machine

    return this_machine(choice.device, choice.draft_device).shared(choice.side_by_side)


def plan_request_of(plan: LoadPlan) -> PlanRequest:
    """The load plan as a request for a memory plan. The draft's dtype is that of its own device."""
    from lvspec_cli.models.quantise import DTYPES, compute_dtype

    choice, loading = plan.choice, plan.loading
    draft = loading.draft or Quantisation.NONE
    draft_kind = device_kind(choice.draft_device) if choice.draft_device else loading.device
    # The target's dtype shows whether these GPUs compute in 16 bits. Only the width matters here.
    has_16_bits = loading.device == "cpu" or loading.dtype != "float32"
    dtype = compute_dtype(choice.dtype, draft, draft_kind, has_bfloat16=has_16_bits)
    return PlanRequest(
        loading.target, draft, DTYPES[loading.dtype].itemsize, choice.draft_device, dtype.itemsize
    )


def no_room_for(plan: LoadPlan, load: Workload) -> NoRoomError:
    """The error for a pair that ran out of memory, while loading or later."""
    from lvspec_cli.memory.machine import this_machine

    machine = this_machine(plan.choice.device, plan.choice.draft_device)
    return no_room(machine, sizes_of(plan), load, plan_request_of(plan))


def no_room(machine: Machine, sizes: Sizes, load: Workload, request: PlanRequest) -> NoRoomError:
    """The error with the needed memory, the free memory, and the smallest change that would fit."""
    plan = decide(machine, sizes, load, request, gamma=1, width_limit=None).plan
    change = smallest_change(machine, sizes, load, request) or _other_pair(machine)
    return NoRoomError(shortage(plan, machine, load), change)


def _other_pair(machine: Machine) -> str:
    """The remedy that names the first shipped pair that fits."""
    from lvspec_cli.pairs.registry import read_models_file, shipped_models

    fit = first_that_fits(read_models_file(shipped_models()).pairs, machine)
    return f"--pair {fit.name}, which fits with its defaults" if fit else "choose a smaller pair with --pair"


GAMMA = 8  # assumed for decisions
# Made of ordinary weights.
_AT_LOAD = (*CANDIDATES, Quantisation.INT4, Quantisation.FP8, Quantisation.TORCHAO_INT4)


@dataclass(frozen=True)
class FitRow:
    """A pair's plan with weights in one quantisation, but for models whose files are quantised already."""

    quantisation: Quantisation
    target: Quantisation
    draft: Quantisation
    plan: Plan


@dataclass(frozen=True)
class PairFit:
    """The memory that a pair needs in each quantisation, and what ``auto`` would decide on this machine."""

    name: str
    here: bool  # all files of both models are on this machine
    load: Workload
    visual_tokens: int  # of the target
    frames_in_context: int | None  # how many of the frames the contexts have room for; None: for none
    rows: tuple[FitRow, ...]
    decision: Decision
    change: str | None  # flags with which it would fit, if it does not
    no_gain: str | None = None  # why it is no faster than its target alone
    at_once: int = 1  # clips that can be captioned together, as auto keeps the pair; at most MOST_SLOTS


def local_fit(pair: Pair, target: Path, draft: Path, device: str) -> Decision:
    """The decision of ``auto`` for a pair in these folders.

    :raises PairError: a config does not describe a known model.
    """
    from lvspec_cli.memory.machine import this_machine

    machine = this_machine(device)
    sizes = _sizes(target, draft, mtp=pair.draft.mtp)
    packed = Quantisation.NONE if pair.draft.mtp else None
    load, request = workload_of_pair(pair), _default_request(machine, draft=packed)
    return decide(machine, sizes, load, request, gamma=GAMMA, width_limit=None)


def fit_pair(
    name: str, pair: Pair, machine: Machine, load: Workload, width_limit: int | None = None
) -> PairFit:
    """The memory that the pair needs, and its placement on that machine.

    :raises PairError: the size of a model is not known, or its prediction layer is to draft, and it has none.
    """
    from lvspec_cli.memory.sizes import size_of_mtp

    target, draft = locate(pair.target), locate_draft(pair)
    size = _size(pair.target, target)
    if pair.draft.mtp:
        if target.folder is not None:
            require_mtp(pair.target, target.folder)
        draft_size = size_of_mtp(config_path(pair.target, target.folder), size)
    else:
        draft_size = _size(pair.draft, draft)
    sizes = Sizes(size, draft_size)
    packed = Quantisation.NONE if pair.draft.mtp else _files_quantisation(pair.draft, draft)
    files = _files_quantisation(pair.target, target), packed
    request = _default_request(machine, *files)
    decision = decide(machine, sizes, load, request, gamma=GAMMA, width_limit=width_limit)
    possible: dict[tuple[Quantisation, Quantisation], Quantisation] = {}
    for kind in _AT_LOAD:
        possible.setdefault((files[0] or kind, files[1] or kind), kind)
    rows = tuple(
        FitRow(kind, *of_both, planned(machine, sizes, load, request, *of_both))
        for of_both, kind in possible.items()
    )
    change = None if decision.plan.fits else smallest_change(machine, sizes, load, request)
    decided = replace(request, target=decision.target, draft=decision.draft or request.draft)
    return PairFit(
        name=name,
        here=target.folder is not None and draft.folder is not None,
        load=load,
        visual_tokens=sizes.target.vision.tokens(load.frames, load.max_pixels),
        frames_in_context=frames_in_context(sizes, load),
        rows=rows,
        decision=decision,
        change=change,
        no_gain=pair.no_gain,
        at_once=slots_that_fit(machine, sizes, load, decided, MOST_SLOTS),
    )


def first_that_fits(pairs: Mapping[str, Pair], machine: Machine) -> PairFit | None:
    """The first pair that fits with its defaults and gains, among those with known memory needs."""
    room = sum(device.free for device in machine.devices)
    for name, pair in pairs.items():
        # The last condition spares building models that cannot fit.
        if pair.no_gain is None and pair.memory and min(pair.memory.values()) * GIGABYTE <= room:
            fit = fit_pair(name, pair, machine, workload_of_pair(pair))
            if fit.decision.plan.fits:
                return fit
    return None


def _default_request(
    machine: Machine, target: Quantisation | None = None, draft: Quantisation | None = None
) -> PlanRequest:
    """The request without flags: computed in bfloat16 on GPUs, in float32 on a CPU.

    :param target: the quantisation of the target's files, if they are quantised; ``draft`` likewise.
    """
    auto = Quantisation.AUTO
    return PlanRequest(target or auto, draft or auto, element=2 if machine.gpus else 4)


def _files_quantisation(source: Source, stored: Stored) -> Quantisation | None:
    """The quantisation of a model's files by its config; None if they are not quantised."""
    from lvspec_cli.models.quantise import quantisation_of_files

    values = read_object(config_path(source, stored.folder)).get("quantization_config")
    return quantisation_of_files(values, source.name)


def _size(source: Source, stored: Stored) -> ModelSize:
    """The size by the model's config, with the parameters of the files' headers if they are here.

    Headers of quantised files count packed numbers, several parameters in each.
    """
    from lvspec_cli.memory.sizes import size_of

    size = size_of(config_path(source, stored.folder), source.name)
    if not stored.parameters or _files_quantisation(source, stored) is not None:
        return size
    return replace(size, parameters=stored.parameters)


def nf4_rows(machine: Machine) -> int | None:
    """Rows that an nf4 kernel handles in one pass on the target's device, the first GPU if there is one."""
    import torch

    from lvspec_cli.models.quantise import width_limit_of

    return width_limit_of(torch.device(machine.devices[0].name))


def placement_text(target: Sequence[Share], draft: Sequence[Share]) -> str:
    """The devices of both models, for a table."""
    if len(target) == 1:
        text = target[0].device
    else:
        text = " + ".join(f"{share.device} ({counted(share.layers, 'layer')})" for share in target)
    if draft and (len(target) > 1 or draft[0].device != target[0].device):
        text += f"; draft {draft[0].device}"
    return text
