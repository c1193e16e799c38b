"""The progress of a batch: a live view in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from lvspec_cli.escape import visible_line
from lvspec_cli.events import Event, Noted, Stage, StageAdvanced, StageFinished, StageStarted
from lvspec_cli.host import message_stream, terminal_width
from lvspec_cli.output.records import Record
from lvspec_cli.table import wrapped
from lvspec_cli.ui.progress import PlainProgress
from lvspec_cli.ui.render import (
    clip_line,
    current_text,
    last_pieces,
    message_console,
    stage_text,
    stages_line,
)
from lvspec_cli.ui.state import (
    RECENT,
    BatchView,
    View,
    add_event,
    add_row,
    counts,
    has_loaded,
    place_of,
    rates,
)

ANSWER_LINES = 4
WORKER_LINES = 8
LEAST_TEXT = 10  # characters of an answer that are worth a place in a worker's line
RESULT_LINES = 6  # of a text, after the batch
INTERVAL = 10.0  # seconds between two lines without a terminal


@dataclass(frozen=True)
class BatchPicture:
    """A BatchView in at most thirteen lines: of one worker all that is under way, of several a line each."""

    view: BatchView
    seconds: float  # since the batch began
    stage_seconds: tuple[float, ...]  # of each place, since its running stage began
    stopping: bool = False  # it ends with the answers' next rounds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, plain = options.max_width, options.ascii_only
        height = options.max_height - 1  # the cursor's own line
        recent = [result_line(record) for record in self.view.recent]
        recent += [Text()] * (RECENT - len(recent))
        under_way = (
            self._one(console, width, plain) if len(self.view.places) == 1 else self._all(width, plain)
        )
        lines = [*recent, *under_way, Text(rates(self.view, self.seconds), "dim")]
        for line in lines[max(0, len(lines) - height + 1) :]:
            line.truncate(width, overflow="crop" if plain else "ellipsis")
            yield from line.render(console)
            yield Segment.line()
        label = Text(f"{'stopping, ' if self.stopping else ''}{counts(self.view)}")
        label.truncate(width - 1, overflow="crop" if plain else "ellipsis")
        yield from label.render(console)
        if (room := min(40, width - label.cell_len - 2)) > 3:
            yield Segment(" ")
            bar = ProgressBar(max(1, self.view.total), self.view.done, width=room)
            yield from bar.__rich_console__(console, options)

    def _one(self, console: Console, width: int, plain: bool) -> list[Text]:
        (view,) = self.view.places
        answer = current_text(view, ANSWER_LINES * width).wrap(console, width)[-ANSWER_LINES:]
        answer += [Text()] * (ANSWER_LINES - len(answer))
        return [clip_line(view), stages_line(view, plain, self.stage_seconds[0]), *answer]

    def _all(self, width: int, plain: bool) -> list[Text]:
        workers = enumerate(zip(self.view.places, self.stage_seconds, strict=True), start=1)
        busy = [
            worker_line(number, *worker, width, plain) for number, worker in workers if is_busy(worker[0])
        ]
        more = len(busy) - WORKER_LINES
        if more > 0:
            busy[WORKER_LINES - 1 :] = [Text(f"and {more + 1} more", "dim")]
        return busy + [Text()] * (min(len(self.view.places), WORKER_LINES) - len(busy))


def is_busy(view: View) -> bool:
    """Whether a worker is at a clip, or loads the pair."""
    return view.clip is not None or any(stage.running for stage in view.stages.values())


def worker_line(number: int, view: View, elapsed: float, width: int, plain: bool) -> Text:
    """One worker's clip, what is done with it now, and as much of the end of its answer as there is room for.

    :param number: of the worker, from 1.
    """
    name = f"worker {number}" if view.clip is None else visible_line(view.clip.path.name)
    line = Text(no_wrap=True).append(name, "bold")
    line.append("  ").append(stage_text(view, plain, elapsed))
    room = width - line.cell_len - 2
    if view.pieces and room > LEAST_TEXT:
        text = visible_line("".join(piece.text for piece in last_pieces(view.pieces, room)))
        line.append(f"  {text[-room:]}", "dim")
    return line


def last_results(records: Sequence[Record], width: int) -> str:
    """The last results of a batch: each name, and the first lines of its text."""
    lines = []
    for record in records:
        text = wrapped(f"  {visible_line(record.text or '')}", width, "  ").splitlines()
        if len(text) > RESULT_LINES:
            cut = wrapped(text[RESULT_LINES - 1], width - 4, "  ").splitlines()[0]
            text[RESULT_LINES - 1 :] = [f"{cut} ..."]
        lines += [visible_line(record.id), *text]
    return "".join(f"{line}\n" for line in lines)


def result_line(record: Record) -> Text:
    """A successful row as one line."""
    text = Text().append("done ", "green")
    text.append(visible_line(record.id), "bold")
    return text.append(f" {visible_line(record.text or '')}", "dim")


def failure_line(record: Record) -> str:
    """A failed row as one line, with its cause."""
    message = record.error.message if record.error else "unknown"
    return visible_line(f"failed {record.id}: {message}")


def is_loading(event: Event) -> bool:
    """Whether the event is about loading the pair."""
    return isinstance(event, StageStarted | StageAdvanced | StageFinished) and event.stage is Stage.LOADING


class BatchShow:
    """Shows rows and events: above the live view on ``console``, or as lines on ``stream``."""

    def __init__(
        self,
        start: BatchView,
        stream: TextIO,
        console: Console | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.view = start
        self._stopping = stopping
        self._stream = stream
        self._console = console
        self._began = self._shown = time.monotonic()
        self._is_loaded = False
        self._stage_began = [self._began] * len(start.places)
        self._loading = PlainProgress(stream)

    def listen(self, event: Event) -> None:
        if isinstance(event, Noted):
            self.say(visible_line(event.text))
        self.view = add_event(self.view, event)
        if not self._is_loaded and has_loaded(event):
            self._began, self._is_loaded = time.monotonic(), True  # the rates do not include loading
        place, event = place_of(event, self.view.slots)
        if isinstance(event, StageStarted):
            self._stage_began[place] = time.monotonic()
        if self._console is None and is_loading(event) and place == 0:
            self._loading.listen(event)

    def add(self, record: Record) -> None:
        self.view = add_row(self.view, record)
        if record.status == "error":
            self.say(failure_line(record))
        elif self._console is None and time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            self.say(f"{counts(self.view)}, {rates(self.view, self.seconds)}")

    def say(self, line: str) -> None:
        """Prints a permanent line, above the live view."""
        if self._console is not None:
            self._console.print(Text(wrapped(line, self._console.width, "  ")), soft_wrap=True)
        else:
            print(wrapped(line, terminal_width(self._stream), "  "), file=self._stream, flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def picture(self) -> BatchPicture:
        now = time.monotonic()
        seconds = tuple(now - began for began in self._stage_began)
        return BatchPicture(self.view, self.seconds, seconds, self._stopping())


@contextmanager
def batch_show(
    start: BatchView, *, live: bool, stopping: Callable[[], bool] = lambda: False
) -> Iterator[BatchShow]:
    """Shows a batch on stderr until the block ends; then the live view disappears.

    :param stopping: whether the user wants it to end.
    """
    if not live:
        yield BatchShow(start, message_stream())
        return
    console = message_console()
    show = BatchShow(start, message_stream(), console, stopping)
    with Live(
        console=console,
        transient=True,
        refresh_per_second=8,
        redirect_stdout=False,
        redirect_stderr=False,
        get_renderable=show.picture,
    ):
        yield show
