"""Where the time of a round goes, and what a line would be without one of its parts."""

from __future__ import annotations

from dataclasses import dataclass

from lvspec_cli.figures.answers import ModeResult


@dataclass(frozen=True)
class Shares:
    """What a round costs by its parts, in steps of the reference (docs/design.md, "What a round costs")."""

    drafted: float  # tokens
    drafting: float
    verification: float
    rest: float
    accepted: float  # mean accepted length

    @property
    def parts(self) -> tuple[float, ...]:
        """Drafting, verification, the rest, the whole round; then what it adds, and the speedup."""
        return self.drafting, self.verification, self.rest, self.whole, self.accepted, self.speedup()

    @property
    def whole(self) -> float:
        return self.drafting + self.verification + self.rest

    def speedup(
        self, *, drafting: float = 1.0, verification: float | None = None, rest: float = 1.0
    ) -> float:
        """Predicted, were drafting and the rest this share of what they are, a verification so many steps."""
        verified = self.verification if verification is None else verification
        return self.accepted / (drafting * self.drafting + verified + rest * self.rest)


def shares_of(result: ModeResult) -> Shares | None:
    """Of a line whose rounds were timed."""
    costs, accepted = result.costs, result.mean_accepted_length
    if costs is None or accepted is None or result.c is None or result.v is None or result.o is None:
        return None
    return Shares(costs.drafted_a_round, costs.drafted_a_round * result.c, result.v, result.o, accepted)
