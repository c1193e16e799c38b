"""The only place that wires the stages together, and the library's entry: ``ask``.

A batch takes the same parts one by one: ``pinned_request``, ``load``, ``identify_video``, ``answers``.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvspec_cli.errors import (
    ChangedVideoError,
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
from lvspec_cli.output.text import TextStream
from lvspec_cli.output.trace import trace_row
from lvspec_cli.pairs.files import pinned, require
from lvspec_cli.request import AskRequest
from lvspec_cli.types import (
    Clip,
    DecodeSettings,
    Generation,
    Mode,
    PairPrompts,
    VideoRequest,
)

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedPair
    from lvspec_cli.speculation.engine import Session

Trace = Callable[[dict[str, Any]], None]


def ask(
    request: AskRequest,
    listen: Listener = lambda event: None,
    *,
    trace: Trace | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Answers every question in order: the video is decoded and encoded once.

    :param trace: called with each round (``output.trace``).
    :param interrupted: asked once a round; when true the answer ends with what there is, and no other begins.
    :raises LvspecError: a video that cannot be read, or not by this pair, also gives one error record a
        question to ``listen``.
    """
    if not request.questions:
        raise UsageError("there is no question", "ask one")
    request = pinned_request(request, listen, _duration(request.video))
    check_prompts(request, {text: f"question {n}" for n, text in enumerate(request.questions, start=1)})
    identity = identify_video(request)
    try:
        clip = _decode(request.video, listen)
        check_unchanged(request, identity)
        as_it_is = of_clip(request, clip)
        loaded = load(as_it_is, listen)
        with memory_errors(as_it_is):
            return list(
                answers(loaded, request, identity, clip, listen, trace=trace, interrupted=interrupted)
            )
    except VideoError as error:
        for number in range(1, len(request.questions) + 1):
            listen(Answered(failed_record(request, identity, number, error)))
        raise


def _duration(video: VideoRequest) -> float | None:
    """Seconds of the file, where that decides how many frames are taken; None if it cannot be looked at."""
    from lvspec_cli.video.decode import probe
    from lvspec_cli.video.sample import is_open_ended

    if not is_open_ended(video):
        return None
    try:
        return probe(video.path).duration
    except LvspecError:  # decoding will say the same
        return None


def pinned_request(
    request: AskRequest, listen: Listener = lambda event: None, duration: float | None = None
) -> AskRequest:
    """The request with the revisions of the pair that is on this machine, and with how it is loaded here.

    Where nobody named a gamma, a round is no wider than the target's kernels are fast.

    :param duration: seconds of the file, where that decides how many frames are taken.
    :raises PairError: not all of it is here, or it cannot be loaded as it is asked for.
    """
    from lvspec_cli.memory.resolve import settle

    pair = request.pair
    roles = ("target",) if request.settings.mode is Mode.AR else ("target", "draft")
    read = {
        role: pinned(getattr(pair, role), require(getattr(pair, role), request.pair_name)) for role in roles
    }
    settled = settle(request, *_folders(request), duration)
    for note in (request.pair_note, *settled.notes):
        if note:
            listen(Noted(note))
    return replace(
        request,
        pair=pair.model_copy(update=read),
        loading=settled.loading,
        settings=narrowed(request.settings, settled.width_limit, listen),
    )


def check_prompts(request: AskRequest, texts: Mapping[str, str]) -> None:
    """
    :param texts: what is to be asked, and where each text comes from.
    :raises UsageError: one of them is longer than the target or the draft has positions for.
    """
    from lvspec_cli.models.prompt_length import Role, check_texts

    target, draft = _folders(request)
    folders: dict[Role, Path] = {"target": target}
    if draft is not None:
        folders["draft"] = draft
    check_texts(folders, texts, request.system, request.settings.max_new_tokens)


def placed_request(request: AskRequest) -> AskRequest:
    """The pinned request with where the pair's parts go, looked at before others like it take memory.

    :raises NoRoomError: there is not room for as many as are to work side by side.
    """
    from lvspec_cli.memory.resolve import placed

    return replace(request, placement=placed(request, *_folders(request)))


def narrowed(settings: DecodeSettings, width_limit: int | None, listen: Listener) -> DecodeSettings:
    """Settings whose gamma ``auto`` stays within the rows that are fast. A gamma that was named stays."""
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


def _folders(request: AskRequest) -> tuple[Path, Path | None]:
    """Where the models are that the request's mode needs."""
    draft = None if request.settings.mode is Mode.AR else require(request.pair.draft)
    return require(request.pair.target), draft


def load(request: AskRequest, listen: Listener = lambda event: None) -> LoadedPair:
    """The models that the request's mode needs.

    :raises PairError: they are not here, cannot be read, or do not fit.
    """
    if request.loading is None:
        request = pinned_request(request, listen)
    target, draft = _folders(request)
    assert request.loading is not None
    with _stage(Stage.LOADING, listen):
        import torch

        from lvspec_cli.memory.resolve import placed
        from lvspec_cli.models.load import ModelRequest, load_models

        if request.threads is not None:
            torch.set_num_threads(request.threads)
        loading, plan = request.loading, request.placement or placed(request, target, draft)
        one = ModelRequest(
            target,
            None,
            request.device,
            request.dtype,
            loading.target,
            plan.target,
            captured=request.cuda_graphs,
        )
        other = None
        if draft is not None and loading.draft is not None:
            home = request.draft_device or request.device
            other = ModelRequest(
                draft, None, home, request.dtype, loading.draft, plan.draft, captured=request.cuda_graphs
            )
        with memory_errors(request):
            return load_models(
                one, other, progress=lambda done, total: listen(StageAdvanced(Stage.LOADING, done, total))
            )


def answers(
    loaded: LoadedPair,
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
    """A record for each of the request's questions about the clip, whose video is encoded once.

    :param numbers: which questions, counted from 1; all by default.
    :param oom_retries: how often the clip has been made smaller, for the records.
    """
    chosen = range(1, len(request.questions) + 1) if numbers is None else numbers
    run = _Run(request, identity, clip, loaded, listen, trace, oom_retries)
    yield from run.answers(chosen, interrupted)


@dataclass(frozen=True)
class _Run:
    """What stays the same for all questions about one clip."""

    request: AskRequest
    identity: FileIdentity
    clip: Clip
    pair: LoadedPair
    listen: Listener
    trace: Trace | None
    oom_retries: int

    def answers(self, numbers: Sequence[int], interrupted: Callable[[], bool]) -> Iterator[Record]:
        from lvspec_cli.speculation.engine import Session

        session, prompts = Session.of(self.pair), None
        for number in numbers:
            if interrupted():
                return
            prompts = self._encode(session, number, prompts)
            record = self._answer(session, prompts, number, interrupted)
            if isinstance(record.audit, Failure):  # its caches are in pieces
                self.pair.release()
                session, prompts = Session.of(self.pair), None
            yield record

    def _encode(self, session: Session, number: int, earlier: PairPrompts | None) -> PairPrompts:
        from lvspec_cli.models.prompt import build_prompts

        request = self.request
        question = request.questions[number - 1]
        self.listen(QuestionStarted(number, len(request.questions), question))
        with _stage(Stage.ENCODING, self.listen):
            if earlier is None and not self._has_room():
                raise MemoryError
            prompts = build_prompts(
                self.pair,
                self.clip,
                question,
                system=request.system,
                earlier=earlier,
                new_tokens=request.settings.max_new_tokens,
            )
            session.encode(prompts, request.settings)
        return prompts

    def _has_room(self) -> bool:
        from lvspec_cli.memory.resolve import has_room

        request, held = of_clip(self.request, self.clip), self.clip.frames.nbytes
        return has_room(request, *_folders(request), held, self._tokens_of_two)

    def _tokens_of_two(self) -> int:
        from lvspec_cli.models.prompt import build_prompts

        first = replace(self.clip, frames=self.clip.frames[:2], timestamps=self.clip.timestamps[:2])
        return build_prompts(self.pair, first, self.request.questions[0]).target.visual_tokens

    def _answer(
        self, session: Session, prompts: PairPrompts, number: int, interrupted: Callable[[], bool]
    ) -> Record:
        text = TextStream(self.pair.target.tokenizer.backend_tokenizer)
        with _stage(Stage.ANSWERING, self.listen):
            generation = self._rounds(session, prompts, number, text, interrupted)
        facts = Facts(
            self.clip,
            prompts.target.visual_tokens,
            full_precision=self.pair.target.full_precision,
            oom_retries=self.oom_retries,
        )
        record = answered_record(self.request, self.identity, number, facts, generation, text.text)
        if record.status == "ok" and is_audited(record.key, self.request.audit):
            audit = self._audit(session, prompts, generation, text.text, interrupted)
            record = record.model_copy(update={"audit": audit})
        self.listen(Answered(record, text.tail))
        return record

    def _audit(
        self,
        session: Session,
        prompts: PairPrompts,
        given: Generation,
        text: str,
        interrupted: Callable[[], bool],
    ) -> Audit | Failure | None:
        from lvspec_cli.figures.audit import audited

        with _stage(Stage.AUDITING, self.listen):
            try:
                return audited(session, self.pair, prompts, self.request.settings, given, text, interrupted)
            except Exception as error:  # the answer itself is there, and is kept
                if not is_out_of_memory(error):
                    raise
            return Failure(kind="out_of_memory", message="not enough memory to answer in mode ar as well")

    def _rounds(
        self,
        session: Session,
        prompts: PairPrompts,
        number: int,
        text: TextStream,
        interrupted: Callable[[], bool],
    ) -> Generation:
        rounds = session.answer(prompts, self.request.settings, interrupted=interrupted)
        index, first = 0, None
        for done in rounds:
            now = time.perf_counter()
            first = now if first is None else first
            index += not done.prefill
            self.listen(RoundDone(index, done, text.feed(done.tokens, done.kinds), now - first))
            if self.trace is not None:
                self.trace(trace_row(number, index, done, self._word))
        return rounds.generation

    def _word(self, token: int) -> str:
        return self.pair.target.tokenizer.backend_tokenizer.decode([token], skip_special_tokens=False)


@contextmanager
def _stage(stage: Stage, listen: Listener) -> Iterator[None]:
    began = time.perf_counter()
    listen(StageStarted(stage))
    yield
    listen(StageFinished(stage, time.perf_counter() - began))


@contextmanager
def memory_errors(request: AskRequest) -> Iterator[None]:
    """Too little memory reads as a pair that does not fit, and what would."""
    try:
        yield
        return
    except (NoRoomError, MemoryError, RuntimeError) as error:
        if not isinstance(error, NoRoomError) and not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what the failed attempt had in memory
    raise no_room(request) from None


def of_clip(request: AskRequest, clip: Clip) -> AskRequest:
    """The request with the frames that the clip has, in place of as many as it may have."""
    video = replace(request.video, max_frames=len(clip.frames), max_pixels=clip.width * clip.height)
    return replace(request, video=video)


def no_room(request: AskRequest) -> NoRoomError:
    """What the request needed of memory, what is free, and the smallest change that would fit."""
    from lvspec_cli.memory.resolve import no_room_for

    return no_room_for(request, *_folders(request))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device's memory, or the machine's, did not suffice."""
    import torch

    # torch has no class of its own for the machine's memory.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def identify_video(request: AskRequest) -> FileIdentity:
    """What the record's key says of the file; without content where it cannot be read."""
    path = request.video.path
    name = request.name if request.name is not None else os.fsencode(path.name)
    try:
        if path.is_file():
            return identify(path, name)
    except OSError as error:
        # Of anything else decoding, which meets the same file, says what is wrong with it.
        check_machine(error, f"{path} cannot be opened")
    return FileIdentity(name, 0, "")


def check_unchanged(request: AskRequest, identity: FileIdentity) -> None:
    """For after decoding: a record must not have the key of one content and the text of another.

    A file that cannot be looked at any more is as it was: that is another matter, and decoding has met it.

    :raises ChangedVideoError: it is not the file any more that ``identity`` was taken of.
    """
    now = identify_video(request)
    if now.sample and now != identity:
        raise ChangedVideoError(
            f"the file changed while it was read: {visible_line(str(request.video.path))}", "run it again"
        )


def _decode(video: VideoRequest, listen: Listener) -> Clip:
    from lvspec_cli.video.decode import read_clip

    with _stage(Stage.DECODING, listen):
        clip = read_clip(
            video, progress=lambda done, expected: listen(StageAdvanced(Stage.DECODING, done, expected))
        )
    listen(clip_ready(clip))
    return clip


def clip_ready(clip: Clip) -> ClipReady:
    """What was taken from the video, for whoever listens."""
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
