"""One answer by one of our own modes: timed as a whole, with every pass timed, or for its text only."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import isfinite

import torch
from torch import Tensor

from lvspec_cli.figures.answers import Item, Measurement, Profile, Variant
from lvspec_cli.models.decoder import Decoder, Pass
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.mtp import MtpDecoder
from lvspec_cli.models.probe import TextScore, score_text
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.output.text import TextStream
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import WHOLE, Clip, DecodeSettings, DraftView, Generation, Mode, PairPrompts, Round

_PLAIN = DecodeSettings(mode=Mode.AR)  # without a draft, which would have to read the video


def measure_own(
    pair: LoadedPair,
    clip: Clip,
    item: Item,
    variant: Variant,
    settings: DecodeSettings,
    *,
    system: str | None = None,
) -> Measurement:
    """A timed answer as by ``lvspec ask``: in a new session, so that the video is encoded again."""
    loaded, device = _loaded_for(pair, settings), pair.target.device
    start = now(device)
    prompts = build_prompts(loaded, clip, item.prompt, system=system, draft_view=settings.draft_view)
    prompt_end = now(device)
    decoding = Session.of(loaded).answer(prompts, settings, is_last=True)
    first = next(decoding)
    prefill_end = now(device)
    rounds = [first, *decoding]
    end = now(device)
    return _measurement(pair, variant, rounds, decoding.generation).model_copy(
        update={
            "video_s": clip.decode_seconds,
            "prompt_s": prompt_end - start,
            "prefill_s": prefill_end - prompt_end,
            "decode_s": end - prefill_end,
        }
    )


class TextRunner:
    """Untimed answers about one clip by any of our modes; its video is encoded only once."""

    def __init__(self, pair: LoadedPair, clip: Clip, *, system: str | None = None) -> None:
        self._pair, self._clip, self._system = pair, clip, system
        self._session = Session.of(pair)
        self._prompts: dict[DraftView, dict[str, PairPrompts]] = {}

    def prompts(self, item: Item, view: DraftView = WHOLE) -> PairPrompts:
        """The models' inputs for an item. ``view``: what the draft is shown of the clip."""
        prompts = self._prompts.setdefault(view, {})
        if item.prompt not in prompts:
            prompts[item.prompt] = build_prompts(
                self._pair,
                self._clip,
                item.prompt,
                system=self._system,
                earlier=next(iter(prompts.values()), None),
                draft_view=view,
            )
        return prompts[item.prompt]

    def scores(self, item: Item, texts: Sequence[Sequence[int]]) -> list[TextScore | None]:
        """The target's scores of texts (token ids) that follow an item's prompt; None for an empty text."""
        prompts = self.prompts(item)
        self._session.encode(prompts, _PLAIN)
        # Modes often give the same text: each is scored once.
        scores = {
            text: score_text(self._session.target, prompts.target, text) for text in set(map(tuple, texts))
        }
        return [scores[tuple(text)] for text in texts]

    def answer(self, item: Item, variant: Variant, settings: DecodeSettings) -> Measurement:
        """One answer; all its seconds are 0."""
        decoding = self._session.answer(self.prompts(item, settings.draft_view), settings)
        rounds = list(decoding)
        return _measurement(self._pair, variant, rounds, decoding.generation)


def _measurement(
    pair: LoadedPair, variant: Variant, rounds: list[Round], generation: Generation
) -> Measurement:
    """Texts and counts of an answer. The first of ``rounds`` is the prefill."""
    text = TextStream(pair.target.tokenizer.backend_tokenizer)
    pieces = text.feed(generation.tokens, generation.kinds)
    shown = [(piece.text, piece.kind) for piece in pieces]
    if text.tail:
        shown.append((text.tail, generation.kinds[-1]))
    stats = generation.stats
    return Measurement(
        **asdict(variant),
        text=text.text,
        finish_reason=generation.finish_reason.value,
        output_tokens=stats.output_tokens,
        rounds=stats.rounds,
        drafted=stats.drafted,
        accepted_exact=stats.accepted_exact,
        accepted_filler=stats.accepted_filler,
        accepted_shift=stats.accepted_shift,
        loss=stats.loss if isfinite(stats.loss) else None,
        accepted_lengths=()
        if not variant.mode.drafts
        else tuple(len(round_.tokens) for round_ in rounds[1:]),
        tokens=generation.tokens,
        kinds=generation.kinds,
        pieces=tuple(shown),
    )


def profile_own(
    pair: LoadedPair,
    clip: Clip,
    item: Item,
    variant: Variant,
    settings: DecodeSettings,
    *,
    system: str | None = None,
) -> Profile:
    """Answers once more and measures how the time of the rounds divides."""
    prompts = build_prompts(pair, clip, item.prompt, system=system, draft_view=settings.draft_view)
    device = pair.target.device
    drafting, verifying = Stopwatch(device), Stopwatch(device)
    target = _TimedDecoder(pair.target, verifying)
    draft: _TimedDecoder | None = None
    if pair.draft is not None:
        draft = (_TimedMtpDecoder if pair.draft.is_prediction_layer else _TimedDecoder)(pair.draft, drafting)
    decoding = Session(target, draft, pair.words).answer(prompts, settings)
    next(decoding)
    for decoder in (target, draft):
        if decoder is not None:
            decoder.is_timed = True
    start = now(device)
    generation = decoding.run()
    total = now(device) - start
    return Profile(
        **asdict(variant),
        rounds=generation.stats.rounds,
        draft_steps=generation.stats.drafted,
        draft_s=drafting.seconds,
        verification_s=verifying.seconds,
        overhead_s=max(0.0, total - drafting.seconds - verifying.seconds),
    )


def _loaded_for(pair: LoadedPair, settings: DecodeSettings) -> LoadedPair:
    """The pair, in mode ar without its draft: nothing is prepared for it then."""
    return replace(pair, draft=None) if settings.mode is Mode.AR else pair


class _TimedDecoder(Decoder):
    """A decoder that times its passes and their logits once ``is_timed`` is set."""

    def __init__(self, loaded: LoadedModel, watch: Stopwatch) -> None:
        super().__init__(loaded)
        self._clock, self.is_timed = watch, False

    def forward(self, tokens: Tensor, watch: Collection[int] = (), *, by_itself: bool = False) -> Pass:
        if not self.is_timed:
            return super().forward(tokens, watch, by_itself=by_itself)
        with self._clock.running():
            return super().forward(tokens, watch, by_itself=by_itself)

    def logits(self, passed: Pass, last: int) -> Tensor:
        if not self.is_timed or passed.logits is not None:  # they are there already, and were timed then
            return super().logits(passed, last)
        with self._clock.running():
            return super().logits(passed, last)


class _TimedMtpDecoder(_TimedDecoder, MtpDecoder):
    """The same for a prediction layer."""


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def now(device: torch.device) -> float:
    """The time in seconds, after the device has finished all its work."""
    synchronise(device)
    return time.perf_counter()


class Stopwatch:
    """Adds up the seconds of several pieces of work.

    CUDA work is timed by events in the device's queue, without waiting; every other device is synchronised.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times the block."""
        if self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            start = now(self._device)
            yield
            self._seconds += now(self._device) - start

    @property
    def seconds(self) -> float:
        """The total so far; waits for the device."""
        synchronise(self._device)
        return self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
