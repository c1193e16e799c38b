"""The loop of rounds, (draft -> verify -> accept)*, over one clip whose encoded video is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from lvspec_cli.errors import UsageError
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.mtp import MtpDecoder
from lvspec_cli.models.probe import video_states
from lvspec_cli.models.words import TokenSets
from lvspec_cli.request import check_draft_view
from lvspec_cli.speculation.answer import Answer
from lvspec_cli.speculation.fallback import Fallback
from lvspec_cli.speculation.relevance import Relevance, VideoStates, relevance_for, video_layers
from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.types import (
    WHOLE,
    DecodeSettings,
    DraftView,
    FinishReason,
    Generation,
    Mode,
    PairPrompts,
    Round,
)


def _never() -> bool:
    return False


class Session:
    """One clip and several questions about it. Target and draft each encode the video once.

    Nobody else may use the decoders while the session does. :meth:`of` makes them for a pair.
    """

    def __init__(self, target: Decoder, draft: Decoder | None, words: TokenSets) -> None:
        self.target, self.draft = target, draft
        self._words = words
        self._prefix: tuple[int, ...] | None = None
        self._draft_holds: tuple[float, DraftView] | None = None  # of the video; None: nothing
        self._video = VideoStates({})
        self._encode_seconds = 0.0
        self._fallback = Fallback(None, DecodeSettings())

    @classmethod
    def of(cls, pair: LoadedPair) -> Session:
        """A session with new decoders of a pair's models."""
        draft = None
        if pair.draft is not None:
            draft = (MtpDecoder if pair.draft.is_prediction_layer else Decoder)(pair.draft)
        return cls(Decoder(pair.target), draft, pair.words)

    def encode(
        self, prompts: PairPrompts, settings: DecodeSettings | None = None, *, is_last: bool = False
    ) -> None:
        """Encode the prefix of the prompts, which contains the video and is the same for all questions.

        Does nothing if that is done already. :meth:`answer` calls it; call it before to show encoding as a
        stage of its own.

        :param settings: those of the answer to come. They decide whether the draft is needed (mode ar does
            without), how much of the video it reads, and which of the target's states relevance needs.
        :param is_last: no other question follows, so that this one is run with the prefix, in one pass.
        """
        began = time.perf_counter()
        layers = self._layers(settings) if settings else ()
        guided = settings is not None and settings.draft_is_guided  # then the answer encodes the draft's
        draft = self.draft is not None and not guided and (settings is None or settings.mode != Mode.AR)
        prefix = tuple(prompts.target.input_ids[0, : prompts.target.prefix_length].tolist())
        follow = draft and self.draft is not None and self.draft.reads_target
        # A prediction layer reads the target's pass over the question alone, as does what guides a draft.
        watching = follow or guided
        with_question = is_last and not watching
        kept = self._prefix == prefix and self.target.can_begin(prompts.target, watching=watching)
        if follow and self._draft_holds is None:
            kept = False  # the target's states, which the draft reads, were not kept
        if not kept:
            self._encode_target(prompts, layers, follow=follow, with_question=with_question)
        elif not set(layers) <= set(self._video.by_layer):
            layers = tuple(sorted({*layers, *self._video.by_layer}))
            self._encode_target(prompts, layers, with_question=with_question)
        shown = (settings.draft_keep, settings.draft_view) if settings else (1.0, WHOLE)
        is_shown = kept and self._draft_holds == shown and self._draft_can_begin(prompts)
        if draft and not is_shown:
            self._encode_draft(prompts, shown[0], with_question=with_question)
            self._draft_holds = shown
        elif guided or not kept:
            self._draft_holds = None
        self._prefix = prefix
        self._encode_seconds += time.perf_counter() - began

    def answer(
        self,
        prompts: PairPrompts,
        settings: DecodeSettings,
        *,
        interrupted: Callable[[], bool] = _never,
        is_last: bool = False,
    ) -> Rounds:
        """Answer one question about this session's clip, round by round.

        With ``settings.fallback`` the answer goes on without the draft as soon as that turns out to be
        faster, and so do later answers with the same settings.

        :param interrupted: asked before each round; when true, the answer ends with what there is.
        :param is_last: as for :meth:`encode`. Where another question follows, the video may be encoded again.
        :raises UsageError: settings that exclude each other.
        """
        _check(settings, self.draft)
        self.encode(prompts, settings, is_last=is_last)
        began = time.perf_counter()
        answer = Answer(self.target, self.draft, self._words, settings, self._relevance(settings))
        fallback = self._fallback_for(settings)
        fallback.before_answer(answer)
        seconds, self._encode_seconds = self._encode_seconds + time.perf_counter() - began, 0.0
        return Rounds(answer, prompts, fallback, interrupted, seconds)

    def _fallback_for(self, settings: DecodeSettings) -> Fallback:
        """The fallback of this clip and these settings, with all that was timed so far.

        Mode ar has nothing to fall back from. An answer in mode ar, such as an audit's, leaves what was timed
        for the other mode as it is.
        """
        if settings.mode == Mode.AR:
            return Fallback(self._prefix, settings)
        if not self._fallback.is_for(self._prefix, settings):
            self._fallback = Fallback(self._prefix, settings)
        return self._fallback

    def _layers(self, settings: DecodeSettings) -> tuple[int, ...]:
        if not settings.is_loose:
            return ()
        return video_layers(settings.rule, self.target.layer_count)

    @torch.inference_mode()
    def _encode_target(
        self, prompts: PairPrompts, layers: Sequence[int], *, follow: bool = False, with_question: bool
    ) -> None:
        self._prefix = None
        watch = [*([0] if follow else []), *(at + 1 for at in layers)]
        passed = self.target.encode(prompts.target, watch, with_question=with_question)
        if follow and self.draft is not None:
            self.draft.follow(passed)
        self._video = VideoStates({layer: video_states(self.target, passed, layer) for layer in layers})

    @torch.inference_mode()
    def _encode_draft(self, prompts: PairPrompts, keep: float, *, with_question: bool) -> None:
        if self.draft is None or prompts.draft is None:
            raise ValueError("the draft's prompt is missing: build the prompts with the pair that answers")
        self.draft.encode(prompts.draft, keep=keep, with_question=with_question)

    def _draft_can_begin(self, prompts: PairPrompts) -> bool:
        return self.draft is not None and prompts.draft is not None and self.draft.can_begin(prompts.draft)

    @torch.inference_mode()
    def _relevance(self, settings: DecodeSettings) -> Relevance | None:
        if not settings.is_loose or is_exact(settings.rule):
            return None
        return relevance_for(settings.rule, self.target, self._words, self._video, settings.seed)


class Rounds(Iterator[Round]):
    """Iterates over the rounds of one answer, and decodes each when it is asked for.

    The first round is the token from prefill. The seconds in ``generation`` are those spent in here: what the
    caller does between two rounds does not count.
    """

    def __init__(
        self,
        answer: Answer,
        prompts: PairPrompts,
        fallback: Fallback,
        interrupted: Callable[[], bool],
        prefill_seconds: float,
    ) -> None:
        self._answer, self._prompts = answer, prompts
        self._fallback, self._interrupted = fallback, interrupted
        self._prefill_seconds, self._decode_seconds = prefill_seconds, 0.0
        self._failed = False  # also true while a round runs: one that fails leaves the caches in pieces

    def __next__(self) -> Round:
        answer, began = self._answer, time.perf_counter()
        if self._failed:
            raise StopIteration
        if answer.tokens and answer.finish is None and self._interrupted():
            answer.finish = FinishReason.INTERRUPTED
        if answer.finish is not None:
            raise StopIteration
        self._failed = True
        if answer.tokens:
            self._fallback.before_round(answer)
            done = answer.round()
            self._fallback.after_round(done)
            self._decode_seconds += time.perf_counter() - began
        else:
            done = answer.begin(self._prompts)
            self._prefill_seconds += time.perf_counter() - began
        self._failed = False
        return done

    @property
    def generation(self) -> Generation:
        """The whole answer.

        :raises RuntimeError: the answer is not over, or a round of it failed.
        """
        answer = self._answer
        if answer.finish is None or self._failed:
            raise RuntimeError("the answer is not over: take all of its rounds first")
        return Generation(
            tokens=tuple(answer.tokens),
            kinds=tuple(answer.kinds),
            finish_reason=answer.finish,
            stats=answer.tally.stats(
                len(answer.tokens),
                answer.gamma,
                answer.fallback,
                self._prefill_seconds,
                self._decode_seconds,
            ),
        )

    def run(self) -> Generation:
        """Decode all remaining rounds, and give the whole answer."""
        for _ in self:
            pass
        return self.generation


def _check(settings: DecodeSettings, draft: Decoder | None) -> None:
    if settings.max_new_tokens < 1:
        raise UsageError(f"max-new-tokens is {settings.max_new_tokens}", "use 1 or more")
    if settings.temperature < 0:
        raise UsageError(f"temperature is {settings.temperature}", "use 0 (greedy) or more")
    if settings.mode == Mode.AR:
        return
    if draft is None:
        raise UsageError(f"mode {settings.mode} needs a draft, and none is loaded", "use --mode ar or a pair")
    if not 0 < settings.draft_keep <= 1:
        raise UsageError(f"draft-keep is {settings.draft_keep:g}", "use more than 0, and 1 at most")
    check_draft_view(settings, mtp=draft.reads_target)
    if settings.greatest_gamma < 1:
        raise UsageError(f"gamma is {settings.gamma}", "use 1 or more, or --mode ar to go without a draft")
    if settings.mode == Mode.LVSPEC and settings.temperature > 0:
        raise UsageError(
            "mode lvspec has no rule for --temperature yet", "use --mode exact or greedy decoding"
        )
