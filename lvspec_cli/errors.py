"""Errors that a user can meet, each with one line of cause, one of remedy, and an exit code.

LvspecError
├── UsageError             2    wrong flags, settings or files of settings
│   └── ContextError            a prompt and its answer are longer than a model's context
├── PairError              3    the pair cannot be had, loaded or does not fit
│   ├── NoRoomError             it does not fit into memory
│   └── NotFiniteError          it computes NaN or infinity in place of numbers
├── MachineError           3    the machine has too little of something else: processes, open files
├── NoInputError           4    no such file, or nothing to read in the folder
├── OutputError            5    the output cannot be written or is locked
├── RegressionError        6    a benchmark got worse than the margin allows
└── VideoError             1    the file is there but cannot be read
    ├── NotAVideoError          not a video at all, or a format that is refused
    ├── NoVideoStreamError      audio or subtitles only
    ├── EncryptedVideoError     protected content
    ├── DamagedVideoError       no frame before the damage
    ├── ChangedVideoError       another content than when it was looked at first
    ├── VideoLimitError         over the limits on canvas, frames or duration
    └── DecodeTimeoutError      decoding took longer than --decode-timeout
"""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar


class LvspecError(Exception):
    """A failure for the user: ``cause`` says what is wrong and where, ``remedy`` what to do."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[LvspecError], tuple[Any, ...]]:
        # The default would lose the remedy when an error is pickled for another process.
        return type(self), (self.cause, self.remedy)


class UsageError(LvspecError):
    exit_code = 2
    kind = "usage"


class ContextError(UsageError):
    """``frames``: the most frames with which the prompt would fit; None if none are known to help."""

    kind = "context"

    def __init__(self, cause: str, remedy: str = "", frames: int | None = None) -> None:
        super().__init__(cause, remedy)
        self.frames = frames

    def __reduce__(self) -> tuple[type[ContextError], tuple[Any, ...]]:
        return type(self), (self.cause, self.remedy, self.frames)


class PairError(LvspecError):
    exit_code = 3
    kind = "pair"


class NoRoomError(PairError):
    """There is too little memory, on a device or in the machine."""

    kind = "no_room"


class NotFiniteError(PairError):
    """The target's logits are NaN or infinite, so that its tokens would be meaningless."""

    kind = "not_finite"


class MachineError(LvspecError):
    """The machine is short of something. No input is at fault, and the command can be run again later."""

    exit_code = 3
    kind = "machine"


class NoInputError(LvspecError):
    exit_code = 4
    kind = "no_input"


class OutputError(LvspecError):
    exit_code = 5
    kind = "output"


class RegressionError(LvspecError):
    exit_code = 6
    kind = "regression"


class VideoError(LvspecError):
    kind = "video"


class NotAVideoError(VideoError):
    kind = "not_a_video"


class NoVideoStreamError(VideoError):
    kind = "no_video_stream"


class EncryptedVideoError(VideoError):
    kind = "encrypted"


class DamagedVideoError(VideoError):
    kind = "damaged"


class ChangedVideoError(VideoError):
    kind = "changed"


class VideoLimitError(VideoError):
    kind = "over_limit"


class DecodeTimeoutError(VideoError):
    kind = "decode_timeout"


# Kinds of errors that the same file gives at every try. A repaired file is other content: it is done anyway.
UNREADABLE = frozenset(
    error.kind
    for error in (
        NoInputError, VideoError, NotAVideoError, NoVideoStreamError, EncryptedVideoError, DamagedVideoError,
        VideoLimitError,
    )
)  # fmt: skip

_OPEN_FILES = (errno.EMFILE, errno.ENFILE)
_SHORTAGES = (*_OPEN_FILES, errno.EAGAIN, errno.ENOMEM)
ENOUGH = (
    "raise the limit (ulimit -n, ulimit -u), end other programs, or take fewer --workers and --decode-workers"
)


def shortage_behind(error: Exception) -> MachineError | None:
    """A MachineError if the cause of ``error`` is the limit on open files, whatever file was to be opened.

    An error from another process, or one that a library converted, shows this only in its text.
    """
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in _OPEN_FILES:
        cause = cause.__cause__ or cause.__context__
    texts = [os.strerror(number) for number in _OPEN_FILES]
    in_text = any(f"({text})" in str(error) or f"] {text}" in str(error) for text in texts)
    if cause is None and not in_text and not str(error).endswith(tuple(f": {text}" for text in texts)):
        return None
    return MachineError(" ".join(str(error).split()), ENOUGH)


def check_machine(error: BaseException, what: str) -> None:
    """:raises MachineError: ``error`` means that the machine is short of something: no file is at fault."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        raise MachineError(f"{what} ({error.strerror})", ENOUGH) from error
