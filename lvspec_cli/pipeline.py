"""Connects the stages of one clip: ``ask``.

A batch and a conversation use the parts one by one: ``prepared``, ``identify_video``, ``load``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lvspec_cli.answers import Trace, answers
from lvspec_cli.errors import (
    ChangedVideoError,
    ContextError,
    LvspecError,
    UsageError,
    VideoError,
    check_machine,
)
from lvspec_cli.escape import visible_line
from lvspec_cli.events import Answered, ClipReady, Event, Listener, Noted, Stage, StageAdvanced, timed_stage
from lvspec_cli.memory.resolve import clip_workload
from lvspec_cli.memory.short import memory_errors
from lvspec_cli.output.records import FileIdentity, Record, failed_record, identify
from lvspec_cli.request import AskRequest, LoadPlan, PairChoice
from lvspec_cli.types import Clip, DecodeSettings, Mode, Placement, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.memory.plan import Workload
    from lvspec_cli.models.load import LoadedPair


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
    plan, request = _planned(choice, request, notes.append, duration_of(request.video))
    identity = identify_video(request)
    try:
        clip = decoded(request.video, listen)
        check_unchanged(request, identity)
        workload = clip_workload(request, clip)
        loaded = load_for(clip, plan, request, workload, notes, listen)
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
    durations = [duration_of(request.video) for request in requests]
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
            clip = decoded(request.video, listen)
            check_unchanged(request, identity)
            workload = clip_workload(request, clip)
            if loaded is None:
                loaded = load_for(clip, plan, request, workload, notes, listen)
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


def duration_of(video: VideoRequest) -> float | None:
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


def load_for(
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


def shortened(clip: Clip, expected: int, error: ContextError) -> Clip:
    """A clip with fewer frames than ``expected``, with a warning that says why. It counts as partial.

    :param clip: as it was read again, with the frames that fit.
    :param error: of the prompt with all frames.
    """
    note = f"{len(clip.timestamps)} of {expected} frames fit the context ({error.cause})"
    return replace(clip, frames_expected=expected, warnings=(*clip.warnings, note))


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


def decoded(video: VideoRequest, listen: Listener) -> Clip:
    """The video's clip; raises as ``read_clip`` does."""
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
