"""Records: one JSON object for each answer, the same in every command (docs/design.md, "Records")."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter
from pydantic_core import PydanticCustomError

from lvspec_cli import __version__
from lvspec_cli.errors import LvspecError
from lvspec_cli.pairs.registry import Source
from lvspec_cli.types import (
    Clip,
    Constraint,
    DecoderName,
    DecodeSettings,
    DecodeStats,
    FinishReason,
    Generation,
    Mode,
    TaskName,
)

if TYPE_CHECKING:
    from lvspec_cli.output.text import Parts
    from lvspec_cli.request import AskRequest, LoadPlan

SCHEMA: Final = "lvspec.record.1"
SAMPLE_BYTES = 64 * 1024
INFINITY: Final = "Infinity"
ODD: Final = "odd"  # error type of impossible values
# Error kinds of answers that have a text: it has only thoughts, or the end of its JSON is missing.
THINKING: Final = "thinking"
UNFINISHED: Final = "unfinished"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


def _moment(value: float) -> float:
    if not math.isfinite(value):
        raise PydanticCustomError(ODD, "is not a time")
    return value


def _time(value: float) -> float:
    if value < 0:
        raise PydanticCustomError(ODD, "is not a time")
    return _moment(value)


def _count(value: int) -> int:
    if not 0 <= value < 2**63:  # the range of int64 in tables
        raise PydanticCustomError(ODD, "is not a count")
    return value


Moment = Annotated[float, AfterValidator(_moment)]  # seconds of a clock, may be negative
Time = Annotated[float, AfterValidator(_time)]  # seconds from the clock's beginning
Count = Annotated[int, AfterValidator(_count)]


class Segment(_Part):
    """Seconds of the file's clock. ``end`` null means the end of the video."""

    start: Time
    end: Time | None


class Failure(_Part):
    kind: str
    message: str


class Requested(_Part):
    """The requested sampling of the video."""

    frames: int | None
    fps: float | None
    max_pixels: int | None
    decoder: DecoderName
    background: str | None = None  # #rrggbb; null is black


class Sampling(_Part):
    """The requested and the actual sampling of the video. Sizes in pixels, times in seconds."""

    requested: Requested
    duration: Moment | None = None  # of the file's clock, to the end of the last frame
    begins: Moment | None = None  # start of the picture; the sound may start earlier
    frames_expected: Count | None = None
    decoded: Count | None = None
    timestamps: tuple[Moment, ...] | None = None
    width: int | None = None
    height: int | None = None
    visual_tokens: int | None = None
    oom_retries: int = 0
    warnings: tuple[str, ...] = ()


class Stats(_Part):
    """Counts and seconds of one answer (docs/design.md, "Terms")."""

    output_tokens: Count
    rounds: int
    drafted: int
    accepted_exact: int
    accepted_filler: int
    accepted_shift: int
    gamma: int
    fallback: bool
    mean_accepted_length: float | None
    acceptance_rate: float | None
    decode_video_s: float
    prefill_s: float
    decode_s: float
    tokens_per_s: float | None
    loss_per_token: float | None = None  # nats that loose tokens gave up / tokens of the answer


class Audit(_Part):
    """The same answer in mode ar, and its comparison with the record's text (``lvspec caption --audit``).

    Log probabilities are those of the target, in nats a token. Repetition is a share of 4-grams of words.
    """

    text: str
    finish_reason: FinishReason
    output_tokens: int
    prefill_s: float  # of the prompt only: the video was encoded before
    decode_s: float
    speedup: float | None  # ar's seconds a token / the record's seconds a token, decoding only
    identical: bool
    chrf: float  # 0 to 100, to ar's text
    rouge_l: float  # 0 to 100, to ar's text
    log_probability: float
    ar_log_probability: float
    repetition: float
    ar_repetition: float


def _coded(name: str) -> str:
    base64.b64decode(name)  # ValueError: it is not base64
    return name


class Record(_Part):
    """One line of output. Unknown values are null."""

    schema_: Literal["lvspec.record.1"] = Field(default=SCHEMA, alias="schema")
    key: str
    id: str
    status: Literal["ok", "error"]
    file_name: str
    file_name_b64: Annotated[str, AfterValidator(_coded)] | None
    segment: Segment
    task: TaskName
    system: str | None
    prompt: str
    text: str | None
    thoughts: str | None = None  # before the text; null if the target was not to think, or did not
    value: JsonValue = None  # of a constrained answer (--choices, --schema): the choice, or the JSON it is
    error: Failure | None
    finish_reason: FinishReason
    pair: str
    target: str
    draft: str | None
    mode: Mode
    settings: dict[str, Any]
    lossless: bool
    sampling: Sampling
    stats: Stats | None
    audit: Audit | Failure | None = None  # Failure: the answer in mode ar failed
    warnings: tuple[str, ...] = ()  # about the answer; those about the frames are in ``sampling``
    version: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


def read_record(raw: bytes) -> Record:
    """The record of one line. Fields that this version does not know are ignored.

    :raises ValidationError: the line is not a record.
    """
    return Record.model_validate_json(raw, extra="ignore")


def to_line(record: Record) -> str:
    """The record as JSON without a line break. Characters that could control a terminal become \\uXXXX."""
    text = json.dumps(record.model_dump(mode="json", by_alias=True), ensure_ascii=False, allow_nan=False)
    return _ACTIVE.sub(_escape, text)


# JSON itself escapes C0. These are DEL, C1, line separators, marks for the direction of text, and lone
# surrogates (bytes of a file name in a message), which UTF-8 cannot encode.
_ACTIVE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\\\x{code - 0xDC00:02x}"  # readable, as in file_name
    return "\\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"


@dataclass(frozen=True)
class FileIdentity:
    """Distinguishes files without reading all of their content. ``sample`` is a digest in hex."""

    name: bytes  # path relative to the input folder, as raw bytes
    size: int  # bytes
    sample: str


def identify(path: Path, name: bytes) -> FileIdentity:
    """The file's size, and a digest of its beginning, middle and end.

    :raises OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        digest = hashlib.sha256()
        for offset in sorted({0, max(0, size // 2), max(0, size - SAMPLE_BYTES)}):
            stream.seek(offset)
            digest.update(stream.read(SAMPLE_BYTES))
    return FileIdentity(name, size, digest.hexdigest())


def key_of(identity: FileIdentity, facts: Mapping[str, Any]) -> str:
    """A hash of the file's identity and of everything that decides the answer: 32 hexadecimal digits.

    :param facts: segment, prompt, pair, revisions, sampling, mode and settings, as JSON values.
    """
    content = {"name": identity.name.hex(), "size": identity.size, "sample": identity.sample, "facts": facts}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode_name(name: bytes) -> tuple[str, str | None]:
    """``file_name`` and ``file_name_b64``. The second is None if the name is UTF-8."""
    try:
        return name.decode("utf-8"), None
    except UnicodeDecodeError:
        return name.decode("utf-8", "backslashreplace"), base64.b64encode(name).decode("ascii")


def raw_name(record: Record) -> bytes:
    """The file's name as raw bytes."""
    if record.file_name_b64 is not None:
        return base64.b64decode(record.file_name_b64)
    return record.file_name.encode()


def renamed(record: Record, name: bytes) -> Record:
    """The same record with another name of its file."""
    file_name, coded = encode_name(name)
    return record.model_copy(update={"file_name": file_name, "file_name_b64": coded})


def settings_fields(settings: DecodeSettings) -> dict[str, Any]:
    """Settings as JSON values, without the mode, which is a field of the record itself."""
    fields = _SETTINGS.dump_python(settings, mode="json", exclude={"rule": settings.rule.unused})
    if settings.mode is not Mode.LVSPEC:
        del fields["rule"]
    if settings.mode is Mode.AR or settings.gamma != "auto":
        del fields["adaptation"]
    if settings.mode is Mode.AR:
        del fields["gamma"], fields["draft_keep"], fields["fallback"]
    if settings.mode is Mode.AR or settings.draft_keep == 1:
        del fields["draft_keep_by"]
    if not settings.vary:
        del fields["vary"]
    # Newer than most records: left out where they change nothing, so that keys of other records stay valid.
    for name in ("draft_frames", "draft_pixels"):
        if settings.mode is Mode.AR or fields[name] is None:
            del fields[name]
    if settings.constraint is None:
        del fields["constraint"]
    else:
        fields["constraint"] = {name: value for name, value in fields["constraint"].items() if value}
    del fields["mode"]
    return _without_infinity(fields)


_SETTINGS = TypeAdapter(DecodeSettings)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    return INFINITY if value == float("inf") else value


def with_null(value: Any) -> Any:
    """Settings for a file: a limit that is infinite, and so none, is null and not a text among numbers.

    Keys are made of the settings with the text, so that those of older records stay valid.
    """
    if isinstance(value, dict):
        return {key: with_null(item) for key, item in value.items()}
    return None if value == INFINITY else value


def without_null(value: Any) -> Any:
    """A rule, or rules by name, as they were before :func:`with_null`."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items()}
    return INFINITY if value is None else value


def world_warning(world: str) -> str:
    """The warning about a pair that knows only one kind of videos."""
    return f"the pair knows only {world}: about other videos its answers mean nothing"


def stats_fields(stats: DecodeStats, decode_video_seconds: float) -> Stats:
    """The record's stats of one answer."""
    return Stats(
        **{name: value for name, value in asdict(stats).items() if name in Stats.model_fields},
        mean_accepted_length=stats.mean_accepted_length,
        acceptance_rate=stats.acceptance_rate,
        decode_video_s=decode_video_seconds,
        prefill_s=stats.prefill_seconds,
        decode_s=stats.decode_seconds,
        tokens_per_s=stats.tokens_per_second,
        loss_per_token=stats.loss_per_token,
    )


@dataclass(frozen=True)
class Facts:
    """The clip that was sampled, and whether the answer is what the target alone says."""

    clip: Clip
    visual_tokens: int
    to_the_letter: bool
    oom_retries: int = 0


def answered_record(
    plan: LoadPlan,
    request: AskRequest,
    identity: FileIdentity,
    number: int,
    facts: Facts,
    generation: Generation,
    parts: Parts,
) -> Record:
    """The record of an answer. One that was interrupted, or is thoughts alone, is an error with its text."""
    clip, constraint = facts.clip, request.settings.constraint
    error = _incomplete(generation.finish_reason, parts, constraint)
    return Record(
        **_common(plan, request, identity, number),
        status="error" if error else "ok",
        text=parts.answer,
        thoughts=parts.thoughts,
        value=value_of(constraint, parts.answer) if constraint and not error else None,
        error=error,
        finish_reason=generation.finish_reason,
        lossless=facts.to_the_letter,
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


_THINKING = {
    FinishReason.LENGTH: "it was still thinking at --max-new-tokens: raise it",
    FinishReason.REPETITION: "it began to repeat itself while it was thinking",
}
_UNFINISHED = {
    FinishReason.LENGTH: "it was not finished at --max-new-tokens: raise it",
    FinishReason.REPETITION: "it began to repeat itself before it was finished",
}


def value_of(constraint: Constraint, text: str) -> JsonValue:
    """The choice, or the JSON value, that the text of a finished answer is."""
    return text if constraint.schema is None else json.loads(text)


def _incomplete(reason: FinishReason, parts: Parts, constraint: Constraint | None) -> Failure | None:
    """Why this is no whole answer, if it is none."""
    if reason is FinishReason.INTERRUPTED:
        return Failure(kind="interrupted", message="stopped before the answer ended")
    if parts.thoughts is not None and not parts.answer:
        return Failure(kind=THINKING, message=_THINKING.get(reason, "it thought, and gave no answer"))
    if constraint is not None and reason in _UNFINISHED:
        return Failure(kind=UNFINISHED, message=_UNFINISHED[reason])
    return None


def failed_record(
    plan: LoadPlan, request: AskRequest, identity: FileIdentity, number: int, error: LvspecError
) -> Record:
    """The record of a failure: the video could not be read, or there is no answer."""
    return Record(
        **_common(plan, request, identity, number),
        status="error",
        text=None,
        error=Failure(kind=error.kind, message=error.cause),
        finish_reason=FinishReason.ERROR,
        lossless=False,
        sampling=Sampling(requested=_requested(request)),
        stats=None,
    )


def record_key(plan: LoadPlan, request: AskRequest, identity: FileIdentity, number: int) -> str:
    """The key that the record of the request's question ``number`` (from 1) will have."""
    return str(_common(plan, request, identity, number)["key"])


def _common(plan: LoadPlan, request: AskRequest, identity: FileIdentity, number: int) -> dict[str, Any]:
    pair = plan.choice.pair
    file_name, file_name_b64 = encode_name(identity.name)
    segment = Segment(start=request.video.start or 0.0, end=request.video.end)
    with_draft = request.settings.mode is not Mode.AR
    fields: dict[str, Any] = {
        "segment": segment,
        "task": request.task,
        "system": request.system,
        "prompt": request.questions[number - 1],
        "pair": plan.choice.name,
        "target": pair.target.name,
        "draft": pair.draft.name if with_draft else None,
        "mode": request.settings.mode,
        "settings": {
            **settings_fields(request.settings),
            "loading": asdict(plan.loading),
            **({"draft_vocabulary": pair.draft.vocabulary} if with_draft and pair.draft.vocabulary else {}),
            **({"think": True} if request.think else {}),  # keys of other records stay valid
            **({"history": [asdict(turn) for turn in request.history]} if request.history else {}),
        },
    }
    facts = {
        **fields,
        "segment": segment.model_dump(mode="json"),
        "mode": fields["mode"].value,
        "revisions": [_revision(pair.target), _revision(pair.draft) if with_draft else None],
        "sampling": _decisive(_requested(request)),
    }
    return {
        **fields,
        "settings": with_null(fields["settings"]),
        "warnings": (world_warning(pair.world),) if pair.world else (),
        "key": key_of(identity, facts),
        "id": _readable_id(request, file_name, number),
        "file_name": file_name,
        "file_name_b64": file_name_b64,
    }


def _readable_id(request: AskRequest, file_name: str, number: int) -> str:
    """The given id or the file's name, then the segment if there is one, then the number if there are
    several questions."""
    video = request.video
    times = ["" if time is None else f"{time:g}" for time in (video.start, video.end)]
    segment = f"@{times[0] or 0}-{times[1]}" if any(times) else ""
    return f"{request.id or file_name}{segment}" + (f"#{number}" if len(request.questions) > 1 else "")


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
    """The part for the key, without a default background, so that keys of older records stay valid."""
    return requested.model_dump(mode="json", exclude=None if requested.background else {"background"})


def _revision(source: Source) -> str | None:
    """The version of the weights. That of bundled weights is the version of the package."""
    return __version__ if source.bundled else source.revision
