"""What people use today: transformers' own ``generate``, plain and with an assistant, on the same weights.

The models run with the attention that transformers itself would load them with (``sdpa``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.bench.own import now, synchronise
from lvspec_cli.figures.answers import BenchMode, Item, Measurement, Variant
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.processing import features_of, quiet
from lvspec_cli.models.read import chat_text
from lvspec_cli.types import Clip

LONGEST_ERROR = 300  # characters


def measure_peer(
    pair: LoadedPair,
    clip: Clip,
    item: Item,
    variant: Variant,
    max_new_tokens: int,
    *,
    system: str | None = None,
) -> Measurement:
    """Answers greedily; whatever the library raises becomes the measurement's ``error``.

    Decoding is what comes behind the target's first pass. With an assistant that pass already checks a first
    proposal, so the prefill holds it, and ``first_tokens`` are those that it accepted.
    """
    try:
        with quiet(), _as_shipped(pair):
            found = _answered(pair, clip, item, variant, max_new_tokens, system)
    except Exception as error:  # a peer may fail in any way: that is a finding
        found = {"error": described(error)}
    return Measurement(**asdict(variant), **found)


def described(error: Exception) -> str:
    """An error of a library in one line."""
    said = " ".join(str(error).split())
    line = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 1] + "…"


def _answered(
    pair: LoadedPair, clip: Clip, item: Item, variant: Variant, max_new_tokens: int, system: str | None
) -> dict[str, Any]:
    target, device = pair.target, pair.target.device
    _check_whole(target)
    assisted = variant.mode is BenchMode.HF_ASSISTED
    began = now(device)
    inputs = _inputs(target, clip, item.prompt, system)
    prompted = now(device)
    arguments = _assistance(pair) if assisted else {}
    with _observed(pair) as seen, _proposing(pair, variant), torch.inference_mode():
        if assisted:
            arguments["streamer"] = seen
        output = target.model.generate(**inputs, **arguments, do_sample=False, max_new_tokens=max_new_tokens)
        ended = now(device)
    length = int(inputs["input_ids"].shape[1])
    tokens = tuple(output[0, length:].tolist())
    found = {
        "text": target.tokenizer.backend_tokenizer.decode(list(tokens), skip_special_tokens=True),
        "finish_reason": "stop" if tokens and tokens[-1] in target.generation.end_ids else "length",
        "output_tokens": len(tokens),
        "video_s": clip.decode_seconds,
        "prompt_s": prompted - began,
        "prefill_s": seen.filled - prompted,
        "decode_s": ended - seen.filled,
        "tokens": tokens,
    }
    if not assisted:
        return found
    first, *lengths = seen.lengths
    # Every pass adds a token of the target's own, unless an accepted end leaves no room for it.
    accepted = sum(count - 1 for count in seen.lengths)
    return {
        **found,
        "first_tokens": first,
        "rounds": len(lengths),
        "accepted_lengths": tuple(lengths),
        "drafted": seen.draft_steps,
        "accepted_exact": accepted,
    }


def _check_whole(target: LoadedModel) -> None:
    """``ValueError`` for layers on several devices: moving between them is left to our own decoder."""
    devices = sorted({str(part.device) for part in target.model.parameters()})
    if len(devices) > 1:
        raise ValueError(f"the target is split over {' and '.join(devices)}: only our own modes run so")


def _inputs(target: LoadedModel, clip: Clip, question: str, system: str | None) -> Mapping[str, Any]:
    """The same text and frames, with their real times, as our own modes read them."""
    text = chat_text(target.processor, question, system, target.name)
    inputs = features_of(target.processor, text, clip).to(target.device)
    for name, value in inputs.items():
        if name.startswith("pixel_values"):
            inputs[name] = value.to(target.dtype)
    return inputs


def _assistance(pair: LoadedPair) -> dict[str, Any]:
    """Arguments of assisted generation."""
    if pair.draft is None:
        raise ValueError("no draft is loaded")
    found: dict[str, Any] = {"assistant_model": pair.draft.model}
    widths = [model.model.config.get_text_config().vocab_size for model in (pair.target, pair.draft)]
    if widths[0] != widths[1]:
        # What the library asks for where vocabularies differ, be it in padding only.
        found |= {"tokenizer": pair.target.tokenizer, "assistant_tokenizer": pair.draft.tokenizer}
    return found


@dataclass
class _Observer:
    """Notes when the target's first pass was done, and how long each proposal's accepted part was.

    ``put`` and ``end`` are what ``generate`` calls on a streamer.
    """

    device: torch.device
    filled: float = 0.0  # seconds, of the clock of ``now``
    draft_steps: int = 0
    lengths: list[int] = field(default_factory=list)
    _has_prompt: bool = False
    _passes: int = 0

    def target_passed(self, *_: Any) -> None:
        self._passes += 1
        if self._passes == 1:
            self.filled = now(self.device)

    def draft_passed(self, *_: Any) -> None:
        self.draft_steps += 1

    def put(self, tokens: Tensor) -> None:
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.lengths.append(tokens.numel())
        if len(self.lengths) == 1:
            self.filled = time.perf_counter()  # the tokens have come to the host: the pass is done

    def end(self) -> None:
        synchronise(self.device)


@contextmanager
def _observed(pair: LoadedPair) -> Iterator[_Observer]:
    seen = _Observer(pair.target.device)
    with ExitStack() as hooks:
        hooks.callback(pair.target.model.register_forward_hook(seen.target_passed).remove)
        if pair.draft is not None:
            hooks.callback(pair.draft.model.register_forward_hook(seen.draft_passed).remove)
        yield seen


@contextmanager
def _proposing(pair: LoadedPair, variant: Variant) -> Iterator[None]:
    """Proposals of ``gamma`` tokens at most, or what the library itself takes where there is none.

    It ends one early, in either case, where the draft is not sure (``assistant_confidence_threshold``).
    """
    if pair.draft is None or variant.gamma is None:
        yield
        return
    config = pair.draft.model.generation_config
    changes = {"num_assistant_tokens": variant.gamma, "num_assistant_tokens_schedule": "constant"}
    before = {name: getattr(config, name) for name in changes}
    for name, value in changes.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _as_shipped(pair: LoadedPair) -> Iterator[None]:
    models = [loaded.model for loaded in (pair.target, pair.draft) if loaded is not None]
    ours = [model.config.get_text_config()._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation("sdpa")
        yield
    finally:
        for model, name in zip(models, ours, strict=True):
            model.set_attn_implementation({"": "sdpa", "text_config": name})
