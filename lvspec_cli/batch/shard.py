"""Stable shares of the inputs, for the jobs of an array on a cluster."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from lvspec_cli.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """The share ``index`` of ``count``, counted from 1."""

    index: int
    count: int

    def holds(self, name: bytes) -> bool:
        """Whether the input called ``name`` is in this share: in one of ``count``, whatever else there is."""
        digest = hashlib.sha256(name).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


def parse_shard(text: str) -> Shard:
    """``3/16`` as a Shard.

    :raises UsageError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return Shard(int(match[1]), int(match[2]))
    raise UsageError(f"--shard {text!r} is not a share", "write 3/16 for the third of sixteen, 1/16 to 16/16")
