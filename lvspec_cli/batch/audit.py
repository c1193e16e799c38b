"""Which captions are answered once more in mode ar: ``--audit``."""

from __future__ import annotations

import re

from lvspec_cli.errors import UsageError

_DIGITS = 13  # of a key, hexadecimal: as many as a float holds


def parse_share(text: str) -> float:
    """``5%`` or ``0.05`` as 0.05.

    :raises UsageError: for anything that is not above 0 and 1 at most, and for a bare 1, which may mean 1 %.
    """
    match = re.fullmatch(r"(\d{0,9}\.?\d{1,9})\s*(%?)", text.strip(), re.ASCII)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if 0 < share <= 1 and (share < 1 or "%" in text):
        return share
    raise UsageError(f"--audit {text!r} is not a share of the captions", "write 5% or 0.05, 100% for all")


def is_audited(key: str, share: float) -> bool:
    """Whether the caption with this key is among a share of all: the same ones in every run and shard.

    A larger share holds all of a smaller one.

    :param key: of its record, whose hexadecimal digits are as good as drawn.
    """
    return int(key[:_DIGITS], 16) < share * 16**_DIGITS
