"""Records: one JSON object an answer, the same for every command (DESIGN.md, section 7)."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from lvspec_cli import __version__
from lvspec_cli.types import (
    DecoderName,
    DecodeSettings,
    DecodeStats,
    FinishReason,
    Mode,
    TaskName,
)

SCHEMA: Final = "lvspec.record.1"
SAMPLE_BYTES = 64 * 1024
ODD: Final = "odd"  # the type of the errors of values that no record has


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
    if not 0 <= value < 2**63:  # as tables hold it
        raise PydanticCustomError(ODD, "is not a count")
    return value


Moment = Annotated[float, AfterValidator(_moment)]  # seconds of a clock that may have begun later
Time = Annotated[float, AfterValidator(_time)]  # seconds from a beginning
Count = Annotated[int, AfterValidator(_count)]


class Segment(_Part):
    """Seconds of the file's clock; ``end`` is null where the end of the video is meant."""

    start: Time
    end: Time | None


class Failure(_Part):
    kind: str
    message: str


class Requested(_Part):
    """What was asked of the video."""

    frames: int | None
    fps: float | None
    max_pixels: int | None
    decoder: DecoderName
    background: str | None = None  # #rrggbb; null is black


class Sampling(_Part):
    """What was asked of the video and what was taken. Sizes in pixels, times in seconds."""

    requested: Requested
    duration: Moment | None = None  # of the file's clock, to the end of the last frame
    begins: Moment | None = None  # when the picture begins: the sound may begin earlier
    frames_expected: Count | None = None
    decoded: Count | None = None
    timestamps: tuple[Moment, ...] | None = None
    width: int | None = None
    height: int | None = None
    visual_tokens: int | None = None
    oom_retries: int = 0
    warnings: tuple[str, ...] = ()


class Stats(_Part):
    """Counts and seconds of one answer (DESIGN.md, section 2)."""

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


class Audit(_Part):
    """The same answer in mode ar, and what the record's own text keeps of it (``lvspec caption --audit``).

    Log probabilities are the target's own, in nats a token; repetition is a share of 4-grams of words.
    """

    text: str
    finish_reason: FinishReason
    output_tokens: int
    prefill_s: float  # of the prompt alone: the video was encoded before
    decode_s: float
    speedup: float | None  # ar's seconds a token / the record's, decoding only
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
    """One line of output. Absent facts are null."""

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
    audit: Audit | Failure | None = None  # Failure: there was no answer in mode ar to compare with
    version: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


def read_record(raw: bytes) -> Record:
    """The record of one line; fields that this version does not know are passed over.

    :raises ValidationError: it is none.
    """
    return Record.model_validate_json(raw, extra="ignore")


def to_line(record: Record) -> str:
    """One line of JSON without a line break. What could act on a terminal is written as \\uXXXX."""
    text = json.dumps(record.model_dump(mode="json", by_alias=True), ensure_ascii=False, allow_nan=False)
    return _ACTIVE.sub(_escape, text)


# JSON itself escapes C0: these are DEL, C1, line separators, marks that turn the direction of text, and
# lone surrogates (bytes of a file name in a message), which UTF-8 does not have.
_ACTIVE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\\\x{code - 0xDC00:02x}"  # readable, as in file_name
    return "\\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"


@dataclass(frozen=True)
class FileIdentity:
    """What tells one file from another without reading all of it. ``sample`` is a digest in hex."""

    name: bytes  # path relative to the input folder, as the file system has it
    size: int  # bytes
    sample: str


def identify(path: Path, name: bytes) -> FileIdentity:
    """Size, and a digest of the file's beginning, middle and end.

    :raises OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        digest = hashlib.sha256()
        for place in sorted({0, max(0, size // 2), max(0, size - SAMPLE_BYTES)}):
            stream.seek(place)
            digest.update(stream.read(SAMPLE_BYTES))
    return FileIdentity(name, size, digest.hexdigest())


def key_of(identity: FileIdentity, facts: Mapping[str, Any]) -> str:
    """A hash of the file's identity and of all that decides the answer, 32 hexadecimal digits.

    :param facts: segment, prompt, pair, revisions, sampling, mode and settings, as JSON can hold them.
    """
    whole = {"name": identity.name.hex(), "size": identity.size, "sample": identity.sample, "facts": facts}
    text = json.dumps(whole, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode_name(name: bytes) -> tuple[str, str | None]:
    """``file_name`` and ``file_name_b64``: the second only where the name is not UTF-8."""
    try:
        return name.decode("utf-8"), None
    except UnicodeDecodeError:
        return name.decode("utf-8", "backslashreplace"), base64.b64encode(name).decode("ascii")


def raw_name(record: Record) -> bytes:
    """The file's name as the file system has it."""
    if record.file_name_b64 is not None:
        return base64.b64decode(record.file_name_b64)
    return record.file_name.encode()


def renamed(record: Record, name: bytes) -> Record:
    """The same record, of a file that is now called ``name``."""
    file_name, coded = encode_name(name)
    return record.model_copy(update={"file_name": file_name, "file_name_b64": coded})


def settings_fields(settings: DecodeSettings) -> dict[str, Any]:
    """Settings as JSON can hold them; the mode stands in the record itself."""
    fields = _SETTINGS.dump_python(settings, mode="json")
    if settings.mode is not Mode.LVSPEC:
        del fields["rule"]
    if settings.mode is Mode.AR or settings.gamma != "auto":
        del fields["adaptation"]
    if settings.mode is Mode.AR:
        del fields["gamma"], fields["draft_keep"], fields["fallback"]
    if settings.mode is Mode.AR or settings.draft_keep == 1:
        del fields["draft_keep_by"]
    del fields["mode"]
    return _without_infinity(fields)


_SETTINGS = TypeAdapter(DecodeSettings)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    return "Infinity" if value == float("inf") else value


def stats_fields(stats: DecodeStats, decode_video_seconds: float) -> Stats:
    """The record's stats of one answer."""
    return Stats(
        output_tokens=stats.output_tokens,
        rounds=stats.rounds,
        drafted=stats.drafted,
        accepted_exact=stats.accepted_exact,
        accepted_filler=stats.accepted_filler,
        accepted_shift=stats.accepted_shift,
        gamma=stats.gamma,
        fallback=stats.fallback,
        mean_accepted_length=stats.mean_accepted_length,
        acceptance_rate=stats.acceptance_rate,
        decode_video_s=decode_video_seconds,
        prefill_s=stats.prefill_seconds,
        decode_s=stats.decode_seconds,
        tokens_per_s=stats.tokens_per_second,
    )
