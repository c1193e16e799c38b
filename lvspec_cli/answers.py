"""Answers about one clip by a loaded pair, from prompts to records."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lvspec_cli.events import Answered, Listener, QuestionStarted, RoundDone, Stage, timed_stage
from lvspec_cli.figures.audit import is_audited
from lvspec_cli.memory.resolve import clip_workload
from lvspec_cli.memory.short import is_out_of_memory
from lvspec_cli.output.records import Audit, Facts, Failure, FileIdentity, Record, answered_record
from lvspec_cli.output.text import AnswerStream, trace_row
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import Clip, Generation, Mode, PairPrompts, Round, Thinking

if TYPE_CHECKING:
    from concurrent.futures import Future

    from lvspec_cli.models.load import LoadedPair
    from lvspec_cli.models.threads import SharedCores
    from lvspec_cli.speculation.engine import Rounds, Session, SharedMemory

Trace = Callable[[dict[str, Any]], None]
Underway = Generator["Rounds", Round | None, Record]  # an answer that is being decoded


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
        cores: SharedCores | None = None,
    ) -> None:
        """
        :param ahead: the prompts of the question that is asked first (``prompts_of``).
        :param cores: those shared with what decodes other clips.
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
        self._ahead, self._cores = ahead, cores
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
        with timed_stage(Stage.ENCODING, listen), self._cores.heeded() if self._cores else nullcontext():
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
