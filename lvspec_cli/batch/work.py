"""What a batch has to do: stretches of videos, each with the prompts that are asked about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lvspec_cli.errors import LvspecError
from lvspec_cli.output.build import record_key
from lvspec_cli.output.records import FileIdentity
from lvspec_cli.pipeline import AskRequest, identify_video


@dataclass(frozen=True)
class Work:
    """One stretch of one video: one pass over its frames, however many prompts are asked.

    ``numbers`` are the prompts still to be answered, counted from 1; ``keys`` are those of all prompts.
    ``error`` is known where the video cannot be read at all.
    """

    request: AskRequest
    identity: FileIdentity
    numbers: tuple[int, ...]
    keys: tuple[str, ...] = field(repr=False)
    error: LvspecError | None = None

    @property
    def name(self) -> bytes:
        return self.identity.name

    def keys_as(self, name: bytes) -> tuple[str, ...]:
        """The keys that it would have if the file were called ``name``."""
        return _keys(self.request, replace(self.identity, name=name))

    def only(self, keys: frozenset[str]) -> Work:
        """The same stretch with those prompts alone whose key is among ``keys``."""
        return replace(self, numbers=tuple(n for n in self.numbers if self.keys[n - 1] in keys))


def make_work(request: AskRequest) -> Work:
    """All of the request's prompts, with the keys that their records will have."""
    identity = identify_video(request)
    numbers = tuple(range(1, len(request.questions) + 1))
    return Work(request, identity, numbers, _keys(request, identity))


def _keys(request: AskRequest, identity: FileIdentity) -> tuple[str, ...]:
    return tuple(record_key(request, identity, n) for n in range(1, len(request.questions) + 1))
