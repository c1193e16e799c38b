"""Groups of flags: a dataclass of Typer's options is one parameter of a command and one section of --help.

For example, ``@with_groups def ask(video: str, sampling: Sampling)`` is a command with a flag for each field
of ``Sampling``, such as ``--fps``. The command gets a ``Sampling``, and its help has a section for these
flags.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache, partial, wraps
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from lvspec_cli.cli.reporting import say

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
HelpRow = tuple[str, str]  # an option in its notation, and its help
RESEARCH = "Research"  # the panel of commands that measure
RULE_SECTION = "The rule of mode lvspec"
ARGUMENTS, OPTIONS = "Arguments", "Options"  # sections of parameters without a group
COMMANDS = "Commands"  # the panel of commands that name none
LAST = ("What is asked", "The video", "Output", "The models", "Speed", RULE_SECTION, OPTIONS)  # in a page
# Options, each with one that takes its place in a command line: its value of config.toml is then left out.
RIVALS = (("prompt", "prompt_file"), ("prompt", "questions"), ("frames", "fps"))
CONFIGURED = "DEFAULT_MAP"  # a parameter's source: config.toml
WRONG_SETTING = (2, 3)  # exit codes for which a value of config.toml may be the reason
_RARE = "rare"  # a command's attribute: names of parameters that --help leaves out
_ALL = "lvspec_cli.help_all"  # a context's note that all of them are shown


@dataclass(frozen=True)
class OptionGroup:
    """The base class of groups: frozen dataclasses whose fields are options, arguments, or other groups.

    ``common``: the fields that ``--help`` shows, the others stand in ``--help-all``; None for all of them.
    """

    section: ClassVar[str] = OPTIONS
    common: ClassVar[tuple[str, ...] | None] = None


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
    shown: str | None = None,
) -> T:
    """A field of a group that is an option, as in ``frames: int = flag(8, "Take N frames.", metavar="N")``.

    :param help: as ``--help`` says it; the other parameters are those of Typer's ``Option``.
    :param names: its names. If none of them is long, its first name is that of the field: ``--frames``.
    :param shown: the default in words, if its value does not say it: ``the pair's``.
    """
    option = partial(
        Option, metavar=metavar, help=help, min=min, max=max, envvar=envvar, callback=callback,
        autocompletion=autocompletion, show_default=shown or True,
    )  # fmt: skip
    return field(default=default, metadata={_OPTION: option, _NAMES: names})


_OPTION, _NAMES = "option", "names"  # keys of a field's metadata


def _show_all(context: typer.Context, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        context.meta[_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


_HelpAll = Annotated[
    bool, Option("--help-all", is_eager=True, callback=_show_all, help="Show every option, and exit.")
]


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take groups. Typer sees a flat signature, and the command gets each group as one value.

    :raises ValueError: two groups of the command have a field of the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters

    @wraps(command)
    def run(help_all: bool, **values: Any) -> None:
        command(**{name: _grouped(name, hints[name], values) for name in parameters})

    flags = [
        flag
        for name, parameter in parameters.items()
        for flag in _flat(name, hints[name], parameter.default, OPTIONS)
    ]
    flags.append(
        inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_HelpAll)
    )
    rare = frozenset(one for name in parameters for one in _rare(hints[name]))
    setattr(run, _RARE, rare)
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


def _rare(hint: Any) -> Iterator[str]:
    """The names of a group's fields that are not common; none of what is no group."""
    if _is_group(hint):
        for name, part in _hints(hint).items():
            if hint.common is not None and name not in hint.common:
                yield name
            yield from _rare(part)


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
    """A command whose help has a section for each group."""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        return usage(self, ctx)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        formatter.write(_drawn(self, ctx))

    def invoke(self, ctx: Context) -> Any:
        for name, rival in RIVALS:
            if source_of(ctx, name) == CONFIGURED and source_of(ctx, rival) == "COMMANDLINE":
                ctx.params[name] = None
        try:
            return super().invoke(ctx)
        except typer.Exit as end:
            configured = [name for name in ctx.params if source_of(ctx, name) == CONFIGURED]
            if end.exit_code in WRONG_SETTING and configured:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in configured)
                say(f"note: {flags} came from config.toml (lvspec config)")
            raise


def source_of(context: Context, name: str) -> str:
    """Where a parameter's value comes from, by click's names; empty for no parameter of the command."""
    source = context.get_parameter_source(name)
    return source.name if source else ""


class SectionedGroup(TyperGroup):
    """A group of commands whose help lists them in panels."""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        return usage(self, ctx)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        formatter.write(_drawn(self, ctx))


class App(typer.Typer):
    """A Typer whose commands have sections in their help, and ``-h``."""

    def __init__(self, **settings: Any) -> None:
        names = {"help_option_names": ["-h", "--help"]}
        super().__init__(
            cls=SectionedGroup,
            context_settings=names,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            **settings,
        )

    def command(
        self, name: str | None = None, *, cls: Any = SectionedCommand, **settings: Any
    ) -> Callable[[F], F]:
        return super().command(name, cls=cls, **settings)


def usage(command: TyperCommand | TyperGroup, context: Context) -> list[str]:
    """The words after the command in its usage line: ``[OPTIONS] VIDEO [QUESTION]``."""
    arguments = (one for one in command.params if one.param_type_name == "argument")
    names = [_argument_name(one) for one in arguments if not getattr(one, "hidden", False)]
    rest = ["COMMAND ..."] if isinstance(command, TyperGroup) else []
    return ["[OPTIONS]", *names, *rest]


def _argument_name(argument: Any) -> str:
    name = _metavar(argument)
    if " " in name:  # it says itself what may be repeated and left out
        return name
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs != 1 else "")


def _metavar(parameter: Any) -> str:
    """A word for the parameter's value, without brackets."""
    name: str = parameter.metavar or parameter.name.upper()
    return name if " " in name else name.strip("[].")


def help_parts(command: TyperCommand | TyperGroup) -> tuple[str, list[str], list[str]]:
    """A command's docstring as its summary, its examples (lines that begin with ``lvspec``), and the rest."""
    summary, *paragraphs = cleandoc(command.help or "").split("\n\n")
    lines = [line.strip() for text in paragraphs for line in text.splitlines() if _is_example(text)]
    rest = [" ".join(text.split()) for text in paragraphs if not _is_example(text)]
    return " ".join(summary.split()), lines, rest


def _is_example(paragraph: str) -> bool:
    return paragraph.lstrip().startswith("lvspec ")


def first_sentence(text: str) -> str:
    """The text up to its first full stop that a space follows; that of an only sentence is left out."""
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]


def help_sections(
    command: TyperCommand | TyperGroup, context: Context, *, brief: bool = False
) -> dict[str, list[HelpRow]]:
    """A command's parameters with their help: arguments, then options by section, in order of definition.

    :param brief: as ``--help`` shows it where ``--help-all`` shows more: the common options, a sentence each.
    """
    sections: dict[str, list[HelpRow]] = {ARGUMENTS: []}
    rare = rare_flags(command)
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False) or (brief and parameter.name in rare):
            continue
        is_argument = parameter.param_type_name == "argument"
        section = ARGUMENTS if is_argument else getattr(parameter, "rich_help_panel", None) or OPTIONS
        sections.setdefault(section, []).append(_row(parameter, context, brief=brief))
    names = sorted(
        (name for name in sections if sections[name]), key=lambda name: name in LAST and 1 + LAST.index(name)
    )
    return {name: sections[name] for name in names}


def command_sections(group: TyperGroup) -> dict[str, list[HelpRow]]:
    """A group's commands with their summaries, by panel."""
    panels: dict[str, list[HelpRow]] = {}
    for name, command in group.commands.items():
        if not command.hidden:
            assert isinstance(command, TyperCommand | TyperGroup)
            row = name, first_sentence(help_parts(command)[0])
            panels.setdefault(command.rich_help_panel or COMMANDS, []).append(row)
    return panels


def rare_flags(command: Any) -> frozenset[str]:
    """The names of the parameters that ``--help`` leaves to ``--help-all``."""
    return getattr(command.callback, _RARE, frozenset())


def _row(parameter: Any, context: Context, *, brief: bool) -> HelpRow:
    """A parameter in its notation, and its help with its default."""
    text, notes = parameter.help or "", []
    words = [str(getattr(choice, "value", choice)) for choice in parameter.type_descriptor.choices or ()]
    value = "|".join(words) if words and not parameter.metavar else _metavar(parameter)
    if words and parameter.metavar and not brief:
        notes.append("one of: " + ", ".join(words))
    if default := default_text(parameter, context.lookup_default(parameter.name, call=False)):
        notes.append(f"default: {default}")
    if parameter.envvar and not brief:
        notes.append(f"environment: {parameter.envvar}")
    if (span := _span(parameter.min, parameter.max)) and not brief:
        notes.append(span)
    if brief:
        text = first_sentence(text)
    noted = f"{text}  [{'; '.join(notes)}]" if notes else text
    if parameter.param_type_name == "argument":
        return _metavar(parameter), noted
    names = " / ".join(
        ", ".join(sorted(some, key=len)) for some in (parameter.opts, parameter.secondary_opts) if some
    )
    return names if parameter.is_flag else f"{names} {value}", noted


def default_text(parameter: Any, configured: Any = None) -> str:
    """The default as help shows it; empty for none.

    :param configured: the value of config.toml, if it has one.
    """
    if configured is None and isinstance(parameter.show_default, str):
        return parameter.show_default
    value = parameter.default if configured is None else configured
    if value is None or value == [] or value == "" or (value is False and not parameter.secondary_opts):
        return ""
    if isinstance(value, bool) and parameter.secondary_opts:
        text = (parameter.opts if value else parameter.secondary_opts)[0]
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    else:
        text = format(value, "g") if isinstance(value, float) else str(getattr(value, "value", value))
    return text if configured is None else f"{text}, from config.toml"


def _span(least: float | None, most: float | None) -> str:
    if most is None:
        return "" if least is None else f"{least} or more"
    return f"{most} at most" if least is None else f"{least} to {most}"


def _drawn(command: TyperCommand | TyperGroup, context: Context) -> str:
    """The help page for this terminal."""
    from lvspec_cli.ui.help import HelpPage, draw

    brief = bool(rare_flags(command)) and not context.meta.get(_ALL)
    summary, examples, rest = help_parts(command)
    sections = help_sections(command, context, brief=brief)
    if brief:
        del sections[OPTIONS]
    if isinstance(command, TyperGroup):
        sections = command_sections(command) | sections
    footer = (
        "-h, --help: this page.  --help-all: every option, and all that is said of each." if brief else ""
    )
    words = " ".join([context.command_path, *usage(command, context)])
    return draw(HelpPage(words, summary, tuple(examples), tuple(rest), sections, footer))
