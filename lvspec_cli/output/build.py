"""From what the stages gave to a record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lvspec_cli import __version__
from lvspec_cli.errors import LvspecError
from lvspec_cli.output.records import (
    Failure,
    FileIdentity,
    Record,
    Requested,
    Sampling,
    Segment,
    encode_name,
    key_of,
    settings_fields,
    stats_fields,
)
from lvspec_cli.registry import Source
from lvspec_cli.types import Clip, FinishReason, Generation, Mode

if TYPE_CHECKING:
    from lvspec_cli.pipeline import AskRequest


@dataclass(frozen=True)
class Facts:
    """What was taken from the video, and whether the target computed in float32."""

    clip: Clip
    visual_tokens: int
    full_precision: bool
    oom_retries: int = 0


def answered_record(
    request: AskRequest, identity: FileIdentity, number: int, facts: Facts, generation: Generation, text: str
) -> Record:
    """The record of an answer; an interrupted one is an error that keeps its text."""
    clip = facts.clip
    interrupted = generation.finish_reason is FinishReason.INTERRUPTED
    return Record(
        **_common(request, identity, number),
        status="error" if interrupted else "ok",
        text=text,
        error=Failure(kind="interrupted", message="stopped before the answer ended") if interrupted else None,
        finish_reason=generation.finish_reason,
        lossless=facts.full_precision and request.settings.mode is not Mode.LVSPEC,
        sampling=Sampling(
            requested=_requested(request),
            duration=clip.duration,
            begins=clip.begins,
            frames_expected=clip.frames_expected,
            decoded=len(clip.timestamps),
            timestamps=clip.timestamps,
            width=clip.width,
            height=clip.height,
            visual_tokens=facts.visual_tokens,
            oom_retries=facts.oom_retries,
            warnings=clip.warnings,
        ),
        stats=stats_fields(generation.stats, clip.decode_seconds),
    )


def failed_record(request: AskRequest, identity: FileIdentity, number: int, error: LvspecError) -> Record:
    """The record of a video that could not be read or answered about."""
    return Record(
        **_common(request, identity, number),
        status="error",
        text=None,
        error=Failure(kind=error.kind, message=error.cause),
        finish_reason=FinishReason.ERROR,
        lossless=False,
        sampling=Sampling(requested=_requested(request)),
        stats=None,
    )


def record_key(request: AskRequest, identity: FileIdentity, number: int) -> str:
    """The key that the record of the request's question ``number`` (from 1) will have."""
    return str(_common(request, identity, number)["key"])


def _common(request: AskRequest, identity: FileIdentity, number: int) -> dict[str, Any]:
    file_name, file_name_b64 = encode_name(identity.name)
    segment = Segment(start=request.video.start or 0.0, end=request.video.end)
    with_draft = request.settings.mode is not Mode.AR
    fields: dict[str, Any] = {
        "segment": segment,
        "task": request.task,
        "system": request.system,
        "prompt": request.questions[number - 1],
        "pair": request.pair_name,
        "target": request.pair.target.name,
        "draft": request.pair.draft.name if with_draft else None,
        "mode": request.settings.mode,
        "settings": {**settings_fields(request.settings), **_loading(request)},
    }
    facts = {
        **fields,
        "segment": segment.model_dump(mode="json"),
        "mode": fields["mode"].value,
        "revisions": [_revision(request.pair.target), _revision(request.pair.draft) if with_draft else None],
        "sampling": _decisive(_requested(request)),
    }
    return {
        **fields,
        "key": key_of(identity, facts),
        "id": _readable_id(request, file_name, number),
        "file_name": file_name,
        "file_name_b64": file_name_b64,
    }


def _readable_id(request: AskRequest, file_name: str, number: int) -> str:
    """The given id or the file's name, then the segment and the question's number where there are such."""
    video = request.video
    times = ["" if time is None else f"{time:g}" for time in (video.start, video.end)]
    segment = f"@{times[0] or 0}-{times[1]}" if any(times) else ""
    return f"{request.id or file_name}{segment}" + (f"#{number}" if len(request.questions) > 1 else "")


def _loading(request: AskRequest) -> dict[str, Any]:
    """What the models are kept and computed in, once that is settled."""
    return {} if request.loading is None else {"loading": asdict(request.loading)}


def _requested(request: AskRequest) -> Requested:
    video = request.video
    return Requested(
        frames=video.max_frames,
        fps=video.fps,
        max_pixels=video.max_pixels,
        decoder=video.decoder,
        background="#{:02x}{:02x}{:02x}".format(*video.background) if any(video.background) else None,
    )


def _decisive(requested: Requested) -> dict[str, Any]:
    """What the key knows of it: records that are older than the choice of a background keep theirs."""
    return requested.model_dump(mode="json", exclude=None if requested.background else {"background"})


def _revision(source: Source) -> str | None:
    """What tells one state of the weights from another: the bundled ones change with the package."""
    return __version__ if source.bundled else source.revision
