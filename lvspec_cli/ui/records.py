"""Records as people read them: who said what, under the name of the video; or a line each of a format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from re import Pattern
from string import Formatter
from textwrap import wrap

from lvspec_cli.errors import UsageError
from lvspec_cli.escape import visible, visible_line
from lvspec_cli.output.records import Record
from lvspec_cli.table import clock, counted

FIELDS: dict[str, Callable[[Record], object]] = {
    "name": lambda record: record.file_name,
    "text": lambda record: record.text or "",
    "prompt": lambda record: record.prompt,
    "start": lambda record: record.segment.start,
    "end": lambda record: "" if record.segment.end is None else record.segment.end,
    "id": lambda record: record.id,
    "status": lambda record: record.status,
    "error": lambda record: record.error.message if record.error else "",
    "thoughts": lambda record: record.thoughts or "",
    "pair": lambda record: record.pair,
    "mode": lambda record: record.mode.value,
    "tokens": lambda record: record.stats.output_tokens if record.stats else 0,
    "seconds": lambda record: record.stats.decode_s if record.stats else 0.0,
}


@dataclass(frozen=True)
class Wanted:
    """Which records are shown. ``pattern`` is looked for in the name, the prompt, the text and the error."""

    failed: bool = False
    pattern: Pattern[str] | None = None

    def has(self, record: Record) -> bool:
        if self.failed and record.error is None:
            return False
        error = record.error.message if record.error else ""
        texts = (record.file_name, record.prompt, record.text or "", error)
        return self.pattern is None or any(map(self.pattern.search, texts))


@dataclass(frozen=True)
class Template:
    """A line for each record, such as ``{name}: {text}``. ``\\n`` and ``\\t`` stand for their characters."""

    text: str

    def __post_init__(self) -> None:
        """:raises UsageError: it has a field that records do not have, or a brace that is not closed."""
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.text) if name is not None]
            wrong = [name for name in names if name not in FIELDS]
        except ValueError as error:
            raise UsageError(f"--format {self.text!r}: {error}", "write {{ and }} for braces") from None
        if wrong:
            raise UsageError(f"--format has no field {{{wrong[0]}}}", f"fields are {', '.join(FIELDS)}")

    def line(self, record: Record) -> str:
        """
        :raises UsageError: what follows a field's colon does not suit its value.
        """
        values = {name: _printable(value(record)) for name, value in FIELDS.items()}
        try:
            return self.text.replace("\\n", "\n").replace("\\t", "\t").format_map(values) + "\n"
        except ValueError as error:
            raise UsageError(f"--format {self.text!r}: {error}", "leave out what follows the colon") from None


def _printable(value: object) -> object:
    return visible_line(value) if isinstance(value, str) else value


def pages(
    records: Iterable[Record], width: int | None, style: Callable[[str, str], str] = lambda text, kind: text
) -> Iterator[str]:
    """The records' lines, one text for each record. The name stands once above all that is said of a video.

    :param width: columns at which texts are wrapped; None: they are not.
    :param style: a text in the look of a kind, which is name, prompt or failed.
    """
    name, prompts = None, set[str]()
    for record in records:
        lines = []
        if record.file_name != name:
            lines.append(style(visible_line(record.file_name), "name"))
        name = record.file_name
        if stretch := _stretch(record):
            lines.append(f"  {stretch}")
        prompts.add(record.prompt)
        if record.task == "ask" or len(prompts) > 1:  # one prompt for all says nothing
            lines += [style(line, "prompt") for line in _indented(record.prompt, width)]
        if record.text:
            lines += _indented(record.text, width)
        if record.error is not None:
            lines += [style(line, "failed") for line in _indented(f"failed: {record.error.message}", width)]
        yield "\n".join(lines) + "\n"


def _stretch(record: Record) -> str:
    """The stretch of the video; empty for all of it."""
    start, end = record.segment.start, record.segment.end
    if end is None:
        return f"from {clock(start)}" if start else ""
    return f"{clock(start)} to {clock(end)}"


def _indented(text: str, width: int | None) -> list[str]:
    lines = visible(text).splitlines()
    if width is None:
        return [f"  {line}" for line in lines]
    options = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}
    return [part for line in lines for part in wrap(line, max(20, width), **options)]  # type: ignore[arg-type]


def count_line(shown: int, failed: int, all_of_them: int) -> str:
    """How many records there are, and how many of them were shown."""
    text = f"{counted(all_of_them, 'record')}, {failed} failed"
    return text if shown == all_of_them else f"{text}; {shown} shown"
