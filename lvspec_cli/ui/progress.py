"""Plain progress on stderr: a bar in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from lvspec_cli.escape import visible_line
from lvspec_cli.events import Event, Noted, RoundDone, Stage, StageAdvanced, StageFinished, StageStarted
from lvspec_cli.host import terminal_width
from lvspec_cli.table import clock, short_time, size, wrapped

if TYPE_CHECKING:
    from rich.live import Live

INTERVAL = 5.0  # seconds between two lines of the same stage

Advance = Callable[[float, float], None]  # called with what is done, and the total


class PlainProgress:
    """Shows the progress of stages: of the pipeline's events, or of other work by ``counting`` or ``staged``.

    :param stream: None shows nothing.
    :param answering: also count an answer's tokens, where nothing else shows its progress.
    """

    def __init__(self, stream: TextIO | None, *, answering: bool = False) -> None:
        self._stream = stream
        self._moving = stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._skipped = () if answering and self._moving else (Stage.ANSWERING,)
        self._running = False
        self._live: Live | None = None
        self._meter = Meter("")
        self._started = self._shown = time.monotonic()

    def listen(self, event: Event) -> None:
        if self._stream is None:
            return
        match event:
            case Noted(text):
                self._say(visible_line(text))
            case StageStarted(stage) if stage not in self._skipped:
                self.begin(stage.value)
            case StageAdvanced(stage, done, total):
                self.advance(stage.value, done, total, "B" if stage is Stage.LOADING else "")
            case StageFinished(stage, seconds) if stage not in self._skipped:
                self._end(stage.value, seconds)
            case RoundDone(round=done) if self._live is not None:
                self._meter = Meter(self._meter.label, self._meter.done + len(done.tokens), unit="tokens")

    @contextmanager
    def counting(self, label: str, unit: str = "") -> Iterator[Advance]:
        """Shows one stage until the block ends. Yields what has to be called with the done and the total."""
        self.begin(label)
        try:
            yield lambda done, total: self.advance(label, done, total, unit)
        finally:
            self.close()

    def staged(self, label: str, unit: str = "") -> Advance:
        """Shows one stage, from the first call on, in place of the one before."""
        begun = False

        def advance(done: float, total: float) -> None:
            nonlocal begun
            if not begun:
                begun = True
                self.begin(label)
            self.advance(label, done, total, unit)

        return advance

    def begin(self, label: str) -> None:
        """Starts the clock of a stage, in place of one before."""
        if self._stream is None:
            return
        self.close()
        self._running = True
        self._started = self._shown = time.monotonic()
        self._meter = Meter(label)
        if self._moving:
            self._live = self._bar(self._stream)
            self._live.start()

    def _bar(self, stream: TextIO) -> Live:
        """A bar with a clock that runs by itself. It is removed at its end; what is said stands above it."""
        from rich.live import Live
        from rich.text import Text

        from lvspec_cli.ui.render import SizedConsole

        console = SizedConsole(file=stream, markup=False, highlight=False, emoji=False)

        def draw() -> Text:
            seconds, plain = time.monotonic() - self._started, console.options.ascii_only
            return Text(bar(self._meter, seconds, console.width, plain), no_wrap=True, overflow="crop")

        return Live(
            console=console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            get_renderable=draw,
        )

    def advance(self, label: str, done: float, total: float, unit: str = "") -> None:
        """Shows ``done`` of ``total`` (0: unknown); with a ``unit`` both numbers are shown."""
        self._meter = Meter(label, min(done, total) if total else done, total, unit)
        now = time.monotonic()
        if self._running and self._live is None and done and now - self._shown >= INTERVAL:
            self._shown = now
            self._say(progress_line(self._meter, now - self._started))

    def _say(self, line: str) -> None:
        assert self._stream is not None
        line = wrapped(line, terminal_width(self._stream), "  ")
        if self._live is not None:
            self._live.console.out(line, highlight=False)  # above the bar
        else:
            print(line, file=self._stream, flush=True)

    def _end(self, label: str, seconds: float) -> None:
        """Closes the stage; without a terminal, prints its duration."""
        self.close()
        if not self._moving:
            print(f"{label}: {short_time(seconds)}", file=self._stream, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        self._running = False
        if self._live is not None:
            self._live.stop()
            self._live = None


@dataclass(frozen=True)
class Meter:
    """How far a stage is; ``total`` is 0 if it is not known."""

    label: str
    done: float = 0.0
    total: float = 0.0
    unit: str = ""


def bar(meter: Meter, seconds: float, width: int, plain: bool) -> str:
    """A line of a terminal that is drawn again and again."""
    if meter.unit == "tokens":
        form = "{desc} {n:.0f} tokens {elapsed}"
    elif not meter.total:
        form = "{desc} {elapsed}"
    else:
        counts = f" {{n_fmt}}/{{total_fmt}}{meter.unit}" if meter.unit else ""
        form = "{desc} {percentage:3.0f}%" + counts + " {bar} {elapsed}"
    return tqdm.format_meter(
        meter.done,
        meter.total or None,  # type: ignore[arg-type] # as its documentation has it
        seconds,
        ncols=width - 1,
        prefix=meter.label,
        ascii=plain,
        bar_format=form,
        unit_scale=bool(meter.unit),
    )


def progress_line(meter: Meter, seconds: float) -> str:
    """A line that stays: ``loading: 25 %, 16.5 GB of 66.0 GB, after 14 s``."""
    parts = [f"{100 * meter.done / meter.total:.0f} %"] if meter.total else []
    if meter.unit:
        parts.append(size(meter.done) + (f" of {size(meter.total)}" if meter.total else ""))
    return f"{meter.label}: {', '.join([*parts, f'after {clock(seconds)}'])}"


def byte_counter(report: Callable[[int, int], None]) -> type[Any]:
    """A tqdm class that shows nothing and calls ``report`` with the bytes done, and 0 for the unknown total.

    The client updates several bars at once (bytes received, bytes written): the largest number is reported.
    """
    lock = threading.Lock()
    done: dict[int, float] = {}

    class Counter(tqdm):  # type: ignore[type-arg] # it takes none when it runs
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._of_bytes = options.get("unit") == "B"
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "mininterval": 1e9})

        def update(self, n: float | None = 1) -> bool | None:
            if self._of_bytes:
                with lock:
                    done[id(self)] = done.get(id(self), 0) + (n or 0)
                    furthest = max(done.values())
                report(int(furthest), 0)
            return super().update(n)

    return Counter
