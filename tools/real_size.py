"""Pairs at their real size with random weights: ``python -m tools.real_size --json FILE``.

Each model is built from its config on the device itself, nothing is downloaded, and run as lvspec runs it
over clips of noise. Measured are the size of its weights against what ``lvspec models fit`` plans with,
prefill, one step, a verification by its width, and keys and values. From the two models of a pair follow c
and v of docs/design.md, "What a round costs", and the speedup at accepted lengths that are given. What a
round spends on the host beside the two models' passes is not in it.

``--predict`` measures nothing and needs no GPU: it says what two cards should take, in bfloat16 and with
captured passes. A pass takes as long as reading its weights, keys, values and states, and so much more for
each kernel. The kernels are counted as the operations of the same pass in a narrow model on the CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lvspec_cli.bench.own import now
from lvspec_cli.figures.summary import CostModel
from lvspec_cli.memory.plan import Choice, ModelSize, Workload, need, prompt_tokens
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.kernels.norms import fuse_norms
from lvspec_cli.models.load import LoadedModel, choose_device
from lvspec_cli.models.steps import Workspace, run_again
from lvspec_cli.table import gigabytes
from lvspec_cli.types import Prompt, Quantisation
from tools.fabricate import fabricate, real_config, size_of_config

PAIRS = ("32B/3B", "32B/7B", "7B/3B", "27B/0.8B", "9B/0.8B")
REPOS = {
    **{size: f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("72B", "32B", "7B", "3B")},
    **{size: f"Qwen/Qwen3.5-{size}" for size in ("27B", "9B", "4B", "0.8B")},
}
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17)  # rows of a verification: gamma + 1
GAMMAS = (4, 8, 12)
LENGTHS = (2.0, 3.0, 4.0, 6.0)  # mean accepted lengths that speedups are printed for
LENGTH, ANSWER = 4.0, 200  # accepted length and tokens for which the seconds of a clip are
SIDE = 448  # pixels of a square frame
TEXT = 48  # tokens of text before the video, and behind it
NARROW_SIDE = 224  # of a frame for a narrow model: whole patches of every family


@dataclass(frozen=True)
class ClipFigures:
    """One model over one clip. Seconds and bytes; ``steps``: seconds of a pass by its rows."""

    frames: int
    prompt_tokens: int
    prefill_s: float
    cache: int
    cache_planned: int
    steps: dict[int, float]
    activations: int | None = None  # bytes, the most that prefill takes beside what stays; GPUs only
    activations_planned: int = 0


@dataclass(frozen=True)
class ModelFigures:
    """One model in one quantisation."""

    model: str
    quantisation: Quantisation
    weights: int
    weights_planned: int
    clips: tuple[ClipFigures, ...]
    too_large: tuple[int, ...] = ()  # frames of the clips that memory did not hold
    captured: bool = False  # passes were replayed as CUDA graphs

    @property
    def off(self) -> float:
        """How far the plan is from what was measured: 0.1 plans a tenth too much."""
        return self.weights_planned / self.weights - 1


def costs(target: ClipFigures, draft: ClipFigures, gamma: int) -> CostModel:
    """c and v of a pair (docs/design.md, "What a round costs") over one clip, without the host's overhead."""
    step = target.steps[1]
    return CostModel(c=draft.steps[1] / step, v=target.steps[gamma + 1] / step, o=0.0, drafted=gamma)


def clip_seconds(target: ClipFigures, draft: ClipFigures, gamma: int) -> float:
    """A clip and its answer: both prefills, and rounds of which each keeps so many tokens. The processor, and
    what a round spends on the host, are not in it."""
    a_round = gamma * draft.steps[1] + target.steps[gamma + 1]
    return target.prefill_s + draft.prefill_s + ANSWER / LENGTH * a_round


def prompt_of_noise(loaded: LoadedModel, frames: int, side: int) -> Prompt:
    """A prompt of Qwen's form around a video of noise, ``side`` pixels a side, two frames a second.

    Where the family writes times before pairs of frames, text of that length stands there.
    """
    config = loaded.model.config
    vision = config.vision_config
    grid = [frames // vision.temporal_patch_size, side // vision.patch_size, side // vision.patch_size]
    patches = grid[0] * grid[1] * grid[2]
    block = grid[1] * grid[2] // vision.spatial_merge_size**2
    times = vision.temporal_patch_size * loaded.family.vision_size(config).text_a_frame
    depth = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    inputs = {
        "pixel_values_videos": torch.randn(patches, depth),  # float32, as processors give them
        "video_grid_thw": torch.tensor([grid]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }
    least = min(config.video_token_id, config.image_token_id)  # text is below the marks
    video = torch.randint(0, least, (grid[0], times + block))
    video[:, times:] = config.video_token_id
    text = torch.randint(0, least, (2, TEXT))
    ids = torch.cat((text[0], video.flatten(), text[1]))[None]
    positions = loaded.family.position_ids(loaded.model, ids, inputs)
    return Prompt(
        text="",
        input_ids=ids,
        position_ids=positions,
        next_position=int(positions[..., -1].max()) + 1,
        video_mask=ids[0] == config.video_token_id,
        prefix_length=TEXT + video.numel(),
        video_inputs=inputs,
    )


@dataclass(frozen=True)
class Work:
    """What each model is put through: clips of so many frames, passes of so many rows, each so often."""

    frames: tuple[int, ...] = (32, 64, 128)
    side: int = SIDE
    widths: tuple[int, ...] = WIDTHS
    repeats: int = 15
    captured: bool = True  # passes as CUDA graphs, where that works
    by_torch: bool = False  # products in float32 on a CPU are torch's own


def measure_model(
    config: Any, name: str, quantisation: Quantisation, device: torch.device, work: Work
) -> ModelFigures:
    """Everything about one model; it is built here, and dropped."""
    size = size_of_config(config, name)
    loaded = fabricate(config, name, quantisation, device, captured=work.captured, by_torch=work.by_torch)
    choice = Choice(quantisation, loaded.dtype.itemsize)
    try:
        weights = loaded_bytes(loaded.model)  # before a pass: on a CPU the first one packs anew
        clips = tuple(_clips_that_fit(loaded, size, choice, work))
        held = {clip.frames for clip in clips}
        return ModelFigures(
            model=name,
            quantisation=quantisation,
            weights=weights,
            weights_planned=need(size, Workload(2, 784, 1), choice).weights,
            clips=clips,
            too_large=tuple(frames for frames in work.frames if frames not in held),
            captured=loaded.workspace is not None and loaded.workspace.is_usable,
        )
    finally:
        del loaded
        release(device)


def _clips_that_fit(
    loaded: LoadedModel, size: ModelSize, choice: Choice, work: Work
) -> Iterator[ClipFigures]:
    """The figures of every clip that memory holds: one that it does not takes none of the others with it."""
    for frames in work.frames:
        try:
            yield measure_clip(loaded, size, choice, frames, work)
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold what was computed
        release(loaded.device)


def _inner(part: Any) -> list[Tensor]:
    """What a parameter is kept in: itself, or the tensors of one that torchao packed."""
    names = part.__tensor_flatten__()[0] if hasattr(part, "__tensor_flatten__") else ()
    return [getattr(part, name) for name in names] or [part]


def release(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def loaded_bytes(model: Any) -> int:
    """Bytes of all parameters, and of the scales of packed ones."""
    total = 0
    for part in model.parameters():
        total += sum(each.numel() * each.element_size() for each in _inner(part))
        if (state := getattr(part, "quant_state", None)) is not None:
            total += state.absmax.numel() * state.absmax.element_size() + 4 * state.state2.absmax.numel()
    return total


@torch.inference_mode()
def measure_clip(
    loaded: LoadedModel, size: ModelSize, choice: Choice, frames: int, work: Work
) -> ClipFigures:
    """One clip's prefill, its cache, and passes of each width behind it."""
    decoder, prompt, room = Decoder(loaded), prompt_of_noise(loaded, frames, work.side), max(work.widths)
    for _ in range(2):  # the first one warms up, and sets the cache aside
        before, began = _allocated(loaded.device), now(loaded.device)
        decoder.encode(prompt)
        decoder.logits(decoder.begin(prompt, room), 1)
        prefill, most = now(loaded.device) - began, _most_allocated(loaded.device)
    tokens = torch.arange(room, device=loaded.device)
    planned = need(size, Workload(frames, work.side**2, room, text_tokens=2 * TEXT), choice)
    return ClipFigures(
        frames=frames,
        prompt_tokens=prompt.length,
        prefill_s=prefill,
        cache=decoder.cache.bytes,
        cache_planned=planned.cache,
        steps={width: _step(decoder, tokens[:width], work.repeats) for width in work.widths},
        activations=most - before if loaded.device.type == "cuda" else None,
        activations_planned=planned.activations,
    )


def _allocated(device: torch.device) -> int:
    """Bytes on a GPU, from where its peak is looked for from now on; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _most_allocated(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _step(decoder: Decoder, tokens: Tensor, repeats: int) -> float:
    """Median seconds of a pass over ``tokens`` with its logits, from the same place each time."""
    device, seconds = decoder.loaded.device, []
    for _ in range(repeats + 2):
        began = now(device)
        decoder.logits(decoder.forward(tokens), len(tokens))
        seconds.append(now(device) - began)
        decoder.rollback(0)
    return median(seconds[2:])


@dataclass(frozen=True)
class Card:
    """What a pass's time is predicted from."""

    name: str
    bandwidth: float  # bytes a second
    kernel_s: float  # seconds that a kernel of a captured pass takes besides reading


# Bandwidths are those of copies on the device. A kernel's seconds are fitted to the steps of 32B, 7B and 3B
# that docs/real-size.md has of each card; one pass of the 3B over 5 rows was seen to be 1,248 kernels.
CARDS = (Card("H100", 3.0e12, 2.6e-6), Card("H200", 4.3e12, 2.9e-6))
KERNELS_OF_3B = 1248
_VIEWS = ("aten.detach", "aten.empty", "aten.view", "aten._unsafe_view", "aten.lift_fresh", "aten.sym_size")


def predict_model(
    config: Any, name: str, card: Card, work: Work, kernels: Mapping[int, float]
) -> ModelFigures:
    """What a model should take on a card: passes only, in bfloat16.

    :param kernels: of a pass by its rows, see :func:`count_kernels`.
    """
    size, choice, text = size_of_config(config, name), Choice(Quantisation.BF16), config.get_text_config()
    weights = need(size, Workload(2, 784, 1), choice).weights
    read = 2 * (size.layers * size.layer + text.vocab_size * text.hidden_size)  # the layers, and the head
    clips = []
    for frames in work.frames:
        load = Workload(frames, work.side**2, max(work.widths), text_tokens=2 * TEXT)
        cache = need(size, load, choice).cache
        seconds = (read + cache) / card.bandwidth
        steps = {width: seconds + count * card.kernel_s for width, count in kernels.items()}
        tokens = prompt_tokens(size, load)
        clips.append(ClipFigures(frames, tokens, math.nan, cache, cache, steps))
    return ModelFigures(name, Quantisation.BF16, weights, weights, tuple(clips), captured=True)


def count_kernels(config: Any, widths: Sequence[int]) -> dict[int, float]:
    """Kernels of a captured pass of so many rows on a GPU, from the operations of a narrow model on the CPU.

    Libraries split some operations and fuse others; on the whole as in the pass that was looked at.
    """
    seen = _operations(real_config(REPOS["3B"]), (5,))[0]
    counts = _operations(config, widths)
    return {width: count * KERNELS_OF_3B / seen for width, count in zip(widths, counts, strict=True)}


@torch.inference_mode()
def _operations(config: Any, widths: Sequence[int]) -> list[int]:
    """Operations of a pass, as it would be captured, by its rows."""
    loaded = fabricate(narrowed(config), "narrow", Quantisation.NONE, torch.device("cpu"))
    fuse_norms(loaded.family.language(loaded.model))
    loaded = replace(loaded, workspace=Workspace(run_again))
    decoder, prompt = Decoder(loaded), prompt_of_noise(loaded, 2, NARROW_SIDE)
    decoder.encode(prompt)
    decoder.begin(prompt, max(widths))
    counts = []
    for width in widths:
        tokens = torch.arange(width)
        decoder.forward(tokens)  # the first one sets memory aside
        decoder.rollback(0)
        counted = _Counted(loaded.model)
        with counted:
            decoder.forward(tokens)
        decoder.rollback(0)
        counts.append(counted.operations)
    return counts


def narrowed(config: Any) -> Any:
    """The same layers with few numbers in each, and hardly a video tower: as many operations in a pass."""
    config = deepcopy(config)
    text, vision = config.get_text_config(), config.vision_config
    text.hidden_size, text.intermediate_size, text.vocab_size = 128, 64, 512
    text.num_attention_heads, text.num_key_value_heads = 4, 2
    if hasattr(text, "linear_num_key_heads"):
        text.linear_num_key_heads, text.linear_num_value_heads = 2, 4
        text.linear_key_head_dim = text.linear_value_head_dim = 16
    elif getattr(text, "head_dim", None) is None:  # 32 numbers a head, 16 of them turned by an axis
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [4, 6, 6]}
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 1, 64, 64, 2
    vision.out_hidden_size, vision.fullatt_block_indexes, vision.deepstack_visual_indexes = 128, [0], []
    config.image_token_id, config.video_token_id = 510, 511
    return config


class _Counted(TorchDispatchMode):
    """Counts operations that compute something; a fused norm is one of them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.operations = 0
        self._inside = 0
        self._hooks = [
            hook
            for part in model.modules()
            if isinstance(part, torch.nn.RMSNorm)
            for hook in (part.register_forward_pre_hook(self._enter), part.register_forward_hook(self._leave))
        ]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _enter(self, *_: Any) -> None:
        self.operations += not self._inside
        self._inside += 1

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (self._inside or func.is_view or str(func).startswith(_VIEWS)):
            self.operations += 1
        return func(*args, **(kwargs or {}))


def model_lines(figures: ModelFigures) -> Iterator[str]:
    """What was measured of one model, for people."""
    yield (
        f"{figures.model} {figures.quantisation}: {gigabytes(figures.weights)} of weights,"
        f" planned {gigabytes(figures.weights_planned)} ({figures.off:+.1%});"
        f" passes {'captured' if figures.captured else 'run one by one'}"
    )
    for clip in figures.clips:
        yield (
            f"  {clip.frames} frames, {clip.prompt_tokens} tokens: prefill {clip.prefill_s:.2f} s,"
            f" keys and values {gigabytes(clip.cache)} (planned {gigabytes(clip.cache_planned)})"
        )
        if clip.activations is not None:
            planned = gigabytes(clip.activations_planned)
            yield f"  prefill takes {gigabytes(clip.activations)} more for a while (planned {planned})"
        steps = ", ".join(f"{rows}: {1000 * seconds:.1f}" for rows, seconds in clip.steps.items())
        yield f"  milliseconds by rows: {steps}"
    for frames in figures.too_large:
        yield f"  {frames} frames: do not fit"


def pair_lines(target: ModelFigures, draft: ModelFigures) -> Iterator[str]:
    """c, v, the speedups that they allow, and seconds with prefill, clip by clip and gamma by gamma."""
    yield f"{target.model} {target.quantisation} with {draft.model} {draft.quantisation}"
    drafts = {clip.frames: clip for clip in draft.clips}
    for one in target.clips:
        other = drafts.get(one.frames)
        for gamma in GAMMAS:
            if other is None or gamma + 1 not in one.steps:
                continue
            model = costs(one, other, gamma)
            speedups = ", ".join(
                f"{model.speedup(length):.2f} at {length:g}" for length in LENGTHS if length <= gamma + 1
            )
            seconds = clip_seconds(one, other, gamma)
            told = "" if math.isnan(seconds) else f"; {ANSWER} tokens in {seconds:.2f} s at {LENGTH:g}"
            yield f"  {one.frames} frames, gamma {gamma}: c {model.c:.3f}, v {model.v:.2f}; {speedups}{told}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), metavar="TARGET/DRAFT")
    parser.add_argument(
        "--quantisations",
        nargs="+",
        default=["bf16", "nf4"],
        choices=["bf16", "nf4", "int4", "fp8", "torchao-int4", "none"],
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--eager", action="store_true", help="capture no CUDA graphs")
    parser.add_argument("--by-torch", action="store_true", help="on a CPU, multiply by torch's own products")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, model by model")
    parser.add_argument("--predict", action="store_true", help="for two cards; nothing is measured")
    given = parser.parse_args(arguments)
    if given.predict:
        _predict(given.pairs, Work(frames=tuple(given.frames)))
        return
    device = choose_device(given.device)
    work = Work(frames=tuple(given.frames), captured=not given.eager, by_torch=given.by_torch)
    print(f"{_device_name(device)}, torch {torch.__version__}", flush=True)
    found: dict[tuple[str, str], ModelFigures] = {}
    for name in dict.fromkeys(name for pair in given.pairs for name in pair.split("/")):
        for kind in given.quantisations:
            if figures := _measured(name, Quantisation(kind), device, work):
                found[name, kind] = figures
            if given.json:
                _write(given.json, device, found.values())
    for pair in given.pairs:
        target, draft = pair.split("/")
        for one in (key for key in found if key[0] == target):
            for other in (key for key in found if key[0] == draft):
                print(*pair_lines(found[one], found[other]), sep="\n", flush=True)


def _predict(pairs: Sequence[str], work: Work) -> None:
    """What the pairs' models should take on each card, and what follows for the pairs, told."""
    names = dict.fromkeys(name for pair in pairs for name in pair.split("/"))
    kernels = {name: count_kernels(real_config(REPOS[name]), work.widths) for name in names}
    for card in CARDS:
        print(f"predicted for an {card.name}, nothing was measured", flush=True)
        found = {
            name: predict_model(real_config(REPOS[name]), name, card, work, kernels[name]) for name in names
        }
        for name, figures in found.items():
            for clip in figures.clips:
                steps = ", ".join(f"{rows}: {1000 * seconds:.1f}" for rows, seconds in clip.steps.items())
                print(f"{name} bf16, {clip.frames} frames: milliseconds by rows: {steps}")
        for target, draft in (pair.split("/") for pair in pairs):
            print(*pair_lines(found[target], found[draft]), sep="\n", flush=True)


def _measured(name: str, quantisation: Quantisation, device: torch.device, work: Work) -> ModelFigures | None:
    """One model's figures, told as well; None where it does not fit."""
    config = real_config(REPOS[name])
    try:
        figures = measure_model(config, name, quantisation, device, work)
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold what was built
        release(device)
        print(f"{name} {quantisation}: does not fit", flush=True)
        return None
    print(*model_lines(figures), sep="\n", flush=True)
    return figures


def _write(file: Path, device: torch.device, models: Iterable[ModelFigures]) -> None:
    """All figures so far: a run that is cut short leaves those of the models before."""
    rows = {"device": _device_name(device), "models": [asdict(each) for each in models]}
    file.write_text(json.dumps(rows, indent=1))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
