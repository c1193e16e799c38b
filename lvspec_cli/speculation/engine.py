"""The loop: (draft -> verify -> accept)*, over one clip whose encoded video is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from lvspec_cli.errors import UsageError
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.draft import Proposal, propose
from lvspec_cli.speculation.logits import LogitsRules
from lvspec_cli.speculation.relevance import Relevance, VideoStates, relevance_for, video_layers
from lvspec_cli.speculation.repetition import is_looping
from lvspec_cli.speculation.sampling import accept, distribution, draw
from lvspec_cli.speculation.stats import Tally
from lvspec_cli.speculation.verify import Evidence, History, Verdict, gather, is_exact, judge
from lvspec_cli.types import (
    DecodeSettings,
    FinishReason,
    Generation,
    Mode,
    PairPrompts,
    Round,
    RuleSettings,
    TokenKind,
)

# Exact mode in the rule's own terms.
EXACT_RULE = RuleSettings(anchor_margin=0.0, filler_margin=0.0, shift_window=0)


def _never() -> bool:
    return False


class Session:
    """One clip: its video is encoded once by target and draft and kept for several questions."""

    def __init__(self, pair: LoadedPair) -> None:
        self._pair = pair
        self._target = Decoder(pair.target)
        self._draft = Decoder(pair.draft) if pair.draft else None
        self._prefix: tuple[int, ...] | None = None
        self._video = VideoStates({})
        self._encode_seconds = 0.0

    def encode(self, prompts: PairPrompts, rule: RuleSettings | None = None) -> None:
        """Read the part of the prompts that all questions about the clip share, the video in it.

        Does nothing when that is done. ``rule``: keep what its relevance reads of the video, too.
        """
        began = time.perf_counter()
        layers = video_layers(rule, self._target.layer_count) if rule else ()
        prefix = tuple(prompts.target.input_ids[0, : prompts.target.prefix_length].tolist())
        if self._prefix == prefix and set(layers) <= set(self._video.by_layer):
            return
        self._encode(prompts, layers)
        self._prefix = prefix
        self._encode_seconds = time.perf_counter() - began

    @torch.inference_mode()
    def _encode(self, prompts: PairPrompts, layers: Sequence[int]) -> None:
        self._prefix = None
        passed = self._target.encode(prompts.target, [layer + 1 for layer in layers])
        self._video = VideoStates({layer: self._target.video_states(passed, layer) for layer in layers})
        if self._draft is not None and prompts.draft is not None:
            self._draft.encode(prompts.draft)

    def answer(
        self, prompts: PairPrompts, settings: DecodeSettings, *, interrupted: Callable[[], bool] = _never
    ) -> Generator[Round, None, Generation]:
        """Answer one question; yields every round as it is accepted, returns the whole.

        ``interrupted`` is asked once a round; a true answer ends with what there is. Raises
        UsageError on settings that exclude each other.
        """
        _check(settings, self._pair)
        self.encode(prompts, settings.rule if settings.mode == Mode.LVSPEC else None)
        clock = _Clock()
        state = _Answer(self._pair, self._target, self._draft, prompts, settings)
        state.relevance = self._relevance(settings)
        prefill = state.begin()
        prefill_seconds, self._encode_seconds = clock.lap() + self._encode_seconds, 0.0
        yield prefill
        clock.resume()
        while state.finish is None:
            if interrupted():
                state.finish = FinishReason.INTERRUPTED
                break
            done = state.round()
            clock.pause()
            yield done
            clock.resume()
        return Generation(
            tokens=tuple(state.tokens),
            kinds=tuple(state.kinds),
            finish_reason=state.finish or FinishReason.STOP,
            stats=state.tally.stats(len(state.tokens), state.gamma, prefill_seconds, clock.lap()),
        )

    @torch.inference_mode()
    def _relevance(self, settings: DecodeSettings) -> Relevance | None:
        if settings.mode != Mode.LVSPEC or is_exact(settings.rule):
            return None
        return relevance_for(settings.rule, self._target, self._pair.words, self._video, settings.seed)


class _Answer:
    """The state of one answer while it grows.

    Between rounds the target's cache holds all of the answer but its last token, the draft's holds
    that or less; what is missing is run at the start of the next round.
    """

    def __init__(
        self,
        pair: LoadedPair,
        target: Decoder,
        draft: Decoder | None,
        prompts: PairPrompts,
        settings: DecodeSettings,
    ) -> None:
        self._pair, self._prompts, self._settings = pair, prompts, settings
        self._target, self._draft = target, draft if settings.mode != Mode.AR else None
        self._device = pair.target.device
        self._rule = settings.rule if settings.mode == Mode.LVSPEC else EXACT_RULE
        self._generator = torch.Generator(self._device).manual_seed(settings.seed)
        self._history = History()
        self.relevance: Relevance | None = None
        self.gamma = settings.gamma if self._draft else 0
        self.tokens: list[int] = []
        self.kinds: list[TokenKind] = []
        self.tally = Tally()
        self.finish: FinishReason | None = None

    @torch.inference_mode()
    def begin(self) -> Round:
        """Read the question and take the target's first token."""
        room = self._settings.max_new_tokens + self.gamma + 1
        passed = self._target.begin(self._prompts.target, room)
        if self._draft is not None and self._prompts.draft is not None:
            self._draft.begin(self._prompts.draft, room)
        ids = self._prompts.target.input_ids[0].to(self._device)
        self._logits = LogitsRules(self._pair.target.generation, ids, self._pair.target.vocabulary)
        logits = self._logits.apply(self._target.logits(passed, 1), ids[:0], 0)
        temperature = self._settings.temperature
        first = (
            draw(distribution(logits, temperature), self._generator) if temperature > 0 else logits.argmax(-1)
        )
        token = int(first)
        self._take((token,), (TokenKind.TARGET,))
        return Round((token,), (TokenKind.TARGET,), target=(token,), prefill=True)

    @torch.inference_mode()
    def round(self) -> Round:
        """One draft, one verification, one acceptance; one transfer to the host."""
        gamma = min(self.gamma, self._settings.max_new_tokens - len(self.tokens) - 1)
        proposal = self._propose(gamma)
        pending = self._pending(self._target)
        passed = self._target.forward(
            torch.cat((pending, proposal.tokens)), self.relevance.watch if self.relevance else ()
        )
        logits = self._logits.apply(self._target.logits(passed, gamma + 1), proposal.tokens, len(self.tokens))
        if self._settings.temperature > 0:
            evidence, verdict = self._sample(proposal, logits)
        else:
            scores = self.relevance.score(passed, proposal.tokens) if self.relevance and gamma else None
            evidence = gather(logits, proposal.tokens, scores)
            verdict = judge(evidence, self._rule, self._pair.words, self._history)
        kept = self._take(verdict.tokens, verdict.kinds)
        self.tally.add(gamma, verdict.kinds[:kept])
        self._target.rollback(len(self.tokens) - 1)
        if self._draft is not None:
            self._draft.rollback(len(self.tokens) - 1)
        return Round(
            tokens=verdict.tokens[:kept],
            kinds=verdict.kinds[:kept],
            drafted=evidence.drafted,
            target=evidence.target,
            relevance=evidence.relevance,
            gap=evidence.gap,
        )

    def _propose(self, gamma: int) -> Proposal:
        if self._draft is None or gamma < 1:
            return Proposal(torch.empty(0, dtype=torch.long, device=self._device))
        vocabulary = self._pair.shared_vocabulary
        return propose(
            self._draft,
            self._pending(self._draft).clamp_max(self._draft.loaded.vocabulary - 1),
            gamma,
            vocabulary,
            self._logits.drafting(vocabulary),
            self._settings.temperature,
            self._generator,
        )

    def _pending(self, decoder: Decoder) -> Tensor:
        return torch.tensor(self.tokens[decoder.answered :], dtype=torch.long, device=self._device)

    def _sample(self, proposal: Proposal, logits: Tensor) -> tuple[Evidence, Verdict]:
        """Lossless speculative sampling; ``target`` of the evidence is the target's likeliest tokens."""
        wanted = distribution(logits, self._settings.temperature)
        if proposal.chances is None:
            decision = torch.stack(
                (torch.zeros_like(logits[0, 0], dtype=torch.long), draw(wanted, self._generator)[0])
            )
        else:
            decision = accept(proposal.tokens, proposal.chances, wanted, self._generator)
        numbers = torch.cat((decision, proposal.tokens, logits.argmax(dim=-1))).tolist()
        gamma = proposal.tokens.shape[0]
        count, own, drafted = numbers[0], numbers[1], tuple(numbers[2 : 2 + gamma])
        tokens, kinds = drafted[:count], (TokenKind.EXACT,) * count
        end = next((place for place, token in enumerate(tokens, 1) if token in self._pair.words.ends), None)
        verdict = (
            Verdict(end, tokens[:end], kinds[:end])
            if end is not None
            else Verdict(count, (*tokens, own), (*kinds, TokenKind.TARGET))
        )
        return Evidence(drafted, tuple(numbers[2 + gamma :]), (), ()), verdict

    def _take(self, tokens: Sequence[int], kinds: Sequence[TokenKind]) -> int:
        """Add tokens until one of them finishes the answer; gives how many were added."""
        before = len(self.tokens)
        for token, kind in zip(tokens, kinds, strict=True):
            self.tokens.append(token)
            self.kinds.append(kind)
            self.finish = self._finish_at(token)
            if self.finish is not None:
                break
        kept = len(self.tokens) - before
        self._logits.add(torch.tensor(tokens[:kept], dtype=torch.long, device=self._device))
        self._history = self._history.extended(tokens[:kept], kinds[:kept], self._rule.loose_window)
        return kept

    def _finish_at(self, token: int) -> FinishReason | None:
        if token in self._pair.words.ends:
            return FinishReason.STOP
        if len(self.tokens) >= self._settings.max_new_tokens:
            return FinishReason.LENGTH
        if self._settings.repetition_guard and is_looping(self.tokens):
            return FinishReason.REPETITION
        return None


class _Clock:
    """Seconds of our own work: what happens while a round is shown does not count."""

    def __init__(self) -> None:
        self._total = 0.0
        self._since: float | None = time.perf_counter()

    def pause(self) -> None:
        if self._since is not None:
            self._total += time.perf_counter() - self._since
            self._since = None

    def resume(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap; the clock stands until it is resumed."""
        self.pause()
        total, self._total = self._total, 0.0
        return total


def _check(settings: DecodeSettings, pair: LoadedPair) -> None:
    if settings.mode == Mode.LVSPEC and settings.temperature > 0:
        raise UsageError(
            "--temperature has no rule in mode lvspec yet", "use --mode exact or --temperature 0"
        )
    if settings.mode != Mode.AR and pair.draft is None:
        raise UsageError(f"mode {settings.mode} needs a draft, and none is loaded", "use --mode ar or a pair")
    if settings.gamma < 1 and settings.mode != Mode.AR:
        raise UsageError(
            f"gamma must be 1 or more, not {settings.gamma}", "use --mode ar to go without a draft"
        )
    if settings.max_new_tokens < 1:
        raise UsageError(f"max-new-tokens must be 1 or more, not {settings.max_new_tokens}")
    if settings.temperature < 0:
        raise UsageError(f"temperature must be 0 or more, not {settings.temperature}")
