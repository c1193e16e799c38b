"""``lvspec tune``: the rule's thresholds for a pair, found by measuring."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.bench import Clips, Work, check_before, chosen_clips, noted_last, resumable, warn
from lvspec_cli.cli.groups import OptionGroup, flag, with_groups
from lvspec_cli.cli.reporting import reporting, say, write_out
from lvspec_cli.cli.requests import checked_system, chosen_pair, decode_settings, video_request
from lvspec_cli.errors import UsageError
from lvspec_cli.host import quieten_libraries
from lvspec_cli.types import Mode, RelevanceName

if TYPE_CHECKING:
    from lvspec_cli.bench.tune import Tuned, TuneJob
    from lvspec_cli.request import PairChoice
    from lvspec_cli.ui.progress import PlainProgress

TUNING_SEED = 2_000_003  # for drawn clips: none of the bench's, on which results are reported


@dataclass(frozen=True)
class Search(OptionGroup):
    """Which settings of the rule are tried."""

    section = "The search"
    common = ("calibrate", "budget", "min_fidelity", "report")

    calibrate: bool = flag(
        False,
        "Search nothing: caption ten clips in mode exact, and keep what they show of the pair. From then on "
        "its percentiles are margins, and relevances have their layers and thresholds.",
        "--calibrate",
    )
    relevance: list[RelevanceName] | None = flag(
        None, "Tune this scheme, not the pair's own; repeat to tune controls too.", metavar="NAME"
    )
    budget: int = flag(48, "Try N settings of each relevance.", min=1, max=999, metavar="N")
    min_fidelity: float = flag(
        99.8,
        "Quality to keep of ar's, as the lower end of its interval: of facts and answers where right ones "
        "are known, else of the content words that the target's own second choices keep.",
        metavar="PERCENT",
    )
    gamma: str = flag("auto,4,8,12,16", "What to try for gamma: auto,4,8,12,16.", metavar="LIST")
    layers: options.Layers = None
    max_new_tokens: options.MaxNewTokens = None
    seed: int = flag(
        0, "Another seed, other halves and other settings.", min=0, max=options.GREATEST_SEED, metavar="N"
    )
    report: int | None = flag(
        None, "Report on N clips of the other half only: they are timed.", min=1, max=9999, metavar="N"
    )


@dataclass(frozen=True)
class TuneWork(Work):
    """Where the search writes, and how it is done."""

    out: Path = flag(Path("lvspec-tune"), "Where measurements and results go.", "-o", metavar="DIR")


@dataclass(frozen=True)
class TuneFlags(OptionGroup):
    """All flags of the command."""

    clips: Clips
    search: Search
    work: TuneWork
    loading: options.Loading
    sampling: options.Sampling
    messages: options.Messages


@with_groups
def tune(flags: TuneFlags) -> None:
    """Find the fastest rule for a pair that keeps the quality. It is printed as lines for models.yaml.

    lvspec tune clips --pair qwen3.5-9b-0.8b
    lvspec tune clips --budget 100 --min-fidelity 99.5

    It is searched on one half of the clips and reported on the other. It can be stopped, and resumes where it
    left off.
    """
    with reporting(flags.messages.debug):
        check_before("lvspec tune", flags.clips.clips)
        if not flags.messages.debug:
            quieten_libraries()
        raise typer.Exit(_tune(flags))


def _tune(flags: TuneFlags) -> int:
    """Runs the command and gives its exit code."""
    from lvspec_cli.bench.tune import notes
    from lvspec_cli.ui.summary import tuned_text

    quiet = flags.messages.quiet
    choice = chosen_pair(flags.loading)
    if flags.search.calibrate:
        return _calibrate(flags, choice)
    with resumable(flags.work.out, quiet) as progress:
        job = _read_job(flags, choice, progress)
        tuned = _run(job, progress)
    _write(job, tuned)
    write_out(tuned_text(tuned) + _lines(job, tuned))
    if not quiet:
        for note in notes(job, tuned):
            say(note)
        say(f"results: {job.out}")
    reported = tuned.results.items if tuned.results else ()
    return 1 if tuned.failed or any(item.error for item in reported) else 0


def _calibrate(flags: TuneFlags, choice: PairChoice) -> int:
    """Measures the pair and keeps the result. Gives the exit code.

    :raises LvspecError: there is no clip, no folder for the result, or too little to measure.
    """
    from lvspec_cli.bench.pair_calibration import CAPTIONS, calibrate_pair
    from lvspec_cli.host import state_folder
    from lvspec_cli.memory.resolve import workload_of
    from lvspec_cli.memory.short import memory_errors
    from lvspec_cli.output.files import make_folder, replacing
    from lvspec_cli.pairs.calibration import calibration_file
    from lvspec_cli.pipeline import load, prepared
    from lvspec_cli.request import AskRequest
    from lvspec_cli.ui.pairs import calibration_text

    state = state_folder()
    if state is None:
        raise UsageError("there is no home folder to keep the result in", "set XDG_STATE_HOME")
    path = calibration_file(state, choice.name)
    video, system = video_request(flags.sampling, choice.pair), checked_system(flags.clips.system)
    decoding = options.Decoding(
        mode=Mode.EXACT, fallback=False, max_new_tokens=flags.search.max_new_tokens, seed=flags.search.seed
    )
    settings = decode_settings(decoding, options.Rule(), choice.pair)
    failed = list[str]()
    with resumable(flags.work.out, flags.messages.quiet) as progress:
        with noted_last(progress) as note:
            load_plan, request = prepared(choice, AskRequest(video, (), settings, system), note)
            clips = chosen_clips(
                flags.clips, flags.work.out, video, progress, drawn=CAPTIONS, seed=TUNING_SEED
            )
        workload = workload_of(request)
        loaded = load(load_plan, workload, progress.listen)
        with memory_errors(load_plan, workload):
            found = calibrate_pair(
                loaded, clips, request.settings, system=system,
                progress=progress.staged("captioning"), warn=failed.append,
            )  # fmt: skip
    pair = choice.pair
    found = found.model_copy(
        update={"target": pair.target.label, "draft": pair.draft.label, "created": str(date.today())}
    )
    make_folder(path.parent)
    with replacing(path) as stream:
        stream.write(found.model_dump_json(indent=1, by_alias=True).encode())
    for message in failed:
        warn(message)
    write_out(calibration_text(pair.rules, found))
    if not flags.messages.quiet:
        say(f"kept in {path}: rules of {choice.name} follow from it from now on")
    return 1 if failed else 0


def _read_job(flags: TuneFlags, choice: PairChoice, progress: PlainProgress) -> TuneJob:
    """Reads and checks all flags, and draws clips of the demo world if none are named.

    :raises UsageError: flags are wrong or exclude each other.
    :raises NoInputError: there is nothing to measure.
    :raises OutputError: files of others have the names of the results.
    """
    from lvspec_cli.bench.run import TUNING_CLIPS
    from lvspec_cli.bench.tune import MARKS, TuneJob
    from lvspec_cli.bench.variants import parse_gammas
    from lvspec_cli.output.files import check_all_ours, make_folder
    from lvspec_cli.pipeline import prepared
    from lvspec_cli.request import AskRequest

    search, work = flags.search, flags.work
    check_all_ours(work.out, MARKS)
    min_percent = search.min_fidelity
    if not 0 < min_percent <= 100:
        raise UsageError(
            f"--min-fidelity {min_percent:g} is out of range", "give per cent: above 0, 100 at most"
        )
    relevances = tuple(dict.fromkeys(search.relevance or [choice.pair.rules.balanced.relevance]))
    if RelevanceName.NONE in relevances:
        raise UsageError("--relevance none has nothing to tune: it is exact mode", "name another")
    gammas = parse_gammas(search.gamma)
    # The pair's own rule is where the search begins.
    decoding = options.Decoding(fallback=False, max_new_tokens=search.max_new_tokens, seed=search.seed)
    rule, system = options.Rule(layers=search.layers), checked_system(flags.clips.system)
    video = video_request(flags.sampling, choice.pair)
    unresolved = AskRequest(video, (), decode_settings(decoding, rule, choice.pair), system)
    with noted_last(progress) as note:
        load_plan, request = prepared(choice, unresolved, note)
        make_folder(work.out)
        clips = chosen_clips(flags.clips, work.out, video, progress, drawn=TUNING_CLIPS, seed=TUNING_SEED)
    return TuneJob(
        load_plan=load_plan,
        video=video,
        settings=request.settings,
        relevances=relevances,
        gammas=gammas,
        clips=clips,
        budget=search.budget,
        min_fidelity=min_percent / 100,
        seed=search.seed,
        out=work.out,
        redo=work.redo,
        processes=work.processes,
        reported=search.report,
        system=system,
        find_layers=search.layers is None,
        command=shlex.join(["lvspec", *sys.argv[1:]]),
    )


def _run(job: TuneJob, progress: PlainProgress) -> Tuned:
    from lvspec_cli.bench.tune import tune as tune_rule
    from lvspec_cli.memory.short import memory_errors
    from lvspec_cli.pipeline import load

    loaded = load(job.load_plan, job.workload, progress.listen)
    with memory_errors(job.load_plan, job.workload):
        return tune_rule(
            loaded, job, progress=progress.staged, warn=warn, on_chosen=lambda tuned: _write(job, tuned)
        )


def _lines(job: TuneJob, tuned: Tuned) -> str:
    """The pair's entry for a models.yaml; empty if the search found no settings."""
    from lvspec_cli.bench.tune import models_yaml

    best, choice = tuned.best, job.load_plan.choice
    if best is None:
        return ""
    return models_yaml(choice.name, choice.pair, best, tuned.costs[best.rule.rule.relevance])


def _write(job: TuneJob, tuned: Tuned) -> None:
    from lvspec_cli.bench.tune import MARKDOWN, MODELS, RULES, markdown, rules_yaml
    from lvspec_cli.output.files import replacing

    texts = {MARKDOWN: markdown(job, tuned)}
    if lines := _lines(job, tuned):
        texts |= {MODELS: lines, RULES: rules_yaml(tuned)}
    for name, text in texts.items():
        with replacing(Path(job.out) / name) as stream:
            stream.write(text.encode())
