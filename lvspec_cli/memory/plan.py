"""What a pair needs of memory, what it is kept in and where its parts go: decisions on values alone.

Sizes are in bytes. A prefill's activations are counted as the buffers that are alive at once in a decoder
layer or in the vision tower; what the allocator wastes is in ``SLACK``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from lvspec_cli.errors import UsageError
from lvspec_cli.table import gigabytes
from lvspec_cli.types import Quantisation, Share, VisionSize

GIGABYTE = 10**9
CONTEXT = {"gpu": 700_000_000, "cpu": 900_000_000}  # of CUDA or of Python and its libraries
SLACK = 0.03  # of a device's free memory, for fragments
SPARE_ROWS = 512  # that a cache sets aside at once, as ``models.cache``
TEXT_TOKENS = 256  # of a prompt, around the video

# Bytes of a weight of a converted matrix, with its scales: blocks of 64 whose scale is a byte, which has one
# of float32 for 256 (nf4), rows (int8), blocks of 128 x 128 (fp8), groups of 128 with scale and zero (which
# torchao keeps in the type that is computed in).
MATRIX_BYTES: Mapping[Quantisation, float] = {
    Quantisation.NF4: 0.5 + 1 / 64 + 4 / (64 * 256),
    Quantisation.INT8: 1.0,
    Quantisation.FP8: 1.0,
    Quantisation.AWQ: 0.5 + 2.5 / 128,
    Quantisation.GPTQ: 0.5 + 2.5 / 128,
    Quantisation.TORCHAO_INT4: 0.5 + 4 / 128,
}


@dataclass(frozen=True)
class ModelSize:
    """The numbers of one architecture that memory depends on."""

    name: str
    parameters: int  # tied ones once
    layer: int  # parameters of one decoder layer
    layer_matrices: int  # of them in matrices: what quantisers convert
    largest_matrix: int  # parameters of a layer's largest
    layers: int
    width: int
    mlp: int
    key_width: int  # key heads * head size
    vision: VisionSize

    @property
    def matrices(self) -> int:
        """Parameters that quantisers convert."""
        return self.layers * self.layer_matrices


@dataclass(frozen=True)
class Workload:
    """What is asked at once: a clip, and one answer of ``new_tokens``."""

    frames: int
    max_pixels: int
    new_tokens: int
    text_tokens: int = TEXT_TOKENS


@dataclass(frozen=True)
class Choice:
    """How one model is kept. ``element`` bytes a value that is computed in: 2 for bfloat16, 4 for float32."""

    quantisation: Quantisation = Quantisation.NONE
    element: int = 2


@dataclass(frozen=True)
class Need:
    """Bytes that one model takes."""

    weights: int
    cache: int  # keys and values
    activations: int  # at prefill, beside weights and cache
    layers: int
    layer: int  # one decoder layer's weights, keys and values

    @property
    def kept(self) -> int:
        """What stays between passes."""
        return self.weights + self.cache

    @property
    def total(self) -> int:
        return self.kept + self.activations


@dataclass(frozen=True)
class Device:
    """A GPU, or the machine's memory (``cpu``)."""

    name: str  # as torch names it: cuda:0, cpu
    free: int
    total: int
    label: str = ""

    @property
    def usable(self) -> int:
        """Less what the libraries take and what fragments waste."""
        return max(0, int(self.free * (1 - SLACK)) - CONTEXT[self.kind])

    @property
    def kind(self) -> str:
        return "cpu" if self.name == "cpu" else "gpu"


@dataclass(frozen=True)
class Machine:
    """Memory that there is."""

    cpu: Device
    gpus: tuple[Device, ...] = ()
    drafts: tuple[Device, ...] = ()  # GPUs that only a draft may take, which was sent there by name

    def shared(self, count: int) -> Machine:
        """What each of ``count`` processes may take of it, before any of them has begun."""

        def part(device: Device) -> Device:
            return replace(device, free=device.free // count)

        return Machine(part(self.cpu), tuple(map(part, self.gpus)), tuple(map(part, self.drafts)))

    @property
    def devices(self) -> tuple[Device, ...]:
        """Where parts of a pair may go: the CPU only where the pair has no GPU."""
        return (*(self.gpus or (self.cpu,)), *self.drafts)


@dataclass(frozen=True)
class Plan:
    """What is needed, and where it would go: no shares where it does not fit."""

    target_need: Need
    draft_need: Need | None
    target: tuple[Share, ...] = ()
    draft: tuple[Share, ...] = ()
    missing: int = 0  # bytes more that the machine would need

    @property
    def fits(self) -> bool:
        return bool(self.target)

    @property
    def needed(self) -> int:
        """Bytes on one device that holds everything, without what libraries take."""
        return together(self.target_need, self.draft_need)


def matrix_bytes(kind: Quantisation, element: int) -> float:
    """Of a weight in a matrix. ``element``: bytes of a value that is computed with."""
    if kind is Quantisation.TORCHAO_INT4:
        return MATRIX_BYTES[kind] + 2 * (element - 2) / 128
    return MATRIX_BYTES.get(kind, float(element))


def weight_bytes(parameters: int, matrices: int, choice: Choice) -> int:
    """Of ``parameters``, ``matrices`` of them in matrices.

    :raises UsageError: ``auto`` has no size before it is decided.
    """
    kind = choice.quantisation
    if kind is Quantisation.AUTO:
        raise UsageError("quantisation auto has no size of its own", "name one, such as nf4")
    element = 2 if kind is Quantisation.BF16 else choice.element
    a_matrix = matrix_bytes(kind, element)
    return round(matrices * a_matrix) + (parameters - matrices) * element


def need(size: ModelSize, load: Workload, choice: Choice = Choice()) -> Need:
    """What a model takes of memory for a workload."""
    tokens = prompt_tokens(size, load) + load.new_tokens + SPARE_ROWS
    a_layer = 2 * size.key_width * tokens * choice.element
    return Need(
        weights=weight_bytes(size.parameters, size.matrices, choice),
        cache=size.layers * a_layer,
        activations=_activations(size, load, choice),
        layers=size.layers,
        layer=weight_bytes(size.layer, size.layer_matrices, choice) + a_layer,
    )


def prompt_tokens(size: ModelSize, load: Workload) -> int:
    """Tokens of a prompt with its video, at most."""
    beside = load.frames * size.vision.text_a_frame
    return size.vision.tokens(load.frames, load.max_pixels) + beside + load.text_tokens


def _activations(size: ModelSize, load: Workload, choice: Choice) -> int:
    """The larger of two peaks: a block of the vision tower, a decoder layer; both over the whole video.

    In a layer: the residual, its normalised copy in float32 and in the type computed in, and three values of
    the inner width (gate, its activation, up). In a tower: the same, beside the pixels in float32 and again
    in the type computed in; or its attention, where that rotates: the residual, its copy, queries, keys and
    values, and six more of a float32's size while queries and keys are turned. A converted matrix is written
    out once more, whole. Measured: docs/real-size.md.
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
    """Bytes when one device holds both: they prefill one after the other."""
    if draft is None:
        return target.total
    return target.kept + draft.kept + max(target.activations, draft.activations)


def plan(machine: Machine, target: Need, draft: Need | None) -> Plan:
    """Where the parts would go on the GPUs, or on the CPU where there is none.

    One GPU for both; else one for each; else the target in several pieces and the draft where most room is.
    """
    empty = Plan(target, draft)
    if not machine.gpus:
        short = together(target, draft) - machine.cpu.usable
        return replace(empty, missing=short) if short > 0 else _whole(empty, "cpu", "cpu")
    gpus = sorted(machine.gpus, key=lambda device: -device.usable)
    if together(target, draft) <= gpus[0].usable:
        return _whole(empty, gpus[0].name, gpus[0].name)
    if draft is not None and target.total <= gpus[0].usable:
        other = next((device for device in gpus[1:] if draft.total <= device.usable), None)
        if other is not None:
            return _whole(empty, gpus[0].name, other.name)
    tries = [_split(empty, gpus, home.name) for home in reversed(gpus)]
    return min(tries, key=lambda tried: tried.missing)


def _whole(empty: Plan, target: str, draft: str) -> Plan:
    shares = (Share(draft, empty.draft_need.layers),) if empty.draft_need else ()
    return replace(empty, target=(Share(target, empty.target_need.layers),), draft=shares)


def _split(empty: Plan, gpus: Sequence[Device], home: str) -> Plan:
    """The target's layers over the GPUs, as many as go on each; the draft whole on ``home``."""
    target, draft = empty.target_need, empty.draft_need
    room = {gpu.name: gpu.usable - target.activations for gpu in gpus}
    room[gpus[0].name] -= target.kept - target.layers * target.layer
    if draft is not None:
        room[home] -= draft.kept + max(0, draft.activations - target.activations)
    left, shares = target.layers, []
    for gpu in gpus:
        count = min(left, max(0, room[gpu.name]) // target.layer)
        if count or gpu is gpus[0]:
            shares.append(Share(gpu.name, count))
        left -= count
    overdrawn = sum(-room[name] for name in {gpus[0].name, home} if room[name] < 0)
    if left or overdrawn:
        return replace(empty, missing=left * target.layer + overdrawn)
    return replace(empty, target=tuple(shares), draft=(Share(home, draft.layers),) if draft else ())


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
    by the formula of docs/design.md, "What a round costs", in bytes. What was asked for by name stays.

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
