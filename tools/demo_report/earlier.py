"""Untimed answers of an earlier run: a line that nothing has changed for need not be run again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Header, JournalContent
from lvspec_cli.bench.measure import Plan
from lvspec_cli.bench.own import TextRunner
from lvspec_cli.bench.results import BenchSettings, differing_fields
from lvspec_cli.figures.answers import BenchMode, Block, Variant
from lvspec_cli.figures.summary import Measured
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.verify import effective
from lvspec_cli.types import RuleSettings
from lvspec_cli.video.pool import reading

_RULE = TypeAdapter(RuleSettings)
# What a line need not share with the others.
_OF_LINES = frozenset({"modes", "gammas", "rule", "rules", "words", "first"})
_OF_DRAFTS = frozenset({"adaptation", "draft_keep", "draft_keep_by"})  # nothing to lines without one


def asked_of(clips: Sequence[BenchClip], plan: Plan) -> dict[Variant, frozenset[str]]:
    """The items, by id, that each line is to answer."""
    return {
        line: frozenset(item.id for clip in clips[: plan.first.get(line, len(clips))] for item in clip.items)
        for line in plan.variants
    }


def lines_kept(
    earlier: JournalContent, wanted: Header, asked: Mapping[Variant, Collection[str]]
) -> tuple[Variant, ...]:
    """The lines that an earlier run answered whole and with the same settings: of the same clips, by the same
    pair on the same machine, and none where seconds count."""
    held = earlier.header
    if held.inputs != wanted.inputs or held.environment != wanted.environment or wanted.settings.timed:
        return ()
    answered = {(block.item, each.variant) for block in earlier.blocks for each in block.measurements}
    return tuple(
        line
        for line, items in asked.items()
        if is_same_line(held.settings, wanted.settings, line)
        and all((each, line) in answered for each in items)
    )


def is_same_line(held: BenchSettings, wanted: BenchSettings, line: Variant) -> bool:
    """Whether a line is run with the same settings in both."""
    ignored = _OF_LINES | (_OF_DRAFTS if line.mode.is_plain else frozenset())
    if any(name not in ignored for name, _, _ in differing_fields(held.model_dump(), wanted.model_dump())):
        return False
    if line.mode not in (BenchMode.LVSPEC, BenchMode.LVSPEC_PRUNED):
        return True  # it accepts the target's own tokens only
    if held.words != wanted.words:
        return False
    one, other = (
        effective(_RULE.validate_python(each.rules[line.label] if line.label else each.rule))
        if not line.label or line.label in each.rules
        else None
        for each in (held, wanted)
    )
    return one is not None and one == other


def is_still_said(
    loaded: LoadedPair, clip: BenchClip, plan: Plan, earlier: JournalContent, kept: Collection[Variant]
) -> bool:
    """Whether the lines say of a clip what they said then: other weights under the same name would not.

    :raises LvspecError: the clip cannot be read.
    """
    item = clip.items[0]
    held = next(each for each in earlier.blocks if each.item == item.id)
    with reading() as read:
        texts = TextRunner(loaded, read(clip.video), system=plan.system)
    then = {each.variant: each.text for each in held.measurements}
    # What transformers' generate says our own ar says, too.
    ours = {line: Variant(BenchMode.AR) if line.mode is BenchMode.HF_AR else line for line in kept}
    return all(
        texts.answer(item, own, plan.settings_of(own)).text == then[line] for line, own in ours.items()
    )


def without(plan: Plan, lines: Collection[Variant]) -> Plan:
    """What is left of a plan, and the rules that it needs."""
    left = tuple(each for each in plan.variants if each not in lines)
    rules = plan.rules if any(each.label for each in left) else {}
    first = {line: count for line, count in plan.first.items() if line in left}
    return replace(plan, variants=left, first=first, rules=rules)


def with_earlier(
    measured: Measured,
    earlier: JournalContent,
    kept: Collection[Variant],
    asked: Mapping[Variant, Collection[str]],
) -> Measured:
    """Answers of the kept lines, by the earlier run, beside those of all others, that were measured.

    In the order of ``asked``.
    """
    new = {(each.item, each.repeat): each for each in measured.blocks}
    blocks = []
    for old in earlier.blocks:
        found = new.pop((old.item, old.repeat), None)
        answers = {each.variant: each for each in old.measurements if each.variant in kept}
        answers |= {each.variant: each for each in found.measurements} if found else {}
        lines = (line for line, items in asked.items() if line in answers and old.item in items)
        blocks.append(
            Block(item=old.item, repeat=old.repeat, measurements=tuple(answers[line] for line in lines))
        )
    return Measured({**earlier.items, **measured.items}, (*blocks, *new.values()))
