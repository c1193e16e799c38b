"""What a round is made of, and the speedup that this predicts (docs/design.md, "What a round costs").

    speedup = t / (gamma * c + v + o)

with t the mean accepted length, c a draft step, v a verification and o the overhead of a round, each in steps
of the reference, the faster of our ``ar`` and transformers'. For ``gamma`` stands what was really drafted a
round, which at the end of an answer is less.

c, v and o come from answers of their own with a clock around every pass, t and the step of the reference from
the timed ones: so the prediction is one, and does not merely repeat what was observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lvspec_cli.figures.answers import Block, Costs, Profile, Variant


def costs_of(blocks: Sequence[Block], variant: Variant, reference: Variant) -> Costs | None:
    """Seconds of the parts of a round: medians over a variant's profiles. None where it has none.

    Other work on the machine now and then stretches an answer manifold, which a mean would not forgive.
    """
    found: list[Profile] = []
    steps: list[float] = []
    for block in blocks:
        profile = next((each for each in block.profiles if each.variant == variant), None)
        plain = block.of(reference)
        if profile is not None and profile.draft_steps and plain is not None and plain.seconds_per_token:
            found.append(profile)
            steps.append(plain.seconds_per_token)
    if not found:
        return None
    return Costs(
        answers=len(found),
        draft_step_s=median(each.draft_s / each.draft_steps for each in found),
        verification_s=median(each.verification_s / each.rounds for each in found),
        overhead_s=median(each.overhead_s / each.rounds for each in found),
        drafted_a_round=sum(each.draft_steps for each in found) / sum(each.rounds for each in found),
        ar_step_s=median(steps),
    )


@dataclass(frozen=True)
class Model:
    """The costs of a round in steps of the reference."""

    c: float
    v: float
    o: float
    drafted: float  # tokens a round

    def speedup(self, mean_accepted_length: float) -> float:
        """What the model predicts."""
        return mean_accepted_length / (self.drafted * self.c + self.v + self.o)


def model_of(costs: Costs) -> Model:
    """Costs as shares of one step."""
    step = costs.ar_step_s
    return Model(
        c=costs.draft_step_s / step,
        v=costs.verification_s / step,
        o=costs.overhead_s / step,
        drafted=costs.drafted_a_round,
    )
