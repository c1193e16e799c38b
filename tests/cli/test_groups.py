"""Groups of flags: a command gets typed values, and its help has a section for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from lvspec_cli.cli.groups import OptionGroup, SectionedCommand, help_sections, with_groups
from lvspec_cli.cli.main import app as lvspec

RATE = typer.Option("--rate", min=0, max=9, metavar="F", help="Frames a second.")


@dataclass(frozen=True)
class Frames(OptionGroup):
    """A group."""

    section = "Frames"

    clip: Annotated[str | None, typer.Argument(metavar="[CLIP]", help="A clip.")] = None
    rate: Annotated[float | None, RATE] = None
    sizes: Annotated[list[int] | None, typer.Option("--size")] = None


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


app = typer.Typer(rich_markup_mode=None)
app.command("flat", cls=SectionedCommand)(flat)
app.command("nested", cls=SectionedCommand)(nested)


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
    assert "default: 1.0" in run("nested", "--help")
    assert "default: 1.0" not in run("flat", "--help")


def test_a_value_out_of_range_is_typers_error() -> None:
    done = CliRunner().invoke(app, ["flat", "me", "--rate", "10"])
    assert done.exit_code == 2
    assert "--rate" in done.stderr


def test_help_has_a_section_for_each_group() -> None:
    headings = [line[:-1] for line in run("flat", "--help").splitlines() if line[-1:] == ":"]
    assert headings == ["Arguments", "Messages", "Frames", "Options"]


def test_two_flags_of_one_name_are_refused() -> None:
    def twice(frames: Frames, slow: SlowFrames) -> None:
        """A command that would take --rate twice."""

    with pytest.raises(ValueError, match="duplicate"):
        with_groups(twice)


@pytest.mark.parametrize("name", ["ask", "caption", "bench", "bench-relevance", "tune"])
def test_every_flag_of_a_long_command_is_in_a_group(name: str) -> None:
    root = typer.main.get_command(lvspec)
    assert isinstance(root, typer.core.TyperGroup)
    command = root.commands[name]
    assert isinstance(command, SectionedCommand)
    sections = help_sections(command, typer.Context(command, info_name=name))
    assert [flag for flag, _ in sections.pop("Options")] == ["--help"]
    assert len(sections) > 3
