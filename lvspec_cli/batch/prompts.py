"""Prompts with places for what is known of the clip: ``{name}`` and ``{duration}``."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter

from lvspec_cli.errors import UsageError
from lvspec_cli.text_file import lines_of
from lvspec_cli.video.times import format_time

FIELDS = ("name", "duration")


def check_template(template: str, where: str) -> None:
    """
    :param where: the flag, or the file and line, that the prompt comes from.
    :raises UsageError: a field is unknown or its braces are wrong.
    """
    try:
        _filled(template, dict.fromkeys(FIELDS, ""))
    except UsageError as error:
        raise UsageError(f"{where}: {error.cause}", error.remedy) from None


def check_file(text: str, file: str) -> None:
    """As ``check_template`` for a file that is one prompt; the error names the line. No field goes beyond."""
    for number, line in lines_of(text):
        check_template(line.removesuffix("\n"), f"{file}, line {number}")


def fill(template: str, *, name: str, duration: float | None) -> str:
    """``template`` with its fields filled; ``{{`` and ``}}`` are braces.

    :param name: the stem of the file's name.
    :param duration: seconds of the clip, None when unknown.
    :raises UsageError: as ``check_template``.
    """
    length = "unknown" if duration is None else format_time(duration)
    return _filled(template, {"name": name, "duration": length})


def _filled(template: str, values: Mapping[str, str]) -> str:
    parts = []
    try:
        for text, field, spec, conversion in Formatter().parse(template):
            parts.append(text)
            if field is not None:
                written = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                if written not in values:
                    raise _wrong(template, f"the unknown field {{{written}}}")
                parts.append(values[written])
    except ValueError:
        raise _wrong(template, "a single brace") from None
    return "".join(parts)


def _wrong(template: str, what: str) -> UsageError:
    start = template if len(template) <= 60 else template[:59] + "…"
    return UsageError(
        f"{what} in the prompt {start!r}", "use {name} and {duration}; write {{ and }} for braces"
    )
