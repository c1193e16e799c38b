"""What a pair needs of memory and where its parts would go: arithmetic on values, nothing is loaded.

Sizes are in bytes. A prefill's activations are counted as the buffers that are alive at once in a decoder
layer or in the vision tower; what the allocator wastes is in ``SLACK``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lvspec_cli.errors import UsageError
from lvspec_cli.types import Quantisation

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
class VisionSize:
    """A vision tower, and how many tokens it makes of frames."""

    width: int
    mlp: int  # width inside a block
    patch: int  # pixels a side
    merge: int  # patches a side that become one token
    frames: int = 1  # that share a patch
    patches_a_frame: int | None = None  # where every frame is scaled to the same size; None: by its pixels
    tokens_a_frame: int | None = None
    text_a_frame: int = 0  # tokens of text that the processor writes beside each frame
    rotates: bool = False  # queries and keys, in float32

    def patches(self, frames: int, pixels: int) -> int:
        """Of a whole video, at most, when no frame has more than ``pixels``."""
        return math.ceil(frames / self.frames) * (self.patches_a_frame or pixels // self.patch**2)

    def tokens(self, frames: int, pixels: int) -> int:
        """Visual tokens of a whole video, at most."""
        a_frame = self.tokens_a_frame or pixels // (self.patch * self.merge) ** 2
        return math.ceil(frames / self.frames) * a_frame


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
class Share:
    """What of a model goes to one device: so many decoder layers; the first share has all the rest, too."""

    device: str
    layers: int


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
