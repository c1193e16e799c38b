"""The cost of a round, and the speedup predicted from it (docs/design.md, "What a round costs").

    speedup = t / (gamma * c + v + o)

t is the mean accepted length; c is a draft step, v a verification and o the overhead of a round, in steps of
the reference (the faster of our ``ar`` and transformers'). ``gamma`` is the number of tokens actually drafted
in a round, which is smaller at the end of an answer.

c, v and o are measured on separate answers whose passes are timed; t and the reference's step come from the
ordinary measurements. So the prediction is independent of the observed speedup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lvspec_cli.figures.answers import Block, Costs, Profile, Variant


def costs_of(blocks: Sequence[Block], variant: Variant, reference: Variant) -> Costs | None:
    """Seconds of each part of a round: medians over a variant's profiles. None without profiles.

    Not means: other work on the machine sometimes makes an answer several times slower.
    """
    profiles: list[Profile] = []
    steps: list[float] = []
    for block in blocks:
        profile = next((profile for profile in block.profiles if profile.variant == variant), None)
        plain = block.of(reference)
        if profile is not None and profile.draft_steps and plain is not None and plain.seconds_per_token:
            profiles.append(profile)
            steps.append(plain.seconds_per_token)
    if not profiles:
        return None
    return Costs(
        answers=len(profiles),
        draft_step_s=median(profile.draft_s / profile.draft_steps for profile in profiles),
        verification_s=median(profile.verification_s / profile.rounds for profile in profiles),
        overhead_s=median(profile.overhead_s / profile.rounds for profile in profiles),
        drafted_a_round=sum(profile.draft_steps for profile in profiles)
        / sum(profile.rounds for profile in profiles),
        ar_step_s=median(steps),
    )


@dataclass(frozen=True)
class CostModel:
    """The costs of a round in steps of the reference."""

    c: float
    v: float
    o: float
    drafted: float  # tokens a round

    def speedup(self, mean_accepted_length: float) -> float:
        """The predicted speedup at a mean accepted length."""
        return mean_accepted_length / (self.drafted * self.c + self.v + self.o)


def cost_model(costs: Costs) -> CostModel:
    """Costs in steps of the reference."""
    step = costs.ar_step_s
    return CostModel(
        c=costs.draft_step_s / step,
        v=costs.verification_s / step,
        o=costs.overhead_s / step,
        drafted=costs.drafted_a_round,
    )
