"""One work answered: what fails becomes a record, and too little memory makes the clip smaller.

``--fail-on`` says which answers count as failed although there is a text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lvspec_cli.batch.work import Work
from lvspec_cli.errors import LvspecError, NotFiniteError, PairError, VideoError
from lvspec_cli.events import Answered, Listener
from lvspec_cli.memory.resolve import no_room_for
from lvspec_cli.output.records import Failure, Record, failed_record
from lvspec_cli.pipeline import answers, clip_ready, clip_workload, is_out_of_memory
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import Clip, FinishReason, Gate, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedPair

OnOutOfMemory = Literal["shrink", "fail"]
LEAST_PIXELS = 112 * 112  # of a frame that is still worth looking at
LEAST_FRAMES = 2


class OutOfMemoryError(LvspecError):
    """The device's memory did not suffice for a clip."""

    kind = "out_of_memory"


class DeviceLostError(PairError):
    """The GPU failed in a way that it does not recover from in this process."""

    kind = "device_lost"


@dataclass(frozen=True)
class Answering:
    """What answers every work: the loaded pair and what to do when memory is short.

    ``read`` decodes a video again, for a clip that has to be smaller.
    """

    pair: LoadedPair
    plan: LoadPlan
    read: Callable[[VideoRequest], Clip]
    on_out_of_memory: OnOutOfMemory
    listen: Listener
    interrupted: Callable[[], bool]

    def answer(self, work: Work, clip: Clip) -> Iterator[Record]:
        """A record for each of the work's prompts, but for one that was interrupted and those after it.

        :raises DeviceLostError: after the records, as no other clip could be answered.
        :raises NotFiniteError: as every other clip would fail in the same way.
        """
        self.listen(clip_ready(clip))
        left, retries = list(work.numbers), 0
        while left:
            try:
                for record in self._records(work, clip, left, retries):
                    if record.finish_reason is FinishReason.INTERRUPTED:
                        return
                    del left[0]
                    yield record
                return  # also where an interruption came between two prompts
            except NotFiniteError:
                raise
            except Exception as error:
                failure = explained(error)
            if self.interrupted():
                return  # what a library made of the signal is no failure of the clip
            if failure is not None:
                yield from self.failed(work, failure, left)
                check_devices()
                return
            self.pair.release()
            _release_memory()
            smaller = smaller_request(work.request.video, clip) if self.on_out_of_memory == "shrink" else None
            if smaller is None:
                yield from self.failed(work, too_large(self.plan, work.request, clip), left)
                return
            retries += 1
            try:
                clip = self.read(smaller)
            except VideoError as unreadable:
                yield from self.failed(work, unreadable, left)
                return

    def failed(self, work: Work, error: LvspecError, numbers: list[int] | None = None) -> Iterator[Record]:
        """An error record for each prompt that is left."""
        for number in numbers if numbers is not None else work.numbers:
            record = failed_record(self.plan, work.request, work.identity, number, error)
            self.listen(Answered(record))
            yield record

    def _records(self, work: Work, clip: Clip, numbers: list[int], retries: int) -> Iterator[Record]:
        return answers(
            self.pair,
            self.plan,
            work.request,
            work.identity,
            clip,
            self.listen,
            interrupted=self.interrupted,
            numbers=tuple(numbers),
            oom_retries=retries,
        )


def explained(error: Exception) -> LvspecError | None:
    """What went wrong with one clip, as an error that a record can hold; None where memory was short."""
    if isinstance(error, LvspecError):
        return error
    if is_out_of_memory(error):
        return None
    return LvspecError(f"{type(error).__name__}: {error}", "report it with the file if you can")


def check_devices() -> None:
    """:raises DeviceLostError: after an illegal access, say, a GPU refuses all else in this process."""
    import torch

    if not torch.cuda.is_initialized():
        return
    try:
        for index in range(torch.cuda.device_count()):
            if torch.cuda.memory_allocated(index):
                torch.cuda.synchronize(index)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceLostError(
            f"the GPU does not answer any more: {reason}", "run the same again: it goes on where it was"
        ) from None


def too_large(plan: LoadPlan, request: AskRequest, clip: Clip) -> OutOfMemoryError:
    """That memory did not suffice for a clip, and what would fit."""
    said = no_room_for(plan, clip_workload(request, clip))
    return OutOfMemoryError(f"{said.cause}; try: {said.remedy}")


def smaller_request(asked: VideoRequest, clip: Clip) -> VideoRequest | None:
    """A request for half the pixels of what the clip has, then half the frames; None at the smallest."""
    pixels, frames = clip.width * clip.height, len(clip.timestamps)
    if pixels // 2 >= LEAST_PIXELS:
        return replace(asked, max_pixels=pixels // 2, max_frames=frames)
    if frames // 2 >= LEAST_FRAMES:
        return replace(asked, max_pixels=pixels, max_frames=frames // 2)
    return None


def _release_memory() -> None:
    """What the failed attempt held goes back, so that the next one has all of it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gated(record: Record, gates: Collection[Gate]) -> Record:
    """The record, made an error that keeps its text where it meets one of the gates."""
    if record.status != "ok":
        return record
    met = next((gate for gate in Gate if gate in gates and _meets(record, gate)), None)
    if met is None:
        return record
    failure = Failure(kind=met.value, message=_message(record, met))
    return record.model_copy(update={"status": "error", "error": failure})


def _meets(record: Record, gate: Gate) -> bool:
    if gate is Gate.LENGTH:
        return record.finish_reason is FinishReason.LENGTH
    if gate is Gate.REPETITION:
        return record.finish_reason is FinishReason.REPETITION
    return (record.sampling.decoded or 0) < (record.sampling.frames_expected or 0)


def _message(record: Record, gate: Gate) -> str:
    if gate is Gate.LENGTH:
        return "the answer was cut at --max-new-tokens"
    if gate is Gate.REPETITION:
        return "the answer began to repeat itself"
    return f"{record.sampling.decoded} of {record.sampling.frames_expected} frames could be read"
