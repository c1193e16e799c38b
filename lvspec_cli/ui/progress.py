"""Plain progress on stderr: a bar in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from lvspec_cli.escape import visible_line
from lvspec_cli.events import Event, Noted, RoundDone, Stage, StageAdvanced, StageFinished, StageStarted
from lvspec_cli.table import short_time

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
        self._bar: tqdm[Any] | None = None
        self._started = self._shown = time.monotonic()

    def listen(self, event: Event) -> None:
        if self._stream is None:
            return
        match event:
            case Noted(text):
                print(visible_line(text), file=self._stream, flush=True)
            case StageStarted(stage) if stage not in self._skipped:
                self.begin(stage.value)
            case StageAdvanced(stage, done, total):
                self.advance(stage.value, done, total, "B" if stage is Stage.LOADING else "")
            case StageFinished(stage, seconds) if stage not in self._skipped:
                self._end(stage.value, seconds)
            case RoundDone(round=done) if self._bar is not None:
                self._bar.bar_format = "{desc} {n} tokens {elapsed}"
                self._bar.update(len(done.tokens))

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
                self.close()
                self.begin(label)
            self.advance(label, done, total, unit)

        return advance

    def begin(self, label: str) -> None:
        """Starts the clock of a stage."""
        if self._stream is None:
            return
        self._running = True
        self._started = self._shown = time.monotonic()
        if self._moving:
            self._bar = tqdm(
                desc=label, file=self._stream, leave=False, bar_format=_form(0.0), dynamic_ncols=True
            )

    def advance(self, label: str, done: float, total: float, unit: str = "") -> None:
        """Shows ``done`` of ``total`` (0: unknown); with a ``unit`` both numbers are shown."""
        if self._bar is not None:
            self._bar.total, self._bar.n = total or None, min(done, total) if total else done
            self._bar.bar_format, self._bar.unit_scale = _form(total, unit), bool(unit)
            self._bar.refresh()
        elif self._running and (now := time.monotonic()) - self._shown >= INTERVAL:
            self._shown = now
            form = _form(total, unit).replace("{bar} ", "")
            elapsed = now - self._started
            meter = tqdm.format_meter(
                done, total, elapsed, prefix=label, bar_format=form, unit_scale=bool(unit)
            )
            print(meter, file=self._stream, flush=True)

    def _end(self, label: str, seconds: float) -> None:
        """Closes the stage; without a terminal, prints its duration."""
        self.close()
        if not self._moving:
            print(f"{label}: {short_time(seconds)}", file=self._stream, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        self._running = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _form(total: float, unit: str = "") -> str:
    counts = f" {{n_fmt}}/{{total_fmt}}{unit}" if unit else ""
    return "{desc} {percentage:3.0f}%" + counts + " {bar} {elapsed}" if total else "{desc} {elapsed}"


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
