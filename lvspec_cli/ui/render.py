"""The live view: a View drawn in exactly the given size, and shown in a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from lvspec_cli.escape import visible, visible_line
from lvspec_cli.events import Event, Listener, Stage, StageAdvanced, StageFinished, StageStarted
from lvspec_cli.host import message_stream
from lvspec_cli.table import counted, short_time
from lvspec_cli.types import Piece, TokenKind
from lvspec_cli.ui.lines import Paint
from lvspec_cli.ui.state import StageView, View, fold
from lvspec_cli.video.source import is_picture

# Attributes as well as colours: the kinds are distinguishable without colour.
STYLES = {
    TokenKind.EXACT: "green",
    TokenKind.FILLER: "yellow underline",
    TokenKind.SHIFT: "magenta italic underline",
    TokenKind.TARGET: "bold",
}
LABELS = {
    TokenKind.EXACT: "same as the large model",
    TokenKind.FILLER: "draft's wording",
    TokenKind.SHIFT: "moved",
    TokenKind.TARGET: "the large model's own",
}
BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "12345678"
STEP = 128  # pieces
FEW_ROWS = 12  # below this only the stages and the answer are drawn


@dataclass(frozen=True)
class Picture:
    """A View as a renderable. Never taller or wider than the options allow."""

    view: View
    fill: bool = True  # take the whole height, panel at the bottom
    elapsed: float = 0.0  # seconds since the running stage began
    stopping: bool = False  # it ends with this round

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        height = options.height or options.max_height
        plain = options.ascii_only
        head = [stages_line(self.view, plain, self.elapsed)]
        if self.stopping:
            head = [Text("stopping", "bold")]
        foot: list[Text] = []
        if height >= FEW_ROWS:
            head = [clip_line(self.view), *head, Text(), question_line(self.view)]
            foot = [Text(), *legend_lines(self.view.kinds, width), *panel_lines(self.view, width, plain)]
        room = max(1, height - len(head) - len(foot))
        body = current_text(self.view, room * width).wrap(console, width)[-room:]
        blank = [Text()] * (room - len(body)) if self.fill else []
        lines = [*head, *body, *blank, *foot][:height]
        for index, line in enumerate(lines):
            line.truncate(width, overflow="crop" if plain else "ellipsis")
            if index:
                yield Segment.line()
            yield from line.render(console)


def current_text(view: View, characters: int) -> Text:
    """The end of the answer, at least ``characters`` of it, or a note that the target still thinks."""
    if view.thinking:
        return Text(f"thinking, {counted(view.tokens, 'token')} so far", "dim")
    return answer_text(last_pieces(view.pieces, characters))


def answer_text(pieces: Iterable[Piece]) -> Text:
    """The answer, each token in the style of its kind."""
    text = Text(no_wrap=False)
    for kind, run in groupby(pieces, key=attrgetter("kind")):
        text.append(visible("".join(piece.text for piece in run)).expandtabs(4), STYLES[kind])
    return text


def painter() -> Paint:
    """Gives text on stdout the style of its kind, where its terminal has colours."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)

    def paint(text: str, kind: TokenKind) -> str:
        with console.capture() as drawn:
            console.print(Text(text, STYLES[kind]), end="", soft_wrap=True)
        return drawn.get()

    return paint


def last_pieces(pieces: Sequence[Piece], characters: int) -> Sequence[Piece]:
    """The end of a long answer: at least ``characters`` of it, if it is that long.

    It begins at a multiple of STEP pieces, so that its lines break at the same positions in every
    picture. Drawing takes the same time however long the answer is.
    """
    first = len(pieces)
    while first and characters > 0:
        first -= 1
        characters -= len(pieces[first].text)
    return pieces[first // STEP * STEP :]


def clip_line(view: View) -> Text:
    """Name, duration and sampled frames of the clip."""
    text = Text()
    if view.clip is None:
        return text.append("reading the video", "dim")
    clip = view.clip
    text.append(visible_line(clip.path.name), "bold")
    length = f"{clip.duration:.1f} s" if clip.duration is not None else "length unknown"
    facts = [
        *([] if is_picture(clip.path) else [length]),
        f"{counted(clip.frames, 'frame')} of {clip.width}x{clip.height}",
        view.pair,
        _mode(view),
    ]
    return text.append("  " + ", ".join(facts), "dim")


def _mode(view: View) -> str:
    if view.fallback:
        return f"{view.mode}, now without the draft"
    return f"{view.mode}, gamma {view.gamma}" if view.gamma else view.mode


def stages_line(view: View, plain: bool, elapsed: float = 0.0) -> Text:
    """Each stage: waiting, running (share and seconds so far), or finished (seconds)."""
    text = Text()
    auditing = view.stages.get(Stage.AUDITING, StageView()).running
    for stage in Stage:
        state = view.stages.get(stage, StageView())
        if stage is (Stage.ANSWERING if auditing else Stage.AUDITING):
            continue  # they never run at once, and there is no room for both
        if text:
            text.append("  ")
        _append_stage(text, stage, state, plain, elapsed)
    return text


def stage_text(view: View, plain: bool, elapsed: float) -> Text:
    """The stage that runs, or the last one that has finished."""
    text = Text()
    known = [
        (stage, state) for stage, state in view.stages.items() if state.running or state.seconds is not None
    ]
    for stage, state in sorted(known, key=lambda item: (item[1].running, list(Stage).index(item[0])))[-1:]:
        _append_stage(text, stage, state, plain, elapsed)
    return text


def _append_stage(text: Text, stage: Stage, state: StageView, plain: bool, elapsed: float) -> None:
    if state.seconds is not None:
        text.append("+ " if plain else "✓ ", "green").append(stage.value)
        text.append(f" {_seconds(state.seconds)}", "dim")
    elif state.running:
        text.append("> " if plain else "● ", "yellow").append(stage.value, "bold")
        if state.share is not None:
            text.append(f" {state.share:.0%}", "bold")
        if elapsed >= 1:
            text.append(f" {int(elapsed)} s", "dim")
    else:
        text.append("- " if plain else "○ ", "dim").append(stage.value, "dim")


def _seconds(value: float) -> str:
    """Short enough for four stages in 80 columns."""
    return short_time(value) if value < 9.95 else f"{value:.0f} s"


def question_line(view: View) -> Text:
    """The question, with its number where there are several."""
    if view.question is None:
        return Text()
    question = view.question
    number = f"{question.number}/{question.count} " if question.count > 1 else ""
    return Text(f"{number}{visible_line(question.question)}", "bold cyan")


def legend_lines(kinds: Mapping[TokenKind, int], width: int) -> list[Text]:
    """The kinds of tokens in their styles, with their counts; of moved ones only if there are any."""
    lines = [Text()]
    for kind, label in LABELS.items():
        count = kinds.get(kind, 0)
        if kind is TokenKind.SHIFT and not count:
            continue
        entry = Text().append(label, STYLES[kind]).append(f" {count}")
        if lines[-1] and lines[-1].cell_len + 3 + entry.cell_len > width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(entry)
    return lines


def panel_lines(view: View, width: int, plain: bool) -> list[Text]:
    """A rule, three figures, and a bar for each of the last rounds' accepted lengths."""
    rule = Text(("-" if plain else "─") * width, "dim")
    figures = Text()
    for value, label in (
        (_figure(view.tokens_per_second, ".1f"), "tokens/s"),
        (_figure(view.mean_accepted_length, ".1f"), "tokens a step of the large model"),
        (_figure(view.acceptance_rate, ".0%"), "of the draft kept"),
    ):
        if figures:
            figures.append("   ")
        figures.append(value, "bold").append(f" {label}", "dim")
    count = len(view.lengths)
    rounds = Text(f"{counted(count, 'step')} ", "dim")
    return [rule, figures, rounds.append(bars(view, max(0, width - len(rounds)), plain), "cyan")]


def bars(view: View, width: int, plain: bool = False) -> str:
    """The last rounds' accepted lengths as bars between 0 and gamma + 1."""
    shapes = PLAIN_BARS if plain else BARS
    gamma = view.gamma if isinstance(view.gamma, int) else view.widest
    most = max((gamma + 1, *view.lengths))
    return "".join(
        shapes[round(length / most * (len(shapes) - 1))] for length in view.lengths[-width:] if width
    )


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


class SizedConsole(Console):
    """A console with the size of its own stream's terminal: descriptor 2 may be the log of libraries."""

    @property
    def size(self) -> ConsoleDimensions:
        try:
            return ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))
        except (OSError, ValueError):
            return super().size

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self.width, self.height = new


def message_console() -> Console:
    """A console on stderr, for lvspec's own messages."""
    return SizedConsole(file=message_stream(), markup=False, highlight=False, emoji=False)


def kept_answer(view: View) -> str:
    """A finished answer for the ordinary screen, in its colours, and below it what they mean."""
    console = SizedConsole(file=sys.stdout, markup=False, highlight=False, emoji=False)
    with console.capture() as drawn:
        console.print(answer_text(view.pieces))
    return drawn.get() + (legend(view.kinds) if view.gamma is not None else "")


def legend(kinds: Mapping[TokenKind, int]) -> str:
    """What the colours of an answer on stdout mean; nothing where its terminal has none.

    :param kinds: the answer's tokens by kind.
    """
    console = SizedConsole(file=sys.stdout, markup=False, highlight=False, emoji=False)
    with console.capture() as drawn:
        for line in legend_lines(kinds, console.width) if console.color_system is not None else ():
            console.print(line)
    return drawn.get()


@contextmanager
def live_view(start: View, stopping: Callable[[], bool] = lambda: False) -> Iterator[Listener]:
    """Shows the run on the terminal's second screen until the block ends.

    :param stopping: whether the user wants it to end.

    The second screen keeps the scrollback clean, and a resize only needs a redraw. Permanent output is
    printed afterwards. The screen opens at the first progress, so that it does not flash for an unreadable
    file.
    """
    console = message_console()
    view, began = start, time.monotonic()
    live = Live(
        get_renderable=lambda: Picture(view, elapsed=time.monotonic() - began, stopping=stopping()),
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
