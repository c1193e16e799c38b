"""The long report on the bundled pair, docs/bench-demo.md: ``python -m lvspec_cli.bench.demo_report``.

Speed on some held-out scenes, by one process that wants the machine for itself; then texts of many more for
fidelity, untimed, by several. It can be stopped, and goes on where it was. Lossless modes say what ar says, so of them no texts are
asked for: the timed part holds theirs beside ar's.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvspec_cli.bench.charts import as_file, speedup_bars
from lvspec_cli.bench.contrast import best_of_each
from lvspec_cli.bench.items import clips_of
from lvspec_cli.bench.lines import (
    HEADINGS,
    contrast_table,
    fidelity_table,
    machine,
    number,
    retention,
    rows,
    table,
)
from lvspec_cli.bench.measure import Plan
from lvspec_cli.bench.results import (
    BenchMode,
    Contrast,
    Estimate,
    ModeResult,
    Results,
    Spread,
    Variant,
)
from lvspec_cli.bench.rules import NamedRule, ablations, controls, read_rules, rules_of
from lvspec_cli.bench.run import BenchJob, demo_clips, run_bench
from lvspec_cli.bench.summary import MIN_RETENTION, keeps_quality
from lvspec_cli.choose import choose_pair
from lvspec_cli.cores import usable_cores
from lvspec_cli.errors import LvspecError
from lvspec_cli.output.files import replacing
from lvspec_cli.pipeline import AskRequest
from lvspec_cli.registry import load_registry, settings_of_pair
from lvspec_cli.types import Gamma, RelevanceName, RuleSettings, VideoRequest

QUESTIONS = 2  # about each scene, for fidelity
OWN_GAMMAS: tuple[Gamma, ...] = ("auto", 8, 12)
FURTHER_GAMMAS: tuple[Gamma, ...] = (3, 5)  # of these on fewer clips: they are slower
EXACT_GAMMAS: tuple[Gamma, ...] = ("auto", 5)
CONTROLS = (RelevanceName.PLAUSIBLE, RelevanceName.RANDOM, RelevanceName.LEXICON)
OTHERS = (
    RelevanceName.ATTENTION,
    *CONTROLS,
)  # where a control is the pair's own rule, anchors stand against it
SAID_EVERY = 30.0  # seconds
SKIPPED = 0.002  # seconds; what takes less was kept from before


@dataclass(frozen=True)
class Goal:
    """One figure that the project set itself. ``met``: None where it was not measured."""

    what: str
    wanted: str
    found: str
    met: bool | None


def goals(texts: Results, speed: Results) -> tuple[Goal, ...]:
    """What was aimed at, and what came out. Quality is that of ``texts``, all else that of ``speed``."""
    own = next((each for each in texts.modes if _is_own(each)), None)
    kept = own.retention if own else None
    best = _best(speed)
    pruned, assisted = (_against(speed, name) for name in (BenchMode.EXACT_PRUNED, BenchMode.HF_ASSISTED))
    return (
        Goal(
            "quality kept, lower end",
            f"{100 * MIN_RETENTION:g} %",
            retention(kept, 2),
            None if own is None or kept is None else keeps_quality(own),
        ),
        _at_least("accepted length against exact-pruned", 2.6, pruned.accepted_length if pruned else None),
        _at_least("decode speed against exact-pruned", 1.6, pruned.speed if pruned else None),
        _at_least(f"decode speed against {speed.reference}", 3.5, best.speedup_vs_ar if best else None),
        _at_least("decode speed against hf-assisted", 1.6, assisted.speed if assisted else None),
        *(_beats(texts, speed, other) for other in OTHERS if other in CONTROLS or _own_rule(texts)),
        _auto(speed),
    )


def _is_own(result: ModeResult) -> bool:
    return result.mode is BenchMode.LVSPEC and result.label is None and result.relevance is None


def _best(results: Results) -> ModeResult | None:
    best = best_of_each(results.modes).get(BenchMode.LVSPEC.value)
    return next((each for each in results.modes if each.variant == best), None)


def _against(results: Results, *names: str) -> Contrast | None:
    """The contrast with the line of one of these names, whatever its gamma."""
    return next((each for each in results.contrasts if each.other.split(" γ=")[0] in names), None)


def _at_least(what: str, wanted: float, found: Spread | Estimate | None) -> Goal:
    if found is None:
        return Goal(what, f"{wanted:g}", "", None)
    value = found.median if isinstance(found, Spread) else found.value
    return Goal(what, f"{wanted:g}", _with_ends(value, found), value >= wanted)


def _beats(texts: Results, speed: Results, control: RelevanceName) -> Goal:
    """Whether the rule is faster than another, whose quality stands beside it."""
    if texts.settings.rule.get("relevance") == control:
        return Goal(f"decode speed against {control}", "above 1", "it is the rule itself", met=False)
    names = (f"lvspec/{control}", f"lvspec:{control}")
    faster, quality = _against(speed, *names), _against(texts, *names)
    found = faster.speed if faster else None
    if found is None:
        return Goal(f"decode speed against {control}", "above 1", "", None)
    text = _with_ends(found.median, found)
    if quality is not None:
        text += f", quality {retention(quality.quality, 2)} of its"
    return Goal(
        f"decode speed against {control}",
        "above 1",
        text,
        (found.low if found.low is not None else found.median) > 1,
    )


def _auto(speed: Results) -> Goal:
    """Gamma auto against the best fixed one that was timed on as many clips."""
    lines = [each for each in speed.modes if _is_own(each) and each.speedup_vs_ar]
    most = max((each.answers for each in lines), default=0)
    own = {
        each.gamma: each.speedup_vs_ar.median for each in lines if each.answers == most and each.speedup_vs_ar
    }
    fixed = [value for gamma, value in own.items() if gamma != "auto"]
    if "auto" not in own or not fixed:
        return Goal("gamma auto against the best fixed one", "0.97", "", None)
    ratio = own["auto"] / max(fixed)
    return Goal("gamma auto against the best fixed one", "0.97", number(ratio, 2), ratio >= 0.97)


def _with_ends(value: float, found: Spread | Estimate) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:.2f}-{found.high:.2f})"
    return f"{value:.2f}{ends}"


def page(texts: Results, speed: Results, command: str, chart: Path) -> str:
    """docs/bench-demo.md; the chart stands beside it."""
    asked = {task: sum(item.task == task for item in texts.items) for task in ("caption", "ask")}
    answered = {True: "yes", False: "no", None: "not measured"}
    lines = [
        "# The bundled pair, measured",
        "",
        f"Measured {speed.created:%Y-%m-%d} on {machine(speed.environment)}, with:",
        "",
        f"    {command}",
        "",
        f"Fidelity over {asked['caption']} captions and {asked['ask']} questions of scenes that no training"
        f" saw; speed over {len(speed.items)} of these captions. Intervals are 95 %, over clips.",
        *_on_fewer(texts, speed),
        "",
        *([sentence, ""] if (sentence := _own_rule(texts)) else []),
        "## What was aimed at",
        "",
        *table(
            ("figure", "at least", "found", "reached"),
            [(goal.what, goal.wanted, goal.found, answered[goal.met]) for goal in goals(texts, speed)],
        ),
        "",
        "## Speed",
        "",
        f"![Speedup of every mode]({chart.name})",
        "",
        *table(HEADINGS, rows(speed)),
        "",
        "What was said meanwhile, against ar's texts:",
        "",
        *fidelity_table(speed),
        *contrast_table(speed),
        "## Fidelity",
        "",
        *_kept_tables(texts),
        *fidelity_table(texts),
        *contrast_table(texts),
        "Rules with names: `no-…` is the rule without one of its parts, `with-…` the rule with one that it"
        " does not have, the others are tuned controls.",
        "",
        *table(("rule", "settings"), [*_rules(texts, speed)]),
    ]
    return "\n".join(lines) + "\n"


def _own_rule(texts: Results) -> str | None:
    """Says so where a control won."""
    relevance = texts.settings.rule.get("relevance")
    if relevance not in tuple(CONTROLS):
        return None
    why = "the margin alone" if relevance == RelevanceName.PLAUSIBLE else "a control"
    return (
        f"The pair's own rule is `{relevance}` ({why}): tuned with equal care, no rule with anchors was"
        " faster at the quality that was asked for, so this is the default."
    )


def _on_fewer(texts: Results, speed: Results) -> Iterator[str]:
    """Which lines saw only the first scenes."""
    for results in (texts, speed):
        by_count: dict[int, list[str]] = defaultdict(list)
        for name, count in results.settings.first.items():
            by_count[count].append(name)
        for count, names in sorted(by_count.items()):
            what = "speed" if results.settings.timed else "fidelity"
            yield f"On the first {count} scenes only, {what} of: {', '.join(names)}."


def _kept_tables(texts: Results) -> Iterator[str]:
    found = [(str(each.variant), each.fidelity) for each in texts.modes if each.fidelity is not None]
    lengths = {str(each.variant): number(each.mean_accepted_length, 2) for each in texts.modes}
    yield from table(
        ("mode", "accepted length", "facts F1", "of ar's", "questions right", "of ar's"),
        [
            (
                name,
                lengths[name],
                number(each.facts.mode, 4) if each.facts else "",
                retention(each.facts.retention, 2) if each.facts else "",
                number(each.questions.mode, 4) if each.questions else "",
                retention(each.questions.retention, 2) if each.questions else "",
            )
            for name, each in found
        ],
    )
    yield ""
    kinds = sorted({kind for _, each in found for kind in each.facts_by_kind})
    if kinds:
        yield "F1 by kind of fact:"
        yield ""
        yield from table(
            ("mode", *kinds),
            [
                (
                    name,
                    *(
                        number(each.facts_by_kind[kind].mode, 3) if kind in each.facts_by_kind else ""
                        for kind in kinds
                    ),
                )
                for name, each in found
            ],
        )
        yield ""


def _rules(*results: Results) -> Iterator[tuple[str, str]]:
    base = results[0].settings.rule
    yield "lvspec", ", ".join(f"{name} {value}" for name, value in base.items())
    rules = {name: rule for each in results for name, rule in each.settings.rules.items()}
    for name, rule in rules.items():
        yield name, ", ".join(f"{key} {value}" for key, value in rule.items() if value != base[key])


# --- measuring -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What the command line asks for."""

    out: Path
    scenes: int
    speed: int
    page: Path
    control_scenes: int = 300
    ablation_scenes: int = 150
    few: int = 40  # clips of the timed lines of less interest
    processes: int = 1
    variants: Path | None = None
    models: Path | None = None
    pair: str = "demo"
    threads: int | None = None
    max_new_tokens: int | None = None
    redo: bool = False
    command: str = ""


def measure_report(report: Report, say: Callable[[str], None]) -> None:
    """Measures what is left to measure, and writes the page.

    :raises LvspecError: the pair or a folder cannot be used.
    """
    chosen = choose_pair(load_registry(report.models), report.pair, "auto")
    name, pair = chosen.name, chosen.pair
    settings = replace(settings_of_pair(pair), fallback=False)
    if report.max_new_tokens is not None:
        settings = replace(settings, max_new_tokens=report.max_new_tokens)
    defaults = pair.defaults
    video = VideoRequest(Path(), max_frames=defaults.frames, fps=defaults.fps, max_pixels=defaults.max_pixels)
    request = AskRequest(video, (), name, pair, settings, threads=report.threads)
    paths = demo_clips(report.out / "clips", report.scenes, _Told("drawing clips", say))
    others, parts = _others(report, settings.rule), ablations(settings.rule)
    rules = rules_of((*others, *parts))

    def run(label: str, sources: Sequence[Path], lines: Mapping[Variant, int], *, timed: bool) -> Results:
        first = {line: count for line, count in lines.items() if count < len(sources)}
        plan = Plan(
            tuple(lines), settings, draft_keep=0.1, rules=rules, timed=timed, scored=timed, first=first
        )
        job = BenchJob(
            request=request if timed else replace(request, threads=1),
            clips=clips_of(sources, video, questions=0 if timed else QUESTIONS),
            modes=plan.variants,
            gammas=OWN_GAMMAS,
            plan=plan,
            out=report.out / label,
            redo=report.redo,
            command=report.command,
            processes=report.processes,
        )
        return run_bench(job, progress=_Told(label, say), warn=say)

    tuned = [_lined(each, settings.gamma) for each in others]
    if report.variants is None:
        tuned += [replace(each, gamma=settings.gamma) for each in controls(settings.rule)]
    asked = text_lines(report, settings.gamma, tuned, [each.variant for each in parts])
    # First what needs the machine for itself.
    speed = run("speed", paths[: report.speed], speed_lines(report, settings.gamma, tuned), timed=True)
    texts = run("texts", paths, asked, timed=False)
    chart = report.page.with_suffix(".svg")
    drawn = speedup_bars(speed.modes)
    for path, text in (
        (chart, as_file(drawn or "")),
        (report.page, page(texts, speed, report.command, chart)),
    ):
        with replacing(path) as stream:
            stream.write(text.encode())
        say(f"written: {path}")


def text_lines(
    report: Report, gamma: Gamma, tuned: Sequence[Variant], parts: Sequence[Variant]
) -> dict[Variant, int]:
    """What is asked for texts, and of how many scenes: controls and ablations of fewer."""
    return {
        Variant(BenchMode.AR): report.scenes,
        Variant(BenchMode.LVSPEC, gamma): report.scenes,
        **dict.fromkeys(tuned, report.control_scenes),
        **{replace(each, gamma=gamma): report.ablation_scenes for each in parts},
    }


def speed_lines(report: Report, gamma: Gamma, tuned: Sequence[Variant]) -> dict[Variant, int]:
    """What is timed, and on how many clips."""
    own = dict.fromkeys((gamma, *OWN_GAMMAS))
    further = [each for each in FURTHER_GAMMAS if each not in own]
    return {
        **dict.fromkeys((Variant(BenchMode.AR), Variant(BenchMode.HF_ASSISTED)), report.speed),
        Variant(BenchMode.HF_AR): report.few,
        **{Variant(BenchMode.EXACT, each): report.few for each in EXACT_GAMMAS},
        **{Variant(BenchMode.EXACT_PRUNED, each): report.speed for each in EXACT_GAMMAS},
        **{Variant(BenchMode.LVSPEC, each): report.speed for each in own},
        **{Variant(BenchMode.LVSPEC, each): report.few for each in further},
        Variant(BenchMode.LVSPEC_PRUNED, gamma): report.few,
        **dict.fromkeys(tuned, report.speed),
    }


def _others(report: Report, rule: RuleSettings) -> tuple[NamedRule, ...]:
    """The tuned controls. What tune found for the pair's own relevance is the pair's own rule."""
    own = read_rules(report.variants, rule) if report.variants is not None else ()
    return tuple(each for each in own if each.rule.relevance is not rule.relevance)


def _lined(named: NamedRule, gamma: Gamma) -> Variant:
    return named.variant if named.gamma is not None else replace(named.variant, gamma=gamma)


class _Told:
    """Says now and then how far it is, and how long the rest may take."""

    def __init__(self, label: str, say: Callable[[str], None]) -> None:
        self._label, self._say = label, say
        self._began: tuple[float, int] | None = None  # seconds, and what was done before
        self._said = self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None or now - self._last < SKIPPED:  # done before: no measure of the pace
            self._began = (now, done)
        self._last = now
        if now - self._said >= SAID_EVERY or done == total:
            self._said = now
            left = seconds_left(now - self._began[0], done - self._began[1], total - done)
            rest = "" if left is None else f", {left / 60:.0f} min left"
            self._say(f"{self._label}: {done} of {total}{rest}")


def seconds_left(seconds: float, done: int, left: int) -> float | None:
    """At the pace so far; None before there is one."""
    return seconds / done * left if done > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("lvspec-demo-report"), help="measurements and clips")
    parser.add_argument("--scenes", type=int, default=1000, help="for fidelity")
    parser.add_argument("--control-scenes", type=int, default=300, help="of these, for tuned controls")
    parser.add_argument("--ablation-scenes", type=int, default=150, help="of these, for the rule's parts")
    parser.add_argument("--speed", type=int, default=100, help="of these, for speed")
    parser.add_argument("--few", type=int, default=40, help="of these, for slow lines of less interest")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="for texts, a thread each")
    parser.add_argument("--page", type=Path, default=Path("docs/bench-demo.md"))
    parser.add_argument("--variants", type=Path, help="tuned controls, as lvspec tune writes them")
    parser.add_argument("--models", type=Path, help="a models.yaml of your own")
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--threads", type=int, default=1, help="for speed")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--redo", action="store_true", help="measure all of it again")
    given = parser.parse_args()
    command = shlex.join(["python", "-m", "lvspec_cli.bench.demo_report", *sys.argv[1:]])

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        measure_report(Report(**vars(given), command=command), say)
    except LvspecError as error:
        say(f"error: {error.cause}")
        say(f"try: {error.remedy}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
