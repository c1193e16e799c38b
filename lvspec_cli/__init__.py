"""lvspec: captions of and answers about videos by loose speculative decoding with local Video-LLMs.

``__all__`` is the library. It is imported when it is used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lvspec_cli.errors import (
        LvspecError,
        MachineError,
        NoInputError,
        NoRoomError,
        OutputError,
        PairError,
        UsageError,
        VideoError,
    )
    from lvspec_cli.library import Sampling, VideoModel, ask, caption, load
    from lvspec_cli.output.records import Record
    from lvspec_cli.types import DecodeSettings, Mode, Quantisation, RuleSettings

_HOMES = {
    "errors": (
        "LvspecError",
        "MachineError",
        "NoInputError",
        "NoRoomError",
        "OutputError",
        "PairError",
        "UsageError",
        "VideoError",
    ),
    "library": ("Sampling", "VideoModel", "ask", "caption", "load"),
    "output.records": ("Record",),
    "types": ("DecodeSettings", "Mode", "Quantisation", "RuleSettings"),
}

__all__ = [
    "DecodeSettings",
    "LvspecError",
    "MachineError",
    "Mode",
    "NoInputError",
    "NoRoomError",
    "OutputError",
    "PairError",
    "Quantisation",
    "Record",
    "RuleSettings",
    "Sampling",
    "UsageError",
    "VideoError",
    "VideoModel",
    "__version__",
    "ask",
    "caption",
    "load",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lvspec_cli.{home}"), name)
    raise AttributeError(f"module 'lvspec_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
