"""Writes docs/cli.md: the help of every command, by Typer's own renderer of documentation.

python -m tools.cli_page
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"
COMMAND = "python -m tools.cli_page"
_NOTE = f"<!-- Made by `{COMMAND}` from the program: change the help there. -->\n\n"


def page() -> str:
    """The page as the program makes it now."""
    typer = ["-m", "typer", "lvspec_cli.cli.main", "utils", "docs", "--name", "lvspec"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LVSPEC_")}
    done = subprocess.run(
        [sys.executable, *typer], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return _NOTE + done.stdout.strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
