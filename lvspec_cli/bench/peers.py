"""The baselines: ``generate`` of transformers, plain, with an assistant, in batches, on the same weights.

The models run with the attention that transformers uses by default (``sdpa``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.bench.own import now, synchronise
from lvspec_cli.figures.answers import BenchMode, Item, Measurement, Variant
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.processing import batch_features_of, features_of, quiet
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
    """A timed greedy answer; any exception of the library becomes the measurement's ``error``.

    Decoding starts after the target's first pass. With an assistant, that pass already verifies a first
    proposal: its time belongs to the prefill, and ``first_tokens`` counts the tokens that it gave.
    """
    if pair.draft is not None and pair.draft.is_prediction_layer:
        pair = replace(pair, draft=None)  # the library knows no such drafts
    try:
        with quiet(), _stock_attention(pair):
            answer = _answer(pair, clip, item, variant, max_new_tokens, system)
    except Exception as error:  # any failure of a peer is a result
        answer = {"error": one_line_error(error)}
    return Measurement(**asdict(variant), **answer)


def generate_batch(
    pair: LoadedPair,
    clips: Sequence[Clip],
    questions: Sequence[str],
    max_new_tokens: int,
    *,
    system: str | None = None,
) -> list[tuple[int, ...]]:
    """The tokens of a greedy answer about each clip, all in one batch of ``generate``; end tokens included.

    Any exception of the library is passed on.
    """
    target = pair.target
    _check_one_device(target)
    texts = [chat_text(target.processor, question, system, target.name) for question in questions]
    with quiet(), _stock_attention(replace(pair, draft=None)), torch.inference_mode():
        inputs = _on_device(target, batch_features_of(target.processor, texts, clips))
        output = target.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    length = int(inputs["input_ids"].shape[1])
    return [_until_end(row, target.generation.end_ids) for row in output[:, length:].tolist()]


def _until_end(tokens: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """The tokens up to the first end token: ``generate`` goes on with padding until all rows have ended."""
    end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[: end + 1])


def text_of_answer(target: LoadedModel, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, without special ones."""
    text: str = target.tokenizer.backend_tokenizer.decode(list(tokens), skip_special_tokens=True)
    return text.lstrip(" ")


def one_line_error(error: Exception) -> str:
    """A library's error in one line."""
    message = " ".join(str(error).split())
    line = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 1] + "…"


def _answer(
    pair: LoadedPair, clip: Clip, item: Item, variant: Variant, max_new_tokens: int, system: str | None
) -> dict[str, Any]:
    target, device = pair.target, pair.target.device
    _check_one_device(target)
    assisted = variant.mode is BenchMode.HF_ASSISTED
    start = now(device)
    inputs = _inputs(target, clip, item.prompt, system)
    prompt_end = now(device)
    arguments = _assistant_arguments(pair) if assisted else {}
    with _observing(pair) as observer, _gamma_set(pair, variant), torch.inference_mode():
        if assisted:
            arguments["streamer"] = observer
        output = target.model.generate(**inputs, **arguments, do_sample=False, max_new_tokens=max_new_tokens)
        end = now(device)
    length = int(inputs["input_ids"].shape[1])
    tokens = tuple(output[0, length:].tolist())
    answer = {
        "text": text_of_answer(target, tokens),
        "finish_reason": "stop" if tokens and tokens[-1] in target.generation.end_ids else "length",
        "output_tokens": len(tokens),
        "video_s": clip.decode_seconds,
        "prompt_s": prompt_end - start,
        "prefill_s": observer.prefill_end - prompt_end,
        "decode_s": end - observer.prefill_end,
        "tokens": tokens,
    }
    if not assisted:
        return answer
    first, *lengths = observer.lengths
    # Every pass adds one token of the target, except after an accepted end token.
    accepted = sum(count - 1 for count in observer.lengths)
    return {
        **answer,
        "first_tokens": first,
        "rounds": len(lengths),
        "accepted_lengths": tuple(lengths),
        "drafted": observer.draft_steps,
        "accepted_exact": accepted,
    }


def _check_one_device(target: LoadedModel) -> None:
    """Checks that the target is on one device: only our own decoder moves states between devices.

    :raises ValueError: it is on several.
    """
    devices = sorted({str(part.device) for part in target.model.parameters()})
    if len(devices) > 1:
        raise ValueError(f"the target is split over {' and '.join(devices)}: only our own modes run so")


def _inputs(target: LoadedModel, clip: Clip, question: str, system: str | None) -> Mapping[str, Any]:
    """The same text, frames and timestamps that our own modes read."""
    text = chat_text(target.processor, question, system, target.name)
    return _on_device(target, features_of(target.processor, text, clip))


def _on_device(target: LoadedModel, features: Any) -> Mapping[str, Any]:
    inputs = features.to(target.device)
    for name, value in inputs.items():
        if name.startswith("pixel_values"):
            inputs[name] = value.to(target.dtype)
    found: Mapping[str, Any] = inputs
    return found


def _assistant_arguments(pair: LoadedPair) -> dict[str, Any]:
    """Arguments of ``generate`` for assisted generation."""
    if pair.draft is None:
        raise ValueError("no draft is loaded")
    arguments: dict[str, Any] = {"assistant_model": pair.draft.model}
    widths = [model.model.config.get_text_config().vocab_size for model in (pair.target, pair.draft)]
    if widths[0] != widths[1]:
        # The library requires these if vocabulary sizes differ, even by padding only.
        arguments |= {"tokenizer": pair.target.tokenizer, "assistant_tokenizer": pair.draft.tokenizer}
    return arguments


@dataclass
class _Observer:
    """Records the time of the target's first pass, and the accepted length of every proposal.

    ``generate`` calls ``put`` and ``end``, the interface of a streamer.
    """

    device: torch.device
    prefill_end: float = 0.0  # end of the first pass, in seconds as by ``now``
    draft_steps: int = 0
    lengths: list[int] = field(default_factory=list)
    _has_prompt: bool = False
    _passes: int = 0

    def target_passed(self, *_: Any) -> None:
        self._passes += 1
        if self._passes == 1:
            self.prefill_end = now(self.device)

    def draft_passed(self, *_: Any) -> None:
        self.draft_steps += 1

    def put(self, tokens: Tensor) -> None:
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.lengths.append(tokens.numel())
        if len(self.lengths) == 1:
            self.prefill_end = time.perf_counter()  # the tokens are on the host: the pass is finished

    def end(self) -> None:
        synchronise(self.device)


@contextmanager
def _observing(pair: LoadedPair) -> Iterator[_Observer]:
    observer = _Observer(pair.target.device)
    with ExitStack() as hooks:
        hooks.callback(pair.target.model.register_forward_hook(observer.target_passed).remove)
        if pair.draft is not None:
            hooks.callback(pair.draft.model.register_forward_hook(observer.draft_passed).remove)
        yield observer


@contextmanager
def _gamma_set(pair: LoadedPair, variant: Variant) -> Iterator[None]:
    """Limits proposals to ``gamma`` tokens; without gamma the library's default stays.

    In both cases a proposal ends early if the draft is not confident (``assistant_confidence_threshold``).
    """
    if pair.draft is None or variant.gamma is None:
        yield
        return
    config = pair.draft.model.generation_config
    changes = {"num_assistant_tokens": variant.gamma, "num_assistant_tokens_schedule": "constant"}
    old_values = {name: getattr(config, name) for name in changes}
    for name, value in changes.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in old_values.items():
            setattr(config, name, value)


@contextmanager
def _stock_attention(pair: LoadedPair) -> Iterator[None]:
    models = [loaded.model for loaded in (pair.target, pair.draft) if loaded is not None]
    attentions = [model.config.get_text_config()._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation("sdpa")
        yield
    finally:
        for model, name in zip(models, attentions, strict=True):
            model.set_attn_implementation({"": "sdpa", "text_config": name})
