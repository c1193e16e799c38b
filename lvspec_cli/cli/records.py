"""``lvspec show``: records and reports as people read them."""

from __future__ import annotations

import os
import re
import sys
import webbrowser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, say, write_out
from lvspec_cli.cli.requests import check_local
from lvspec_cli.errors import LvspecError, NoInputError, UsageError
from lvspec_cli.host import terminal_width

LOOKS = {"name": {"bold": True}, "prompt": {"dim": True}, "failed": {"fg": "red"}}


def show(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Records of lvspec caption or ask --json, also while they are written; or the folder of a "
            "bench.",
        ),
    ] = Path("captions.jsonl"),
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed.")] = False,
    grep: Annotated[
        str | None,
        typer.Option(
            "--grep",
            metavar="PATTERN",
            help="Only what matches this regular expression in its name, prompt, text or error, in upper or "
            "lower case.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="TEXT",
            help="A line for each record: '{name}: {text}'. Fields: name, text, prompt, start, end, id, "
            "status, error, thoughts, pair, mode, tokens, seconds.",
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the report.html of a bench's folder in a browser.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Read captions, answers and reports in the terminal.

    lvspec show captions.jsonl --grep dog
    lvspec show captions.jsonl --failed --format '{name}: {error}'
    """
    with reporting(debug):
        check_local(file)
        if open_page:
            _open(file)
        elif file.is_dir() or file.name == "results.json":
            if failed or grep is not None or template is not None:
                raise UsageError(f"{file}: --failed, --grep and --format are for records", "leave them out")
            _show_results(file, quiet)
        else:
            _show_records(file, failed, grep, template, quiet)


def _show_records(file: Path, failed: bool, grep: str | None, template: str | None, quiet: bool) -> None:
    from lvspec_cli.output.jsonl import read_records
    from lvspec_cli.output.records import Record
    from lvspec_cli.ui.records import Template, Wanted, count_line, pages

    try:
        pattern = None if grep is None else re.compile(grep, re.IGNORECASE)
    except re.error as error:
        raise UsageError(
            f"--grep {grep!r}: {error}", "put a backslash before what is meant as it is"
        ) from None
    line = None if template is None else Template(template).line
    wanted, counts = Wanted(failed, pattern), {"all": 0, "failed": 0, "shown": 0}

    def chosen() -> Iterator[Record]:
        for record in read_records(
            file, lambda message: say(f"{message} (still being written, or a run was killed)")
        ):
            counts["all"] += 1
            counts["failed"] += record.error is not None
            if wanted.has(record):
                counts["shown"] += 1
                yield record

    width = terminal_width(sys.stdout)
    look = _plain if width is None or not has_styles(os.environ) else _styled
    for text in map(line, chosen()) if line else pages(chosen(), width, look):
        write_out(text)
    if not quiet:
        say(count_line(counts["shown"], counts["failed"], counts["all"]))


def has_styles(environment: Mapping[str, str]) -> bool:
    """Whether a terminal is to get colours and bold letters (https://no-color.org)."""
    return not environment.get("NO_COLOR") and environment.get("TERM", "dumb") not in ("dumb", "unknown")


def _plain(text: str, kind: str) -> str:
    return text


def _styled(text: str, kind: str) -> str:
    return typer.style(text, **LOOKS[kind])  # type: ignore[arg-type]


def _show_results(file: Path, quiet: bool) -> None:
    from lvspec_cli.bench.lines import notes, verdict
    from lvspec_cli.bench.results import FILE_NAME, read_results
    from lvspec_cli.ui.summary import results_text

    if file.is_dir() and not (file / FILE_NAME).exists():
        raise NoInputError(
            f"{file}: no results of a bench in it",
            "name a file of records, or a folder of lvspec bench --out",
        )
    results = read_results(file)
    if not quiet:
        say(verdict(results))
    write_out(results_text(results))
    for note in () if quiet else notes(results):
        say(note)


def _open(file: Path) -> None:
    """Opens the report of a bench in the browser, and prints its path.

    :raises NoInputError: there is none.
    """
    page = file / "report.html" if file.is_dir() else file
    if page.suffix != ".html" or not page.is_file():
        raise NoInputError(f"{page}: no report", "name the folder that lvspec bench --out wrote")
    write_out(f"{page}\n")
    if not webbrowser.open(page.resolve().as_uri()):
        raise LvspecError("no browser can be started here", "copy the report to a machine that has one")
