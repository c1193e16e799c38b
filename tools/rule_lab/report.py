"""Tables of captions by rule: figures with bootstrap intervals over scenes, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvspec_cli.figures.answers import Estimate
from lvspec_cli.figures.statistics import interval_of_sums
from lvspec_cli.table import Table
from tools.rule_lab.decode import Caption
from tools.rule_lab.facts import Facts, content
from tools.rule_lab.scenes import make_scene


@dataclass(frozen=True)
class Counts:
    """What is counted of one caption of one scene; ``ar`` is the target's own caption of it."""

    decoded: int  # tokens but the first
    rounds: int
    cost: float  # predicted, in steps of the target alone
    told: int  # facts
    ar_told: int
    kept: int  # facts that ar tells and this caption too
    wrong: int
    new_wrong: int  # that ar does not say
    content: int  # content words of ar's caption that this one has, too
    ar_content: int
    loss: float  # nats, sum over the tokens
    loose: int  # tokens
    tokens: int
    same: int  # 1: the text is ar's
    cut: int  # 1: it did not come to an end


def count(caption: Caption, ar: Caption, facts: Facts) -> Counts:
    """Compare one caption with the target's own of the same scene."""
    told, ar_told = facts.told(caption.text), facts.told(ar.text)
    wrong, words = facts.wrong(caption.text), content(ar.text)
    return Counts(
        decoded=len(caption.tokens) - 1,
        rounds=caption.rounds,
        cost=caption.cost,
        told=len(told),
        ar_told=len(ar_told),
        kept=len(told & ar_told),
        wrong=len(wrong),
        new_wrong=len(wrong - facts.wrong(ar.text)),
        content=len(words & content(caption.text)),
        ar_content=len(words),
        loss=sum(caption.losses),
        loose=sum(kind in "fs" for kind in caption.kinds),
        tokens=len(caption.tokens),
        same=int(caption.text == ar.text),
        cut=int(caption.finish != "stop"),
    )


@dataclass(frozen=True)
class Measure:
    """A figure: ``scale`` times the sum of one count over that of another; None: over the scenes."""

    name: str
    part: str
    whole: str | None
    scale: float = 1.0
    digits: int = 1

    def sums(self, rows: Sequence[Counts]) -> tuple[list[float], list[float]]:
        return (
            [self.scale * getattr(row, self.part) for row in rows],
            [float(getattr(row, self.whole)) if self.whole else 1.0 for row in rows],
        )

    def value(self, rows: Sequence[Counts]) -> float:
        """The figure over scenes. 0 where there is nothing to divide by."""
        part, whole = map(sum, self.sums(rows))
        return part / whole if whole else 0.0

    def estimate(self, rows: Sequence[Counts]) -> Estimate:
        """The figure with its interval over scenes."""
        return _estimate(_ratio, self.sums(rows))

    def difference(self, rows: Sequence[Counts], others: Sequence[Counts]) -> Estimate:
        """The figure of ``rows`` minus that of ``others``, which are of the same scenes in the same order."""
        return _estimate(
            lambda sums: _ratio(sums[:2]) - _ratio(sums[2:]), (*self.sums(rows), *self.sums(others))
        )

    def write(self, estimate: Estimate, *, signed: bool = False) -> str:
        sign = "+" if signed else ""
        value = f"{estimate.value:{sign}.{self.digits}f}"
        if estimate.low is None or estimate.high is None:
            return value
        return f"{value} [{estimate.low:.{self.digits}f}, {estimate.high:.{self.digits}f}]"


LENGTH = Measure("accepted length", "decoded", "rounds", digits=2)
PAIRED = (
    LENGTH,
    Measure("speed", "decoded", "cost", digits=2),
    Measure("recall of ar's, %", "told", "ar_told", 100),
    Measure("ar's facts kept, %", "kept", "ar_told", 100),
    Measure("new wrong facts a caption", "new_wrong", None, digits=2),
    Measure("content kept, %", "content", "ar_content", 100),
)
PLAIN = (
    Measure("loss a token, nats", "loss", "tokens", digits=3),
    Measure("loose, %", "loose", "tokens", 100),
    Measure("same text, %", "same", None, 100, digits=0),
    Measure("tokens", "tokens", None, digits=0),
    Measure("cut, %", "cut", None, 100, digits=0),
)


def counts_by_rule(captions: Sequence[Caption]) -> dict[str, list[Counts]]:
    """Counts of the scenes that every rule has captioned, in their order. ``ar`` must be among the rules."""
    by_rule: dict[str, dict[int, Caption]] = {}
    for caption in captions:
        by_rule.setdefault(caption.rule, {})[caption.scene] = caption
    shared = sorted(set.intersection(*map(set, by_rule.values())))
    facts = {scene: Facts.of(make_scene(scene)) for scene in shared}
    ar = by_rule["ar"]
    return {
        rule: [count(mine[scene], ar[scene], facts[scene]) for scene in shared]
        for rule, mine in by_rule.items()
    }


def figures(counts: Mapping[str, Sequence[Counts]]) -> Table:
    """A row for each rule, by accepted length."""
    rows = {
        rule: [
            *(measure.write(measure.estimate(rows)) for measure in PAIRED),
            *(f"{measure.value(rows):.{measure.digits}f}" for measure in PLAIN),
        ]
        for rule, rows in counts.items()
    }
    order = sorted(rows, key=lambda rule: LENGTH.value(counts[rule]))
    headings = ("rule", *(measure.name for measure in (*PAIRED, *PLAIN)))
    scenes = len(counts["ar"])
    return Table(
        headings, [[rule, *rows[rule]] for rule in order], f"{scenes} scenes, 95 % intervals over them"
    )


def differences(counts: Mapping[str, Sequence[Counts]], base: str) -> Table:
    """Each rule minus ``base`` on the same scenes."""
    rows = [
        [rule, *(measure.write(measure.difference(rows, counts[base]), signed=True) for measure in PAIRED)]
        for rule, rows in counts.items()
        if rule not in (base, "ar")
    ]
    return Table(("rule", *(measure.name for measure in PAIRED)), rows, f"Paired differences from {base}")


def _ratio(sums: Any) -> Any:
    return sums[0] / sums[1]


def _estimate(figure: Callable[[Any], Any], samples: Sequence[Sequence[float]]) -> Estimate:
    totals = [sum(sample) for sample in samples]
    if not all(totals[1::2]):
        return Estimate(value=0.0, low=None, high=None)
    low, high = interval_of_sums(figure, samples)
    return Estimate(value=float(figure(totals)), low=low, high=high)
