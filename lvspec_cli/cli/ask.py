"""``lvspec ask``: questions about one video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.groups import OptionGroup, flag, with_groups
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.cli.requests import (
    argument_of,
    ask_mistake,
    check_decoder,
    check_effects,
    checked_system,
    chosen_pair,
    collect_questions,
    decode_settings,
    video_request,
)
from lvspec_cli.errors import NoInputError, OutputError, UsageError
from lvspec_cli.host import STDERR_NAMES, quieten_libraries

if TYPE_CHECKING:
    from lvspec_cli.pipeline import Trace


@dataclass(frozen=True)
class Questions(OptionGroup):
    """Questions in addition to the one that is an argument."""

    section = "Questions"

    more: list[str] | None = flag(None, "A further question; repeat for more.", "--question", metavar="TEXT")
    file: Path | None = flag(None, "Questions, one a line; - reads stdin.", "--questions", metavar="FILE")
    system: options.System = None
    think: options.Think = False


@dataclass(frozen=True)
class Output(OptionGroup):
    """What is printed and written."""

    section = "Output"

    as_json: bool = flag(False, "Print one record a line.", "--json")
    trace: Path | None = flag(None, "Write what each round drafted, wanted and kept.", metavar="FILE")


@with_groups
def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file.")],
    question: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION]", help="What to ask; - reads it from stdin.")
    ] = None,
    *,
    questions: Questions,
    loading: options.Loading,
    decoding: options.Decoding,
    rule: options.Rule,
    sampling: options.FullSampling,
    output: Output,
    messages: options.Messages,
) -> None:
    """Ask questions about a video. The answer goes to stdout, all else to stderr."""
    with reporting(messages.debug) as stop:
        if not messages.debug:
            quieten_libraries()
        from lvspec_cli import pipeline
        from lvspec_cli.batch.names import reading_error
        from lvspec_cli.cli.show import showing
        from lvspec_cli.request import AskRequest

        if not video:
            raise NoInputError("the video's name is empty", "name a video file")
        mistake = ask_mistake([argument_of(text) for text in (video, *(question or ()))])
        if mistake is not None:
            raise mistake
        choice = chosen_pair(loading)
        request = AskRequest(
            video_request(sampling, choice.pair, Path(video)),
            collect_questions(question[0] if question else None, questions.more or (), questions.file),
            decode_settings(decoding, rule, choice.pair),
            checked_system(questions.system),
            questions.think,
        )
        check_decoder(sampling.decoder)
        check_effects(loading, decoding, rule, request.settings)
        missing = reading_error(Path(video))
        if isinstance(missing, NoInputError):  # other faults get a record
            raise missing
        with (
            _tracing(output.trace, Path(video)) as write_row,
            showing(choice, request, stop, as_json=output.as_json, quiet=messages.quiet) as show,
        ):

            def listen(event: Any) -> None:
                stop.heed()
                stop.listen(event)
                show(event)

            records = pipeline.ask(choice, request, listen, trace=write_row, interrupted=stop.asked)
        if stop.asked():
            raise KeyboardInterrupt
        if any(record.error is not None for record in records):  # it thought, and gave no answer
            raise typer.Exit(1)


@contextmanager
def _tracing(file: Path | None, video: Path) -> Iterator[Trace | None]:
    """Opens the trace before anything slow starts. It never replaces a file that is not a trace."""
    if file is None:
        yield None
        return
    from lvspec_cli.output.files import check_ours
    from lvspec_cli.output.text import MARK, trace_line

    if str(file) in STDERR_NAMES:
        raise UsageError(f"--trace {file}: messages go there", "name a file")

    def explained(error: OSError) -> OutputError:
        return OutputError(f"{file}: {error.strerror or error}", "name a file that can be written")

    if file.exists() and video.exists() and file.samefile(video):
        raise UsageError(f"{file}: --trace would overwrite the video", "name another file")
    check_ours(file, MARK, "name another file, or remove this one")
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
