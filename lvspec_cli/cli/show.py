"""The three ways to show a run: a live view, streamed text, records."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lvspec_cli.cli.reporting import Stop, say, write_json, write_out
from lvspec_cli.escape import visible, visible_line
from lvspec_cli.events import Answered, ClipReady, Event, Listener, Noted, QuestionStarted, RoundDone
from lvspec_cli.host import may_be_seen, message_stream, terminal_width
from lvspec_cli.output.records import Record, to_line
from lvspec_cli.request import AskRequest, PairChoice
from lvspec_cli.types import Mode
from lvspec_cli.ui.lines import WordLines
from lvspec_cli.ui.progress import PlainProgress
from lvspec_cli.ui.summary import answer_summary, clip_summary, short_world_note, world_note

if TYPE_CHECKING:
    from lvspec_cli.ui.state import View

SEPARATOR = "---\n"


def is_live(as_json: bool, quiet: bool) -> bool:
    """Whether the live view is shown: both streams must be a terminal that is not dumb."""
    terminal = sys.stdout.isatty() and message_stream().isatty()
    return terminal and not as_json and not quiet and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def showing(
    choice: PairChoice,
    request: AskRequest,
    stop: Stop,
    *,
    as_json: bool,
    quiet: bool,
    labels: Mapping[Path, str] = MappingProxyType({}),
) -> Iterator[Listener]:
    """A listener that shows the run. All output is complete at the end of the block.

    :param labels: of several videos: the name that is put before each answer, by path.
    """
    if is_live(as_json, quiet) and not labels:
        stop.is_shown = True
        with _live(choice, request, stop) as listen:
            yield listen
        return
    text = _StreamedText(choice, request, quiet, labels)
    show = _records if as_json else text.listen
    silent = (as_json and sys.stdout.isatty()) or not may_be_seen(sys.stdout)
    progress = PlainProgress(None if quiet else message_stream(), answering=silent)
    world = choice.pair.world if quiet else None

    def listen_all(event: Event) -> None:
        nonlocal world
        progress.listen(event)
        if isinstance(event, ClipReady):
            _warn(event)
        if isinstance(event, ClipReady) and world:
            say(short_world_note(choice.name, world))
            world = None  # it is said once
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
    """Streams the answers' text, with a line of dashes between two answers about a video.

    With ``labels`` each answer begins with the name of its video.
    """

    def __init__(
        self, choice: PairChoice, request: AskRequest, quiet: bool, labels: Mapping[Path, str]
    ) -> None:
        self._choice = choice
        self._count = len(request.questions)
        self._quiet = quiet
        self._labels, self._label = labels, ""
        self._noted = False
        self._answers = 0  # about the current video
        self._lines = WordLines(terminal_width(sys.stdout))
        self._open = False

    def listen(self, event: Event) -> None:
        match event:
            case ClipReady(path=path):
                self._answers, self._label = 0, self._labels.get(path, "")
            case RoundDone(pieces=pieces):
                if not self._open:
                    write_out(SEPARATOR if self._answers else "")
                    write_out(self._lines.feed(f"{visible_line(self._label)}: ") if self._label else "")
                self._open = True
                write_out(self._lines.feed(visible("".join(piece.text for piece in pieces))))
            case Answered(record, tail) if record.stats is not None:
                write_out(self._lines.feed(visible(tail)))
                self.close()
                self._answers += 1
                if self._quiet:
                    if record.error is not None:  # its text is no whole answer
                        say(f"error: {record.error.message}")
                else:
                    last = self._answers == self._count
                    _summarise(record, self._choice, last=last, noted=self._noted)
                    self._noted |= last
            case Answered(record) if self._labels and record.error is not None:
                say(f"error: {record.error.message}")

    def close(self) -> None:
        """Ends the line of an answer, even if the answer was aborted."""
        if self._open:
            self._open = False
            write_out(self._lines.end() + "\n")


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
        _print_answers(choice, request, view, events)


def _print_answers(choice: PairChoice, request: AskRequest, view: View, events: list[Event]) -> None:
    """Prints every answer with its summary, and the text of an aborted one, after the live view."""
    from lvspec_cli.ui.render import kept_answer
    from lvspec_cli.ui.state import fold

    answers = 0
    for event in events:
        view = fold(view, event)
        match event:
            case Noted(text=note):
                say(note)
            case ClipReady():
                _warn(event)
            case QuestionStarted(count=count, question=question) if count > 1:
                say(f"> {question}")
            case Answered(record) if record.stats is not None:
                write_out(kept_answer(view))
                view, answers = replace(view, pieces=()), answers + 1
                _summarise(record, choice, last=answers == len(request.questions), kinds=view.gamma is None)
    if view.pieces:
        write_out(kept_answer(view))


def _summarise(
    record: Record, choice: PairChoice, *, last: bool, noted: bool = False, kinds: bool = True
) -> None:
    for line in answer_summary(record, kinds=kinds):
        say(line)
    if last:
        say(clip_summary(record))
        if choice.pair.world and not choice.note and not noted:  # a note already says it
            say(world_note(choice.name, choice.pair.world))


def _warn(clip: ClipReady) -> None:
    for warning in clip.warnings:
        say(f"warning: {warning}")
