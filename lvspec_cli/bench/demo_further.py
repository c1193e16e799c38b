"""What was said of further scenes, joined to the report's texts: more of it tells the quality closer."""

from __future__ import annotations

from collections.abc import Sequence

from lvspec_cli.bench.contrast import contrasts
from lvspec_cli.bench.results import BenchMode, Block, Results, Variant
from lvspec_cli.bench.summary import Measured, summarise


def with_further(texts: Results, further: Sequence[Measured], exact: Variant) -> Results:
    """The texts with those of further runs, which hold exact mode's texts where ar's would stand.

    Exact mode says what ar says, token for token, and is faster.

    :raises ValueError: two of the runs are of the same clips.
    """
    if not further:
        return texts
    items = (*texts.items, *(item for each in further for item in each.items.values()))
    if len({item.id for item in items}) != len(items):
        raise ValueError("two runs are of the same clips")
    blocks = (*texts.blocks, *(_as_ar(block, exact) for each in further for block in each.blocks))
    measured = Measured({item.id: item for item in items}, blocks)
    settings = {each.variant: each.settings for each in texts.modes}
    reference, modes = summarise(measured, tuple(settings), settings)
    return texts.model_copy(
        update={
            "reference": reference.mode,
            "items": items,
            "blocks": blocks,
            "modes": modes,
            "contrasts": contrasts(measured, modes, exact.gamma),
        }
    )


def _as_ar(block: Block, exact: Variant) -> Block:
    ar = Variant(BenchMode.AR)
    plain = {"mode": ar.mode, "gamma": ar.gamma, "drafted": None, "accepted_exact": 0, "accepted_lengths": ()}
    measurements = (
        each.model_copy(update=plain) if each.variant == exact else each for each in block.measurements
    )
    return block.model_copy(update={"measurements": tuple(measurements)})
