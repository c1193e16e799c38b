"""Groups of flags: a command gets typed values, and its help has a section for each group."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from lvspec_cli.cli.groups import (
    App,
    OptionGroup,
    SectionedCommand,
    SectionedGroup,
    help_parts,
    help_sections,
    with_groups,
)
from lvspec_cli.cli.main import app as lvspec
from lvspec_cli.types import DEFAULT_PROMPT
from tests.conftest import Printed

Run = Callable[..., Printed]

RATE = typer.Option("--rate", min=0, max=9, metavar="F", help="Frames a second.")


@dataclass(frozen=True)
class Frames(OptionGroup):
    """A group."""

    section = "Frames"
    common = ("clip", "rate")

    clip: Annotated[str | None, typer.Argument(metavar="[CLIP]", help="A clip.")] = None
    rate: Annotated[float | None, RATE] = None
    sizes: Annotated[list[int] | None, typer.Option("--size", help="Of one. Of others.")] = None


@dataclass(frozen=True)
class SlowFrames(Frames):
    """The same with another default."""

    rate: Annotated[float | None, RATE] = 1.0


@dataclass(frozen=True)
class Messages(OptionGroup):
    """Another group."""

    section = "Messages"

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say less.")] = False


@dataclass(frozen=True)
class Flags(OptionGroup):
    """A group of groups."""

    frames: SlowFrames
    messages: Messages


@with_groups
def flat(name: str, *, messages: Messages, frames: Frames) -> None:
    """A command that names its groups."""
    print(name, messages, frames)


@with_groups
def nested(flags: Flags) -> None:
    """A command that takes them as one."""
    print(flags)


app = App()
app.command("flat")(flat)
app.command("nested")(nested)
ROOT = typer.main.get_command(lvspec)
assert isinstance(ROOT, SectionedGroup)


def commands(group: SectionedGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of all commands, each with those that it stands below."""
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, SectionedGroup):
            yield from commands(command, (*path, name))


def command_of(path: tuple[str, ...]) -> Any:
    command: Any = ROOT
    for name in path:
        command = command.commands[name]
    return command


ALL = list(commands(ROOT))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_command_gets_its_groups_whole() -> None:
    frames = Frames(clip="a.mp4", rate=2.5, sizes=[3, 4])
    given = run("flat", "me", "a.mp4", "--rate", "2.5", "-q", "--size", "3", "--size", "4")
    assert given == f"me {Messages(quiet=True)} {frames}\n"
    assert run("flat", "me") == f"me {Messages()} {Frames()}\n"


def test_a_subclass_has_its_own_defaults() -> None:
    assert run("nested") == f"{Flags(SlowFrames(), Messages())}\n"
    assert run("nested", "--rate", "3") == f"{Flags(SlowFrames(rate=3.0), Messages())}\n"
    assert "default: 1]" in run("nested", "--help")
    assert "default: 1]" not in run("flat", "--help")


def test_a_value_out_of_range_is_typers_error() -> None:
    done = CliRunner().invoke(app, ["flat", "me", "--rate", "10"])
    assert done.exit_code == 2
    assert "--rate" in done.stderr


def test_help_has_a_section_for_each_group() -> None:
    page = run("flat", "--help-all")
    headings = [line.split(" ")[1] for line in page.splitlines() if line.startswith("╭")]
    assert headings == ["Arguments", "Messages", "Frames", "Options"]
    assert page.startswith("Usage: root flat [OPTIONS] NAME [CLIP]\n")
    assert "│ --size SIZES  Of one. Of others. " in page


def test_help_leaves_out_what_is_rare() -> None:
    page = run("flat", "-h")
    assert "--size" not in page
    assert "Frames a second" in page
    assert "--help-all" in page
    assert "from config.toml" not in page


def test_two_flags_of_one_name_are_refused() -> None:
    def twice(frames: Frames, slow: SlowFrames) -> None:
        """A command that would take --rate twice."""

    with pytest.raises(ValueError, match="duplicate"):
        with_groups(twice)


@pytest.mark.parametrize("name", ["ask", "caption", "bench", "bench-relevance", "tune"])
def test_every_flag_of_a_long_command_is_in_a_group(name: str) -> None:
    command = command_of((name,))
    assert isinstance(command, SectionedCommand)
    sections = help_sections(command, typer.Context(command, info_name=name))
    assert [flag for flag, _ in sections.pop("Options")] == ["--help-all", "--help"]
    assert len(sections) > 3


@pytest.mark.parametrize("path", [(), *ALL], ids=" ".join)
def test_every_command_shows_two_examples_that_can_be_typed(path: tuple[str, ...]) -> None:
    """Each is parsed as if it were typed, with every check of its flags, and not run."""
    summary, examples, _ = help_parts(command_of(path))
    assert len(examples) == 2
    assert len(summary) < 160
    for example in examples:
        words = shlex.split(example.split(" > ")[0])
        assert words[: 1 + len(path)] == ["lvspec", *path]
        command: Any = ROOT
        for number, word in enumerate(words[1:], start=2):
            command = command.commands[word]
            if not isinstance(command, SectionedGroup):
                command.make_context("lvspec", words[number:])
                break


@pytest.mark.parametrize("columns", [60, 200])
def test_help_is_as_wide_as_the_terminal(here: Run, columns: int) -> None:
    for path in ((), ("ask",), ("caption",), ("models", "pull")):
        lines = here(*path, "--help", environment={"COLUMNS": str(columns)}).stdout.splitlines()
        assert max(map(len, lines)) == columns


def test_the_common_help_fits_a_terminal(here: Run) -> None:
    page = here("ask", "--help", environment={"COLUMNS": "80"}).stdout
    assert len(page.splitlines()) < 40, "a line is left for the prompt"
    assert not {"--filler-margin", "--quant-draft"} & set(page.split())
    assert {"--filler-margin", "--quant-draft"} <= set(here("ask", "--help-all").stdout.split())
    assert f"[default: {DEFAULT_PROMPT}]" in here("caption", "-h", environment={"COLUMNS": "120"}).stdout
    top = here("-h", environment={"COLUMNS": "80"}).stdout.splitlines()
    assert top[2] == "Caption videos and answer questions about them, fast, on your own machine."
    for name in (name for name, *below in ALL if not below):
        row = next(line for line in top if line.startswith(f"│ {name} "))
        assert not top[top.index(row) + 1].startswith("│  "), f"the summary of {name} is too long"


def test_help_names_no_python_types() -> None:
    for path in ALL:
        command = command_of(path)
        for rows in help_sections(command, typer.Context(command, info_name=path[-1])).values():
            for name, text in rows:
                assert "<" not in name
                assert len(name) <= 32, "it would be broken"
                assert text
