"""Answers one work. Failures become records; if memory or the context is short, the clip is made smaller.

Gates (``--fail-on``) make answers count as failed although they have a text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lvspec_cli.batch.work import Work
from lvspec_cli.errors import ContextError, LvspecError, NotFiniteError, PairError, VideoError
from lvspec_cli.events import Answered, Listener
from lvspec_cli.memory.resolve import no_room_for
from lvspec_cli.models.prompt_length import LEAST_FRAMES
from lvspec_cli.output.records import Failure, Record, failed_record
from lvspec_cli.pipeline import answers, clip_ready, clip_workload, is_out_of_memory, shortened
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import Clip, FinishReason, Gate, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedPair

OnOutOfMemory = Literal["shrink", "fail"]
LEAST_PIXELS = 112 * 112  # the smallest frame that is still useful


class OutOfMemoryError(LvspecError):
    """The device's memory did not suffice for a clip."""

    kind = "out_of_memory"


class DeviceLostError(PairError):
    """The GPU failed, and cannot be used in this process any more."""

    kind = "device_lost"


@dataclass(frozen=True)
class Answering:
    """Answers works with a loaded pair.

    ``read`` decodes a video again, if its clip has to be smaller.
    """

    pair: LoadedPair
    plan: LoadPlan
    read: Callable[[VideoRequest], Clip]
    on_out_of_memory: OnOutOfMemory
    listen: Listener
    interrupted: Callable[[], bool]

    def answer(self, work: Work, clip: Clip) -> Iterator[Record]:
        """A record for each of the work's prompts. After an interruption, the remaining prompts get none.

        :raises DeviceLostError: after the records, because no other clip can be answered.
        :raises NotFiniteError: because every other clip would fail in the same way.
        """
        self.listen(clip_ready(clip))
        pending, retries = list(work.numbers), 0
        video, expected, too_long = work.request.video, clip.frames_expected, None
        while pending:
            try:
                for record in self._records(work, clip, pending, retries):
                    if record.finish_reason is FinishReason.INTERRUPTED:
                        return
                    del pending[0]
                    yield record
                return  # also after an interruption between two prompts
            except NotFiniteError:
                raise
            except Exception as error:
                failure = explained(error)
            if self.interrupted():
                return  # a library turned the signal into an error: the clip has not failed
            try:
                video = self._smaller(work, video, clip, failure)
            except LvspecError as final:
                yield from self.failed(work, final, pending)
                if failure is not None:
                    check_devices()
                return
            retries += failure is None
            too_long = failure if isinstance(failure, ContextError) else too_long
            try:
                clip = self.read(video)
            except VideoError as unreadable:
                yield from self.failed(work, unreadable, pending)
                return
            clip = shortened(clip, expected, too_long) if too_long else clip

    def _smaller(
        self, work: Work, video: VideoRequest, clip: Clip, failure: LvspecError | None
    ) -> VideoRequest:
        """The next request for a clip that was too large.

        :param failure: None if memory was short.
        :raises LvspecError: for the records, if there is no such request.
        """
        if isinstance(failure, ContextError) and failure.frames is not None:
            return replace(video, max_frames=failure.frames)
        if failure is not None:
            raise failure
        self.pair.release()
        _release_memory()
        smaller = smaller_request(video, clip) if self.on_out_of_memory == "shrink" else None
        if smaller is None:
            raise too_large(self.plan, work.request, clip)
        return smaller

    def failed(self, work: Work, error: LvspecError, numbers: list[int] | None = None) -> Iterator[Record]:
        """An error record for each of the given prompts, by default for all of the work."""
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
    """An exception of one clip as an error for its record; None if memory was short."""
    if isinstance(error, LvspecError):
        return error
    if is_out_of_memory(error):
        return None
    return LvspecError(f"{type(error).__name__}: {error}", "report it with the file if you can")


def check_devices() -> None:
    """:raises DeviceLostError: a GPU does not work any more, for example after an illegal access."""
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
    """The error for a clip that does not fit into memory, with a change that would fit."""
    error = no_room_for(plan, clip_workload(request, clip))
    return OutOfMemoryError(f"{error.cause}; try: {error.remedy}")


def smaller_request(request: VideoRequest, clip: Clip) -> VideoRequest | None:
    """A request for half the clip's pixels, or else for half its frames; None if both are minimal."""
    pixels, frames = clip.width * clip.height, len(clip.timestamps)
    if pixels // 2 >= LEAST_PIXELS:
        return replace(request, max_pixels=pixels // 2, max_frames=frames)
    if frames // 2 >= LEAST_FRAMES:
        return replace(request, max_pixels=pixels, max_frames=frames // 2)
    return None


def _release_memory() -> None:
    """Frees the memory of the failed attempt for the next one."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gated(record: Record, gates: Collection[Gate]) -> Record:
    """The record. If it meets one of the gates, it becomes an error that keeps its text."""
    if record.status != "ok":
        return record
    decoded, expected, reason = record.sampling.decoded, record.sampling.frames_expected, record.finish_reason
    messages = {
        Gate.LENGTH: (reason is FinishReason.LENGTH, "the answer was cut at --max-new-tokens"),
        Gate.REPETITION: (reason is FinishReason.REPETITION, "the answer began to repeat itself"),
        Gate.PARTIAL: (is_partial(record), f"{decoded} of {expected} frames could be taken"),
    }
    for gate, (is_met, message) in messages.items():
        if is_met and gate in gates:
            failure = Failure(kind=gate.value, message=message)
            return record.model_copy(update={"status": "error", "error": failure})
    return record


def is_partial(record: Record) -> bool:
    """Whether a clip has fewer frames than the request should have given."""
    return (record.sampling.decoded or 0) < (record.sampling.frames_expected or 0)
