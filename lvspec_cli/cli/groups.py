"""Groups of flags: a dataclass of Typer's options is one parameter of a command and one section of --help.

For example, ``@with_groups def ask(video: str, sampling: Sampling)`` is a command with a flag for each field
of ``Sampling``, such as ``--fps``. The command gets a ``Sampling``, and its help has a section for these
flags.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from typer import Option
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

T = TypeVar("T")
HelpRow = tuple[str, str]  # an option in its notation, and its help
ARGUMENTS, OPTIONS = "Arguments", "Options"  # sections of parameters without a group


@dataclass(frozen=True)
class OptionGroup:
    """The base class of groups: frozen dataclasses whose fields are options, arguments, or other groups."""

    section: ClassVar[str] = OPTIONS


def flag(
    default: T,
    help: str,
    *names: str,
    metavar: str | None = None,
    min: float | None = None,
    max: float | None = None,
    envvar: str | None = None,
    callback: Callable[[Any], Any] | None = None,
    autocompletion: Callable[[str], list[str]] | None = None,
) -> T:
    """A field of a group that is an option, as in ``frames: int = flag(8, "Take N frames.", metavar="N")``.

    :param help: as ``--help`` says it; the other parameters are those of Typer's ``Option``.
    :param names: its names. If none of them is long, its first name is that of the field: ``--frames``.
    """
    option = partial(
        Option, metavar=metavar, help=help, min=min, max=max, envvar=envvar, callback=callback,
        autocompletion=autocompletion,
    )  # fmt: skip
    return field(default=default, metadata={_OPTION: option, _NAMES: names})


_OPTION, _NAMES = "option", "names"  # keys of a field's metadata


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take groups. Typer sees a flat signature, and the command gets each group as one value.

    :raises ValueError: two groups of the command have a field of the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters

    @wraps(command)
    def run(**values: Any) -> None:
        command(**{name: _grouped(name, hints[name], values) for name in parameters})

    flags = [
        flag
        for name, parameter in parameters.items()
        for flag in _flat(name, hints[name], parameter.default, OPTIONS)
    ]
    run.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    run.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return run


def _flat(name: str, hint: Any, default: Any, section: str) -> Iterator[inspect.Parameter]:
    """One parameter for an option; for a group, the parameters of all its fields."""
    if _is_group(hint):
        hints = _hints(hint)
        for part in fields(hint):
            value = inspect.Parameter.empty if part.default is MISSING else part.default
            yield from _flat(part.name, hints[part.name], value, hint.section)
    else:
        annotation = _in_section(hint, section)
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _in_section(hint: Any, section: str) -> Any:
    """The same option, listed in a section of the help."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *notes = get_args(hint)
    for index, note in enumerate(notes):
        if isinstance(note, OptionInfo):
            notes[index] = copy(note)
            notes[index].rich_help_panel = section
    return Annotated[kind, *notes]


def _grouped(name: str, hint: Any, values: dict[str, Any]) -> Any:
    """The value of one parameter of the command, from Typer's flat values."""
    if not _is_group(hint):
        return values[name]
    hints = _hints(hint)
    return hint(**{part: _grouped(part, hints[part], values) for part in hints})


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, OptionGroup)


@cache  # several commands take the same groups, and --help has to be fast
def _hints(group: type[Any]) -> dict[str, Any]:
    """The annotations of a group's fields, each with its option."""
    hints = get_type_hints(group, include_extras=True)
    return {part.name: _with_option(part, hints[part.name]) for part in fields(group)}


def _with_option(part: Field[Any], hint: Any) -> Any:
    if _OPTION not in part.metadata:
        return hint
    names = part.metadata[_NAMES]
    if not any(name.startswith("--") for name in names):
        names = (f"--{part.name.replace('_', '-')}", *names)
    return Annotated[hint, part.metadata[_OPTION](*names)]


class SectionedCommand(TyperCommand):
    """A command whose ``--help`` has a section for each group."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        for section, rows in help_sections(self, ctx).items():
            with formatter.section(section):
                formatter.write_dl(rows)


def help_sections(command: TyperCommand | TyperGroup, context: Context) -> dict[str, list[HelpRow]]:
    """A command's parameters with their help: arguments, then options by section, in order of definition."""
    sections: dict[str, list[HelpRow]] = {ARGUMENTS: []}
    for parameter in command.get_params(context):
        row = parameter.get_help_record(context)
        if row is not None:
            is_argument = parameter.param_type_name == "argument"
            section = ARGUMENTS if is_argument else getattr(parameter, "rich_help_panel", None) or OPTIONS
            sections.setdefault(section, []).append(row)
    return {section: rows for section, rows in sections.items() if rows}
