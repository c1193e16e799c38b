"""What all tools have in common."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tools

COMMANDS = [
    path
    for path in sorted(Path(*tools.__path__).rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text("utf-8")
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_begins_when_its_whole_file_has_been_read(path: Path) -> None:
    """Else it fails where it needs what comes after, as late as at its end."""
    *_, last = ast.parse(path.read_text("utf-8")).body
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
