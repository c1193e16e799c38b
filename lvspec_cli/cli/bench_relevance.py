"""``lvspec bench-relevance``: how well each scheme tells fact tokens from filler tokens."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from lvspec_cli.cli import options
from lvspec_cli.cli.bench import check_before, drawn_clips, noted_last, resumable, warn
from lvspec_cli.cli.groups import OptionGroup, flag, with_groups
from lvspec_cli.cli.reporting import reporting, say, write_out
from lvspec_cli.cli.requests import checked_system, chosen_pair, decode_settings, video_request
from lvspec_cli.host import quieten_libraries
from lvspec_cli.table import counted
from lvspec_cli.types import Mode, RelevanceName

if TYPE_CHECKING:
    from lvspec_cli.bench.items import BenchClip
    from lvspec_cli.bench.relevance import RelevanceResults
    from lvspec_cli.pairs.registry import Pair
    from lvspec_cli.request import AskRequest, PairChoice
    from lvspec_cli.types import VideoRequest
    from lvspec_cli.ui.progress import PlainProgress


class SchemeName(StrEnum):
    """The schemes that give a token a score."""

    ATTENTION = "attention"
    SIMILARITY = "similarity"
    LENS = "lens"
    RANK = "rank"
    LEXICON = "lexicon"
    RANDOM = "random"


@dataclass(frozen=True)
class Scoring(OptionGroup):
    """The captions that are scored, and the schemes."""

    section = "Captions and scores"

    clips: Annotated[
        list[str] | None,
        Argument(
            metavar="[CLIPS]...",
            help="Clips that lvspec demo wrote, or folders of them; none draws new ones.",
        ),
    ] = None
    out: Path = flag(Path("lvspec-bench"), "Where the results go.", "-o", metavar="DIR")
    limit: int | None = flag(None, "Take N clips at most.", min=1, max=9999, metavar="N")
    relevance: list[SchemeName] | None = flag(None, "Only this scheme; repeat for more.", metavar="NAME")
    redo: bool = flag(False, "Score all captions again.", "--redo")
    gamma: options.Gamma = None
    system: options.System = None
    max_new_tokens: options.MaxNewTokens = None
    seed: options.Seed = 0


@dataclass(frozen=True)
class RelevanceFlags(OptionGroup):
    """All flags of the command."""

    scoring: Scoring
    loading: options.Loading
    sampling: options.Sampling
    messages: options.Messages


@with_groups
def bench_relevance(flags: RelevanceFlags) -> None:
    """Measure what tells anchors from fillers. On the target's own captions of clips with known facts.

    lvspec bench-relevance
    lvspec bench-relevance clips --relevance attention --relevance similarity

    It can be stopped, and resumes where it left off.
    """
    with reporting(flags.messages.debug):
        check_before("lvspec bench-relevance", flags.scoring.clips)
        if not flags.messages.debug:
            quieten_libraries()
        raise typer.Exit(_bench_relevance(flags))


def _bench_relevance(flags: RelevanceFlags) -> int:
    """Runs the command and gives its exit code."""
    from lvspec_cli.bench.relevance import FILE_NAME, to_json
    from lvspec_cli.bench.report import scheme_table, write_report
    from lvspec_cli.output.files import replacing
    from lvspec_cli.ui.tables import for_stdout

    out = flags.scoring.out
    with resumable(out, flags.messages.quiet, "scored") as progress:
        results = _measured(flags, progress)
    with replacing(out / FILE_NAME) as stream:
        stream.write(to_json(results).encode())
    page = write_report(out)
    write_out(for_stdout(scheme_table(results)))
    if not flags.messages.quiet:
        captions = counted(results.clips, "caption")
        say(f"{results.facts} tokens of facts, {results.fillers} others, in {captions} by {results.target}")
    for name, cause in results.unread.items():
        say(f"not measured: {name}: {cause}")
    if not flags.messages.quiet:
        say(f"results: {out / FILE_NAME}, {page}")
    return 1 if results.unread else 0


def _measured(flags: RelevanceFlags, progress: PlainProgress) -> RelevanceResults:
    from lvspec_cli.bench.journal import environment_of
    from lvspec_cli.bench.relevance import (
        SCHEMES,
        Header,
        RelevanceResults,
        evaluate_schemes,
        measure_relevance,
        open_captions,
    )
    from lvspec_cli.memory.resolve import workload_of
    from lvspec_cli.memory.short import memory_errors
    from lvspec_cli.pipeline import load, prepared

    scoring = flags.scoring
    _check_files(scoring.out)
    choice = chosen_pair(flags.loading)
    with noted_last(progress) as note:
        plan, request = prepared(choice, _request(flags, choice.pair), note)
        clips = _clips(scoring, request.video, progress)
    workload = workload_of(request)
    loaded = load(plan, workload, progress.listen)
    settings = request.settings
    schemes = [RelevanceName(name) for name in scoring.relevance or SCHEMES]
    environment = environment_of(loaded)
    header = Header(settings=_facts(plan.choice, request, schemes), environment=environment)
    with (
        memory_errors(plan, workload),
        open_captions(scoring.out, header, redo=scoring.redo) as captions,
        progress.counting("captioning and scoring") as advance,
    ):
        measured = measure_relevance(
            loaded,
            clips,
            settings,
            captions,
            system=request.system,
            schemes=schemes,
            progress=advance,
            warn=warn,
        )
    scored = measured.scored
    return RelevanceResults(
        command=shlex.join(["lvspec", *sys.argv[1:]]),
        environment=environment,
        unread=measured.unread,
        pair=choice.name,
        target=choice.pair.target.name,
        clips=len(scored),
        facts=sum(sum(caption.facts) for caption in scored),
        fillers=sum(len(caption.facts) - sum(caption.facts) for caption in scored),
        gamma=settings.greatest_gamma,
        threshold=settings.rule.anchor_threshold,
        schemes=evaluate_schemes(scored, settings.rule.anchor_threshold),
    )


def _request(flags: RelevanceFlags, pair: Pair) -> AskRequest:
    """The request in mode ar. It has the pair's own rule, because its threshold is used."""
    from lvspec_cli.request import AskRequest

    scoring, system = flags.scoring, checked_system(flags.scoring.system)
    decoding = options.Decoding(
        mode=Mode.AR, gamma=scoring.gamma, max_new_tokens=scoring.max_new_tokens, seed=scoring.seed
    )
    settings = decode_settings(decoding, options.Rule(), pair)
    return AskRequest(video_request(flags.sampling, pair), (), settings, system)


def _check_files(out: Path) -> None:
    """:raises OutputError: files that lvspec did not write have the names of the results."""
    from lvspec_cli.bench import journal, relevance, report
    from lvspec_cli.output.files import check_all_ours

    marks = {
        relevance.FILE_NAME: b'"schema": "lvspec.relevance.',
        report.FILE_NAME: report.MARK,
        relevance.CAPTIONS_NAME: journal.MARK,
    }
    check_all_ours(out, marks)


def _facts(choice: PairChoice, request: AskRequest, schemes: Sequence[RelevanceName]) -> dict[str, Any]:
    """Everything that decides the captions, their scores and the times, as JSON values."""
    from lvspec_cli.output.records import settings_fields

    target, video = choice.pair.target, request.video
    return {
        "pair": choice.name,
        "target": target.name,
        "revision": target.revision,
        "schemes": [str(scheme) for scheme in schemes],
        "settings": settings_fields(replace(request.settings, mode=Mode.LVSPEC)),
        "sampling": [video.max_frames, video.fps, video.max_pixels, video.decoder],
        "system": request.system,
        "device": choice.device,
        "dtype": choice.dtype,
        "threads": choice.threads,
    }


def _clips(scoring: Scoring, video: VideoRequest, progress: PlainProgress) -> tuple[BenchClip, ...]:
    from lvspec_cli.bench.items import clips_of
    from lvspec_cli.bench.run import RELEVANCE_CLIPS
    from lvspec_cli.output.files import make_folder

    make_folder(scoring.out)
    sources = [Path(text) for text in scoring.clips or ()]
    sources = sources or drawn_clips(scoring.out / "clips", scoring.limit or RELEVANCE_CLIPS, progress)
    return clips_of(sources, video, limit=scoring.limit)
