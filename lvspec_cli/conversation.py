"""A conversation about one clip: each question is asked after the turns before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from lvspec_cli.answers import ClipAnswers, alone
from lvspec_cli.errors import ContextError, UsageError
from lvspec_cli.events import Event, Listener, Noted
from lvspec_cli.memory.resolve import clip_workload
from lvspec_cli.memory.short import memory_errors
from lvspec_cli.output.records import FileIdentity, Record
from lvspec_cli.pipeline import (
    check_thinking,
    check_unchanged,
    decoded,
    duration_of,
    identify_video,
    load_for,
    prepared,
)
from lvspec_cli.request import AskRequest, LoadPlan, PairChoice
from lvspec_cli.types import Clip, Turn

if TYPE_CHECKING:
    from lvspec_cli.memory.plan import Workload
    from lvspec_cli.models.load import LoadedPair

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
        plan, request = prepared(choice, request, notes.append, duration_of(request.video))
        check_thinking(plan, request)
        request, identity = replace(request, questions=("",), history=()), identify_video(request)
        clip = decoded(request.video, listen)
        check_unchanged(request, identity)
        workload = _with_history(clip_workload(request, clip))
        loaded = load_for(clip, plan, request, workload, notes, listen)
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
