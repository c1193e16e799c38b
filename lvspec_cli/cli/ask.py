"""``lvspec ask``: questions about one video."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.types import (
    DecodeSettings,
    Looseness,
    Mode,
    RuleSettings,
    VideoRequest,
)

if TYPE_CHECKING:
    from lvspec_cli.pipeline import Trace
    from lvspec_cli.registry import Defaults, Pair


def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to ask; - reads it from stdin.")
    ] = None,
    more_questions: options.Questions = None,
    questions: options.QuestionFile = None,
    system: options.System = None,
    pair: options.PairName = None,
    models: options.ModelsPath = None,
    device: options.Device = "auto",
    dtype: options.DataType = "auto",
    threads: options.Threads = None,
    mode: options.ModeName = Mode.LVSPEC,
    gamma: options.Gamma = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    looseness: options.LoosenessName = Looseness.BALANCED,
    relevance: options.Relevance = None,
    anchor_threshold: options.AnchorThreshold = None,
    anchor_margin: options.AnchorMargin = None,
    filler_margin: options.FillerMargin = None,
    shift_window: options.ShiftWindow = None,
    max_loose_run: options.MaxLooseRun = None,
    max_loose_in_window: options.MaxLooseInWindow = None,
    loose_window: options.LooseWindow = None,
    random_rate: options.RandomRate = None,
    layer: options.Layers = None,
    frames: options.FrameCap = None,
    fps: options.FrameRate = None,
    start: options.Start = None,
    end: options.End = None,
    max_pixels: options.MaxPixels = None,
    decoder: options.Decoder = "pyav",
    decode_timeout: options.DecodeTimeout = 120.0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    trace: options.TraceFile = None,
    debug: options.Debug = False,
) -> None:
    """Ask questions about a video. The answer goes to stdout, all else to stderr."""
    given = dict(locals())
    with reporting(debug) as stop:
        if not debug:
            _quieten_libraries()
        from lvspec_cli import pipeline
        from lvspec_cli.cli.questions import checked_text, collect_questions
        from lvspec_cli.cli.show import showing
        from lvspec_cli.registry import load_registry

        name, chosen = load_registry(models).pair(pair)
        request = pipeline.AskRequest(
            video=video_request(given, chosen.defaults),
            questions=collect_questions(question, more_questions or (), questions),
            pair_name=name,
            pair=chosen,
            settings=decode_settings(given, chosen),
            system=None if system is None else checked_text(system, "--system"),
            device=device,
            dtype=dtype,
            threads=threads,
        )
        with _tracing(trace) as write_row, showing(request, as_json=as_json, quiet=quiet) as show:

            def listen(event: Any) -> None:
                stop.listen(event)
                show(event)

            pipeline.ask(request, listen, trace=write_row, interrupted=stop.asked)
        if stop.asked():
            raise KeyboardInterrupt


def _quieten_libraries() -> None:
    """Their advice to programmers is not for the user's terminal. Errors still come through."""
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")


def video_request(given: Mapping[str, Any], defaults: Defaults) -> VideoRequest:
    """What the flags ask of the video, the pair's defaults where they are silent.

    :raises UsageError: a value is out of range.
    """
    from lvspec_cli.video.times import parse_time

    start, end = (parse_time(given[name]) if given[name] is not None else None for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise UsageError("--end is not after --start", "choose a later end")
    _check(given, "fps", above=0.0)
    _check(given, "decode_timeout", above=0.0)
    sampled = given["frames"] is not None or given["fps"] is not None
    return VideoRequest(
        path=Path(given["video"]),
        start=start,
        end=end,
        max_frames=given["frames"] if sampled else defaults.frames,
        fps=given["fps"] if sampled else defaults.fps,
        max_pixels=given["max_pixels"] or defaults.max_pixels,
        decoder=given["decoder"],
        timeout=given["decode_timeout"],
    )


def decode_settings(given: Mapping[str, Any], pair: Pair) -> DecodeSettings:
    """How the flags want answers decoded, the pair's defaults where they are silent.

    :raises UsageError: a value is out of range, or flags do not go together.
    """
    _check(given, "temperature", least=0.0)
    if given["temperature"] > 0 and given["mode"] is Mode.LVSPEC:
        raise UsageError("--temperature has no rule in mode lvspec yet", "add --mode exact or --mode ar")
    return DecodeSettings(
        mode=given["mode"],
        gamma=given["gamma"] or pair.defaults.gamma,
        rule=_rule(given, pair),
        max_new_tokens=given["max_new_tokens"] or pair.defaults.max_new_tokens,
        temperature=given["temperature"],
        seed=given["seed"],
    )


def _rule(given: Mapping[str, Any], pair: Pair) -> RuleSettings:
    from dataclasses import asdict, fields

    from pydantic import TypeAdapter, ValidationError

    from lvspec_cli.registry import rule_of

    flags = {field.name: given.get(field.name) for field in fields(RuleSettings)}
    flags["layers"] = given["layer"] or None
    changes = {name: value for name, value in flags.items() if value is not None}
    try:
        return TypeAdapter(RuleSettings).validate_python(
            {**asdict(rule_of(pair, given["looseness"])), **changes}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(
            f"{flag}: {first['msg']}, not {first['input']}", "lvspec ask --help lists the flags"
        ) from None


def _check(
    given: Mapping[str, Any], name: str, *, above: float = -math.inf, least: float = -math.inf
) -> None:
    """A number that has a range: NaN and infinity are in none."""
    value = given[name]
    if value is not None and not (math.isfinite(value) and value > above and value >= least):
        bound = f"above {above:g}" if above > -math.inf else f"{least:g} or more"
        raise UsageError(f"--{name.replace('_', '-')} {value:g} is out of range", f"give a number {bound}")


@contextmanager
def _tracing(file: Path | None) -> Iterator[Trace | None]:
    """Opens the trace before anything slow begins."""
    if file is None:
        yield None
        return
    from lvspec_cli.output.trace import trace_line

    def explained(error: OSError) -> OutputError:
        return OutputError(f"{file}: {error.strerror or error}", "name a file that can be written")

    try:
        stream = file.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise explained(error) from error

    def write(row: dict[str, Any]) -> None:
        try:
            stream.write(trace_line(row) + "\n")
        except OSError as error:
            raise explained(error) from error

    with stream:
        yield write
