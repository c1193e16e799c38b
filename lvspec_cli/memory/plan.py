"""The memory plan of a pair: how much each model needs, its quantisation, and the devices of its layers.

All functions here are pure. Sizes are in bytes. The activations of a prefill are the buffers that exist at
the same time in one decoder layer or in the vision tower; ``SLACK`` covers what the allocator wastes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from lvspec_cli.errors import UsageError
from lvspec_cli.models.prompt_length import frames_within
from lvspec_cli.table import counted, gigabytes
from lvspec_cli.types import WHOLE, DraftView, Quantisation, Share, VisionSize

GIGABYTE = 10**9
CONTEXT = {"gpu": 700_000_000, "cpu": 900_000_000}  # bytes that CUDA, or Python and its libraries take
SLACK = 0.03  # share of a device's free memory that fragmentation may waste
SPARE_ROWS = 512  # extra rows that a cache may allocate, see ``models.cache``
TEXT_TOKENS = 256  # tokens of a prompt besides the video

# Bytes of one weight in a quantised matrix, scales included. nf4: blocks of 64 with a scale of one byte, and
# a float32 scale for 256 of these scales; int8 and fp8: a scale a row; int4: groups of 64 with a scale; the
# others: groups of 128 with a scale and a zero point (which torchao keeps in the compute dtype).
MATRIX_BYTES: Mapping[Quantisation, float] = {
    Quantisation.NF4: 0.5 + 1 / 64 + 4 / (64 * 256),
    Quantisation.INT8: 1.0,
    Quantisation.FP8: 1.0,
    Quantisation.AWQ: 0.5 + 2.5 / 128,
    Quantisation.GPTQ: 0.5 + 2.5 / 128,
    Quantisation.TORCHAO_INT4: 0.5 + 4 / 128,
    Quantisation.INT4: 0.5 + 2 / 64,
}


@dataclass(frozen=True)
class ModelSize:
    """The dimensions of one architecture that memory depends on."""

    name: str
    parameters: int  # tied weights are counted once
    layer: int  # parameters of one decoder layer
    layer_matrices: int  # those of them that are in matrices, which quantisers convert
    largest_matrix: int  # parameters of the largest matrix of a layer
    layers: int
    width: int
    mlp: int
    key_width: int  # key heads * head size
    vision: VisionSize
    attention_layers: int | None = None  # that have keys and values; None: all
    state: int = 0  # bytes of what the other layers keep
    positions: int | None = None  # the most tokens of a prompt and its answer; None: not known
    in_target: bool = False  # a prediction layer, which goes where its target's embeddings and head are

    @property
    def matrices(self) -> int:
        """Parameters that quantisers convert."""
        return self.layers * self.layer_matrices


@dataclass(frozen=True)
class Workload:
    """The largest input and output: one clip, and one answer of ``new_tokens``.

    ``slots``: such answers that are decoded at the same time. They are prefilled one by one.
    """

    frames: int
    max_pixels: int
    new_tokens: int
    text_tokens: int = TEXT_TOKENS
    draft_view: DraftView = WHOLE  # what of the clip the draft is shown
    slots: int = 1

    @property
    def of_draft(self) -> Workload:
        """The draft's."""
        return replace(
            self,
            frames=min(self.frames, self.draft_view.frames or self.frames),
            max_pixels=min(self.max_pixels, self.draft_view.pixels or self.max_pixels),
        )


@dataclass(frozen=True)
class Choice:
    """How one model is stored. ``element``: bytes of a value in the compute dtype (2 for bfloat16)."""

    quantisation: Quantisation = Quantisation.NONE
    element: int = 2


@dataclass(frozen=True)
class Need:
    """Memory that one model needs, in bytes."""

    weights: int
    cache: int  # keys and values
    activations: int  # at prefill, in addition to weights and cache
    layers: int
    layer: int  # one decoder layer's weights, keys and values
    in_target: bool = False  # goes to the target's first device

    @property
    def resident(self) -> int:
        """Bytes that stay allocated between forward passes."""
        return self.weights + self.cache

    @property
    def total(self) -> int:
        return self.resident + self.activations


@dataclass(frozen=True)
class Device:
    """A GPU, or the machine's memory (``cpu``)."""

    name: str  # as torch names it: cuda:0, cpu
    free: int
    total: int
    label: str = ""

    @property
    def usable(self) -> int:
        """Free bytes without those that libraries take and fragmentation wastes."""
        return max(0, int(self.free * (1 - SLACK)) - CONTEXT[self.kind])

    @property
    def kind(self) -> str:
        return "cpu" if self.name == "cpu" else "gpu"


@dataclass(frozen=True)
class Machine:
    """The devices of this machine."""

    cpu: Device
    gpus: tuple[Device, ...] = ()
    drafts: tuple[Device, ...] = ()  # GPUs that only the draft may use: the user named them for it

    def shared(self, count: int) -> Machine:
        """The share of one of ``count`` equal processes, computed before any of them has started."""

        def part(device: Device) -> Device:
            return replace(device, free=device.free // count)

        return Machine(part(self.cpu), tuple(map(part, self.gpus)), tuple(map(part, self.drafts)))

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices that parts of a pair may be placed on: the CPU only if the pair has no GPU."""
        return (*(self.gpus or (self.cpu,)), *self.drafts)


@dataclass(frozen=True)
class Plan:
    """The needed memory and the placement. ``target`` and ``draft`` are empty if the pair does not fit."""

    target_need: Need
    draft_need: Need | None
    target: tuple[Share, ...] = ()
    draft: tuple[Share, ...] = ()
    missing: int = 0  # bytes that the machine lacks

    @property
    def fits(self) -> bool:
        return bool(self.target)

    @property
    def needed(self) -> int:
        """Bytes that both models need on a single device, without the libraries' own."""
        return together(self.target_need, self.draft_need)


def matrix_bytes(kind: Quantisation, element: int) -> float:
    """Bytes of one weight in a matrix. ``element``: bytes of a value in the compute dtype."""
    if kind is Quantisation.TORCHAO_INT4:
        return MATRIX_BYTES[kind] + 2 * (element - 2) / 128
    return MATRIX_BYTES.get(kind, float(element))


def weight_bytes(parameters: int, matrices: int, choice: Choice) -> int:
    """Bytes of a model's weights.

    :param parameters: all of them; ``matrices`` is the number of those in matrices.
    :raises UsageError: the quantisation is still ``auto``, which has no size.
    """
    kind = choice.quantisation
    if kind is Quantisation.AUTO:
        raise UsageError("quantisation auto has no size of its own", "name one, such as nf4")
    element = 2 if kind is Quantisation.BF16 else choice.element
    return round(matrices * matrix_bytes(kind, element)) + (parameters - matrices) * element


def need(size: ModelSize, load: Workload, choice: Choice = Choice()) -> Need:
    """The memory that a model needs for a workload."""
    tokens = prompt_tokens(size, load) + load.new_tokens + SPARE_ROWS
    attention_layers = size.layers if size.attention_layers is None else size.attention_layers
    cache = load.slots * (attention_layers * 2 * size.key_width * tokens * choice.element + size.state)
    return Need(
        weights=weight_bytes(size.parameters, size.matrices, choice),
        cache=cache,
        activations=_activations(size, load, choice),
        layers=size.layers,
        layer=weight_bytes(size.layer, size.layer_matrices, choice) + cache // size.layers,
        in_target=size.in_target,
    )


def prompt_tokens(size: ModelSize, load: Workload) -> int:
    """The most tokens that a prompt with its video can have."""
    frame_text = load.frames * size.vision.text_a_frame
    return size.vision.tokens(load.frames, load.max_pixels) + frame_text + load.text_tokens


def frames_in_context(sizes: Sizes, load: Workload) -> int | None:
    """The most frames, of those of the workload, that both models' contexts have room for beside its text and
    answer; None if there is room for none."""
    frames: int | None = load.frames
    for size in (sizes.target, sizes.draft):
        if size is not None and size.positions is not None and frames is not None:
            tokens = partial(_prompt_tokens_of, size, load, is_draft=size is sizes.draft)
            frames = frames_within(tokens, frames, size.positions - load.new_tokens)
    return frames


def _prompt_tokens_of(size: ModelSize, load: Workload, frames: int, *, is_draft: bool) -> int:
    fewer = replace(load, frames=frames)
    return prompt_tokens(size, fewer.of_draft if is_draft else fewer)


def _activations(size: ModelSize, load: Workload, choice: Choice) -> int:
    """The larger of two peaks: in a block of the vision tower or in a decoder layer, for the whole video.

    - Decoder layer: the residual, its normalised copy in float32 and in the compute dtype, and three values
      of the MLP's width (gate, its activation, up).
    - Vision tower: the same, plus the pixels in float32 and in the compute dtype. With rotary attention it
      may be more: the residual, its copy, queries, keys and values, and six values in float32 during the
      rotation.

    One quantised matrix at a time is dequantised in full. Measured: docs/real-size.md.
    """
    tower = size.vision
    patches = tower.patches(load.frames, load.max_pixels)
    pixels = patches * 3 * tower.frames * tower.patch**2 * (4 + choice.element)
    block = (2 * tower.width + 3 * max(tower.mlp, tower.width)) * choice.element + 4 * tower.width
    turned = (5 * choice.element + 24) * tower.width if tower.rotates else 0
    tokens = prompt_tokens(size, load)
    layer = tokens * ((3 * size.width + 3 * size.mlp) * choice.element + 4 * size.width)
    scratch = size.largest_matrix * choice.element if choice.quantisation in MATRIX_BYTES else 0
    return max(pixels + patches * max(block, turned), layer) + scratch


def together(target: Need, draft: Need | None) -> int:
    """Bytes of both models on one device. Their prefills run one after the other."""
    if draft is None:
        return target.total
    return target.resident + draft.resident + max(target.activations, draft.activations)


def plan(machine: Machine, target: Need, draft: Need | None) -> Plan:
    """The placement on the GPUs, or on the CPU if there is none.

    First choice: both models on one GPU. Second: each on a GPU of its own. Last: the target split over
    several GPUs, and the draft on the GPU with which the plan fits, the one with least memory first. A
    prediction layer stays on the target's first GPU.
    """
    empty = Plan(target, draft)
    if not machine.gpus:
        short = together(target, draft) - machine.cpu.usable
        return replace(empty, missing=short) if short > 0 else _unsplit(empty, "cpu", "cpu")
    gpus = sorted(machine.gpus, key=lambda device: -device.usable)
    if together(target, draft) <= gpus[0].usable:
        return _unsplit(empty, gpus[0].name, gpus[0].name)
    if draft is not None and not draft.in_target and target.total <= gpus[0].usable:
        second = next((device for device in gpus[1:] if draft.total <= device.usable), None)
        if second is not None:
            return _unsplit(empty, gpus[0].name, second.name)
    with_first = draft is not None and draft.in_target
    splits = [_split(empty, gpus, gpu.name) for gpu in (gpus[:1] if with_first else reversed(gpus))]
    return min(splits, key=lambda split: split.missing)


def _unsplit(empty: Plan, target: str, draft: str) -> Plan:
    """The plan with each model as a whole on the named device."""
    shares = (Share(draft, empty.draft_need.layers),) if empty.draft_need else ()
    return replace(empty, target=(Share(target, empty.target_need.layers),), draft=shares)


def _split(empty: Plan, gpus: Sequence[Device], draft_gpu: str) -> Plan:
    """The plan with the target's layers over all GPUs, each filled in turn, the draft on ``draft_gpu``."""
    target, draft = empty.target_need, empty.draft_need
    room = {gpu.name: gpu.usable - target.activations for gpu in gpus}
    room[gpus[0].name] -= target.resident - target.layers * target.layer
    if draft is not None:
        room[draft_gpu] -= draft.resident + max(0, draft.activations - target.activations)
    unplaced, shares = target.layers, []
    for gpu in gpus:
        count = min(unplaced, max(0, room[gpu.name]) // target.layer)
        if count or gpu is gpus[0]:
            shares.append(Share(gpu.name, count))
        unplaced -= count
    overdrawn = sum(-room[name] for name in {gpus[0].name, draft_gpu} if room[name] < 0)
    if unplaced or overdrawn:
        return replace(empty, missing=unplaced * target.layer + overdrawn)
    return replace(empty, target=tuple(shares), draft=(Share(draft_gpu, draft.layers),) if draft else ())


# The choices of ``auto``: bitsandbytes' methods, which run on any device and quantise ordinary files.
CANDIDATES = (Quantisation.NONE, Quantisation.INT8, Quantisation.NF4)
ACCEPTED = 0.8  # assumed acceptance rate of drafted tokens, for estimates of speed


@dataclass(frozen=True)
class Sizes:
    """A pair's two models; no draft in mode ar."""

    target: ModelSize
    draft: ModelSize | None


@dataclass(frozen=True)
class PlanRequest:
    """What the user requested of a memory plan.

    ``element``: bytes of a value in the target's compute dtype. ``draft_element``: the same for the draft,
    whose device may differ; None means the target's. ``draft_device``: the value of ``--draft-device``; with
    None the plan chooses.
    """

    target: Quantisation = Quantisation.AUTO
    draft: Quantisation = Quantisation.AUTO
    element: int = 2
    draft_device: str | None = None
    draft_element: int | None = None

    @property
    def elements(self) -> tuple[int, int]:
        """Bytes of a computed value, for the target and for the draft."""
        return self.element, self.element if self.draft_element is None else self.draft_element


@dataclass(frozen=True)
class Decision:
    """The quantisation of each model, the placement, and the reason in one line.

    It is not certain that it fits: see ``plan.fits``.
    """

    target: Quantisation
    draft: Quantisation | None
    plan: Plan
    why: str


def decide(
    machine: Machine,
    sizes: Sizes,
    load: Workload,
    request: PlanRequest,
    *,
    gamma: int,
    width_limit: int | None,
) -> Decision:
    """The fastest quantisation and placement that fit.

    The target is quantised only if it does not fit otherwise. Among the remaining options the one that reads
    the fewest bytes a token wins (docs/design.md, "What a round costs", with bytes as costs). A quantisation
    that the user named is never changed.

    ``gamma``: tokens that a round drafts. ``width_limit``: rows that an nf4 kernel handles in one pass on
    this device, 0 for none; a round then drafts no more tokens than fit into such a pass.
    """
    options = [
        Decision(target, draft, planned(machine, sizes, load, request, target, draft), "")
        for target, draft in product(
            _options(request.target), _options(request.draft) if sizes.draft else (None,)
        )
    ]
    fitting = [option for option in options if option.plan.fits]
    if not fitting:
        smallest = min(options, key=lambda option: option.plan.needed)
        return replace(smallest, why="nothing that may be chosen fits")
    if request.target is Quantisation.AUTO:
        unquantised = [option for option in fitting if option.target is Quantisation.NONE]
        fitting = unquantised or fitting
    best = min(
        fitting, key=lambda option: _bytes_a_token(sizes, option, gamma, request.elements, width_limit)
    )
    return replace(best, why=_why(best, request, options, width_limit))


def bytes_a_round(
    size: ModelSize, quantisation: Quantisation, element: int, rows: int, width_limit: int | None
) -> float:
    """Bytes of weights that one forward pass of ``rows`` tokens reads and writes.

    A pass wider than the limit dequantises nf4 weights: they are written in the compute dtype and read again.
    LLM.int8() counts as no faster than unquantised weights, because it also quantises each layer's inputs.
    """
    packed = matrix_bytes(quantisation, element)
    if quantisation is Quantisation.INT8:
        packed = float(element)
    if quantisation is Quantisation.NF4 and width_limit is not None and rows > width_limit:
        packed += 2 * element
    return size.layers * (size.layer_matrices * packed + (size.layer - size.layer_matrices) * element)


def gamma_within(gamma: int, width_limit: int | None) -> int:
    """The gamma, lowered so that a verification (gamma + 1 rows) stays within the limit, if 1 is possible."""
    return gamma if width_limit is None or width_limit < 2 else min(gamma, width_limit - 1)


def expected_tokens(gamma: int, accepted: float = ACCEPTED) -> float:
    """Expected accepted length of a round if each token is accepted with the same probability a:
    (1 - a^(gamma + 1)) / (1 - a) (Leviathan et al. 2023, arXiv 2211.17192, equation 1)."""
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


def _options(request: Quantisation) -> tuple[Quantisation, ...]:
    return CANDIDATES if request is Quantisation.AUTO else (request,)


def planned(
    machine: Machine,
    sizes: Sizes,
    load: Workload,
    request: PlanRequest,
    target: Quantisation,
    draft: Quantisation | None,
) -> Plan:
    """The plan with these quantisations; everything else is as requested."""
    return plan_on(machine, *_needs(sizes, load, request, target, draft), request.draft_device)


def _needs(
    sizes: Sizes, load: Workload, request: PlanRequest, target: Quantisation, draft: Quantisation | None
) -> tuple[Need, Need | None]:
    element, draft_element = request.elements
    target_need, draft_need = need(sizes.target, load, Choice(target, element)), None
    if draft is not None and sizes.draft is not None:
        draft_need = need(sizes.draft, load.of_draft, Choice(draft, draft_element))
    return target_need, draft_need


def plan_on(machine: Machine, target: Need, draft: Need | None, draft_device: str | None) -> Plan:
    """As ``plan``, with the draft on the device that the user named, if any."""
    if draft is None or draft_device is None:
        return plan(machine, target, draft)
    device = device_named(machine, draft_device)
    short = draft.total - device.usable
    target_plan = plan(_after_loading(machine, device, draft), target, None)
    if short > 0 or not target_plan.fits:
        return Plan(target, draft, missing=max(0, short) + target_plan.missing)
    return replace(target_plan, draft_need=draft, draft=(Share(device.name, draft.layers),))


def device_named(machine: Machine, name: str) -> Device:
    """The device with torch's ``name``; ``cuda`` is the first GPU.

    :raises KeyError: there is no such device.
    """
    gpus = sorted((*machine.gpus, *machine.drafts), key=lambda gpu: gpu.name)
    devices = {device.name: device for device in (*gpus, machine.cpu)}
    devices["mps"] = machine.cpu  # they share their memory
    if gpus:
        devices.setdefault("cuda", gpus[0])
    return devices[name]


def _after_loading(machine: Machine, draft_device: Device, draft: Need) -> Machine:
    """The machine's free memory after the draft is loaded."""

    def reduced(device: Device) -> Device:
        used = draft.resident if device.name == draft_device.name else 0
        return replace(device, free=max(0, device.free - used))

    return Machine(reduced(machine.cpu), tuple(map(reduced, machine.gpus)))


def _why(best: Decision, request: PlanRequest, options: Sequence[Decision], width_limit: int | None) -> str:
    if Quantisation.AUTO not in (request.target, request.draft):
        return "as asked for"
    parts = []
    if request.target is Quantisation.AUTO:
        if best.target is Quantisation.NONE:
            parts.append("the target fits as it is")
        else:
            unquantised = next(option for option in options if option.target is Quantisation.NONE)
            parts.append(f"the target as it is would need {gigabytes(unquantised.plan.needed)} in all")
            if best.target is Quantisation.NF4 and width_limit:
                rows = f"nf4 takes {width_limit} rows at once here"
                parts.append(rows + (f", so gamma is {width_limit - 1} at most" if width_limit > 1 else ""))
            elif width_limit == 0:
                parts.append("packed weights are slow on a CPU")
    if request.draft is Quantisation.AUTO and best.draft is not None:
        parts.append(
            f"the draft reads least as {best.draft}"
            if best.draft is not Quantisation.NONE
            else "so does the draft"
            if "the target fits as it is" in parts
            else "the draft fits as it is"
        )
    return ", ".join(parts)


def non_weight_bytes(sizes: Sizes, load: Workload, request: PlanRequest) -> int:
    """Bytes that a loaded pair needs for a clip besides its weights, both models on one device."""
    target, draft = _needs(sizes, load, request, request.target, request.draft)
    return together(target, draft) - target.weights - (draft.weights if draft else 0)


def slots_that_fit(machine: Machine, sizes: Sizes, load: Workload, request: PlanRequest, most: int) -> int:
    """How many answers can be decoded at a time, up to ``most``; 0 if not even one."""

    def is_too_many(slots: int) -> bool:
        several = replace(load, slots=slots)
        return not decide(machine, sizes, several, request, gamma=1, width_limit=None).plan.fits

    return bisect_left(range(1, most + 1), True, key=is_too_many)


def smallest_change(machine: Machine, sizes: Sizes, load: Workload, request: PlanRequest) -> str | None:
    """The flags of the first change in the list with which the pair fits, or None."""
    changes = _changes(load, request, in_target=sizes.draft is not None and sizes.draft.in_target)
    for flags, changed_load, changed_request in changes:
        if decide(machine, sizes, changed_load, changed_request, gamma=1, width_limit=None).plan.fits:
            return flags
    return None


def _changes(
    load: Workload, request: PlanRequest, *, in_target: bool
) -> list[tuple[str, Workload, PlanRequest]]:
    """Flags to try and what they change, mildest first.

    A shorter prompt; half the frames, half the pixels, a quarter of each; a draft in 4 bits, both models in
    4 bits; both in 4 bits with a quarter of the frames.

    :param in_target: the draft is a prediction layer, which is never packed.
    """
    changes = []
    if load.text_tokens > TEXT_TOKENS:
        changes.append(("a shorter prompt", replace(load, text_tokens=TEXT_TOKENS), request))
    for divisor in (2, 4):
        if load.frames // divisor >= 2:
            fewer = replace(load, frames=load.frames // divisor)
            changes.append((f"--frames {fewer.frames}", fewer, request))
        smaller = replace(load, max_pixels=load.max_pixels // divisor)
        changes.append((f"--max-pixels {smaller.max_pixels}", smaller, request))
    draft_nf4 = request if in_target else replace(request, draft=Quantisation.NF4)
    both_nf4 = replace(draft_nf4, target=Quantisation.NF4)
    flags = "--quant-target nf4" + ("" if in_target else " --quant-draft nf4")
    fewest = replace(load, frames=max(2, load.frames // 4))
    return [
        *changes,
        *([] if in_target else [("--quant-draft nf4", load, draft_nf4)]),
        (flags, load, both_nf4),
        (f"{flags} --frames {fewest.frames}", fewest, both_nf4),
    ]


def shortage(plan: Plan, machine: Machine, load: Workload) -> str:
    """One line: the memory that the pair needs for a clip, with libraries and fragmentation, and the free
    memory."""
    needed = (plan.needed + CONTEXT[machine.devices[0].kind]) / (1 - SLACK)
    free = ", ".join(
        f"{gigabytes(device.free)} of {gigabytes(device.total)} on {device.name}"
        for device in machine.devices
    )
    clip = f"{counted(load.frames, 'frame')} of {load.max_pixels} pixels"
    if load.text_tokens > TEXT_TOKENS:
        clip += f" and about {load.text_tokens} tokens of text"
    return f"too little memory: the pair needs about {gigabytes(needed)} with {clip}; free: {free}"
