"""The child process that renders chat templates. A template is a program, and no sandbox limits its time.

It reads lines of JSON, [template, values], and answers each with {"text": ...} or {"error": ...}. The process
ends if a template takes too long or makes too much text. It is run as a file. Templates have the same
functions as in transformers.
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

# Limits of a template. Its text may be eight times as long as its input in addition.
SECONDS, MEMORY, TEXT = 5, 2**30, 2**20
TOO_MUCH = 3


def main() -> None:
    _limit_memory()
    environment = _environment()
    for line in sys.stdin.buffer:
        _limit_time()
        try:
            template, values = json.loads(line)
            limit = TEXT + 8 * len(line)
            answer = {"text": _rendered(environment.from_string(template), values, limit)}
        except (MemoryError, OverflowError):
            sys.exit(TOO_MUCH)
        except Exception as error:
            answer = {"error": " ".join(str(error).split())[:200] or type(error).__name__}
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _limit_memory() -> None:
    """Windows has no such limit, and macOS may reject it."""
    if sys.platform != "win32" and resource is not None:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _limit_time() -> None:
    """Ends this process after SECONDS more of CPU time; on Windows, of wall-clock time."""
    if sys.platform == "win32" or resource is None:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _rendered(template: Any, values: Mapping[str, Any], limit: int) -> str:
    pieces, length = [], 0
    for piece in template.generate(**values):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            sys.exit(TOO_MUCH)
    return "".join(pieces)


def _environment() -> Any:
    """The Jinja environment, as in transformers."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's text. It is rendered like any other text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Callable[[], str]) -> str:
            return caller()

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


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


def _raise(message: object) -> None:
    raise ValueError(message)


if __name__ == "__main__":
    main()
