"""What ``lvspec bench-relevance`` does: clips, captions, scores, files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvspec_cli.bench.items import BenchClip, clips_of
from lvspec_cli.bench.journal import MARK as LINES_MARK
from lvspec_cli.bench.journal import environment_of
from lvspec_cli.bench.relevance import (
    FILE_NAME,
    SCHEMES,
    RelevanceResults,
    separate,
    to_json,
)
from lvspec_cli.bench.relevance_measure import FILE_NAME as CAPTIONS_NAME
from lvspec_cli.bench.relevance_measure import Header, captions_of, measure_relevance
from lvspec_cli.bench.report import FILE_NAME as REPORT_NAME
from lvspec_cli.bench.report import MARK as REPORT_MARK
from lvspec_cli.bench.report import scheme_table, write_report
from lvspec_cli.bench.run import RELEVANCE_CLIPS, demo_clips
from lvspec_cli.cli.reporting import say, write_out
from lvspec_cli.cli.requests import (
    checked_text,
    chosen_pair,
    decode_settings,
    loading_of,
    tell,
    video_request,
)
from lvspec_cli.errors import OutputError
from lvspec_cli.output.files import check_all_ours, replacing
from lvspec_cli.output.records import settings_fields
from lvspec_cli.pipeline import load, memory_errors, pinned_request
from lvspec_cli.request import AskRequest
from lvspec_cli.types import DecodeSettings, Looseness, Mode, RelevanceName, RuleSettings, VideoRequest
from lvspec_cli.ui.progress import PlainProgress
from lvspec_cli.ui.tables import for_stdout

MARKS = {
    FILE_NAME: b'"schema": "lvspec.relevance.',
    REPORT_NAME: REPORT_MARK,
    CAPTIONS_NAME: LINES_MARK,
}
LABELS = ("drawing clips", "captioning and scoring")


def relevance_all(given: Mapping[str, Any]) -> int:
    """Runs the command and gives its exit code."""
    progress = None if given["quiet"] else PlainProgress(sys.stderr)
    try:
        results = _measured(given, progress)
    except KeyboardInterrupt:
        if progress:
            progress.close()
        say(f"what is scored stands in {given['out']}: the same command goes on from there")
        raise
    finally:
        if progress:
            progress.close()
    out = given["out"]
    with replacing(out / FILE_NAME) as stream:
        stream.write(to_json(results).encode())
    page = write_report(out)
    write_out(for_stdout(scheme_table(results)))
    if not given["quiet"]:
        say(
            f"{results.facts} tokens of facts, {results.fillers} others, in {results.clips} captions by"
            f" {results.target}"
        )
        for name, cause in results.unread.items():
            say(f"not measured: {name}: {cause}")
        say(f"results: {out / FILE_NAME}, {page}")
    return 1 if results.unread else 0


def _measured(given: Mapping[str, Any], progress: PlainProgress | None) -> RelevanceResults:
    check_all_ours(given["out"], MARKS)
    name, pair, note = chosen_pair(given)
    request = AskRequest(
        video=video_request({**given, "video": ""}, pair.defaults),
        questions=(),
        pair_name=name,
        pair=pair,
        settings=decode_settings({**given, **_SILENT}, pair),
        system=None if given["system"] is None else checked_text(given["system"], "--system"),
        device=given["device"],
        dtype=given["dtype"],
        **loading_of(given),
        threads=given["threads"],
    )
    clips = _clips(given, request.video, progress)
    request = pinned_request(request)
    tell(note, given)
    loaded = load(request, progress.listen if progress else lambda event: None)
    if progress:
        progress.begin(LABELS[1])
    settings: DecodeSettings = request.settings
    schemes = [RelevanceName(each) for each in given["relevance"] or SCHEMES]
    environment = environment_of(loaded)
    header = Header(settings=_facts(request, schemes), environment=environment)
    with memory_errors(request), captions_of(given["out"], header, redo=given["redo"]) as kept:
        measured = measure_relevance(
            loaded,
            clips,
            settings,
            kept,
            system=request.system,
            schemes=schemes,
            progress=lambda done, total: progress.advance(LABELS[1], done, total) if progress else None,
            warn=lambda message: say(f"warning: {message}"),
        )
    scored = measured.scored
    return RelevanceResults(
        command=shlex.join(["lvspec", *sys.argv[1:]]),
        environment=environment,
        unread=measured.unread,
        pair=name,
        target=request.pair.target.name,
        clips=len(scored),
        facts=sum(sum(each.facts) for each in scored),
        fillers=sum(len(each.facts) - sum(each.facts) for each in scored),
        gamma=settings.greatest_gamma,
        threshold=settings.rule.anchor_threshold,
        schemes=separate(scored, settings.rule.anchor_threshold),
    )


def _facts(request: AskRequest, schemes: Sequence[RelevanceName]) -> dict[str, Any]:
    """What decides the captions, their scores and the times, as JSON can hold it."""
    pair, video = request.pair, request.video
    return {
        "pair": request.pair_name,
        "target": pair.target.name,
        "revision": pair.target.revision,
        "schemes": [str(each) for each in schemes],
        "settings": settings_fields(replace(request.settings, mode=Mode.LVSPEC)),
        "sampling": [video.max_frames, video.fps, video.max_pixels, video.decoder],
        "system": request.system,
        "device": request.device,
        "dtype": request.dtype,
        "threads": request.threads,
    }


# The target captions alone; the pair's own rule stands, whose threshold is looked at.
_SILENT = {
    "mode": Mode.AR,
    "temperature": 0.0,
    "draft_keep": 1.0,
    "looseness": Looseness.BALANCED,
    "layer": None,
    **dict.fromkeys(RuleSettings.__dataclass_fields__),
}


def _clips(
    given: Mapping[str, Any], video: VideoRequest, progress: PlainProgress | None
) -> tuple[BenchClip, ...]:
    out, limit = given["out"], given["limit"]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror or error}", "name a folder that can be written") from error
    sources = [Path(text) for text in given["clips"] or ()]
    if not sources:
        if progress:
            progress.begin(LABELS[0])
        sources = demo_clips(
            out / "clips",
            limit or RELEVANCE_CLIPS,
            lambda done, total: progress.advance(LABELS[0], done, total) if progress else None,
        )
        if progress:
            progress.close()
    return clips_of(sources, video, limit=limit)
