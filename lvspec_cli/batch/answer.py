"""One work that is answered. Failures become records; if memory or the context is short, the clip is made
smaller.

Gates (``--fail-on``) make answers count as failed although they have a text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lvspec_cli.answers import ClipAnswers, Underway, has_room_for, prompts_of
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import ContextError, LvspecError, PairError
from lvspec_cli.events import Answered, Listener
from lvspec_cli.memory.resolve import clip_workload, no_room_for
from lvspec_cli.memory.short import is_out_of_memory
from lvspec_cli.models.prompt_length import LEAST_FRAMES
from lvspec_cli.output.records import Failure, Record, failed_record
from lvspec_cli.pipeline import clip_ready, shortened
from lvspec_cli.request import ALONE, AskRequest, Company, LoadPlan
from lvspec_cli.types import Clip, FinishReason, Gate, PairPrompts, VideoRequest

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from lvspec_cli.models.load import LoadedPair
    from lvspec_cli.models.threads import SharedCores
    from lvspec_cli.speculation.engine import SharedMemory

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
    """What answers works: a loaded pair, and what to do where memory or the context is short.

    ``read`` decodes a video again, if its clip has to be smaller. ``company``: how many answers at a time.
    ``ahead``: where the frames of clips to come are processed; None: where and when their turn comes.
    ``cores``: those shared with what decodes clips to come.
    """

    pair: LoadedPair
    plan: LoadPlan
    read: Callable[[VideoRequest], Clip]
    on_out_of_memory: OnOutOfMemory
    listen: Listener
    interrupted: Callable[[], bool]
    company: Company = ALONE
    shared: SharedMemory | None = None  # for several answers at a time
    ahead: Executor | None = None
    cores: SharedCores | None = None

    def prepared(self, work: Work, clip: Clip, beside: Clip | None = None) -> Future[PairPrompts] | None:
        """The prompts of a work's first question, made while others are answered, if there is memory.

        :param beside: a clip that is about to be encoded.
        """
        if self.ahead is None or not has_room_for(self.pair, self.plan, work.request, clip, beside):
            return None
        return self.ahead.submit(prompts_of, self.pair, work.request, clip, work.numbers[0])

    def failed(
        self, work: Work, error: LvspecError, numbers: Sequence[int] | None = None
    ) -> Iterator[Record]:
        """An error record for each of the given prompts, by default for all of the work."""
        for number in numbers if numbers is not None else work.numbers:
            record = failed_record(self.plan, work.request, work.identity, number, error)
            self.listen(Answered(record))
            yield record


class InProgress:
    """A work whose clip is decoded: the prompts that wait, and those that are being answered.

    Where memory or the context is short, the clip is made smaller for the prompts that are left.
    """

    def __init__(
        self, answering: Answering, work: Work, clip: Clip, ahead: Future[PairPrompts] | None = None
    ) -> None:
        """:param ahead: the prompts of the first question."""
        self.work = work
        self.waiting, self.going = deque(work.numbers), set[int]()
        self._answering, self.clip = answering, clip
        self._video, self._expected = work.request.video, clip.frames_expected
        self._retries, self._too_long = 0, None  # type: int, ContextError | None
        self._answers: ClipAnswers | None = None
        self._ahead = ahead

    @property
    def is_over(self) -> bool:
        return not self.waiting and not self.going

    def begin(self, number: int, listen: Listener) -> Underway:
        """The turn of a waiting prompt."""
        self.waiting.remove(number)
        self.going.add(number)
        answering = self._answering
        if self._answers is None:
            self._answers = ClipAnswers(
                answering.pair,
                answering.plan,
                self.work.request,
                self.work.identity,
                self.clip,
                oom_retries=self._retries,
                shared=answering.shared,
                drafts=answering.company.drafts,
                ahead=self._ahead,
                cores=answering.cores,
            )
            self._ahead = None
        listen(clip_ready(self.clip))
        return self._answers.turn(number, listen, answering.interrupted, is_last=not self.waiting)

    def give_back(self, number: int) -> None:
        """A prompt that is being answered waits again, before the others."""
        self.going.discard(number)
        self.waiting.appendleft(number)

    def make_smaller(self, failure: LvspecError | None) -> None:
        """Read a smaller clip for the prompts that wait.

        :param failure: why; None if memory was short.
        :raises LvspecError: for the records of these prompts, if there is no smaller clip.
        """
        self._answers, self._ahead = None, None
        self._video = self._smaller(failure)
        self._retries += failure is None
        self._too_long = failure if isinstance(failure, ContextError) else self._too_long
        clip = self._answering.read(self._video)
        self.clip = shortened(clip, self._expected, self._too_long) if self._too_long else clip

    def _smaller(self, failure: LvspecError | None) -> VideoRequest:
        answering, clip = self._answering, self.clip
        if isinstance(failure, ContextError) and failure.frames is not None:
            return replace(self._video, max_frames=failure.frames)
        if failure is not None:
            raise failure
        smaller = smaller_request(self._video, clip) if answering.on_out_of_memory == "shrink" else None
        if smaller is None:
            raise too_large(answering.plan, self.work.request, clip)
        return smaller


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
            f"the GPU does not answer any more: {reason}", "run the same again: it resumes where it left off"
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


def release_memory(pair: LoadedPair, shared: SharedMemory | None = None) -> None:
    """Frees the memory of a failed attempt for the next one.

    :param shared: of answers that are decoded at the same time.
    """
    import gc

    import torch

    pair.release()
    gc.collect()
    if shared is not None:
        shared.trim()
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
