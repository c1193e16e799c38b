"""A self-contained HTML page of charts, tables and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lvspec_cli.escape import visible
from lvspec_cli.table import Table
from lvspec_cli.types import TokenKind

LEGEND = (
    (TokenKind.EXACT.value, "the draft's token is the target's own"),
    (TokenKind.FILLER.value, "loosely accepted"),
    (TokenKind.SHIFT.value, "accepted in another place"),
    (TokenKind.TARGET.value, "the target's own: first, corrected or bonus"),
)


@dataclass(frozen=True)
class Chart:
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Piece:
    text: str
    kind: str  # of token


@dataclass(frozen=True)
class ExampleText:
    name: str
    pieces: tuple[Piece, ...]
    note: str = ""


@dataclass(frozen=True)
class Example:
    title: str
    prompt: str
    texts: tuple[ExampleText, ...]
    reference: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    text: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    code: str = ""


def render_page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page's HTML. All text is escaped, and control characters are made visible."""
    environment = Environment(
        loader=PackageLoader("lvspec_cli.bench", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_visible,
    )
    return environment.get_template("page.html.jinja").render(title=title, lead=lead, sections=sections)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def chart(svg: str | None, caption: str) -> tuple[Chart, ...]:
    """One chart; none if there is nothing to draw."""
    # We drew it ourselves: it holds no text from outside.
    return (Chart(Markup(svg), caption),) if svg else ()  # noqa: S704
