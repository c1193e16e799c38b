"""The progress of a batch: a live view in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text
from tqdm import tqdm

from lvspec_cli.escape import visible_line
from lvspec_cli.events import Event, Noted, Stage, StageAdvanced, StageFinished, StageStarted
from lvspec_cli.host import message_stream
from lvspec_cli.output.records import Record
from lvspec_cli.table import counted
from lvspec_cli.ui.progress import PlainProgress
from lvspec_cli.ui.render import clip_line, current_text, message_console, stages_line
from lvspec_cli.ui.state import RECENT, BatchView, View, add_event, add_row, counts, rates

ANSWER_LINES = 4
INTERVAL = 10.0  # seconds between two lines without a terminal


@dataclass(frozen=True)
class BatchPicture:
    """A BatchView in at most twelve lines."""

    view: BatchView
    seconds: float  # since the batch began
    stage_seconds: float  # since the running stage began
    stopping: bool = False  # it ends with the answers' next rounds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, plain = options.max_width, options.ascii_only
        height = options.max_height - 1  # the cursor's own line
        text = current_text(self.view.current, ANSWER_LINES * width)
        answer = text.wrap(console, width)[-ANSWER_LINES:]
        answer += [Text()] * (ANSWER_LINES - len(answer))
        recent = [result_line(record) for record in self.view.recent]
        recent += [Text()] * (RECENT - len(recent))
        current = [
            clip_line(self.view.current),
            stages_line(self.view.current, plain, self.stage_seconds),
            *answer,
        ]
        slots = [slot_line(view, width) for _, view in sorted(self.view.slots.items())]
        lines = [*recent, *(slots or current), Text(rates(self.view, self.seconds), "dim")]
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


def slot_line(view: View, width: int) -> Text:
    """One of several clips that are under way, in one line: its name, its tokens and the end of its text."""
    text = Text()
    if view.clip is not None:
        text.append(visible_line(view.clip.path.name), "bold")
    if not view.tokens:
        running = [stage.value for stage, state in view.stages.items() if state.running]
        return text.append(f"  {' '.join(running)}", "dim")
    text.append(f"  {counted(view.tokens, 'token')}  ", "dim")
    answer = current_text(view, width)
    answer = Text(" ").join(answer.split())
    return text.append_text(answer[max(0, len(answer) - max(0, width - text.cell_len)) :])


def result_line(record: Record) -> Text:
    """A successful row as one line."""
    text = Text("done ", "green")
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
        self._began = self._stage_began = self._shown = time.monotonic()
        self._loading = PlainProgress(stream)

    def listen(self, event: Event) -> None:
        if isinstance(event, Noted):
            self.say(visible_line(event.text))
        if isinstance(event, StageStarted):
            self._stage_began = time.monotonic()
        elif isinstance(event, StageFinished) and event.stage is Stage.LOADING:
            self._began = time.monotonic()  # the rates do not include loading
        if self._console is None and is_loading(event):
            self._loading.listen(event)
        self.view = add_event(self.view, event)

    def add(self, record: Record) -> None:
        self.view = add_row(self.view, record)
        if record.status == "error":
            self.say(failure_line(record))
        elif self._console is None and time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            self.say(self._meter())

    def say(self, line: str) -> None:
        """Prints a permanent line, above the live view."""
        if self._console is not None:
            self._console.print(Text(line), soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def _meter(self) -> str:
        form = "{desc} {percentage:3.0f}% {elapsed}{postfix}"
        return tqdm.format_meter(
            self.view.done,
            self.view.total,
            self.seconds,
            prefix="captions",
            bar_format=form,
            postfix=f"{counts(self.view)}, {rates(self.view, self.seconds)}",
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def picture(self) -> BatchPicture:
        stage_seconds = time.monotonic() - self._stage_began
        return BatchPicture(self.view, self.seconds, stage_seconds, self._stopping())


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
