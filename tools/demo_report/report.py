"""The long report on the bundled pair, docs/bench-demo.md: ``python -m tools.demo_report.report``.

Speed on some held-out scenes, by one process that wants the machine for itself; then texts of many more for
fidelity, untimed, by several. It can be stopped, and continues later. Lossless modes say what ar says:
of them no texts are asked for, the timed part holds theirs beside ar's, and ar's own are those of
transformers' ``generate``, many at a time. By further scenes the pair's own rule alone is judged more
closely: captions and answers each come in portions, so that another run can add to them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvspec_cli.bench.charts import speedup_bars
from lvspec_cli.bench.items import clips_of
from lvspec_cli.bench.journal import read_journal
from lvspec_cli.bench.lines import machine
from lvspec_cli.bench.measure import Plan
from lvspec_cli.bench.results import Environment, Results
from lvspec_cli.bench.run import (
    BenchJob,
    header_of,
    measured_of,
    results_of,
    run_bench,
    write_results,
)
from lvspec_cli.bench.variants import NamedRule, ablations, controls, read_rules, rules_by_name
from lvspec_cli.errors import LvspecError
from lvspec_cli.figures.answers import BenchMode, Item, Variant
from lvspec_cli.figures.summary import Measured
from lvspec_cli.host import usable_cores
from lvspec_cli.memory.choose import choose_pair
from lvspec_cli.memory.resolve import workload_of
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.output.files import replacing
from lvspec_cli.pairs.registry import load_registry, settings_of_pair
from lvspec_cli.pipeline import load, prepared
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import Gamma, RuleSettings, VideoRequest
from tools.demo_report.batched import BATCH, REFERENCE, batched_of
from tools.demo_report.drawing import draw_clips
from tools.demo_report.earlier import asked_of, is_still_said, lines_kept, with_earlier, without
from tools.demo_report.further import joined, with_further
from tools.demo_report.page import page

QUESTIONS = 2  # about each scene, for fidelity
FURTHER_QUESTIONS = 4  # about each further scene of which answers are asked for
OWN_GAMMAS: tuple[Gamma, ...] = ("auto", 8, 12, 16)
FURTHER_GAMMAS: tuple[Gamma, ...] = (3, 5)  # of these on fewer clips: they are slower
EXACT_GAMMAS: tuple[Gamma, ...] = ("auto", 5)
PORTION = 1000  # of further scenes
SAID_EVERY = 30.0  # seconds
SKIPPED = 0.002  # seconds; what takes less was kept from before


@dataclass(frozen=True)
class Report:
    """What the command line asks for."""

    out: Path
    scenes: int
    speed: int
    page: Path
    first: int = 1  # scene
    control_scenes: int = 300
    ablation_scenes: int = 150
    further_scenes: int = 0  # of these, captions by the pair's own rule alone
    further_answers: int = 0  # scenes: of the first so many of these, answers as well
    few: int = 40  # clips of the timed lines of less interest
    processes: int = 1
    variants: Path | None = None
    only_further: int | None = None  # from this scene on, and nothing else: a part of another's report
    elsewhere: Path | None = None  # the folder of such a part
    earlier: Path | None = None  # the folder of a report that had some of the lines
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
    load_plan, request = _prepared(report)
    rule, gamma = request.settings.rule, request.settings.gamma
    others, parts = _others(report, rule), ablations(rule)
    runs = _Runs(report, load_plan, request, rules_by_name((*others, *parts)), say)
    tuned = [_lined(each, gamma) for each in others]
    if report.variants is None:
        tuned += [replace(each, gamma=gamma) for each in controls(rule)]
    own = Variant(BenchMode.LVSPEC, gamma)
    if report.only_further is not None:
        loaded = load(load_plan, workload_of(request))
        for job in runs.further_jobs(own):
            runs.untimed(loaded, job)
        return
    paths = runs.clips(report.first, report.scenes)
    # First what needs the machine for itself.
    timed = speed_lines(report, gamma, tuned)
    speed = runs.run(runs.job("speed", paths[: report.speed], timed, timed=True))
    asked = text_lines(report, gamma, tuned, [each.variant for each in parts])
    job = runs.job("texts", paths, asked, questions=QUESTIONS)
    loaded = load(job.load_plan, job.workload)
    main = [runs.untimed(loaded, each) for each in (job, runs.reference(job))]
    plan = replace(job.plan, variants=(Variant(BenchMode.AR), *job.plan.variants))
    job = replace(job, modes=plan.variants, plan=plan)
    texts = results_of(loaded, job, joined([each.measured for each in main]))
    write_results(texts, job.out)
    further = list(runs.further(loaded, own))
    texts = with_further(texts, [each.measured for each in further], gamma)
    said = further_said(report, own, (*main, *further))
    chart = report.page.with_suffix(".svg")
    for path, text in (
        (chart, standalone_svg(speedup_bars(speed.modes) or "")),
        (report.page, page(texts, speed, report.command, chart, said)),
    ):
        with replacing(path) as stream:
            stream.write(text.encode())
        say(f"written: {path}")


def _prepared(report: Report) -> tuple[LoadPlan, AskRequest]:
    choice = replace(choose_pair(load_registry(report.models), report.pair, "auto"), threads=report.threads)
    defaults, settings = choice.pair.defaults, replace(settings_of_pair(choice.pair), fallback=False)
    if report.max_new_tokens is not None:
        settings = replace(settings, max_new_tokens=report.max_new_tokens)
    video = VideoRequest(Path(), max_frames=defaults.frames, fps=defaults.fps, max_pixels=defaults.max_pixels)
    return prepared(choice, AskRequest(video, (), settings))


@dataclass(frozen=True)
class Said:
    """What a job has come to. ``kept``: lines of an earlier run. ``there``: another machine that did it."""

    label: str
    measured: Measured
    kept: tuple[Variant, ...] = ()
    there: Environment | None = None


@dataclass(frozen=True)
class _Runs:
    """The report's runs, each of some clips and some lines, in a folder of its own."""

    report: Report
    load_plan: LoadPlan
    request: AskRequest
    rules: Mapping[str, RuleSettings]  # of lines with a name
    say: Callable[[str], None]

    def clips(self, first: int, count: int) -> list[Path]:
        report, told = self.report, _Told("drawing clips", self.say)
        numbers = range(first, first + count)
        return draw_clips(report.out / "clips", numbers, told, processes=report.processes)

    def job(
        self,
        label: str,
        sources: Sequence[Path],
        lines: Mapping[Variant, int],
        *,
        timed: bool = False,
        questions: int = 0,
        tasks: Container[str] = ("caption", "ask"),
    ) -> BenchJob:
        report, request = self.report, self.request
        plan = Plan(
            tuple(lines),
            request.settings,
            draft_keep=0.1,
            rules=self.rules if any(line.label for line in lines) else {},
            timed=timed,
            scored=timed,
            first={line: count for line, count in lines.items() if count < len(sources)},
        )
        clips = clips_of(sources, request.video, questions=questions)
        alone = replace(self.load_plan.choice, threads=1)
        return BenchJob(
            load_plan=self.load_plan if timed else replace(self.load_plan, choice=alone),
            video=request.video,
            clips=tuple(
                replace(clip, items=tuple(item for item in clip.items if item.task in tasks))
                for clip in clips
            ),
            modes=plan.variants,
            gammas=OWN_GAMMAS,
            plan=plan,
            out=report.out / label,
            redo=report.redo,
            command=report.command,
            processes=report.processes,
        )

    def run(self, job: BenchJob) -> Results:
        return run_bench(job, progress=_Told(job.out.name, self.say), warn=self.say)

    def further(self, loaded: LoadedPair, own: Variant) -> Iterator[Said]:
        """What is said of scenes behind the report's others."""
        for job in self.further_jobs(own):
            yield self._elsewhere(loaded, job) or self.untimed(loaded, job)

    def further_jobs(self, own: Variant) -> Iterator[BenchJob]:
        """Of each portion of further scenes a job by the pair's own rule, and one for ar's texts."""
        report = self.report
        for kind, task, scenes in (
            ("captions", "caption", report.further_scenes),
            ("answers", "ask", report.further_answers),
        ):
            for first, count in portions(report.first - 1 + report.scenes, scenes):
                if first < (report.only_further or 0):
                    continue
                label = f"{kind}_{first}-{first + count - 1}"
                paths = self.clips(first, count)
                job = self.job(label, paths, {own: count}, questions=FURTHER_QUESTIONS, tasks=(task,))
                yield from (job, self.reference(job))

    def reference(self, job: BenchJob) -> BenchJob:
        """A job for ar's texts about the same clips."""
        plan = replace(job.plan, variants=(REFERENCE,), rules={}, first={})
        return replace(job, modes=plan.variants, plan=plan, out=job.out.with_name(f"{job.out.name}-ar"))

    def untimed(self, loaded: LoadedPair, job: BenchJob) -> Said:
        """Texts of a job."""
        label, asked = job.out.name, asked_of(job.clips, job.plan)
        earlier = read_journal(self.report.earlier / label) if self.report.earlier else None
        kept = lines_kept(earlier, header_of(loaded, job), asked) if earlier else ()
        if earlier and kept and not is_still_said(loaded, job.clips[0], job.plan, earlier, kept):
            self.say(f"{label}: the earlier run's pair said something else")
            kept = ()
        if earlier is None or not kept:
            return Said(label, self._asked(loaded, job))
        self.say(f"{label}: of the earlier run: {', '.join(map(str, kept))}")
        left = without(job.plan, kept)
        part = replace(job, modes=left.variants, plan=left)
        measured = self._asked(loaded, part) if left.variants else Measured({}, ())
        return Said(label, with_earlier(measured, earlier, kept, asked), kept)

    def _elsewhere(self, loaded: LoadedPair, job: BenchJob) -> Said | None:
        """A job that another machine did whole, with the same settings on the same scenes.

        Its files may be others, as encoders differ: what is held against each other is of the same ones.
        """
        label, folder = job.out.name, self.report.elsewhere
        other = read_journal(folder / label) if folder else None
        if other is None:
            return None
        there, items = other.header.environment, (item for clip in job.clips for item in clip.items)
        wanted = header_of(loaded, job).model_copy(
            update={"environment": there, "inputs": other.header.inputs}
        )
        kept = lines_kept(other, wanted, asked_of(job.clips, job.plan))
        if kept != job.plan.variants or not all(
            _is_same_question(other.items[each.id], each) for each in items
        ):
            self.say(f"{label}: the other machine's is not whole, or of something else")
            return None
        self.say(f"{label}: of the other machine")
        return Said(label, Measured(other.items, other.blocks), there=there)

    def _asked(self, loaded: LoadedPair, job: BenchJob) -> Measured:
        told = _Told(job.out.name, self.say)
        if job.plan.variants == (REFERENCE,):
            return batched_of(loaded, job, progress=told)
        return measured_of(loaded, job, progress=told, warn=self.say)


def _is_same_question(one: Item, other: Item) -> bool:
    first, second = (each.model_dump(mode="json", include={"prompt", "scene"}) for each in (one, other))
    return first == second


def portions(before: int, count: int) -> Iterator[tuple[int, int]]:
    """Of further scenes, behind so many: the number of the first of each portion, and how many it has."""
    for start in range(0, count, PORTION):
        yield before + start + 1, min(PORTION, count - start)


def further_said(report: Report, own: Variant, runs: Sequence[Said]) -> str:
    """What the page says of further scenes, and of answers that were there before; empty: neither."""
    which = [
        f"of scenes {report.first + report.scenes} to {report.first + report.scenes + count - 1} {what}"
        for count, what in (
            (report.further_scenes, "the captions"),
            (report.further_answers, f"{FURTHER_QUESTIONS} answers about each"),
        )
        if count
    ]
    found = [
        f"ar's texts, but for those that were timed, are by transformers' `generate`, {BATCH} at a time."
    ]
    if report.first > 1:
        found.append(f"Scenes are counted from {report.first} on: earlier ones had been looked at.")
    if which:
        found.append(f"By {own} alone: {', '.join(which)}.")
    helped: dict[str, list[str]] = defaultdict(list)
    for each in runs:
        if each.there is not None:
            helped[machine(each.there)].append(each.label.replace("_", " "))
    found += [f"On another machine, {name}: {', '.join(labels)}." for name, labels in helped.items()]
    if taken := dict.fromkeys(line for each in runs for line in each.kept):
        found.append(f"Texts of an earlier run with the same settings: {', '.join(map(str, taken))}.")
    return "\n".join(found)


def text_lines(
    report: Report, gamma: Gamma, tuned: Sequence[Variant], parts: Sequence[Variant]
) -> dict[Variant, int]:
    """What is asked for texts, and of how many scenes: controls and ablations of fewer."""
    return {
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


def standalone_svg(inline: str) -> str:
    """A chart as an SVG file, in a grey that is readable on light and dark pages."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return inline.replace("<svg", f'<svg {spaces} color="#808080"', 1) + "\n"


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
    parser.add_argument(
        "--first", type=int, default=1, metavar="SCENE", help="the first one: others than were looked at"
    )
    parser.add_argument("--scenes", type=int, default=1000, help="for fidelity")
    parser.add_argument("--control-scenes", type=int, default=300, help="of these, for tuned controls")
    parser.add_argument("--ablation-scenes", type=int, default=150, help="of these, for the rule's parts")
    parser.add_argument(
        "--further-scenes", type=int, default=0, help="captions of so many more, by the pair's own rule alone"
    )
    parser.add_argument(
        "--further-answers",
        type=int,
        default=0,
        help="of the first so many of these, four answers each as well",
    )
    parser.add_argument("--speed", type=int, default=100, help="of these, for speed")
    parser.add_argument("--few", type=int, default=40, help="of these, for slow lines of less interest")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="for texts, a thread each")
    parser.add_argument("--page", type=Path, default=Path("docs/bench-demo.md"))
    parser.add_argument("--variants", type=Path, help="tuned controls, as lvspec tune writes them")
    parser.add_argument(
        "--only-further",
        type=int,
        metavar="SCENE",
        help="nothing but further scenes, from this one on: for a machine that helps (see --elsewhere)",
    )
    parser.add_argument(
        "--elsewhere", type=Path, help="a helping machine's folder: portions that it did whole are its"
    )
    parser.add_argument(
        "--earlier", type=Path, help="a report's folder: texts of lines that have not changed since are its"
    )
    parser.add_argument("--models", type=Path, help="a models.yaml of your own")
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--threads", type=int, default=1, help="for speed")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--redo", action="store_true", help="measure all of it again")
    given = parser.parse_args()
    command = shlex.join(["python", "-m", "tools.demo_report.report", *sys.argv[1:]])

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
