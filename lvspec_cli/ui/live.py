"""The live view in a real terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from lvspec_cli.events import Event, Listener, StageAdvanced, StageFinished, StageStarted
from lvspec_cli.ui.render import Picture
from lvspec_cli.ui.state import View, fold


@contextmanager
def live_view(start: View) -> Iterator[Listener]:
    """Shows the run on the terminal's second screen until the block ends.

    The second screen keeps the scrollback clean: there is nothing to take back, and a resize only
    means drawing again. What is to stay is printed afterwards. It opens at the first sign of
    progress, so that a file that cannot be read does not flash it.
    """
    console = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
    view, began = start, time.monotonic()
    live = Live(
        get_renderable=lambda: Picture(view, elapsed=time.monotonic() - began),
        console=console,
        screen=True,
        refresh_per_second=10,
        redirect_stdout=False,
        redirect_stderr=False,
    )

    def listen(event: Event) -> None:
        nonlocal view, began
        if isinstance(event, StageStarted):
            began = time.monotonic()
        view = fold(view, event)
        if not live.is_started and isinstance(event, StageAdvanced | StageFinished):
            live.start()

    try:
        yield listen
    finally:
        live.stop()
