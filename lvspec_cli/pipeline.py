"""The only place that wires the stages together, and the library's entry: ``ask``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lvspec_cli.errors import PairError, UsageError, VideoError
from lvspec_cli.events import (
    Answered,
    ClipReady,
    Listener,
    QuestionStarted,
    RoundDone,
    Stage,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from lvspec_cli.output.build import Facts, answered_record, failed_record
from lvspec_cli.output.records import FileIdentity, Record, identify
from lvspec_cli.output.text import TextStream
from lvspec_cli.output.trace import trace_row
from lvspec_cli.registry import Pair
from lvspec_cli.storage import pinned, require
from lvspec_cli.types import Clip, DecodeSettings, Generation, Mode, PairPrompts, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedPair
    from lvspec_cli.speculation.engine import Session

Trace = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class AskRequest:
    """Questions about one clip, and how to answer them; ``device`` and ``dtype`` as in ``load_pair``.

    ``threads``: what torch may use of the CPU from here on, in the whole process; None leaves it alone.
    """

    video: VideoRequest
    questions: tuple[str, ...]
    pair_name: str
    pair: Pair
    settings: DecodeSettings
    system: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None


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
    :raises LvspecError: a video that cannot be read also gives one error record a question to ``listen``.
    """
    if not request.questions:
        raise UsageError("there is no question", "ask one")
    pair = request.pair
    folders = {"target": require(pair.target)}
    if request.settings.mode is not Mode.AR:
        folders["draft"] = require(pair.draft)
    read = {role: pinned(getattr(pair, role), folder) for role, folder in folders.items()}
    request = replace(request, pair=pair.model_copy(update=read))
    identity = _identify(request.video)
    try:
        clip = _decode(request.video, listen)
    except VideoError as error:
        for number in range(1, len(request.questions) + 1):
            listen(Answered(failed_record(request, identity, number, error)))
        raise
    with _memory_errors(), _stage(Stage.LOADING, listen):
        import torch

        from lvspec_cli.models.load import load_pair

        if request.threads is not None:
            torch.set_num_threads(request.threads)
        loaded = load_pair(
            folders["target"],
            folders.get("draft"),
            device=request.device,
            dtype=request.dtype,
            progress=lambda share: listen(StageAdvanced(Stage.LOADING, share, 1.0)),
        )
    with _memory_errors():
        return list(_Run(request, identity, clip, loaded, listen, trace).answers(interrupted))


@dataclass(frozen=True)
class _Run:
    """What stays the same for all questions about one clip."""

    request: AskRequest
    identity: FileIdentity
    clip: Clip
    pair: LoadedPair
    listen: Listener
    trace: Trace | None

    def answers(self, interrupted: Callable[[], bool]) -> Iterator[Record]:
        from lvspec_cli.speculation.engine import Session

        session, prompts = Session(self.pair), None
        for number in range(1, len(self.request.questions) + 1):
            if interrupted():
                return
            prompts = self._encode(session, number, prompts)
            yield self._answer(session, prompts, number, interrupted)

    def _encode(self, session: Session, number: int, earlier: PairPrompts | None) -> PairPrompts:
        from lvspec_cli.prompt import build_prompts

        request = self.request
        question = request.questions[number - 1]
        self.listen(QuestionStarted(number, len(request.questions), question))
        with _stage(Stage.ENCODING, self.listen):
            prompts = build_prompts(self.pair, self.clip, question, system=request.system, earlier=earlier)
            session.encode(prompts, request.settings)
        return prompts

    def _answer(
        self, session: Session, prompts: PairPrompts, number: int, interrupted: Callable[[], bool]
    ) -> Record:
        text = TextStream(self.pair.target.tokenizer.backend_tokenizer)
        with _stage(Stage.ANSWERING, self.listen):
            generation = self._rounds(session, prompts, number, text, interrupted)
        facts = Facts(self.clip, prompts.target.visual_tokens, str(self.pair.target.dtype) == "torch.float32")
        record = answered_record(self.request, self.identity, number, facts, generation, text.text)
        self.listen(Answered(record, text.tail))
        return record

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
        while True:
            try:
                done = next(rounds)
            except StopIteration as stop:
                return stop.value
            now = time.perf_counter()
            first = now if first is None else first
            index += not done.prefill
            self.listen(RoundDone(index, done, text.feed(done.tokens, done.kinds), now - first))
            if self.trace is not None:
                self.trace(trace_row(number, index, done, self._word))

    def _word(self, token: int) -> str:
        return self.pair.target.tokenizer.backend_tokenizer.decode([token], skip_special_tokens=False)


@contextmanager
def _stage(stage: Stage, listen: Listener) -> Iterator[None]:
    began = time.perf_counter()
    listen(StageStarted(stage))
    yield
    listen(StageFinished(stage, time.perf_counter() - began))


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Too little memory reads as a pair that does not fit."""
    remedy = "take fewer frames (--frames), smaller ones (--max-pixels), another --device or a smaller pair"
    try:
        yield
    except MemoryError as error:
        raise PairError("the pair does not fit into memory", remedy) from error
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise PairError("the pair does not fit into the device's memory", remedy) from error


def _identify(video: VideoRequest) -> FileIdentity:
    name = os.fsencode(video.path.name)
    try:
        if video.path.is_file():
            return identify(video.path, name)
    except OSError:
        pass  # decoding meets the same file and says what is wrong with it
    return FileIdentity(name, 0, "")


def _decode(video: VideoRequest, listen: Listener) -> Clip:
    from lvspec_cli.video.decode import read_clip

    with _stage(Stage.DECODING, listen):
        clip = read_clip(
            video, progress=lambda done, expected: listen(StageAdvanced(Stage.DECODING, done, expected))
        )
    listen(
        ClipReady(
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
    )
    return clip
