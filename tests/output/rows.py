"""Records for the tests of what is written and read back."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lvspec_cli.output.records import (
    Failure,
    Record,
    Requested,
    Sampling,
    Segment,
    encode_name,
    settings_fields,
)
from lvspec_cli.types import DecodeSettings, FinishReason, Mode


def record(**changes: Any) -> Record:
    """A record of ``a.mp4`` that went well."""
    values: dict[str, Any] = {
        "key": "k", "id": "a.mp4", "status": "ok", "file_name": "a.mp4", "file_name_b64": None,
        "segment": Segment(start=0.0, end=None),
        "task": "ask", "system": None, "prompt": "What?",
        "text": "A.", "error": None,
        "finish_reason": FinishReason.STOP, "pair": "demo", "target": "t", "draft": "d",
        "mode": Mode.LVSPEC,
        "settings": settings_fields(DecodeSettings()), "lossless": False, "stats": None,
        "sampling": Sampling(requested=Requested(frames=8, fps=None, max_pixels=None, decoder="pyav")),
    }  # fmt: skip
    return Record(**{**values, **changes})


def caption(name: bytes, text: str = "A.", *, prompt: str = "Describe.", **changes: Any) -> Record:
    """A caption of a file; its key comes of the name, the prompt and the segment."""
    file_name, coded = encode_name(name)
    segment = changes.get("segment")
    values = {"key": f"{name.hex()}-{prompt}-{segment}", "id": file_name, "task": "caption", "prompt": prompt}
    return record(**{**values, "file_name": file_name, "file_name_b64": coded, "text": text, **changes})


def failure(name: bytes, **changes: Any) -> Record:
    """The record of a file that could not be read."""
    error = Failure(kind="damaged", message="no frame before the damage")
    return caption(name, **changes).model_copy(
        update={"status": "error", "text": None, "error": error, "finish_reason": FinishReason.ERROR}
    )


def part(start: float, end: float | None) -> Segment:
    return Segment(start=start, end=end)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
