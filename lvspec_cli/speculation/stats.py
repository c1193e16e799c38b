"""Counts of one answer while it is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lvspec_cli.types import DecodeStats, TokenKind


class Tally:
    """Counts rounds, drafted tokens, and accepted tokens by kind."""

    def __init__(self) -> None:
        self._rounds = 0
        self._drafted = 0
        self.widest = 0  # most drafted tokens of a round
        self._kinds: Counter[TokenKind] = Counter()

    def add(self, drafted: int, kinds: Iterable[TokenKind]) -> None:
        """Count one round: its drafted tokens, and the kinds of the tokens that it added."""
        self._rounds += 1
        self.widest = max(self.widest, drafted)
        self._drafted += drafted
        self._kinds.update(kinds)

    def stats(
        self, output_tokens: int, gamma: int, fallback: bool, prefill_seconds: float, decode_seconds: float
    ) -> DecodeStats:
        return DecodeStats(
            output_tokens=output_tokens,
            rounds=self._rounds,
            drafted=self._drafted,
            accepted_exact=self._kinds[TokenKind.EXACT],
            accepted_filler=self._kinds[TokenKind.FILLER],
            accepted_shift=self._kinds[TokenKind.SHIFT],
            gamma=gamma,
            fallback=fallback,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
        )
