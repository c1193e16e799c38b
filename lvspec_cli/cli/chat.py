"""``lvspec chat``: questions about one video that follow one another."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.groups import OptionGroup, with_groups
from lvspec_cli.cli.reporting import Stop, as_lvspec_error, explain, reporting, say, write_out
from lvspec_cli.cli.requests import (
    argument_of,
    chat_mistake,
    check_effects,
    checked_system,
    chosen_pair,
    decode_settings,
    video_request,
)
from lvspec_cli.errors import LvspecError, NoInputError, OutputError
from lvspec_cli.escape import visible, visible_line
from lvspec_cli.events import Answered, ClipReady, Event, Noted, RoundDone
from lvspec_cli.host import message_stream, quieten_libraries, terminal_width
from lvspec_cli.table import counted
from lvspec_cli.types import Mode, TokenKind
from lvspec_cli.ui.lines import WordLines

if TYPE_CHECKING:
    from lvspec_cli.conversation import Conversation
    from lvspec_cli.request import AskRequest, PairChoice

HELP = """\
/reset      forget what was said, and keep the video
/save FILE  write the conversation: as text, or as records if FILE ends in .jsonl
/quit       end the chat, as Ctrl-D does
Ctrl-C ends an answer."""
PROMPT = "> "


@dataclass(frozen=True)
class Prompts(OptionGroup):
    """What the target is told besides the questions."""

    section = "What is asked"
    common = ("system",)

    system: options.System = None
    think: options.Think = False


@with_groups
def chat(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video or a picture.")],
    others: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    *,
    prompts: Prompts,
    loading: options.Loading,
    decoding: options.Decoding,
    rule: options.Rule,
    sampling: options.FullSampling,
    messages: options.Messages,
) -> None:
    """Ask follow-up questions about a video. The pair is loaded and the video encoded once.

    lvspec chat clip.mp4
    lvspec chat film.mkv --start 1:30 --end 2:00 --mode exact

    Each question is asked after those before it, as far as the context has room. Without a terminal each line
    of stdin is a question.
    """
    with reporting(messages.debug) as stop:
        if not messages.debug:
            quieten_libraries()
        from lvspec_cli.batch.names import reading_error
        from lvspec_cli.request import AskRequest

        if not video:
            raise NoInputError("the video's name is empty", "name a video file")
        mistake = chat_mistake([argument_of(text) for text in (video, *(others or ()))]) or reading_error(
            Path(video)
        )
        if mistake is not None:
            raise mistake
        choice = chosen_pair(loading)
        request = AskRequest(
            video_request(sampling, choice.pair, Path(video)),
            (),
            decode_settings(decoding, rule, choice.pair),
            checked_system(prompts.system),
            prompts.think,
        )
        check_effects(loading, decoding, rule, request.settings)
        raise typer.Exit(converse(choice, request, stop, quiet=messages.quiet))


def converse(choice: PairChoice, request: AskRequest, stop: Stop, *, quiet: bool) -> int:
    """Holds the conversation to its end, and gives the exit code: 1 if a question could not be answered."""
    from lvspec_cli.conversation import Conversation
    from lvspec_cli.ui.progress import PlainProgress
    from lvspec_cli.ui.summary import short_world_note

    progress = PlainProgress(None if quiet else message_stream())

    def listen(event: Event) -> None:
        stop.heed()
        progress.listen(event)
        if isinstance(event, ClipReady):
            for warning in event.warnings:
                say(f"warning: {warning}")

    try:
        conversation = Conversation.open(choice, request, listen)
    finally:
        progress.close()
    if not quiet:
        say(f"{choice.name} has seen {request.video.path.name}; /help lists commands, Ctrl-D ends the chat")
    elif choice.pair.world:
        say(short_world_note(choice.name, choice.pair.world))
    stop.is_shown = True  # Ctrl-C ends an answer, and not the chat
    talk, failed = _Chat(conversation, choice, stop, quiet), 0
    for line in _lines(stop):
        if line == "/quit":
            break
        try:
            talk.command(line) if line.startswith("/") else talk.ask(line)
        except LvspecError as error:
            explain(error)
            failed = 1
        if stop.signal == signal.SIGTERM:
            raise KeyboardInterrupt
        stop.forget()
    return failed


def is_interactive() -> bool:
    """Whether somebody types, and sees what is printed."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def _lines(stop: Stop) -> Iterator[str]:
    """What is typed, without empty lines, until Ctrl-D. Ctrl-C drops the line."""
    is_terminal = is_interactive()
    if isinstance(sys.stdin, TextIOWrapper):  # what is not in its encoding is refused as any other question
        sys.stdin.reconfigure(errors="surrogateescape")
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 # gives ``input`` its editing and its history
    while sys.stdin is not None:
        try:
            text = input(PROMPT) if is_terminal else sys.stdin.readline()
        except EOFError:
            write_out("\n")
            return
        except KeyboardInterrupt:
            if stop.signal == signal.SIGTERM or not is_terminal:
                raise
            stop.forget()
            write_out("\n")
            continue
        if not text and not is_terminal:
            return
        if text.strip():
            yield text.strip()


class _Chat:
    """Answers questions and obeys commands, on stdout and stderr."""

    def __init__(self, conversation: Conversation, choice: PairChoice, stop: Stop, quiet: bool) -> None:
        self._conversation, self._choice, self._stop, self._quiet = conversation, choice, stop, quiet
        self._explained = set[TokenKind]()  # of which the colour has been told

    def ask(self, question: str) -> None:
        """Shows the answer as it comes. Ctrl-C ends it; a second one drops it.

        :raises LvspecError: it cannot be answered; the conversation can go on.
        """
        answer = _lines_for_stdout()
        self._open = False  # whether a line of the answer is begun
        self._kinds = Counter[TokenKind]()

        def listen(event: Event) -> None:
            self._stop.heed()
            self._stop.listen(event)
            self._show(event, answer)

        try:
            question.encode()
            self._conversation.ask(question, listen, interrupted=self._stop.asked)
        except UnicodeEncodeError:
            raise LvspecError("the question is not UTF-8 text", "write it in UTF-8") from None
        except KeyboardInterrupt:
            if self._stop.signal == signal.SIGTERM:
                raise
            self._close(answer)
            say("interrupted")
        except Exception as error:
            self._close(answer)
            raise as_lvspec_error(error) from error

    def _show(self, event: Event, answer: WordLines) -> None:
        from lvspec_cli.ui.summary import answer_summary

        match event:
            case Noted(text) if not self._quiet:
                say(text)
            case RoundDone(round=done, pieces=pieces):
                self._open = True
                self._kinds.update(done.kinds)
                write_out("".join(answer.feed(visible(piece.text), piece.kind) for piece in pieces))
            case Answered(record, tail):
                write_out(answer.feed(visible(tail)) + answer.end() + "\n")
                self._open = False
                if self._quiet:
                    if record.error is not None:  # its text is no whole answer
                        say(f"error: {record.error.message}")
                    return
                self._explain_colours(record.mode)
                for line in answer_summary(record)[:1]:
                    say(line)

    def _explain_colours(self, mode: Mode) -> None:
        """Prints what the colours mean, after the first answer that has them."""
        if mode is Mode.AR or self._kinds.keys() <= self._explained or not sys.stdout.isatty():
            return
        from lvspec_cli.ui.render import legend

        write_out(legend(self._kinds))
        self._explained |= self._kinds.keys()

    def _close(self, answer: WordLines) -> None:
        if self._open:
            write_out(answer.end() + "\n")

    def command(self, line: str) -> None:
        """Obeys a line that begins with a slash.

        :raises LvspecError: there is no such command, or the file cannot be written.
        """
        name, _, rest = line.partition(" ")
        match name:
            case "/help":
                say_lines(HELP)
            case "/reset":
                self._conversation.reset()
                say("all is forgotten but the video")
            case "/save":
                self._save(rest.strip())
            case _:
                raise LvspecError(f"there is no command {name}", "/help lists them")

    def _save(self, name: str) -> None:
        from lvspec_cli.output.records import to_line

        if not name:
            raise LvspecError("/save needs a file's name", "/save chat.txt")
        try:
            records, file = self._conversation.records, Path(name).expanduser()
        except RuntimeError:  # of a user that the system does not know
            raise OutputError(f"{name}: there is no such home folder", "name the folder itself") from None
        lines = [to_line(record) for record in records]
        if file.suffix != ".jsonl":
            lines = [f"{PROMPT}{record.prompt}\n{visible(record.text or '')}\n" for record in records]
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.writelines(f"{line}\n" for line in lines)
        except FileExistsError:
            raise OutputError(f"{file} is there already, and is left alone", "name another file") from None
        except OSError as error:
            raise OutputError(
                f"{file}: {error.strerror or error}", "name a file that can be written"
            ) from error
        say(f"{visible_line(name)}: {counted(len(records), 'answer')}")


def _lines_for_stdout() -> WordLines:
    """In colours in a terminal; a pipe gets the text as it is."""
    width = terminal_width(sys.stdout)
    if width is None:
        return WordLines(None)
    from lvspec_cli.ui.render import painter

    return WordLines(width, painter())


def say_lines(text: str) -> None:
    for line in text.splitlines():
        say(line)
