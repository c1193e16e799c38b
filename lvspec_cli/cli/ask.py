"""``lvspec ask``: questions about one video, or the same about several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.chat import converse, is_interactive
from lvspec_cli.cli.groups import OptionGroup, flag, with_groups
from lvspec_cli.cli.reporting import Stop, reporting
from lvspec_cli.cli.requests import (
    argument_of,
    ask_mistake,
    check_effects,
    checked_system,
    chosen_pair,
    collect_questions,
    constraint_of,
    decode_settings,
    video_request,
    videos_and_question,
    videos_of,
)
from lvspec_cli.errors import NoInputError, OutputError, UsageError
from lvspec_cli.host import STDERR_NAMES, quieten_libraries

if TYPE_CHECKING:
    from lvspec_cli.answers import Trace
    from lvspec_cli.batch.names import Input
    from lvspec_cli.events import Event
    from lvspec_cli.output.records import Record
    from lvspec_cli.request import AskRequest, PairChoice


@dataclass(frozen=True)
class Questions(OptionGroup):
    """Questions in addition to the one that is an argument."""

    section = "What is asked"
    common = ("more", "file", "system")

    more: list[str] | None = flag(None, "A further question; repeat for more.", "--question", metavar="TEXT")
    file: Path | None = flag(None, "Questions, one per line; - reads stdin.", "--questions", metavar="FILE")
    system: options.System = None
    think: options.Think = False
    choices: options.Choices = None
    schema: options.Schema = None


@dataclass(frozen=True)
class Output(OptionGroup):
    """What is printed and written."""

    section = "Output"
    common = ("as_json",)

    as_json: bool = flag(False, "Print one record a line.", "--json")
    trace: Path | None = flag(None, "Write what each round drafted, wanted and kept.", metavar="FILE")


@with_groups
def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO... [QUESTION]",
            help="Videos, pictures, or folders of them, then what to ask of each; - reads that from stdin. "
            "In a terminal, one without a question begins a chat.",
        ),
    ],
    *,
    questions: Questions,
    loading: options.Loading,
    decoding: options.Decoding,
    rule: options.Rule,
    sampling: options.FullSampling,
    output: Output,
    messages: options.Messages,
) -> None:
    """Ask questions about a video, or about several. The answers go to stdout, all else to stderr.

    lvspec ask clip.mp4 "What happens at the end?"
    lvspec ask film.mkv "Who comes in?" --start 1:30 --end 2:00
    """
    with reporting(messages.debug) as stop:
        if not messages.debug:
            quieten_libraries()
        from lvspec_cli.batch.names import reading_error
        from lvspec_cli.request import AskRequest

        named, question = _told_apart(arguments)
        several = len(named) > 1 or Path(named[0]).is_dir()
        videos = videos_of(named) if several else ()
        if several and output.trace is not None:
            raise UsageError("--trace is of one video", "name one, or leave out --trace")
        is_plain = output == Output() and not (questions.choices or questions.schema)
        is_chat = not several and is_plain and _asks_nothing(question, questions) and is_interactive()
        choice = chosen_pair(loading)
        request = AskRequest(
            video_request(sampling, choice.pair, Path(named[0])),
            () if is_chat else collect_questions(question, questions.more or (), questions.file, named),
            replace(
                decode_settings(decoding, rule, choice.pair),
                constraint=constraint_of(questions.choices, questions.schema, think=questions.think),
            ),
            checked_system(questions.system),
            questions.think,
        )
        check_effects(loading, decoding, rule, request.settings)
        missing = None if several else reading_error(Path(named[0]))
        if isinstance(missing, NoInputError):  # other faults get a record
            raise missing
        if is_chat:
            raise typer.Exit(converse(choice, request, stop, quiet=messages.quiet))
        records = _answered(choice, request, videos, stop, output, quiet=messages.quiet)
        if stop.asked():
            raise KeyboardInterrupt
        if any(record.error is not None for record in records):  # a video, or no whole answer
            raise typer.Exit(1)


def _told_apart(arguments: Sequence[str]) -> tuple[Sequence[str], str | None]:
    """The videos, and the question if there is one.

    :raises LvspecError: an argument is neither.
    """
    if "" in arguments[:1]:
        raise NoInputError("the video's name is empty", "name a video file")
    given = [argument_of(text) for text in arguments]
    mistake = ask_mistake(given)
    if mistake is not None:
        raise mistake
    return videos_and_question(given)


def _answered(
    choice: PairChoice,
    request: AskRequest,
    videos: Sequence[Input],
    stop: Stop,
    output: Output,
    *,
    quiet: bool,
) -> list[Record]:
    """Shows the answers, and gives their records.

    :param videos: of which each question is asked; none: the request's.
    """
    from lvspec_cli import pipeline
    from lvspec_cli.cli.show import showing
    from lvspec_cli.output.records import encode_name

    labels = {item.path: encode_name(item.name)[0] for item in videos}  # also of a folder with one video
    with (
        _tracing(output.trace, request.video.path) as write_row,
        showing(choice, request, stop, as_json=output.as_json, quiet=quiet, labels=labels) as show,
    ):

        def listen(event: Event) -> None:
            stop.heed()
            stop.listen(event)
            show(event)

        if not videos:
            return pipeline.ask(choice, request, listen, trace=write_row, interrupted=stop.asked)
        requests = [
            replace(request, video=replace(request.video, path=item.path), name=item.name) for item in videos
        ]
        return pipeline.ask_each(choice, requests, listen, interrupted=stop.asked)


def _asks_nothing(question: str | None, questions: Questions) -> bool:
    return question is None and not questions.more and questions.file is None


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
