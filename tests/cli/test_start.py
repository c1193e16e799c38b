"""How the command line starts: quickly, without what a command alone needs."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Shell

pytestmark = pytest.mark.usefixtures("cold")
HEAVY = {
    "torch",
    "transformers",
    "av",
    "decord",
    "rich",
    "numpy",
    "tqdm",
    "huggingface_hub",
    "yaml",
    "tomlkit",
}
HEAVY |= {"pyarrow", "scenedetect"}
DRAWS = {"rich"}  # a page of help
COMMANDS = (
    "ask",
    "chat",
    "caption",
    "export",
    "merge",
    "models",
    "models fit",
    "show",
    "config",
    "doctor",
    "bench",
    "bench-compare",
    "bench-relevance",
    "demo",
    "tune",
)
HELP = [["--help"], *([*command.split(), "--help"] for command in COMMANDS)]


def run_python(code: str, shell: Shell) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=shell.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete(shell: Shell, **environment: str) -> subprocess.CompletedProcess[str]:
    words = {"COMP_WORDS": "lvspec ask a.mp4 --pair ti", "COMP_CWORD": "4"}
    whole = {**shell.environment, "_LVSPEC_COMPLETE": "complete_bash", **words, **environment}
    return subprocess.run(shell.command, env=whole, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy(shell: Shell):
    """Each command in a fork of its own, so that none is charged with what another imports."""
    code = (
        "import os, sys\n"
        "from lvspec_cli.cli.main import main\n"
        f"for arguments in {[['--version'], *HELP]!r}:\n"
        "    sys.stdout.flush()\n"
        "    if os.fork():\n"
        "        assert os.wait()[1] == 0, arguments\n"
        "        continue\n"
        "    sys.argv = ['lvspec', *arguments]\n"
        "    try:\n        main()\n"
        "    except SystemExit as end:\n        assert not end.code\n"
        "    print('IMPORTED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "    sys.stdout.flush()\n"
        "    os._exit(0)\n"
    )
    lines = [line.split() for line in run_python(code, shell).splitlines() if line.startswith("IMPORTED")]
    for arguments, (_, *imported) in zip([["--version"], *HELP], lines, strict=True):
        assert "typer" in imported
        assert sorted(set(imported) & HEAVY - (set() if "--version" in arguments else DRAWS)) == [], arguments


def test_completion_and_the_list_of_pairs_need_no_torch(tiny_shell: Shell):
    code = (
        "import sys\n"
        "from lvspec_cli.cli.options import complete_pair\n"
        "assert complete_pair('ti') == ['tiny'], complete_pair('ti')\n"
        "sys.argv = ['lvspec', 'models']\n"
        "from lvspec_cli.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "import lvspec_cli.cli.caption_run\n"
        "assert not {'torch', 'transformers', 'av'} & set(sys.modules)\n"
    )
    run_python(code, tiny_shell)


def test_help_takes_hardly_longer_than_what_prints_it(shell: Shell):
    """A third of a second on a quiet machine. Neither the clock nor a number would hold on a busy one."""

    def seconds(*command: str) -> float:
        """Of the processor, at the best of four times, of which the first warms the disk."""
        times = []
        for _ in range(4):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, env=shell.environment, stdout=subprocess.DEVNULL, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    libraries = seconds(sys.executable, "-c", "import typer, rich.console")
    assert seconds(*shell.command, "--help") < 4 * libraries


def test_the_shell_completes_names_of_pairs(tiny_shell: Shell):
    assert complete(tiny_shell).stdout.split() == ["tiny"]


def test_completion_is_silent_where_the_file_of_pairs_is_wrong(tiny_shell: Shell, tmp_path: Path):
    models = tmp_path / "m.yaml"
    models.write_text("pairs: 3\n")
    done = complete(tiny_shell, LVSPEC_MODELS=str(models))
    assert (done.stdout.strip(), done.stderr) == ("", "")
