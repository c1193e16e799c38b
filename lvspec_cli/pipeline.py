"""Connects all stages: ``ask``.

A batch uses the parts one by one: ``prepared``, ``load``, ``identify_video``, ``answers``.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvspec_cli.errors import (
    ChangedVideoError,
    ContextError,
    LvspecError,
    NoRoomError,
    UsageError,
    VideoError,
    check_machine,
)
from lvspec_cli.escape import visible_line
from lvspec_cli.events import (
    Answered,
    ClipReady,
    Event,
    Listener,
    Noted,
    QuestionStarted,
    RoundDone,
    Stage,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from lvspec_cli.figures.audit import is_audited
from lvspec_cli.output.records import (
    Audit,
    Facts,
    Failure,
    FileIdentity,
    Record,
    answered_record,
    failed_record,
    identify,
)
from lvspec_cli.output.text import AnswerStream, trace_row
from lvspec_cli.request import AskRequest, LoadPlan, PairChoice
from lvspec_cli.types import (
    Clip,
    DecodeSettings,
    Generation,
    Mode,
    PairPrompts,
    Placement,
    Round,
    Thinking,
    Turn,
    VideoRequest,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from lvspec_cli.memory.plan import Workload
    from lvspec_cli.models.load import LoadedPair
    from lvspec_cli.speculation.engine import Rounds, Session, SharedMemory

Trace = Callable[[dict[str, Any]], None]
Underway = Generator["Rounds", Round | None, Record]  # an answer that is being decoded


def ask(
    choice: PairChoice,
    request: AskRequest,
    listen: Listener = lambda event: None,
    *,
    trace: Trace | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Answers all questions in order. The video is decoded and encoded once.

    :param trace: called with each round (``output.text``).
    :param interrupted: checked once a round; if true, the answer ends with the text so far, and no other
        starts.
    :raises LvspecError: if the video cannot be read, or not by this pair, ``listen`` also gets an error
        record for each question.
    """
    notes: list[Event] = []
    plan, request = _planned(choice, request, notes.append, _duration(request.video))
    identity = identify_video(request)
    try:
        clip = _decode(request.video, listen)
        check_unchanged(request, identity)
        workload = clip_workload(request, clip)
        loaded = _load_for(clip, plan, request, workload, notes, listen)
        with memory_errors(plan, workload):
            return list(
                answers(loaded, plan, request, identity, clip, listen, trace=trace, interrupted=interrupted)
            )
    except VideoError as error:
        for number in range(1, len(request.questions) + 1):
            listen(Answered(failed_record(plan, request, identity, number, error)))
        raise


def ask_each(
    choice: PairChoice,
    requests: Sequence[AskRequest],
    listen: Listener = lambda event: None,
    *,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Answers the same questions about several videos, in order, by a pair that is loaded once.

    A video that cannot be read, or is too long for a model's context, gives an error record for each
    question, and the others go on.

    :param requests: they differ in the video, its name and id only.
    """
    durations = [_duration(request.video) for request in requests]
    longest = max((duration for duration in durations if duration is not None), default=None)
    notes: list[Event] = []
    plan, first = _planned(choice, requests[0], notes.append, longest)
    loaded: LoadedPair | None = None
    records: list[Record] = []
    for request in (replace(request, settings=first.settings) for request in requests):
        if interrupted():
            break
        identity = identify_video(request)
        try:
            clip = _decode(request.video, listen)
            check_unchanged(request, identity)
            workload = clip_workload(request, clip)
            if loaded is None:
                loaded = _load_for(clip, plan, request, workload, notes, listen)
            else:
                check_context(plan, request, clip)
        except (VideoError, ContextError) as error:
            failed = [
                failed_record(plan, request, identity, number, error)
                for number in range(1, len(request.questions) + 1)
            ]
            for record in failed:
                listen(Answered(record))
            records += failed
            continue
        with memory_errors(plan, workload):
            records += answers(loaded, plan, request, identity, clip, listen, interrupted=interrupted)
    return records


def _planned(
    choice: PairChoice, request: AskRequest, listen: Listener, duration: float | None
) -> tuple[LoadPlan, AskRequest]:
    """As ``prepared``, with the questions checked."""
    if not request.questions:
        raise UsageError("there is no question", "ask one")
    plan, request = prepared(choice, request, listen, duration)
    check_thinking(plan, request)
    check_prompts(plan, request, {text: f"question {n}" for n, text in enumerate(request.questions, start=1)})
    return plan, request


def _duration(video: VideoRequest) -> float | None:
    """Seconds of the file if the number of frames depends on it; None if not, or if it cannot be read."""
    from lvspec_cli.video.decode import probe
    from lvspec_cli.video.sample import is_open_ended

    if not is_open_ended(video):
        return None
    try:
        return probe(video.path).duration
    except LvspecError:  # decoding will give the same error
        return None


def prepared(
    choice: PairChoice,
    request: AskRequest,
    listen: Listener = lambda event: None,
    duration: float | None = None,
) -> tuple[LoadPlan, AskRequest]:
    """The load plan of the pair, and the request with a gamma that suits it. No weights are read.

    :param duration: seconds of the file, if the number of frames depends on it.
    :raises PairError: a part of the pair is missing, or it cannot be loaded as requested.
    """
    from lvspec_cli.memory.resolve import resolve, workload_of

    plan = resolve(choice, request.settings, workload_of(request, duration))
    for note in (choice.note, *plan.notes):
        if note:
            listen(Noted(note))
    return plan, replace(request, settings=narrowed(request.settings, plan.width_limit, listen))


def narrowed(settings: DecodeSettings, width_limit: int | None, listen: Listener) -> DecodeSettings:
    """The settings with gamma ``auto`` limited to fast widths. A gamma that the user named stays."""
    from lvspec_cli.memory.plan import gamma_within

    most = gamma_within(settings.greatest_gamma, width_limit)
    if settings.mode is Mode.AR or most == settings.greatest_gamma:
        return settings
    fast = f"the target's kernels take {width_limit} rows at once"
    if settings.gamma != "auto":
        listen(Noted(f"gamma {settings.gamma} is wider than is fast: {fast}, which is gamma {most}"))
        return settings
    listen(Noted(f"gamma is {most} at most: {fast}"))
    return replace(settings, adaptation=replace(settings.adaptation, most=most))


def check_prompts(plan: LoadPlan, request: AskRequest, texts: Mapping[str, str]) -> None:
    """
    :param texts: the questions, each with its origin.
    :raises UsageError: one of them has more tokens than the target or the draft has positions.
    """
    from lvspec_cli.models.prompt_length import Role, check_texts

    folders: dict[Role, Path] = {"target": plan.target}
    if plan.draft is not None and not plan.choice.pair.draft.mtp:
        folders["draft"] = plan.draft
    check_texts(folders, texts, request.system, request.settings.max_new_tokens)


def check_context(plan: LoadPlan, request: AskRequest, clip: Clip) -> None:
    """
    :raises ContextError: the clip, its longest question and the answer are longer than a model's context.
    """
    from lvspec_cli.models.prompt import check_clip

    check_clip(
        [folder for folder in (plan.target, plan.draft) if folder is not None],
        clip,
        max(request.questions, key=len),
        system=request.system,
        new_tokens=request.settings.max_new_tokens,
        think=request.think,
        draft_view=request.settings.draft_view,
    )


def check_thinking(plan: LoadPlan, request: AskRequest) -> None:
    """
    :raises UsageError: the target is to think, and its chat template has no switch for that.
    """
    if request.think:
        from lvspec_cli.models.read import read_processor, thinking_of

        thinking_of(read_processor(plan.target), plan.choice.pair.target.name)


def _load_for(
    clip: Clip,
    plan: LoadPlan,
    request: AskRequest,
    workload: Workload,
    notes: Sequence[Event],
    listen: Listener,
) -> LoadedPair:
    """Loads the pair for a clip that fits its context.

    :param notes: told once nothing is wrong with the request.
    """

    def check() -> None:
        check_context(plan, request, clip)
        for note in notes:
            listen(note)

    return load(plan, workload, listen, first=check)


def load(
    plan: LoadPlan,
    workload: Workload,
    listen: Listener = lambda event: None,
    *,
    first: Callable[[], None] = lambda: None,
) -> LoadedPair:
    """Loads the models of the plan.

    :param workload: the largest clip and answer. It decides the placement, if the plan has none yet, and the
        remedy if memory is short.
    :param first: a check that belongs to the stage, because what it imports may take longest.
    :raises PairError: they cannot be read, or do not fit.
    """
    with timed_stage(Stage.LOADING, listen):
        first()
        import torch

        from lvspec_cli.memory.resolve import place
        from lvspec_cli.models.load import ModelRequest, load_models
        from lvspec_cli.models.mtp import with_prediction_layer

        choice, loading = plan.choice, plan.loading
        if choice.threads is not None:
            torch.set_num_threads(choice.threads)
        placement = plan.placement or place(plan, workload).placement or Placement()
        target = ModelRequest(
            plan.target,
            device=choice.device,
            dtype=choice.dtype,
            quantisation=loading.target,
            shares=placement.target,
            captured=choice.cuda_graphs,
        )
        draft, mtp = None, choice.pair.draft.mtp
        if plan.draft is not None and loading.draft is not None and not mtp:
            draft = replace(
                target,
                source=plan.draft,
                device=choice.draft_device or choice.device,
                quantisation=loading.draft,
                shares=placement.draft,
                proposes=choice.pair.draft.vocabulary,
            )
        with memory_errors(plan, workload):
            pair = load_models(
                target,
                draft,
                contraries=choice.pair.contraries,
                progress=lambda done, total: listen(StageAdvanced(Stage.LOADING, done, total)),
            )
            return with_prediction_layer(pair, plan.target) if mtp and plan.draft is not None else pair


def answers(
    loaded: LoadedPair,
    plan: LoadPlan,
    request: AskRequest,
    identity: FileIdentity,
    clip: Clip,
    listen: Listener = lambda event: None,
    *,
    trace: Trace | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    numbers: Sequence[int] | None = None,
    oom_retries: int = 0,
) -> Iterator[Record]:
    """A record for each of the request's questions about the clip. The video is encoded once.

    :param numbers: the questions to answer, counted from 1; all by default.
    :param oom_retries: how often the clip was made smaller, for the records.
    :raises UsageError: the target is to think and cannot, or a prompt is too long.
    """
    chosen = range(1, len(request.questions) + 1) if numbers is None else numbers
    about = ClipAnswers(loaded, plan, request, identity, clip, trace=trace, oom_retries=oom_retries)
    for number in chosen:
        if interrupted():
            return
        yield alone(about.turn(number, listen, interrupted))


def alone(turn: Underway) -> Record:
    """The record of an answer that is decoded by itself."""
    step: Callable[[], Rounds] = partial(next, turn)
    while True:
        try:
            rounds = step()
        except StopIteration as end:
            record: Record = end.value
            return record
        try:
            step = partial(turn.send, next(rounds, None))
        except Exception as error:
            step = partial(turn.throw, error)


def _thinking(loaded: LoadedPair, request: AskRequest) -> Thinking | None:
    if not request.think:
        return None
    from lvspec_cli.models.read import thinking_of

    return thinking_of(loaded.target.processor, loaded.target.name)


def prompts_of(
    loaded: LoadedPair, request: AskRequest, clip: Clip, number: int, earlier: PairPrompts | None = None
) -> PairPrompts:
    """The prompts of question ``number``, counted from 1; see ``build_prompts``."""
    from lvspec_cli.models.prompt import build_prompts

    return build_prompts(
        loaded,
        clip,
        request.questions[number - 1],
        system=request.system,
        earlier=earlier,
        new_tokens=request.settings.max_new_tokens,
        think=request.think,
        draft_view=request.settings.draft_view,
        history=request.history,
    )


def has_room_for(
    loaded: LoadedPair, plan: LoadPlan, request: AskRequest, clip: Clip, beside: Clip | None = None
) -> bool:
    """Whether there is memory for a decoded clip; see ``has_room``.

    :param beside: a clip that will be encoded at the same time.
    """
    from lvspec_cli.memory.resolve import has_room
    from lvspec_cli.models.prompt import build_prompts

    def tokens_of_two() -> int:
        first = replace(clip, frames=clip.frames[:2], timestamps=clip.timestamps[:2])
        return build_prompts(loaded, first, request.questions[0]).target.visual_tokens

    load = clip_workload(request, clip)
    if beside is not None:
        pixels = max(load.max_pixels, beside.width * beside.height)
        load = replace(load, frames=load.frames + len(beside.frames), max_pixels=pixels)
    return has_room(plan, load, clip.frames.nbytes, tokens_of_two)


class ClipAnswers:
    """Answers about one clip, which is encoded once.

    :meth:`turn` decodes one answer. The turns of several answers, also about other clips, may take place at
    the same time: each asks for its rounds, and whoever runs them decides which ones are decoded together.
    """

    def __init__(
        self,
        pair: LoadedPair,
        plan: LoadPlan,
        request: AskRequest,
        identity: FileIdentity,
        clip: Clip,
        *,
        trace: Trace | None = None,
        oom_retries: int = 0,
        shared: SharedMemory | None = None,
        drafts: bool = True,
        earlier: ClipAnswers | None = None,
        ahead: Future[PairPrompts] | None = None,
    ) -> None:
        """
        :param ahead: the prompts of the question that is asked first (``prompts_of``).
        :param earlier: answers about the same clip, over now, whose encoded video is taken over.
        :param oom_retries: how often the clip was made smaller, for the records.
        :param shared: of answers that are decoded at the same time.
        :param drafts: whether to speculate at all, in a mode that does.
        :raises UsageError: the target is to think and cannot.
        """
        self.clip = clip
        self._pair, self._plan, self._request, self._identity = pair, plan, request, identity
        self._trace, self._oom_retries, self._shared, self._drafts = trace, oom_retries, shared, drafts
        self._thinking = _thinking(pair, request)
        self._settings = request.settings if drafts else replace(request.settings, mode=Mode.AR)
        # None once no turn will need it, so that its memory is there for other clips.
        self._session: Session | None = (earlier and earlier._session) or self._new_session()
        self._is_taken = self._last_has_begun = False
        self._ahead = ahead
        # Of a question that was encoded.
        self._prompts: PairPrompts | None = earlier._prompts if earlier else None

    @property
    def prompts(self) -> PairPrompts | None:
        """Those of an earlier question, with which further ones are built faster."""
        return self._prompts

    def turn(
        self, number: int, listen: Listener, interrupted: Callable[[], bool], *, is_last: bool = False
    ) -> Underway:
        """Answer question ``number``, counted from 1. Yields whose next round is wanted, is sent that round,
        or None where there is none, and returns the record.

        :param is_last: no other turn will begin, so that the frames' pixels may be forgotten.
        :raises LvspecError: the question is too long, or memory is short (MemoryError and torch's own, too).
        """
        listen(QuestionStarted(number, len(self._request.questions), self._request.questions[number - 1]))
        self._last_has_begun = is_last
        with self._own_session() as session:
            prompts = self._encode(session, number, listen, is_last=is_last)
            if is_last:
                self._prompts = None
            record = yield from self._answer(session, prompts, number, listen, interrupted)
            if isinstance(record.audit, Failure):  # the caches may be inconsistent
                self._pair.release()
                self._session, self._prompts = self._new_session(), None
        return record

    def _new_session(self) -> Session:
        from lvspec_cli.speculation.engine import Session

        return Session.of(self._pair, self._shared)

    @contextmanager
    def _own_session(self) -> Iterator[Session]:
        """The clip's session, or a copy of it while another turn has it."""
        session = self._session = self._session or self._new_session()
        if self._is_taken:
            session = session.copied()  # by the same name, or the other one's memory would stay as long
            yield session
            return
        self._is_taken = True
        try:
            yield session
        finally:
            self._is_taken = False
            if self._last_has_begun:
                self._session = None

    def encode(self, listen: Listener) -> None:
        """Encode the clip, as for the first question, for turns to come."""
        self._session = self._session or self._new_session()
        self._encode(self._session, 1, listen, is_last=False)

    def _encode(self, session: Session, number: int, listen: Listener, *, is_last: bool) -> PairPrompts:
        with timed_stage(Stage.ENCODING, listen):
            prompts = self._prompts_for(number)
            # An audit asks again.
            session.encode(prompts, self._settings, is_last=is_last and not self._request.audit)
        self._prompts = prompts
        return prompts

    def _prompts_for(self, number: int) -> PairPrompts:
        ahead, self._ahead = self._ahead, None
        made = ahead.result() if ahead is not None and ahead.exception() is None else None
        del ahead
        if self._prompts is None and not self._has_room():
            made = None  # which frees the frames that were processed
            if not self._has_room():
                raise MemoryError
        # What has failed ahead fails again, and is told.
        return made or prompts_of(self._pair, self._request, self.clip, number, self._prompts)

    def _has_room(self) -> bool:
        return has_room_for(self._pair, self._plan, self._request, self.clip)

    def _answer(
        self,
        session: Session,
        prompts: PairPrompts,
        number: int,
        listen: Listener,
        interrupted: Callable[[], bool],
    ) -> Underway:
        stream = AnswerStream(self._pair.target.tokenizer.backend_tokenizer, self._thinking)
        with timed_stage(Stage.ANSWERING, listen):
            rounds = session.answer(prompts, self._settings, interrupted=interrupted)
            prompts = prompts.without_video()
            generation = yield from self._rounds(rounds, number, stream, listen)
        facts = Facts(
            self.clip,
            prompts.target.visual_tokens,
            to_the_letter=session.is_to_the_letter(
                self._request.settings, is_audited=bool(self._request.audit)
            ),
            oom_retries=self._oom_retries,
        )
        record = answered_record(
            self._plan, self._request, self._identity, number, facts, generation, stream.parts
        )
        if record.status == "ok" and is_audited(record.key, self._request.audit):
            audit = yield from self._audit(session, prompts, generation, stream, listen, interrupted)
            record = record.model_copy(update={"audit": audit})
        listen(Answered(record, stream.tail))
        return record

    def _audit(
        self,
        session: Session,
        prompts: PairPrompts,
        generation: Generation,
        stream: AnswerStream,
        listen: Listener,
        interrupted: Callable[[], bool],
    ) -> Generator[Rounds, Round | None, Audit | Failure | None]:
        from lvspec_cli.figures.audit import audit_answer

        with timed_stage(Stage.AUDITING, listen):
            try:
                ar = AnswerStream(self._pair.target.tokenizer.backend_tokenizer, self._thinking)
                return (
                    yield from audit_answer(
                        session, prompts, self._request.settings, generation, stream, ar, interrupted
                    )
                )
            except Exception as error:  # the answer itself is complete, and is kept
                if not is_out_of_memory(error):
                    raise
            return Failure(kind="out_of_memory", message="not enough memory to answer in mode ar as well")

    def _rounds(
        self, rounds: Rounds, number: int, stream: AnswerStream, listen: Listener
    ) -> Generator[Rounds, Round | None, Generation]:
        index, first = 0, None
        while (done := (yield rounds)) is not None:
            now = time.perf_counter()
            first = now if first is None else first
            index += not done.prefill
            pieces = stream.feed(done.tokens, done.kinds)
            listen(RoundDone(index, done, pieces, now - first, thinking=not stream.is_answer))
            if self._trace is not None:
                self._trace(trace_row(number, index, done, self._word))
        generation = rounds.generation
        if self._drafts:
            return generation
        return replace(generation, stats=replace(generation.stats, fallback=True))

    def _word(self, token: int) -> str:
        return self._pair.target.tokenizer.backend_tokenizer.decode([token], skip_special_tokens=False)


HISTORY_TOKENS = 4096  # of a conversation: a question with the turns before it, for which memory is planned


class Conversation:
    """Questions about one clip that follow one another, on one loaded pair. The video is encoded once.

    A question is asked after the turns of ``history``: as many of the newest ones as the models' contexts,
    and HISTORY_TOKENS, have room for. ``records`` has the answers so far.
    """

    def __init__(
        self, loaded: LoadedPair, plan: LoadPlan, request: AskRequest, identity: FileIdentity, clip: Clip
    ) -> None:
        self._pair, self._plan, self._request = loaded, plan, request
        self._identity, self._clip = identity, clip
        self._about = ClipAnswers(loaded, plan, request, identity, clip)
        self.history: tuple[Turn, ...] = ()
        self.records: list[Record] = []

    @classmethod
    def open(cls, choice: PairChoice, request: AskRequest, listen: Listener) -> Conversation:
        """Loads the pair, and decodes and encodes the video; raises as ``ask`` does.

        :param request: its questions and its history are not used.
        """
        notes: list[Event] = []
        plan, request = prepared(choice, request, notes.append, _duration(request.video))
        check_thinking(plan, request)
        request, identity = replace(request, questions=("",), history=()), identify_video(request)
        clip = _decode(request.video, listen)
        check_unchanged(request, identity)
        workload = _with_history(clip_workload(request, clip))
        loaded = _load_for(clip, plan, request, workload, notes, listen)
        conversation = cls(loaded, plan, request, identity, clip)
        with conversation._memory_errors():
            conversation._about.encode(listen)
        return conversation

    def ask(
        self, question: str, listen: Listener, *, interrupted: Callable[[], bool] = lambda: False
    ) -> Record:
        """The record of an answer. The turn is added to the history, even of an answer that was interrupted.

        :param listen: gets a Noted event when turns are left out of the history.
        :raises LvspecError: the question has no room in the context, or the pair fails. The conversation can
            go on.
        """
        from lvspec_cli.models.prompt import check_text

        request = self._asked(question, listen)
        try:
            with self._memory_errors():
                self._about = self._answers(request, self._about)
                record = alone(self._about.turn(1, listen, interrupted))
        except BaseException:
            self._renew()  # the caches may be inconsistent
            raise
        self.records.append(record)
        self.history = request.history
        try:
            check_text(self._pair.target.processor, record.text or "")
        except UsageError as error:  # no prompt may hold such an answer
            listen(Noted(f"later questions will not know of this answer: {error.cause}"))
        else:
            self.history += (Turn(question, record.text),) if record.text else ()
        return record

    def reset(self) -> None:
        """Forgets the turns so far."""
        self.history = ()

    def _asked(self, question: str, listen: Listener) -> AskRequest:
        """The request of a question with the newest turns that fit."""
        from lvspec_cli.models.prompt import build_prompts

        request = replace(self._request, questions=(question,), history=self.history)
        while True:
            try:
                prompts = build_prompts(
                    self._pair, self._clip, question, system=request.system, earlier=self._about.prompts,
                    new_tokens=request.settings.max_new_tokens, think=request.think,
                    draft_view=request.settings.draft_view, history=request.history,
                )  # fmt: skip
                if prompts.target.length - prompts.target.prefix_length <= HISTORY_TOKENS:
                    break
            except ContextError:
                if not request.history:
                    raise
            if not request.history:
                break  # a long question alone, as ``ask`` takes it
            request = replace(request, history=request.history[1:])
        if left_out := len(self.history) - len(request.history):
            turns = "the oldest turn is" if left_out == 1 else f"the {left_out} oldest turns are"
            listen(Noted(f"{turns} left out: the context has no room for more"))
        return request

    def _renew(self) -> None:
        self._pair.release()
        self._about = self._answers(self._request, None)

    def _answers(self, request: AskRequest, earlier: ClipAnswers | None) -> ClipAnswers:
        return ClipAnswers(self._pair, self._plan, request, self._identity, self._clip, earlier=earlier)

    def _memory_errors(self) -> AbstractContextManager[None]:
        return memory_errors(self._plan, _with_history(clip_workload(self._request, self._clip)))


def _with_history(workload: Workload) -> Workload:
    return replace(workload, text_tokens=max(HISTORY_TOKENS, workload.text_tokens))


@contextmanager
def timed_stage(stage: Stage, listen: Listener) -> Iterator[None]:
    """Tells that a stage begins, and that it has finished unless it fails."""
    began = time.perf_counter()
    listen(StageStarted(stage))
    yield
    listen(StageFinished(stage, time.perf_counter() - began))


@contextmanager
def memory_errors(plan: LoadPlan, workload: Workload) -> Iterator[None]:
    """Turns errors of too little memory into a NoRoomError with a change that would fit."""
    from lvspec_cli.memory.resolve import no_room_for

    try:
        yield
        return
    except (NoRoomError, MemoryError, RuntimeError) as error:
        if not isinstance(error, NoRoomError) and not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # the frames refer to memory of the failed attempt
    raise no_room_for(plan, workload) from None


def clip_workload(request: AskRequest, clip: Clip) -> Workload:
    """The workload of the request, with the clip's actual frames and pixels."""
    from lvspec_cli.memory.resolve import workload_of

    video = replace(request.video, max_frames=len(clip.frames), max_pixels=clip.width * clip.height)
    return workload_of(replace(request, video=video))


def shortened(clip: Clip, expected: int, error: ContextError) -> Clip:
    """A clip with fewer frames than ``expected``, with a warning that says why. It counts as partial.

    :param clip: as it was read again, with the frames that fit.
    :param error: of the prompt with all frames.
    """
    note = f"{len(clip.timestamps)} of {expected} frames fit the context ({error.cause})"
    return replace(clip, frames_expected=expected, warnings=(*clip.warnings, note))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error means too little memory, of the device or of the machine."""
    import torch

    # torch has no exception class for the machine's memory.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def identify_video(request: AskRequest) -> FileIdentity:
    """The file's identity for the record's key. If it cannot be read, only the name is known."""
    path = request.video.path
    name = request.name if request.name is not None else os.fsencode(path.name)
    try:
        if path.is_file():
            return identify(path, name)
    except OSError as error:
        # Decoding will report any other problem with the file.
        check_machine(error, f"{path} cannot be opened")
    return FileIdentity(name, 0, "")


def check_unchanged(request: AskRequest, identity: FileIdentity) -> None:
    """Called after decoding: a record must not have the key of one content and the text of another.

    A file that cannot be read any more counts as unchanged, because decoding has succeeded or reported it.

    :raises ChangedVideoError: the file has changed since ``identity`` was determined.
    """
    now = identify_video(request)
    if now.sample and now != identity:
        raise ChangedVideoError(
            f"the file changed while it was read: {visible_line(str(request.video.path))}", "run it again"
        )


def _decode(video: VideoRequest, listen: Listener) -> Clip:
    from lvspec_cli.video.decode import read_clip

    with timed_stage(Stage.DECODING, listen):
        clip = read_clip(
            video, progress=lambda done, expected: listen(StageAdvanced(Stage.DECODING, done, expected))
        )
    listen(clip_ready(clip))
    return clip


def clip_ready(clip: Clip) -> ClipReady:
    """The event with the facts about the clip."""
    return ClipReady(
        path=clip.path,
        duration=clip.duration,
        start=clip.start,
        end=clip.end,
        frames=len(clip.timestamps),
        frames_expected=clip.frames_expected,
        width=clip.width,
        height=clip.height,
        warnings=clip.warnings,
    )
