"""All checks of the fast path on one GPU, in order of importance, in under 8 minutes:
``python -m tools.gpu_checks``.

Every figure is printed as soon as it is there, with what was predicted for an H100 and an H200 beside it. A
check that fails is told in a line, and the next one follows, in a process that knows nothing of the failure;
one that does not end is stopped, and one that would not end in time is left out.
Models are those of ``tools.real_size``: real sizes, random weights, nothing is downloaded.

``--dry`` runs everything that needs no GPU, on the CPU with tiny models: their figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from lvspec_cli.bench.own import now
from lvspec_cli.memory.plan import Choice
from lvspec_cli.models.cache import SlotMemory
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.families import family_of
from lvspec_cli.models.generation import GenerationRules
from lvspec_cli.models.kernels.fp8 import Packed8
from lvspec_cli.models.kernels.fused import FusedLayers, Operations, Twins, captured_passes, triton_operations
from lvspec_cli.models.kernels.int4 import Packed4
from lvspec_cli.models.kernels.packed import Packed
from lvspec_cli.models.kernels.patches import multiply_patches
from lvspec_cli.models.kernels.windows import join_windows
from lvspec_cli.models.load import LoadedModel
from lvspec_cli.models.steps import CHAIN_AFTER, Chain, StepOutputs, Workspace, cuda_graphs, run_again
from lvspec_cli.models.together import Step, run_together
from lvspec_cli.models.words import TokenSets
from lvspec_cli.speculation.answer import Answer, decode_rounds
from lvspec_cli.speculation.draft import Drafting, propose
from lvspec_cli.speculation.draft_length import AdaptiveLength, DraftLengthPolicy, FixedLength
from lvspec_cli.speculation.logits import LogitsRules
from lvspec_cli.types import DecodeSettings, Mode, PairPrompts, Prompt, Quantisation, RoundCosts
from tools.fabricate import fabricate, real_config, size_of_config
from tools.real_size import (
    REPOS,
    ModelFigures,
    Work,
    measure_clip,
    model_lines,
    narrowed,
    pair_lines,
    prompt_of_noise,
    release,
)

SECONDS = 475.0
LONGEST, BEGINNING = 3, 10.0  # times the seconds of a check, and seconds, after which it is stopped
IMPORTING = 60.0  # seconds that a process may take before its first check begins
FRAMES, DRY_FRAMES, DRY_SIDE = 64, 2, 224
WIDTHS = (1, 2, 5, 9, 17)
# Milliseconds of a step over 64 frames of 448 x 448 by the cost model of docs/real-size.md: H100, H200.
PREDICTED = {
    ("3B", Quantisation.BF16): (3.2, 2.7),
    ("3B", Quantisation.INT4): (1.5, 1.3),
    ("32B", Quantisation.BF16): (23.9, 17.5),
    ("32B", Quantisation.FP8): (13.5, 10.2),
    ("32B", Quantisation.NF4): (None, 22.0),
}
TOWER_MS_A_FRAME = (10, 2)  # before and after
WAIT_US = 70  # that the device waits where the host looks at a drafted token
GAMMA = 8
SLOTS, CAPTION_TOKENS, VERIFIED = (1, 4, 16), 150, 6
ONE_BEFORE = 2959  # clips an hour of a 7B in mode ar, before passes of several captions were captured
INVARIANCE = "tests/gpu/test_precision.py::test_exact_is_ar_to_the_letter_where_rows_stand_alone"


@dataclass
class Place:
    """Where checks run, and what they found of models."""

    device: torch.device
    is_dry: bool
    ends: float  # by time.monotonic
    found: dict[tuple[str, Quantisation], ModelFigures] = field(default_factory=dict)

    @property
    def work(self) -> Work:
        if self.is_dry:
            return Work(frames=(DRY_FRAMES,), side=DRY_SIDE, widths=WIDTHS[:3], repeats=1)
        return Work(frames=(FRAMES,), widths=WIDTHS)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def config(self, name: str) -> Any:
        config = real_config(REPOS[name])
        return tiny(config) if self.is_dry else config


@dataclass(frozen=True)
class Check:
    """``seconds``: that must be left for it to be begun."""

    name: str
    seconds: float
    lines: Callable[[Place], Iterator[str]]


def tiny(config: Any) -> Any:
    """The config of a model that a CPU builds and runs at once."""
    config = deepcopy(narrowed(config))
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = 2, text.layer_types[:2]
    config.vision_config.depth = 2
    return config


# --- the checks ------------------------------------------------------------------------------


def card(place: Place) -> Iterator[str]:
    """Which one it is.

    :raises RuntimeError: there is none.
    """
    yield torch.cuda.get_device_name(place.device)


@torch.inference_mode()
def tower(place: Place) -> Iterator[str]:
    """The video tower as transformers has it, with one attention call for all windows of one length, and with
    patches as one product."""
    config, work = deepcopy(place.config("3B")), place.work
    config.get_text_config().num_hidden_layers = 1
    config.get_text_config().layer_types = config.get_text_config().layer_types[:1]
    dtype = torch.float32 if place.device.type == "cpu" else torch.bfloat16
    with torch.device(place.device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    family = family_of(config.model_type, "3B")
    loaded = fabricate_around(model, family, place.device)
    prompt = prompt_of_noise(loaded, work.frames[0], work.side)
    inputs = {name: value.to(place.device) for name, value in prompt.video_inputs.items()}

    def seconds() -> tuple[float, Tensor]:
        times, features = [], None
        for _ in range(1 + (1 if place.is_dry else 3)):
            began = now(place.device)
            features = family.video_features(model, inputs, prompt.visual_tokens).embeddings
            times.append(now(place.device) - began)
        assert features is not None
        return min(times[1:]), features

    (before, first), joined, (after, second) = seconds(), join_windows(model), seconds()
    products, (last, third) = multiply_patches(model), seconds()
    off = float((first - second).abs().max() / first.abs().max())
    expected = [work.frames[0] * each for each in TOWER_MS_A_FRAME]
    yield f"tower of the 3B, {work.frames[0]} frames: {1000 * before:.0f} ms before, {1000 * after:.0f} after"
    yield f"  predicted {expected[0]} and {expected[1]}; {joined} layers joined, results differ by {off:.1e}"
    off = float((third - second).abs().max() / second.abs().max())
    yield f"  patches as a product: {1000 * last:.0f} ms; {products} replaced, results differ by {off:.1e}"


def fabricate_around(model: Any, family: Any, device: torch.device) -> LoadedModel:
    """As much of a loaded model as a prompt of noise needs."""
    made: Any = SimpleNamespace(model=model, family=family, device=device)
    return made


def model_check(name: str, quantisation: Quantisation, place: Place) -> Iterator[str]:
    """A whole model: what runs by which kernels, its passes, and what a replayed step is made of."""
    config, began = place.config(name), time.monotonic()
    loaded = fabricate(config, name, quantisation, place.device)
    yield f"{name} {quantisation}: built in {time.monotonic() - began:.0f} s; {_kernels_of(loaded.fused)}"
    size, choice = size_of_config(config, name), Choice(quantisation, loaded.dtype.itemsize)
    clip = measure_clip(loaded, size, choice, place.work.frames[0], place.work)
    figures = ModelFigures(name, quantisation, 1, 1, (clip,), captured=loaded.workspace is not None)
    place.found[name, quantisation] = figures
    yield from list(model_lines(figures))[1:]
    cards = zip(("H100", "H200"), PREDICTED[name, quantisation], strict=True)
    yield "  a step predicted: " + ", ".join(f"{card} {ms} ms" for card, ms in cards if ms)
    yield from profiled(loaded, place)
    if name == "3B":
        yield from draft_steps(loaded, place)
    yield from launches(loaded)  # last, because it fails where a load has refused them


def launches(loaded: LoadedModel) -> Iterator[str]:
    """A captured pass whose kernels are launched one after the other, and early.

    :raises RuntimeError: they do not give the same.
    """
    fused = loaded.fused
    early = None if fused is None else fused.operations.early(loaded.device)
    if fused is None or early is None:
        return
    from lvspec_cli.models.kernels.fused_kernels import Kernels

    assert isinstance(fused.operations, Kernels)
    plain, layers = replace(fused.operations, is_early=False), loaded.family.layers(loaded.model)
    (expected, before), (found, after) = (
        captured_passes(replace(fused, operations=run), layers) for run in (plain, early)
    )
    is_same = all(map(torch.equal, expected, found))
    yield f"  3 rows, few keys: {before:.2f} ms, {after:.2f} launched early; the same to the bit: {is_same}"
    if not is_same:
        raise RuntimeError("kernels that are launched early give something else")


def _kernels_of(fused: FusedLayers | None) -> str:
    if fused is None:
        return "layers as transformers has them"
    rows = "stand alone" if fused.rows_stand_alone else "may depend on each other"
    return f"layers in few kernels ({fused.operations}), rows {rows}"


@torch.inference_mode()
def profiled(loaded: LoadedModel, place: Place, most: int = 8) -> Iterator[str]:
    """The kernels of one step, those that take longest first."""
    decoder = Decoder(loaded)
    prompt = prompt_of_noise(loaded, place.work.frames[0], place.work.side)
    decoder.encode(prompt)
    decoder.begin(prompt, 4)
    token = torch.zeros(1, dtype=torch.long, device=place.device)
    for _ in range(2):
        decoder.forward(token)
        decoder.rollback(0)
    on_gpu = place.device.type == "cuda"
    kind = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kind.CUDA if on_gpu else kind.CPU]) as profile:
        decoder.logits(decoder.forward(token), 1)
        now(place.device)
    events = profile.key_averages()
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in events
    }
    if on_gpu:  # calls of the host are events, too
        times = {kernel: (micros, count) for kernel, (micros, count) in times.items() if micros > 0}
    ordered = sorted(times.items(), key=lambda item: -item[1][0])
    total = sum(micros for micros, _ in times.values())
    yield f"  one step: {sum(count for _, count in times.values())} kernels, {total / 1000:.2f} ms in them"
    for kernel, (micros, count) in ordered[:most]:
        yield f"    {micros / 1000:7.3f} ms in {count:4}: {kernel[:70]}"


@dataclass(frozen=True)
class Watched(AdaptiveLength):
    """Always drafts ``most`` tokens, and says how often the host waited for what was observed."""

    one_by_one: bool = False
    looks: list[int] = field(default_factory=list)

    def ahead(self, draft_probs: Sequence[float], left: int, answers: int = 1) -> int:
        return 1 if self.one_by_one else super().ahead(draft_probs, left, answers)

    def observe(self, measured: Tensor) -> Sequence[float]:
        self.looks.append(len(measured))
        return super().observe(measured)


@torch.inference_mode()
def draft_steps(loaded: LoadedModel, place: Place) -> Iterator[str]:
    """A round's draft steps: the host looks at every token, or at all of them at once, which are single
    passes or one chain; with a fixed gamma it looks at none.

    :raises RuntimeError: the tokens are not the same.
    """
    if place.is_dry:
        loaded = replace(loaded, workspace=Workspace(run_again))
    if loaded.workspace is None:
        yield "  passes are not captured: every draft step is looked at"
        return
    decoder, prompt = Decoder(loaded), prompt_of_noise(loaded, place.work.frames[0], place.work.side)
    decoder.encode(prompt)
    decoder.begin(prompt, 2 * GAMMA)
    costs, said = RoundCosts(draft=0.0, row=0.0), set()
    ways = (
        ("every token looked at", Watched(costs, GAMMA, one_by_one=True), False),
        ("all at once", Watched(costs, GAMMA, wait=1.0), False),
        ("as a chain", Watched(costs, GAMMA, wait=1.0), True),
        ("none, as a chain", FixedLength(GAMMA), True),
    )
    totals = []
    for name, policy, chained in ways:
        loaded.workspace.chain_after = 0 if chained else CHAIN_AFTER
        times = [_drafted(decoder, policy, place) for _ in range(1 + max(2, 10 * place.work.repeats))]
        said |= {tokens for *_, tokens in times}
        first, (launched, total, _) = times[0], min(times[1:], key=lambda each: each[1])
        totals.append(total)
        waits = len(policy.looks) // len(times) if isinstance(policy, Watched) else 0
        yield (
            f"  {GAMMA} draft steps, {name}: {1000 * total:.2f} ms, {waits} waits, the host had launched"
            f" after {1000 * launched:.2f} ms; the first time {1000 * first[1]:.0f} ms"
        )
    if not any(isinstance(step.memory, Chain) for step in loaded.workspace.alone.kept.values()):
        raise RuntimeError("no chain was captured")
    saved = 1e6 * (totals[0] - totals[1]) / (GAMMA - 1)
    yield f"  saved for a token that is not looked at alone: {saved:.0f} us, predicted {WAIT_US}"
    if len(said) > 1:
        raise RuntimeError("the drafted tokens differ")


def _drafted(
    decoder: Decoder, policy: DraftLengthPolicy[Any], place: Place
) -> tuple[float, float, tuple[int, ...]]:
    """Seconds until a round's draft steps are launched and until they are done, and the tokens."""
    device, vocabulary = place.device, decoder.loaded.vocabulary
    rules = LogitsRules(GenerationRules(repetition_penalty=1.05), vocabulary, device).drafting(vocabulary)
    token = torch.zeros(1, dtype=torch.long, device=decoder.loaded.device)
    drafting = Drafting(decoder, token, GAMMA, vocabulary, rules, 0.0, torch.Generator(device), policy)
    began = now(device)
    (proposal,) = propose([drafting])
    launched = time.perf_counter() - began
    total = now(device) - began
    decoder.rollback(0)
    return launched, total, tuple(proposal.tokens.tolist())


@torch.inference_mode()
def captions_at_once(place: Place) -> Iterator[str]:
    """Passes of a 7B over a row of each of several captions, captured and not, their rounds in mode ar with
    all that the host does in them, and the clips an hour of these.

    :raises RuntimeError: a row is not what it is alone.
    """
    began = time.monotonic()
    loaded = fabricate(place.config("7B"), "7B", Quantisation.BF16, place.device)
    if place.is_dry:
        loaded = replace(loaded, workspace=Workspace(run_again))
    yield f"7B bf16: built in {time.monotonic() - began:.0f} s; {_kernels_of(loaded.fused)}"
    if loaded.workspace is None:
        raise RuntimeError("no pass is captured")
    prompt = prompt_of_noise(loaded, place.work.frames[0], place.work.side)
    loaded = replace(loaded, tokenizer=range(loaded.vocabulary))  # as many ids as an answer may have
    decoders, prefills = [Decoder(loaded, SlotMemory())], []
    for _ in range(2):
        began = now(place.device)
        decoders[0].encode(prompt)
        decoders[0].begin(prompt, CAPTION_TOKENS)
        prefills.append(now(place.device) - began)
    token = torch.zeros(1, dtype=torch.long, device=place.device)
    alone, clips, differs = None, [], False
    for count in SLOTS[:2] if place.is_dry else SLOTS:
        for _ in range(len(decoders), count):
            decoders.append(decoders[0].copied())
            decoders[-1].begin(prompt, CAPTION_TOKENS)
        eager, _ = _joined_step(decoders, token, place, captured=False)
        step, logits = _joined_step(decoders, token, place, captured=True)
        verification, _ = _joined_step(decoders, token.repeat(VERIFIED), place, captured=True)
        alone = logits[0] if alone is None else alone
        differs = differs or any(not torch.equal(row, alone) for row in logits)
        round_ = _round_in_ar(decoders, prompt, place)
        clips.append(min(prefills) + CAPTION_TOKENS * round_ / count)
        yield (
            f"  {count} at once: {1000 * step:.2f} ms captured, {1000 * eager:.2f} not,"
            f" {1000 * verification:.2f} with {VERIFIED} rows of each; in mode ar {1000 * round_:.2f} ms a"
            f" round, with {min(prefills):.2f} s of prefill and {CAPTION_TOKENS} tokens,"
            f" {3600 / clips[-1]:,.0f} clips an hour, {clips[0] / clips[-1]:.2f} x those of one"
        )
    yield (
        f"  {SLOTS[-1]} at once are to give 3.5 x the {ONE_BEFORE:,} an hour that one gave before (predicted"
        f" for an H100); rows are kept apart: {loaded.keeps_rows_apart}"
    )
    if differs and loaded.fused is not None and loaded.keeps_rows_apart:
        raise RuntimeError("a row is not what it is alone")


def _joined_step(
    decoders: Sequence[Decoder], tokens: Tensor, place: Place, *, captured: bool
) -> tuple[float, list[Tensor]]:
    """Seconds of a pass over such rows of each, and its logits."""
    workspace, times = decoders[0].loaded.workspace, []
    assert workspace is not None
    workspace.can_capture = captured
    for _ in range(3 if place.is_dry else 12):
        began = now(place.device)
        passes = run_together([Step(decoder, tokens) for decoder in decoders])
        times.append(now(place.device) - began)
        for decoder in decoders:
            decoder.rollback(0)
    if captured and not workspace.can_capture:
        raise RuntimeError("the pass could not be captured")
    return min(times[1:]), [passed.logits for passed in passes if passed.logits is not None]


def _round_in_ar(decoders: Sequence[Decoder], prompt: Prompt, place: Place) -> float:
    """Seconds of a round of so many captions, from one transfer to the host to the next."""
    settings = DecodeSettings(mode=Mode.AR, max_new_tokens=CAPTION_TOKENS)
    answers = [Answer(decoder, None, TokenSets(), settings, None) for decoder in decoders]
    for answer in answers:
        answer.begin(PairPrompts(prompt, None))
    times = []
    for _ in range(3 if place.is_dry else 24):
        began = now(place.device)
        decode_rounds(answers)
        times.append(now(place.device) - began)
    for decoder in decoders:
        decoder.rollback(0)
    return median(times[1:])


@torch.inference_mode()
def products(place: Place) -> Iterator[str]:
    """Every product of a layer by our kernel, by torch, in fp8 and in 4 bits, in microseconds."""
    runs = triton_operations(place.device, torch.bfloat16) or (Twins(), Twins())
    for name in ("32B", "3B"):
        text = place.config(name).get_text_config()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = text.num_attention_heads + 2 * text.num_key_value_heads
        wide, inner = text.hidden_size, text.intermediate_size
        shapes = {"qkv": (heads * size, wide), "gate, up": (2 * inner, wide), "down": (wide, inner)}
        for part, (outputs, inputs) in shapes.items():
            weight = torch.randn(outputs, inputs, device=place.device, dtype=torch.bfloat16)
            told = []
            for rows in (1, 5, 16):
                values = torch.randn(rows, inputs, device=place.device, dtype=torch.bfloat16)
                own, others = (_micros(run, values, weight, place) for run in runs)
                packed = (_micros(runs[0], values, kind.of(weight), place) for kind in (Packed8, Packed4))
                told.append(
                    f"{rows} rows {own:.1f} / {others:.1f} / " + " / ".join(f"{us:.1f}" for us in packed)
                )
            yield f"{name} {part} {outputs} x {inputs}, us, ours / torch's / fp8 / int4: " + "; ".join(told)


def _micros(run: Operations, values: Tensor, weight: Tensor | Packed, place: Place) -> float:
    """Microseconds of a product in a graph of 16; on a CPU of a single one."""
    if place.device.type == "cpu":
        began = time.perf_counter()
        run.multiply(values, weight, None)
        return 1e6 * (time.perf_counter() - began)

    def multiply() -> StepOutputs:
        for _ in range(16):
            last = run.multiply(values, weight, None)
        return StepOutputs(last, last, {})

    replay, times = cuda_graphs(place.device)(multiply), []
    for _ in range(8):
        began = now(place.device)
        replay()
        times.append(now(place.device) - began)
    return 1e6 * min(times) / 16


def by_pytest(seconds: float, chosen: Sequence[str], place: Place) -> Iterator[str]:
    """``pytest -m gpu`` on some tests, in a process of its own; a dry run only collects them."""
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=4", "-m", "gpu", "--durations=5", *chosen]
    process = subprocess.Popen(
        [*command, *(["--collect-only"] if place.is_dry else [])],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    limit = max(1.0, min(place.left, 2 * seconds))
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        said += f"\nstopped after {limit:.0f} s"
    last = [line for line in said.splitlines() if line.strip()]
    yield from last[-1:] if process.returncode == 0 else last[-40:]
    if process.returncode:
        raise RuntimeError(f"pytest ended with {process.returncode}")


def pairs(place: Place) -> Iterator[str]:
    """What follows for 32B/3B of what was measured."""
    for target in ((name, kind) for name, kind in place.found if name == "32B"):
        for draft in ((name, kind) for name, kind in place.found if name == "3B"):
            yield from pair_lines(place.found[target], place.found[draft])


def tested(name: str, seconds: float, *chosen: str) -> Check:
    return Check(name, seconds, partial(by_pytest, seconds, chosen))


CHECKS = (
    Check("tower", 15, tower),
    tested("kernels", 45, "tests/gpu/test_fused.py"),
    Check("3B bf16", 40, partial(model_check, "3B", Quantisation.BF16)),
    Check("3B int4", 35, partial(model_check, "3B", Quantisation.INT4)),
    Check("32B bf16", 50, partial(model_check, "32B", Quantisation.BF16)),
    Check("32B fp8", 45, partial(model_check, "32B", Quantisation.FP8)),
    Check("pairs", 0, pairs),
    Check("captions at once", 30, captions_at_once),
    tested("rows of the bundled pair", 45, f"{INVARIANCE}[bundled]"),
    Check("32B nf4", 45, partial(model_check, "32B", Quantisation.NF4)),
    Check("products", 30, products),
    Check("pairs again", 0, pairs),
    tested("exact mode", 50, "tests/gpu/test_exact.py", "tests/gpu/test_small_batch.py"),
    tested("rows of every family", 60, INVARIANCE, "-k", "not bundled"),
)


def run(checks: Sequence[Check], place: Place, say: Callable[[str], None]) -> list[str]:
    """Run checks one after the other. Returns the names of those that failed."""
    failed = []
    for check in checks:
        if place.left < check.seconds and not place.is_dry:
            say(f"== {check.name}: left out, {place.left:.0f} s are left")
            continue
        say(f"== {check.name} ({place.left:.0f} s left)")
        try:
            for line in check.lines(place):
                say(line)
        except Exception as error:  # of torch, Triton or the device: the others are still worth their time
            traceback.clear_frames(error.__traceback__)  # they hold what was built
            first, *_ = str(error).splitlines() or [""]
            say(f"failed: {type(error).__name__}: {first}")
            failed.append(check.name)
        with contextlib.suppress(Exception):  # of a device that does not answer any more
            release(place.device)
    return failed


@dataclass(frozen=True)
class Done:
    """A check has ended. ``found``: see ``Place``."""

    is_failed: bool
    found: dict[tuple[str, Quantisation], ModelFigures]


def run_apart(checks: Sequence[Check], place: Place, say: Callable[[str], None]) -> list[str]:
    """As :func:`run`, in another process, and in a new one behind a check that fails: a device that was used
    wrongly does not answer that process any more."""
    waiting, failed = list(checks), list[str]()
    spawn = multiprocessing.get_context("spawn")
    while waiting:
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_run_and_tell, args=(waiting, place, theirs))
        process.start()
        theirs.close()
        try:
            is_failed = _followed(waiting, place, ours, say)
        finally:
            process.kill()
            process.join()
        if is_failed:
            failed.append(waiting.pop(0).name)
    return failed


def _followed(waiting: list[Check], place: Place, process: Connection, say: Callable[[str], None]) -> bool:
    """Hears what a process does, and removes the checks that it has done. Whether the first that is left has
    failed; else none is left."""
    process.poll(IMPORTING)
    while waiting:
        longest = LONGEST * waiting[0].seconds + BEGINNING
        ends = time.monotonic() + longest
        while True:
            if not process.poll(max(0.0, ends - time.monotonic())):
                say(f"failed: it did not end in {longest:.0f} s")
                return True
            try:
                message: str | Done = process.recv()
            except EOFError:
                say("failed: its process has ended")
                return True
            if isinstance(message, Done):
                break
            say(message)
        place.found |= message.found
        if message.is_failed:
            return True
        waiting.pop(0)
    return False


def _run_and_tell(checks: Sequence[Check], place: Place, parent: Connection) -> None:
    for check in checks:
        failed = run([check], place, parent.send)
        parent.send(Done(bool(failed), place.found))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="on the CPU, with tiny models")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the checks, by name")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args(arguments)
    place = Place(torch.device("cpu" if given.dry else "cuda:0"), given.dry, time.monotonic() + given.seconds)
    if given.dry:
        print("dry run, figures mean nothing", flush=True)
    else:
        print(
            ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "triton")), flush=True
        )
    chosen = [check for check in CHECKS if given.only is None or check.name in given.only]
    say = partial(print, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        if not given.dry and run_apart([Check("card", 10, card)], place, say):
            return 1
        failed = (run if given.dry else run_apart)(chosen, place, say)
        print(f"failed: {', '.join(failed) or 'nothing'}", flush=True)
        return 1 if failed else 0
    return 130


if __name__ == "__main__":
    sys.exit(main())
