"""The three ways to show a run: a live view, streamed text, records."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lvspec_cli.cli.reporting import Stop, say, write_json, write_out
from lvspec_cli.escape import visible
from lvspec_cli.events import Answered, ClipReady, Event, Listener, Noted, QuestionStarted, RoundDone
from lvspec_cli.host import message_stream
from lvspec_cli.output.records import Record, to_line
from lvspec_cli.request import AskRequest, PairChoice
from lvspec_cli.types import Mode
from lvspec_cli.ui.progress import PlainProgress
from lvspec_cli.ui.summary import answer_summary, clip_summary, short_world_note, world_note

SEPARATOR = "---\n"


def is_live(as_json: bool, quiet: bool) -> bool:
    """Whether the live view is shown: both streams must be a terminal that is not dumb."""
    terminal = sys.stdout.isatty() and message_stream().isatty()
    return terminal and not as_json and not quiet and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def showing(
    choice: PairChoice, request: AskRequest, stop: Stop, *, as_json: bool, quiet: bool
) -> Iterator[Listener]:
    """A listener that shows the run. All output is complete at the end of the block."""
    if is_live(as_json, quiet):
        stop.is_shown = True
        with _live(choice, request, stop) as listen:
            yield listen
        return
    text = _StreamedText(choice, request, quiet)
    show = _records if as_json else text.listen
    silent = as_json or not sys.stdout.isatty()
    progress = PlainProgress(None if quiet else message_stream(), answering=silent)

    def listen_all(event: Event) -> None:
        progress.listen(event)
        if isinstance(event, ClipReady) and not quiet:
            _warn(event)
        if isinstance(event, ClipReady) and quiet and choice.pair.world:
            say(short_world_note(choice.name, choice.pair.world))
        show(event)

    try:
        yield listen_all
    finally:
        text.close()
        progress.close()


def _records(event: Event) -> None:
    if isinstance(event, Answered):
        write_json(to_line(event.record))


class _StreamedText:
    """Streams the answers' text, with a line of dashes between two answers."""

    def __init__(self, choice: PairChoice, request: AskRequest, quiet: bool) -> None:
        self._choice = choice
        self._count = len(request.questions)
        self._quiet = quiet
        self._answers = 0
        self._open = False

    def listen(self, event: Event) -> None:
        match event:
            case RoundDone(pieces=pieces):
                if not self._open and self._answers:
                    write_out(SEPARATOR)
                self._open = True
                write_out(visible("".join(piece.text for piece in pieces)))
            case Answered(record, tail) if record.stats is not None:
                write_out(visible(tail))
                self.close()
                self._answers += 1
                if not self._quiet:
                    _summarise(record, self._choice, last=self._answers == self._count)

    def close(self) -> None:
        """Ends the line of an answer, even if the answer was aborted."""
        if self._open:
            self._open = False
            write_out("\n")


@contextmanager
def _live(choice: PairChoice, request: AskRequest, stop: Stop) -> Iterator[Listener]:
    from lvspec_cli.ui.render import live_view
    from lvspec_cli.ui.state import View

    events: list[Event] = []
    settings = request.settings
    view = View(choice.name, settings.mode.value, None if settings.mode is Mode.AR else settings.gamma)
    try:
        with live_view(view, stop.asked) as show:

            def listen(event: Event) -> None:
                show(event)
                events.append(event)

            yield listen
    finally:
        _print_answers(choice, request, events)


def _print_answers(choice: PairChoice, request: AskRequest, events: list[Event]) -> None:
    """Prints every answer with its summary, and the text of an aborted one, after the live view."""
    text, answers = "", 0
    for event in events:
        match event:
            case Noted(text=note):
                say(note)
            case ClipReady():
                _warn(event)
            case QuestionStarted(count=count, question=question) if count > 1:
                say(f"> {question}")
            case RoundDone(pieces=pieces):
                text += "".join(piece.text for piece in pieces)
            case Answered(record, tail) if record.stats is not None:
                write_out(visible(text + tail) + "\n")
                text, answers = "", answers + 1
                _summarise(record, choice, last=answers == len(request.questions))
    if text:
        write_out(visible(text) + "\n")


def _summarise(record: Record, choice: PairChoice, *, last: bool) -> None:
    for line in answer_summary(record):
        say(line)
    if last:
        say(clip_summary(record))
        if choice.pair.world and not choice.note:  # a note already says it
            say(world_note(choice.name, choice.pair.world))


def _warn(clip: ClipReady) -> None:
    for warning in clip.warnings:
        say(f"warning: {warning}")
