"""What was said of further scenes, joined to the report's texts: more of it tells the quality closer."""

from __future__ import annotations

from collections.abc import Sequence

from lvspec_cli.bench.results import Results
from lvspec_cli.figures.answers import BenchMode, Block, Item, Variant
from lvspec_cli.figures.summary import Measured, contrasts, summarise
from lvspec_cli.types import Gamma
from tools.demo_report.batched import REFERENCE


def with_further(texts: Results, further: Sequence[Measured], gamma: Gamma | None = None) -> Results:
    """The texts with those of further runs.

    :param gamma: the pair's own.
    :raises ValueError: a line answered an item twice.
    """
    if not further:
        return texts
    more = joined(further)
    items = {item.id: item for item in texts.items}
    if items.keys() & more.items.keys():
        raise ValueError("two runs are of the same clips")
    items |= more.items
    measured = Measured(items, (*texts.blocks, *more.blocks))
    settings = {each.variant: each.settings for each in texts.modes}
    reference, modes = summarise(measured, tuple(settings), settings)
    return texts.model_copy(
        update={
            "reference": reference.mode,
            "items": tuple(items.values()),
            "blocks": measured.blocks,
            "modes": modes,
            "contrasts": contrasts(measured, modes, gamma),
        }
    )


def joined(runs: Sequence[Measured]) -> Measured:
    """Runs of one or more lines each as if they were one; what :data:`REFERENCE` says stands for ar's.

    :raises ValueError: a line answered an item twice.
    """
    items: dict[str, Item] = {}
    found: dict[tuple[str, int], list[Block]] = {}
    for each in runs:
        items |= {name: item for name, item in each.items.items() if item.frames or name not in items}
        for block in each.blocks:
            found.setdefault((block.item, block.repeat), []).append(_as_ar(block))
    return Measured(items, tuple(map(_one_block, found.values())))


def _one_block(blocks: Sequence[Block]) -> Block:
    said = tuple(answer for block in blocks for answer in block.measurements)
    if len({answer.variant for answer in said}) != len(said):
        raise ValueError("two runs are of the same clips")
    return blocks[0].model_copy(update={"measurements": said})


def _as_ar(block: Block) -> Block:
    ar = Variant(BenchMode.AR)
    plain = {"mode": ar.mode, "gamma": ar.gamma}
    measurements = (
        each.model_copy(update=plain) if each.variant == REFERENCE else each for each in block.measurements
    )
    return block.model_copy(update={"measurements": tuple(measurements)})
