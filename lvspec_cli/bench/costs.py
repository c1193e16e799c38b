"""What a round is made of, and the speedup that this predicts (DESIGN.md, section 6).

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

from lvspec_cli.bench.results import Block, Costs, Measurement, Profile, Variant


def costs_of(blocks: Sequence[Block], variant: Variant, reference: Variant) -> Costs | None:
    """Mean seconds of the parts of a round over a variant's profiles. None where it has none."""
    found: list[Profile] = []
    steps: list[Measurement] = []
    for block in blocks:
        profile = next((each for each in block.profiles if each.variant == variant), None)
        step = block.of(reference)
        if profile is not None and profile.rounds and step is not None and step.seconds_per_token:
            found.append(profile)
            steps.append(step)
    rounds, drafted = sum(each.rounds for each in found), sum(each.draft_steps for each in found)
    if not rounds or not drafted:
        return None
    return Costs(
        answers=len(found),
        draft_step_s=sum(each.draft_s for each in found) / drafted,
        verification_s=sum(each.verification_s for each in found) / rounds,
        overhead_s=sum(each.overhead_s for each in found) / rounds,
        drafted_a_round=drafted / rounds,
        ar_step_s=sum(each.decode_s for each in steps)
        / sum(each.output_tokens - each.first_tokens for each in steps),
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
