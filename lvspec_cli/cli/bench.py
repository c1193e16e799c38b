"""``lvspec bench``: how much faster, at what cost in quality; ``lvspec bench-compare``: what has changed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument

from lvspec_cli.cli import options
from lvspec_cli.cli.groups import OptionGroup, flag, with_groups
from lvspec_cli.cli.reporting import going_on, reporting, say, write_out
from lvspec_cli.cli.requests import (
    argument_of,
    bench_mistake,
    check_effects,
    check_local,
    checked_system,
    checked_text,
    chosen_pair,
    decode_settings,
    video_request,
)
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.host import install_command, message_stream, quieten_libraries
from lvspec_cli.types import KeepBy

if TYPE_CHECKING:
    from lvspec_cli.bench.items import BenchClip
    from lvspec_cli.bench.run import BenchJob
    from lvspec_cli.bench.variants import NamedRule
    from lvspec_cli.events import Event, Listener
    from lvspec_cli.figures.answers import Variant
    from lvspec_cli.types import RuleSettings, VideoRequest
    from lvspec_cli.ui.progress import PlainProgress

QUESTIONS, QUICK_QUESTIONS = 2, 1  # about each clip that has some
QUICK_TOKENS, QUICK_SLOTS = 64, (1, 4)


@dataclass(frozen=True)
class Clips(OptionGroup):
    """The clips that are measured, and the questions about them."""

    section = "Clips and questions"
    common = ("clips", "limit", "questions")

    clips: Annotated[
        list[str] | None,
        Argument(metavar="[CLIPS]...", help="Videos or folders of videos; none draws clips of its own."),
    ] = None
    limit: int | None = flag(None, "Take N clips at most.", min=1, max=9999, metavar="N")
    prompt: list[str] | None = flag(None, "What to ask of each clip; repeat for more.", metavar="TEXT")
    questions: Path | None = flag(
        None,
        "A JSONL file in place of CLIPS: path, question, and if you like answer, choices, start, end.",
        metavar="FILE",
    )
    questions_per_clip: int | None = flag(
        None,
        "Questions about each clip that has its own beside it, as lvspec demo writes them.",
        min=0, max=9999, metavar="N",
    )  # fmt: skip
    system: options.System = None


@dataclass(frozen=True)
class Measuring(OptionGroup):
    """What is compared, and how."""

    section = "Measurements"
    common = ("quick", "modes", "gamma", "texts_only", "throughput", "repeat")

    quick: bool = flag(False, "A minute's look: two clips, short answers.", "--quick")
    modes: str | None = flag(
        None,
        "Of ar,exact,exact-pruned,lvspec,lvspec-pruned,hf-ar,hf-assisted, and control, the target's own "
        "second choices; lvspec:random is the rule with another relevance. Left out: all, control where no "
        "right answers are known. With --throughput: of ar,exact,lvspec,hf-batched.",
        metavar="LIST",
    )
    gamma: str | None = flag(None, "Tokens the draft proposes a round: auto,3,5,8,12.", metavar="LIST")
    variants: Path | None = flag(
        None,
        "A YAML file of rules to run too: names, each with what it changes (and gamma, mode, "
        "draft_frames, draft_pixels).",
        metavar="FILE",
    )
    ablate: bool = flag(
        False,
        "Run the rule also without each of its parts (anchors, shift, ...), or with one it lacks.",
        "--ablate",
    )
    controls: bool = flag(False, "Run every other relevance too, with the same thresholds.", "--controls")
    texts_only: bool = flag(
        False, "Fidelity alone, of many clips: nothing is timed, all goes quicker.", "--texts-only"
    )
    throughput: bool = flag(
        False,
        "Clips an hour by how many are captioned together, the whole way from the files to the texts, beside "
        "batches of transformers.",
        "--throughput",
    )
    at_once: str | None = flag(
        None, "Captions at once that --throughput measures. Left out: 1,2,4,8,16.", metavar="LIST"
    )
    repeat: int = flag(1, "Measure everything N times.", min=1, max=9999, metavar="N")
    draft_keep: float = flag(
        0.1, "Share of the video's tokens that the draft sees in pruned modes.", metavar="X"
    )
    draft_keep_by: options.DraftKeepBy = KeepBy.ATTENTION
    max_new_tokens: options.MaxNewTokens = None
    seed: options.Seed = 0


@dataclass(frozen=True)
class Work(OptionGroup):
    """The folder of the results, and how they are measured."""

    section = "Results"
    common = ("out", "redo")

    out: Path = flag(Path("lvspec-bench"), "Where the results go.", "-o", metavar="DIR")
    redo: bool = flag(False, "Measure all of it again.", "--redo")
    processes: int = flag(
        1,
        "Ask for texts that are not timed in N processes, a thread and a copy of the pair each.",
        min=1, max=256, metavar="N",
    )  # fmt: skip


@dataclass(frozen=True)
class BenchFlags(OptionGroup):
    """All flags of the command."""

    clips: Clips
    measuring: Measuring
    work: Work
    loading: options.Loading
    rule: options.Rule
    sampling: options.Sampling
    messages: options.Messages


def check_before(command: str, clips: Sequence[str] | None) -> None:
    """Checks what can be checked before anything heavy is imported.

    :raises UsageError: the package for the charts of the command's report is missing, or a clip is text.
    :raises NoInputError: a clip is not there, or there is none in the folders.
    """
    from lvspec_cli.batch.inputs import collect

    given = [argument_of(text) for text in clips or ()]
    mistake = bench_mistake(given)
    if mistake is not None:
        raise mistake
    for argument in given:
        if not Path(argument.text).exists():
            raise NoInputError(f"no such file: {argument.text}", "check the name and the folder")
    if given:
        collect([Path(argument.text) for argument in given])
    if find_spec("matplotlib") is None:
        raise UsageError(
            f"{command} needs the package matplotlib", f"install it with: {install_command('matplotlib')}"
        )


@with_groups
def bench(flags: BenchFlags) -> None:
    """Measure how fast and how faithful every mode is. Compares every mode with ar and with transformers.

    lvspec bench --quick
    lvspec bench clips --pair qwen2.5-vl-32b-7b --out results

    It can be stopped, and resumes where it left off.
    """
    with reporting(flags.messages.debug):
        check_before("lvspec bench", flags.clips.clips)
        if not flags.messages.debug:
            quieten_libraries()
        raise typer.Exit(_bench(flags))


def _bench(flags: BenchFlags) -> int:
    """Runs the command and gives its exit code."""
    from lvspec_cli.bench.lines import notes, verdict
    from lvspec_cli.bench.run import run_bench
    from lvspec_cli.ui.summary import results_text

    with resumable(flags.work.out, flags.messages.quiet) as progress:
        job = _read_job(flags, progress)
        results = run_bench(job, listen=progress.listen, progress=progress.staged("measuring"), warn=warn)
    if not flags.messages.quiet:
        say(verdict(results))
    write_out(results_text(results))
    if not flags.messages.quiet:
        for note in notes(results):
            say(note)
        say(f"results: {job.out}")
    return 1 if any(item.error for item in results.items) else 0


@contextmanager
def resumable(out: Path, quiet: bool, done: str = "measured") -> Iterator[PlainProgress]:
    """Progress on stderr, unless quiet. After an interruption, prints that ``out`` has the results so far."""
    from lvspec_cli.ui.progress import PlainProgress

    progress = PlainProgress(None if quiet else message_stream())
    try:
        yield progress
    except KeyboardInterrupt:
        progress.close()
        say(f"what is {done} stands in {out}: {going_on(sys.argv)}")
        raise
    finally:
        progress.close()


@contextmanager
def noted_last(progress: PlainProgress) -> Iterator[Listener]:
    """Keeps what is noted until the block ends without an error: a note is no help before one."""
    notes: list[Event] = []
    yield notes.append
    for note in notes:
        progress.listen(note)


def _read_job(flags: BenchFlags, progress: PlainProgress) -> BenchJob:
    """Reads and checks all flags, and draws clips of the demo world if none are named.

    :raises UsageError: flags are wrong or exclude each other.
    :raises NoInputError: there is nothing to measure.
    :raises OutputError: files of others have the names of the results.
    """
    from lvspec_cli.bench.items import are_labelled
    from lvspec_cli.bench.measure import Plan
    from lvspec_cli.bench.run import MARKS, BenchJob
    from lvspec_cli.bench.variants import parse_gammas, rules_by_name, variants_of, views_by_name
    from lvspec_cli.figures.answers import BenchMode, Variant
    from lvspec_cli.output.files import check_all_ours
    from lvspec_cli.pipeline import prepared
    from lvspec_cli.request import AskRequest
    from lvspec_cli.types import Mode

    clips, measuring, work = flags.clips, flags.measuring, flags.work
    check_all_ours(work.out, MARKS)
    choice = chosen_pair(flags.loading)
    _check_throughput(flags)
    if work.processes > 1 and not measuring.texts_only:
        raise UsageError("--processes would spoil what is timed", "add --texts-only, or leave it out")
    if clips.questions is not None and (clips.clips or clips.prompt):
        raise UsageError("--questions names its own clips and questions", "leave out CLIPS and --prompt")
    decoding = options.Decoding(
        max_new_tokens=measuring.max_new_tokens,
        seed=measuring.seed,
        draft_keep=measuring.draft_keep,
        draft_keep_by=measuring.draft_keep_by,
    )
    system, video = checked_system(clips.system), video_request(flags.sampling, choice.pair)
    settings = decode_settings(decoding, flags.rule, choice.pair)
    if measuring.quick and measuring.max_new_tokens is None:
        settings = replace(settings, max_new_tokens=min(QUICK_TOKENS, settings.max_new_tokens))
    named = _named_rules(measuring, settings.rule)
    slots = _slots(measuring)
    modes = _modes(measuring, settings.rule, named, mtp=choice.pair.draft.mtp)
    if not named and not any(variant.relevance for variant in modes):  # else the flags are of several rules
        drafts = any(variant.mode.drafts for variant in modes)
        loose = any(variant.mode.is_loose for variant in modes)
        mode = Mode.LVSPEC if loose else Mode.EXACT if drafts else Mode.AR
        given = options.Decoding(gamma=measuring.gamma, seed=measuring.seed)
        check_effects(flags.loading, given, flags.rule, replace(settings, mode=mode))
    gammas = parse_gammas(measuring.gamma) if measuring.gamma else (settings.gamma,)
    variants = variants_of(modes, gammas)
    plain = all(variant.mode.is_plain for variant in variants)  # no draft is needed
    mode, keep = Mode.AR if plain else Mode.LVSPEC, 1.0 if choice.pair.draft.mtp else settings.draft_keep
    unresolved = AskRequest(video, (), replace(settings, mode=mode, draft_keep=keep), system)
    with noted_last(progress) as note:
        load_plan, request = prepared(choice, unresolved, note)
        chosen = chosen_clips(
            clips, work.out, video, progress, quick=measuring.quick, throughput=measuring.throughput
        )
    if not slots and not measuring.modes and not are_labelled(chosen):
        control = Variant(BenchMode.CONTROL)
        modes, variants = (*modes, control), (*variants, control)
    return BenchJob(
        load_plan=load_plan,
        video=video,
        clips=chosen,
        modes=modes,
        gammas=gammas,
        plan=Plan(
            variants=variants,
            settings=replace(request.settings, mode=settings.mode, draft_keep=settings.draft_keep),
            draft_keep=measuring.draft_keep,
            repeat=measuring.repeat,
            system=system,
            rules=rules_by_name(named),
            views=views_by_name(named),
            timed=not measuring.texts_only,
        ),
        out=work.out,
        redo=work.redo,
        processes=work.processes,
        slots=slots,
        command=shlex.join(["lvspec", *sys.argv[1:]]),
    )


def _check_throughput(flags: BenchFlags) -> None:
    """:raises UsageError: flags that say nothing about ``--throughput``, or nothing without it."""
    from lvspec_cli.bench.variants import parse_gammas

    clips, measuring, work = flags.clips, flags.measuring, flags.work
    if not measuring.throughput:
        if measuring.at_once is not None:
            raise UsageError("--at-once goes with --throughput only", "add --throughput, or leave it out")
        return
    others = {
        "--questions": clips.questions is not None,
        "--questions-per-clip": clips.questions_per_clip is not None,
        "--variants": measuring.variants is not None,
        "--ablate": measuring.ablate,
        "--controls": measuring.controls,
        "--texts-only": measuring.texts_only,
        "--processes": work.processes > 1,
        "--gamma with several": measuring.gamma is not None and len(parse_gammas(measuring.gamma)) > 1,
    }
    for flag_ in (name for name, is_given in others.items() if is_given):
        raise UsageError(f"{flag_} has no effect on --throughput", "leave out one of them")


def _slots(measuring: Measuring) -> tuple[int, ...]:
    """The numbers of captions at once that are measured; none without ``--throughput``."""
    from lvspec_cli.bench.variants import THROUGHPUT_SLOTS, parse_slots

    if not measuring.throughput:
        return ()
    if measuring.at_once is not None:
        return parse_slots(measuring.at_once)
    return QUICK_SLOTS if measuring.quick else THROUGHPUT_SLOTS


def _named_rules(measuring: Measuring, rule: RuleSettings) -> tuple[NamedRule, ...]:
    """The rules that ``--variants`` and ``--ablate`` add."""
    from lvspec_cli.bench.variants import ablations, read_rules

    own = read_rules(measuring.variants, rule) if measuring.variants is not None else ()
    return (*own, *(ablations(rule) if measuring.ablate else ()))


def _modes(
    measuring: Measuring, rule: RuleSettings, named: Sequence[NamedRule], *, mtp: bool
) -> tuple[Variant, ...]:
    """The modes of ``--modes``, the rule with every other relevance if requested, and the named rules.

    With ``--throughput`` those that are measured so.

    :param mtp: the draft is a prediction layer, for which there are fewer.
    :raises UsageError: one of those that were named is not among them.
    """
    from lvspec_cli.bench.variants import (
        LABELLED_MODES,
        THROUGHPUT_MODES,
        controls,
        needs_draft_model,
        parse_modes,
        parse_throughput_modes,
    )
    from lvspec_cli.figures.answers import Variant

    if measuring.throughput:
        return tuple(map(Variant, parse_throughput_modes(measuring.modes or ",".join(THROUGHPUT_MODES))))
    others = controls(rule) if measuring.controls else ()
    modes = parse_modes(measuring.modes or ",".join(LABELLED_MODES))
    chosen = (*dict.fromkeys((*modes, *others)), *(rule.variant for rule in named))
    if not mtp:
        return chosen
    impossible = [variant.name for variant in chosen if needs_draft_model(variant)]
    if impossible and (measuring.modes or any(needs_draft_model(rule.variant) for rule in named)):
        raise UsageError(
            f"--draft mtp cannot be measured in {', '.join(impossible)}",
            "modes whose names end in -pruned, and hf-assisted, are for a second model: leave them out",
        )
    return tuple(variant for variant in chosen if not needs_draft_model(variant))


def chosen_clips(
    clips: Clips,
    out: Path,
    video: VideoRequest,
    progress: PlainProgress,
    *,
    quick: bool = False,
    throughput: bool = False,
    drawn: int | None = None,
    seed: int | None = None,
) -> tuple[BenchClip, ...]:
    """The clips that the flags name, or else drawn clips of the demo world.

    :param throughput: the clips are captioned only, and there are more of them if they are drawn.
    :param drawn: how many clips to draw, by default as many as a bench uses.
    :param seed: of drawn clips, by default that of a bench.
    :raises LvspecError: there is nothing to measure, or a file is not valid.
    """
    from lvspec_cli.bench.items import clips_of, clips_of_questions
    from lvspec_cli.bench.run import BENCH_CLIPS, QUICK_CLIPS, QUICK_THROUGHPUT_CLIPS, THROUGHPUT_CLIPS

    few, many = (QUICK_THROUGHPUT_CLIPS, THROUGHPUT_CLIPS) if throughput else (QUICK_CLIPS, BENCH_CLIPS)
    limit = clips.limit or (few if quick else None)
    if clips.questions is not None:
        return clips_of_questions(clips.questions, video, limit=limit)
    per_clip = clips.questions_per_clip
    if per_clip is None:
        per_clip = 0 if clips.prompt or throughput else QUICK_QUESTIONS if quick else QUESTIONS
    sources = [Path(text) for text in clips.clips or ()]
    sources = sources or drawn_clips(out / "clips", limit or drawn or many, progress, seed)
    prompts = [checked_text(text, "--prompt") for text in clips.prompt or ()]
    return clips_of(sources, video, prompts=prompts, questions=per_clip, limit=limit)


def drawn_clips(folder: Path, count: int, progress: PlainProgress, seed: int | None = None) -> list[Path]:
    """Drawn clips of the demo world, by default those on which the bundled pair was not trained."""
    from lvspec_cli.bench.run import demo_clips
    from lvspec_cli.demo.write import HELD_OUT_SEED

    with progress.counting("drawing clips") as advance:
        return demo_clips(folder, count, advance, seed=HELD_OUT_SEED if seed is None else seed)


def warn(message: str) -> None:
    """Prints a warning."""
    say(f"warning: {message}")


First = Annotated[
    Path, typer.Argument(metavar="A", help="A results.json, or the folder that lvspec bench wrote it to.")
]
Second = Annotated[Path, typer.Argument(metavar="B", help="The later one.")]


@dataclass(frozen=True)
class CompareFlags(OptionGroup):
    """How much worse a figure may become, and messages."""

    margin: float = flag(
        0.05,
        "The share by which a speedup, an accepted length or the share of content words may fall.",
        min=0, max=1, metavar="X",
    )  # fmt: skip
    retention_margin: float = flag(
        0.002, "By how much the retention may fall, of 1.", min=0, max=1, metavar="X"
    )
    quiet: options.Quiet = False
    debug: options.Debug = False


@with_groups
def bench_compare(before: First, after: Second, flags: CompareFlags) -> None:
    """Show what changed between two results. The exit code is 6 if a figure got worse beyond the margin.

    lvspec bench-compare before after
    lvspec bench-compare before/results.json after/results.json --margin 0.1
    """
    with reporting(flags.debug):
        from lvspec_cli.bench.results import (
            Margins,
            compare_results,
            differences,
            read_results,
            unmeasured,
        )
        from lvspec_cli.errors import RegressionError
        from lvspec_cli.ui.summary import change_table
        from lvspec_cli.ui.tables import for_stdout

        check_local(before, after)
        first, second = read_results(before), read_results(after)
        changes = compare_results(first, second, Margins(flags.margin, flags.retention_margin))
        if not changes and first.modes:
            raise UsageError(f"{after} has no mode of {before}", "run both with the same --modes and --gamma")
        write_out(for_stdout(change_table(changes)))
        if not flags.quiet:
            for line in unmeasured(first, second):
                say(line)
            for line in differences(first, second):
                say(f"not the same: {line}")
        worse = [change for change in changes if change.regression]
        if worse:
            worst = worse[0]
            more = f", and {len(worse) - 1} more" if len(worse) > 1 else ""
            raise RegressionError(
                f"{worst.mode} got worse: {worst.figure} {_figure(worst.before)},"
                f" now {_figure(worst.after)}{more}",
                "fix it, or allow more with --margin or --retention-margin",
            )


def _figure(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.3f}"
