"""The live view in a real terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from lvspec_cli.events import Event
from lvspec_cli.ui.render import Picture
from lvspec_cli.ui.state import View, fold


@contextmanager
def live_view(start: View) -> Iterator[Callable[[Event], None]]:
    """Shows the run on the terminal's second screen until the block ends.

    The second screen keeps the scrollback clean: there is nothing to take back, and a resize only
    means drawing again. What is to stay is printed afterwards.
    """
    console = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
    view = start

    def listen(event: Event) -> None:
        nonlocal view
        view = fold(view, event)

    with Live(
        get_renderable=lambda: Picture(view),
        console=console,
        screen=True,
        refresh_per_second=10,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield listen
