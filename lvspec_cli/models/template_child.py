"""Chat templates, rendered in a process that can be ended: a template is a program, which no sandbox ends.

A line of JSON comes in, [template, values], and one goes out: {"text": ...} or {"error": ...}. A template
that does not end, or makes too much, ends this process. It runs as a file, with transformers' own rules.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS, MEMORY, TEXT = (
    5,
    2**30,
    2**20,
)  # what a template may take; of text, beside eight times what it is given
TOO_MUCH = 3


def main() -> None:
    _limit_memory()
    world = _world()
    for line in sys.stdin.buffer:
        _limit_time()
        try:
            template, values = json.loads(line)
            answer = {"text": _rendered(world.from_string(template), values, TEXT + 8 * len(line))}
        except (MemoryError, OverflowError):
            sys.exit(TOO_MUCH)
        except Exception as error:
            answer = {"error": " ".join(str(error).split())[:200] or type(error).__name__}
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _limit_memory() -> None:
    """Windows has no such limit, and macOS may refuse it."""
    if sys.platform != "win32" and resource is not None:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _limit_time() -> None:
    """Ends this process after so many more seconds: of its own, on Windows of the clock."""
    if sys.platform == "win32" or resource is None:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _rendered(template: Any, values: Mapping[str, Any], most: int) -> str:
    pieces, made = [], 0
    for piece in template.generate(**values):
        pieces.append(piece)
        made += len(piece)
        if made > most:
            sys.exit(TOO_MUCH)
    return "".join(pieces)


def _world() -> Any:
    """As transformers makes it."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What stands between {% generation %} and its end is the assistant's, and text like other text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Callable[[], str]) -> str:
            return caller()

    world = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    world.filters["tojson"] = _to_json
    world.globals["raise_exception"] = _refuse
    world.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return world


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: object) -> None:
    raise ValueError(message)


if __name__ == "__main__":
    main()
