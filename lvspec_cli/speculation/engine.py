"""The loop of rounds, (draft -> verify -> accept)*, over one clip whose encoded video is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lvspec_cli.errors import UsageError
from lvspec_cli.models.cache import SlotMemory
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.mtp import MtpDecoder
from lvspec_cli.models.probe import video_states
from lvspec_cli.models.words import TokenSets
from lvspec_cli.request import check_draft_view
from lvspec_cli.speculation.answer import Answer, decode_rounds
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


def is_to_the_letter(settings: DecodeSettings, exact_rows: int | None, *, same_prefill: bool) -> bool:
    """Whether an answer is token for token what the target alone says.

    :param exact_rows: see ``Decoder.exact_rows``.
    :param same_prefill: the target reads the prompt in the very passes of mode ar.
    """
    if settings.is_loose or (settings.mode is not Mode.AR and settings.temperature > 0):
        return False  # sampled with a draft, its tokens are distributed as the target's, and others
    rows = 1 if settings.mode is Mode.AR else settings.greatest_gamma + 1
    return exact_rows is None or (same_prefill and rows <= exact_rows)


@dataclass(frozen=True)
class SharedMemory:
    """Where several sessions of a pair, up to ``slots`` of them at a time, keep what they have read."""

    slots: int
    target: SlotMemory = field(default_factory=SlotMemory)
    draft: SlotMemory = field(default_factory=SlotMemory)

    def trim(self) -> None:
        """Free what the sessions that are left do not need."""
        self.target.trim()
        self.draft.trim()


class Session:
    """One clip and several questions about it. Target and draft each encode the video once.

    Nobody else may use the decoders while the session does. :meth:`of` makes them for a pair.
    """

    def __init__(self, target: Decoder, draft: Decoder | None, words: TokenSets, *, slots: int = 1) -> None:
        self.target, self.draft = target, draft
        self._words, self._slots = words, slots
        self._prefix: tuple[int, ...] | None = None
        self._draft_holds: tuple[float, DraftView] | None = None  # of the video; None: nothing
        self._video = VideoStates({})
        self._encode_seconds = 0.0
        self._fallback = Fallback(None, DecodeSettings())

    @classmethod
    def of(cls, pair: LoadedPair, shared: SharedMemory | None = None) -> Session:
        """A session with new decoders of a pair's models.

        :param shared: memory of sessions that answer at the same time (``next_rounds``).
        """
        target, draft = (shared.target, shared.draft) if shared else (None, None)
        drafting = None
        if pair.draft is not None:
            drafting = (MtpDecoder if pair.draft.is_prediction_layer else Decoder)(pair.draft, draft)
        slots = shared.slots if shared else 1
        return cls(Decoder(pair.target, target), drafting, pair.words, slots=slots)

    @torch.inference_mode()
    def copied(self) -> Session:
        """A session that has read the same clip, to answer another question at the same time."""
        draft = None if self.draft is None else self.draft.copied()
        other = Session(self.target.copied(), draft, self._words, slots=self._slots)
        other._prefix, other._draft_holds, other._video = self._prefix, self._draft_holds, self._video
        return other

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
            self._draft_holds = None  # should that fail
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
        answer = Answer(
            self.target, self.draft, self._words, settings, self._relevance(settings), slots=self._slots
        )
        fallback = self._fallback_for(settings)
        fallback.before_answer(answer)
        seconds, self._encode_seconds = self._encode_seconds + time.perf_counter() - began, 0.0
        return Rounds(answer, prompts, fallback, interrupted, seconds)

    def is_to_the_letter(self, settings: DecodeSettings, *, is_audited: bool = False) -> bool:
        """Whether the answer that was given last is token for token what the target alone says.

        :param is_audited: another answer to the same question was to follow.
        """
        follows = self.draft is not None and self.draft.reads_target and settings.mode is not Mode.AR
        same_prefill = not (follows or settings.draft_is_guided or is_audited)
        return is_to_the_letter(settings, self.target.exact_rows, same_prefill=same_prefill)

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
        # The question's own results must not depend on whether it is run with the clip.
        with_question = with_question and not self.target.loaded.reads_in_8_bits
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
        self._answer = answer
        self._prompts: PairPrompts | None = prompts  # until they are in the caches: their pixels are large
        self._fallback, self._interrupted = fallback, interrupted
        self._prefill_seconds, self._decode_seconds = prefill_seconds, 0.0
        self._failed = False  # also true while a round runs: one that fails leaves the caches in pieces
        self._held = 0  # tokens before this round

    def __next__(self) -> Round:
        (done,) = next_rounds([self])
        if done is None:
            raise StopIteration
        return done

    def _goes_on(self) -> bool:
        answer = self._answer
        if self._failed:
            return False
        if answer.tokens and answer.finish is None and self._interrupted():
            answer.finish = FinishReason.INTERRUPTED
        return answer.finish is None

    def _begin(self) -> Round:
        assert self._prompts is not None
        began = time.perf_counter()
        self._failed = True
        done = self._answer.begin(self._prompts)
        self._prompts = None
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

    @torch.inference_mode()
    def drop_round(self) -> bool:
        """Go on after a round that failed. Whether that is possible: not if it has taken tokens already."""
        self._failed = len(self._answer.tokens) != self._held or not self._answer.drop_round()
        return not self._failed

    def run(self) -> Generation:
        """Decode all remaining rounds, and give the whole answer."""
        for _ in self:
            pass
        return self.generation


def next_rounds(many: Sequence[Rounds]) -> list[Round | None]:
    """The next round of each of several answers; None for one that is over.

    The first round of an answer is its prefill, which runs alone. Other rounds are decoded together
    (``decode_rounds``), and each counts an equal share of their seconds. If that fails,
    :meth:`Rounds.drop_round` makes an answer go on.
    """
    done: dict[int, Round | None] = {}
    together: list[int] = []
    for index, rounds in enumerate(many):
        if not rounds._goes_on():
            done[index] = None
        elif not rounds._answer.tokens:
            done[index] = rounds._begin()
        else:
            together.append(index)
    if together:
        done |= zip(together, _decoded_together([many[index] for index in together]), strict=True)
    return [done[index] for index in range(len(many))]


def _decoded_together(many: Sequence[Rounds]) -> list[Round]:
    began = time.perf_counter()
    for rounds in many:
        rounds._failed, rounds._held = True, len(rounds._answer.tokens)
        rounds._fallback.before_round(rounds._answer)
    done = decode_rounds([rounds._answer for rounds in many])
    for rounds, round_ in zip(many, done, strict=True):
        rounds._fallback.after_round(rounds._answer, round_)
        rounds._failed = False
    seconds = (time.perf_counter() - began) / len(many)
    for rounds in many:
        rounds._decode_seconds += seconds
    return done


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
