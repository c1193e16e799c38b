"""The user's config.toml: defaults of flags, for all commands or for one; and ``lvspec config``.

Flags go before environment variables, these before config.toml, that before the pair's defaults.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.groups import RESEARCH, App, default_text
from lvspec_cli.cli.reporting import reporting, say, write_line, write_out
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.host import config_folder
from lvspec_cli.text_file import SETTINGS, read_file, text_of

# Options that are for one run: to set them would overwrite, repeat or hide something unseen.
_FOR_ONE_RUN = {
    "debug", "dry-run", "failed", "force", "grep", "help", "help-all", "null", "open", "redo", "retry-errors",
    "shard", "version", "yes",
}  # fmt: skip
_SHOWN = ("pair", "device", "threads", "frames", "max-new-tokens", "mode", "prompt", "system", "quiet")
Values = Mapping[str, Any]
Key = tuple[str, str]  # a command, or nothing for all of them, and an option's name without dashes

app = App()


@dataclass(frozen=True)
class Settings:
    """The content of config.toml: its keys with their values, as the file has them."""

    path: Path
    values: Mapping[Key, Any]

    def default_map(self, root: Any) -> dict[str, Any]:
        """The defaults of all commands, in the form that Typer expects.

        A key at the top holds for every command that has the option, but for those of research: what these
        measure does not depend on a file that nobody sees, unless it names the command.
        """
        return {name: self._defaults_of(name, command) for name, command in root.commands.items()}

    def _defaults_of(self, name: str, command: Any) -> dict[str, Any]:
        below = {
            sub: self._defaults_of(sub, inner) for sub, inner in getattr(command, "commands", {}).items()
        }
        top = {} if command.rich_help_panel == RESEARCH else self._of("")
        values = {**top, **self._of(name)}
        return below | {
            parameter.name: _as_typed(values[option], parameter)
            for option, parameter in options_of(command)
            if option in values
        }

    def _of(self, command: str) -> dict[str, Any]:
        return {option: value for (name, option), value in self.values.items() if name == command}


def config_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The path of the user's config.toml; it need not exist. None without a home."""
    folder = config_folder(environment)
    return folder and folder / "config.toml"


def read_settings(path: Path, root: Any) -> Settings:
    """The settings of a file, which need not exist.

    :param root: the group of all commands.
    :raises UsageError: it is not TOML, or has a key that is no option.
    """
    try:
        content = tomllib.loads(text_of(read_file(path, SETTINGS), str(path)))
    except (FileNotFoundError, NotADirectoryError):
        content = {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "make it readable, or remove it") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", "fix that line; texts stand in quotes") from error
    values: dict[Key, Any] = {}
    for name, value in content.items():
        table = isinstance(value, dict)
        for option, inner in (value if table else {name: value}).items():
            key = _checked(root, f"{name}.{option}" if table else option, str(path))
            if isinstance(inner, dict) or not _is_plain(inner):
                raise UsageError(
                    f"{path}: {option} is neither text, a number, true, false nor a list", "fix it"
                )
            values[key] = inner
    return Settings(path, values)


def _is_plain(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, str | int | float) for one in values)


def options_of(command: Any) -> Iterator[tuple[str, Any]]:
    """A command's options that can be set: each by its long name without dashes."""
    for parameter in command.params:
        if parameter.param_type_name == "option":
            name = max(parameter.opts, key=len).lstrip("-")
            if name not in _FOR_ONE_RUN:
                yield name, parameter


def _commands(root: Any) -> Iterator[tuple[str, Any]]:
    """All commands that are no groups; those of a group as ``models fit``."""
    for name, command in root.commands.items():
        for sub, below in getattr(command, "commands", {}).items():
            yield f"{name} {sub}", below
        if not hasattr(command, "commands"):
            yield name, command


def _takers(root: Any, key: Key) -> dict[str, Any]:
    """The commands that a key holds for, each with its option."""
    command, option = key
    return {
        name: parameter
        for name, below in _commands(root)
        for own, parameter in options_of(below)
        if own == option and (name == command or (not command and below.rich_help_panel != RESEARCH))
    }


def _checked(root: Any, text: str, where: str) -> Key:
    """The key of its text, ``frames`` or ``caption.frames``.

    :raises UsageError: it is none, with those that are alike.
    """
    command, _, option = text.replace("_", "-").rpartition(".")
    if _takers(root, (command, option)):
        return command, option
    if option in _FOR_ONE_RUN:
        raise UsageError(f"{where}: {text}: that flag is for one run", "give it in the command line")
    names = dict(_commands(root))
    if command and command not in names:
        raise UsageError(f"{where}: {text}: there is no command {command!r}", _alike(command, list(names)))
    known = {own for name, below in names.items() if command in ("", name) for own, _ in options_of(below)}
    if not command and option in known:
        takers = [name for name, below in names.items() if option in dict(options_of(below))]
        raise UsageError(f"{where}: {text}: no command takes it from all", f"write {takers[0]}.{option}")
    raise UsageError(f"{where}: there is no key {text!r}", _alike(option, sorted(known)))


def _alike(word: str, words: Sequence[str]) -> str:
    alike = get_close_matches(word, words, n=1)
    return f"did you mean {alike[0]}?" if alike else f"known are {', '.join(words)}"


def _as_typed(value: Any, parameter: Any) -> Any:
    """A value as it would be typed in a command line, so that it is checked in the same way."""
    if parameter.multiple:
        return [str(one) for one in (value if isinstance(value, list) else [value])]
    return value if isinstance(value, bool | list) else str(value)


def _parsed(root: Any, key: Key, texts: Sequence[str]) -> Any:
    """The value of its text, as it is written into the file.

    :raises UsageError: one of the commands would refuse it.
    """
    for name, parameter in _takers(root, key).items():
        if parameter.is_flag:
            words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
            if len(texts) != 1 or texts[0].lower() not in words:
                raise UsageError(f"{key[1]} is not true or false: {' '.join(texts)}", "write true or false")
            return words[texts[0].lower()]
        if len(texts) > 1 and not parameter.multiple:
            raise UsageError(f"{key[1]} takes one value, not {len(texts)}", "put quotes around it")
        value: Any = list(texts) if parameter.multiple else texts[0]
        try:
            parsed = parameter.process_value(typer.Context(root, info_name=name), value)
        except typer.TyperException as error:
            raise UsageError(error.format_message(), f"lvspec config explain {key[1]}") from None
    return parsed if isinstance(parsed, int | float) else value


def _write(path: Path, key: Key, value: Any) -> None:
    """Sets a key in the file, or removes it (None). Everything else in it stays as it is, comments too.

    :raises OutputError: it cannot be written.
    """
    import tomlkit

    from lvspec_cli.output.files import make_folder, replacing

    make_folder(path.parent)
    document = tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    command, option = key
    if command and command not in document:
        document[command] = tomlkit.table()
    table: Any = document[command] if command else document
    written = {name.replace("_", "-"): name for name in table}.get(option, option)
    if value is None:
        del table[written]
        if command and not table:
            del document[command]
    else:
        table[written] = value
    with replacing(path) as stream:
        stream.write(tomlkit.dumps(document).encode())


def _path() -> Path:
    path = config_file()
    if path is None:
        raise OutputError("there is no home folder for config.toml", "set XDG_CONFIG_HOME")
    return path


def _source(root: Any, settings: Settings, key: Key) -> tuple[str, str]:
    """The value of a key that counts, and where it comes from."""
    parameter = next(iter(_takers(root, key).values()))
    if parameter.envvar and (value := os.environ.get(parameter.envvar)):
        return value, f"environment, {parameter.envvar}"
    if key in settings.values:
        return _written(settings.values[key]), str(settings.path)
    return default_text(parameter) or ("off" if parameter.is_flag else "none"), "default"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(shlex.quote(str(one)) for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@app.callback(invoke_without_command=True)
def config(context: typer.Context, debug: options.Debug = False) -> None:
    """Show or set defaults of flags. Alone it shows them, and where each comes from.

    lvspec config set pair qwen3.5-9b-0.8b
    lvspec config set caption.prompt "Describe this clip in one sentence."

    They stand in config.toml. Flags go before environment variables, these before config.toml, that before
    the pair's own defaults.
    """
    if context.invoked_subcommand is None:
        with reporting(debug):
            from lvspec_cli.table import Table
            from lvspec_cli.ui.tables import for_stdout

            root, path = context.find_root().command, _path()
            settings = read_settings(path, root)
            keys = dict.fromkeys([*(("", name) for name in _SHOWN), *settings.values])
            rows = [(".".join(filter(None, key)), *_source(root, settings, key)) for key in keys]
            write_out(for_stdout(Table(("key", "value", "from"), rows, prose=("value", "from"))))


KeyArgument = Annotated[
    str,
    typer.Argument(
        metavar="KEY", help="A flag without dashes, for all commands, or for one: caption.prompt."
    ),
]


@app.command("set")
def set_key(
    context: typer.Context,
    key: KeyArgument,
    value: Annotated[
        list[str],
        typer.Argument(metavar="VALUE", help="As in a command line; several where it may be repeated."),
    ],
    debug: options.Debug = False,
) -> None:
    """Set a default. All else in config.toml stays as it is.

    lvspec config set threads 4
    lvspec config set ask.frames 16
    """
    with reporting(debug):
        root, path = context.find_root().command, _path()
        read_settings(path, root)
        checked = _checked(root, key, "config set")
        if checked[1] == "pair" and value[0] != "auto":
            from lvspec_cli.pairs.registry import load_registry

            load_registry().pair(value[0])
        _write(path, checked, _parsed(root, checked, value))
        say(f"{path}: {key} is set")


@app.command("unset")
def unset_key(context: typer.Context, key: KeyArgument, debug: options.Debug = False) -> None:
    """Remove a default of your own.

    lvspec config unset threads
    lvspec config unset ask.frames
    """
    with reporting(debug):
        root, path = context.find_root().command, _path()
        checked = _checked(root, key, "config unset")
        if checked not in read_settings(path, root).values:
            raise UsageError(f"{path}: {key} is not set there", "see what is: lvspec config")
        _write(path, checked, None)
        say(f"{path}: {key} is removed")


@app.command("explain")
def explain_key(context: typer.Context, key: KeyArgument, debug: options.Debug = False) -> None:
    """Explain a key. What it means, its value now and where that comes from, and the commands that take it.

    lvspec config explain device
    lvspec config explain caption.prompt
    """
    with reporting(debug):
        root = context.find_root().command
        checked = _checked(root, key, "config explain")
        takers = _takers(root, checked)
        value, source = _source(root, read_settings(_path(), root), checked)
        write_line(next(iter(takers.values())).help, "")
        write_line(f"value: {value} ({source})")
        write_line(f"taken by: {', '.join(takers)}")
