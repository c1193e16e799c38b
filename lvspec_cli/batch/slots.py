"""Continuous batching: several answers are decoded at a time, and one that ends makes room for another.

An answer has a slot. Its prefill runs alone, in the same shapes whatever runs beside it; the rounds of all
slots are decoded together. With one slot this is one answer after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from lvspec_cli.answers import Underway
from lvspec_cli.batch.answer import Answering, InProgress, check_devices, explained, release_memory
from lvspec_cli.batch.company import ONE_AT_A_TIME, company_with
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import LvspecError, NotFiniteError
from lvspec_cli.events import Event, InSlot, Listener, Noted, Stage, timed_stage
from lvspec_cli.output.records import Record
from lvspec_cli.types import Clip, FinishReason, Mode, PairPrompts

if TYPE_CHECKING:
    from concurrent.futures import Future

    from lvspec_cli.speculation.engine import Rounds


@dataclass(frozen=True)
class Finished:
    """All records of a work have been given, or it is left for the next run."""

    work: Work


@dataclass(frozen=True)
class Ready:
    """A work whose video has been decoded, or cannot be.

    ``prompts``: of its first question, where they are made ahead.
    """

    work: Work
    clip: Clip | None = None
    error: LvspecError | None = None  # without either the work is left for the next run
    prompts: Future[PairPrompts] | None = None


Done = Record | Finished
NextWork = Callable[[bool], Ready | None]  # whether to wait; None: there is none, or none yet


@dataclass
class _Slot:
    """One answer that is being decoded."""

    place: int  # from 0
    part_of: InProgress
    number: int  # of the prompt, from 1
    turn: Underway
    wanted: Rounds


class Slots:
    """Answers works, up to ``answering.company.slots`` prompts at a time.

    Where memory is short, the prompt that was begun last waits again, and from then on fewer are answered at
    a time; only a clip that is alone is made smaller. Where a round of several answers fails in another way,
    each of them is done again alone, so that only the one that is the reason fails.
    """

    def __init__(self, answering: Answering, next_work: NextWork) -> None:
        self._answering, self._next_work = answering, next_work
        self._most = answering.company.slots
        self._slots: list[_Slot] = []  # in the order in which they began
        self._works: list[InProgress] = []  # in order
        self._alone: set[int] = set()  # ids of works of which each prompt is answered alone
        self._next: Ready | None = None  # the one whose frames are processed ahead

    def run(self) -> Generator[Done, None, None]:
        """The records in the order in which they are finished. After an interruption some are missing."""
        try:
            while not self._answering.interrupted():
                yield from self._admit()
                if not self._slots:
                    return
                self._look_ahead()
                yield from self._round()
        finally:
            for slot in self._slots:
                slot.turn.close()

    def _admit(self) -> Generator[Done, None, None]:
        """Fill the slots that are free with what is decoded. Waits for a clip only where all are free."""
        while len(self._slots) < self._most and not self._answering.interrupted():
            waiting = next((work for work in self._works if work.waiting), None)
            if waiting is None:
                ready = self._next_ready()
                if ready is None:
                    return
                yield from self._take(ready)
                del ready  # and with it what was processed of the clip, once it has been encoded
                continue
            self._heed_company(waiting.work.request.settings.mode)
            works = (waiting, *(slot.part_of for slot in self._slots))
            if self._slots and (self._most == 1 or any(map(self._is_alone, works))):
                return
            self._look_ahead(waiting)
            yield from self._begin(waiting, waiting.waiting[0])

    def _heed_company(self, mode: Mode) -> None:
        """Go on one at a time if passes can no longer be captured, and others' rows would change a text."""
        answering = self._answering
        if self._most > 1 and company_with(answering.company, answering.pair, mode).slots == 1:
            self._most = 1
            answering.listen(Noted(ONE_AT_A_TIME))

    def _next_ready(self) -> Ready | None:
        ready, self._next = self._next, None
        if ready is None:
            return self._next_work(not self._slots)
        with timed_stage(Stage.DECODING, self._answering.listen):
            return ready  # it was not waited for

    def _look_ahead(self, begins: InProgress | None = None) -> None:
        """Have the frames of the next clip processed beside what is answered, if it is decoded.

        Not beside a clip that is answered alone, to find out whether it is the reason for a failure.

        :param begins: whose clip is about to be encoded.
        """
        beside = [slot.part_of for slot in self._slots] + ([begins] if begins else [])
        if self._next is None and self._answering.ahead is not None and not any(map(self._is_alone, beside)):
            ready = self._next_work(False)
            if ready is not None and ready.clip is not None:
                clip = begins.clip if begins else None
                ready = replace(ready, prompts=self._answering.prepared(ready.work, ready.clip, clip))
            self._next = ready

    def _is_alone(self, work: InProgress) -> bool:
        return work.work.alone or id(work) in self._alone

    def _take(self, ready: Ready) -> Generator[Done, None, None]:
        if ready.clip is not None:
            self._works.append(InProgress(self._answering, ready.work, ready.clip, ready.prompts))
            return
        if ready.error is not None:
            yield from self._answering.failed(ready.work, ready.error)
        yield Finished(ready.work)

    def _begin(self, work: InProgress, number: int) -> Generator[Done, None, None]:
        place = min(set(range(len(self._slots) + 1)) - {slot.place for slot in self._slots})
        failure = None
        try:
            turn = work.begin(number, self._listener(place))
            slot = _Slot(place, work, number, turn, next(turn))
            first = next(slot.wanted, None)
        except NotFiniteError:
            raise
        except Exception as error:
            failure = [explained(error)]
        if failure is not None:
            yield from self._failed(work, number, *failure)
            return
        self._slots.append(slot)
        yield from self._send(slot, partial(turn.send, first))

    def _listener(self, place: int) -> Listener:
        listen = self._answering.listen
        if self._answering.company.slots == 1:
            return listen

        def tell(event: Event) -> None:
            listen(InSlot(place, event))

        return tell

    def _round(self) -> Generator[Done, None, None]:
        """One round of all slots."""
        from lvspec_cli.speculation.engine import next_rounds

        slots = list(self._slots)
        if len(slots) == 1:
            yield from self._round_alone(slots[0])
            return
        failure = None
        try:
            done = next_rounds([slot.wanted for slot in slots])
        except NotFiniteError:
            raise
        except Exception as error:
            failure = [explained(error)]
        if failure is None:
            for slot, round_ in zip(slots, done, strict=True):
                yield from self._send(slot, partial(slot.turn.send, round_))
        elif not self._answering.interrupted():
            self._give_back(slots, *failure)

    def _round_alone(self, slot: _Slot) -> Generator[Done, None, None]:
        """A turn may know what to do about an error of its own round."""
        step: Callable[[], Rounds]
        try:
            step = partial(slot.turn.send, next(slot.wanted, None))
        except Exception as error:
            step = partial(slot.turn.throw, error)
        yield from self._send(slot, step)

    def _send(self, slot: _Slot, step: Callable[[], Rounds]) -> Generator[Done, None, None]:
        """Give a turn its round, and take its record if that was the last one."""
        failure = None
        try:
            slot.wanted = step()
            return
        except StopIteration as end:
            record: Record = end.value
        except NotFiniteError:
            raise
        except Exception as error:
            failure = [explained(error)]
        del step
        self._slots.remove(slot)
        if failure is not None:
            yield from self._failed(slot.part_of, slot.number, *failure)
        elif record.finish_reason is not FinishReason.INTERRUPTED:
            slot.part_of.going.discard(slot.number)
            yield record
            yield from self._end(slot.part_of)

    def _end(self, work: InProgress) -> Iterator[Done]:
        if work.is_over:
            self._works.remove(work)
            self._alone.discard(id(work))
            yield Finished(work.work)

    def _failed(
        self, work: InProgress, number: int, failure: LvspecError | None
    ) -> Generator[Done, None, None]:
        """A prompt that was being answered and has failed, by itself.

        :param failure: None if memory was short.
        """
        work.give_back(number)
        if self._answering.interrupted():
            return  # a library turned the signal into an error: the clip has not failed
        if failure is None:
            self._release()
            if self._slots:
                self._take_fewer()
                return
        try:
            work.make_smaller(failure)
        except LvspecError as final:
            numbers = list(work.waiting)
            work.waiting.clear()
            yield from self._answering.failed(work.work, final, numbers)
            if failure is not None:
                check_devices()
            yield from self._end(work)

    def _give_back(self, slots: list[_Slot], failure: LvspecError | None) -> None:
        """A round of several answers has failed, and has changed none of them."""
        check_devices()
        lost = (
            slots[-1:] if failure is None and all(slot.wanted.drop_round() for slot in slots[:-1]) else slots
        )
        for slot in reversed(lost):
            slot.turn.close()
            slot.part_of.give_back(slot.number)
            self._slots.remove(slot)
            if failure is not None:
                self._alone.add(id(slot.part_of))
        self._release()
        if failure is None:
            self._take_fewer()

    def _release(self) -> None:
        if self._next is not None:
            self._next = replace(self._next, prompts=None)
        release_memory(self._answering.pair, self._answering.shared)

    def _take_fewer(self) -> None:
        self._most = max(1, len(self._slots))
        self._answering.listen(Noted(f"too little memory for more clips at once: {self._most} from now on"))
