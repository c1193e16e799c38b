"""The package as `pip install .` puts it on a machine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.conftest import Shell

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        information = next(name for name in sizes if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(information).decode()
    package = {name.removeprefix("lvspec_cli/") for name in sizes if name.startswith("lvspec_cli/")}
    assert {
        "models.yaml",
        "py.typed",
        "demo/README.md",
        "bench/page.html.jinja",
        "schemas/record.schema.json",
    } <= package
    for number in range(1, 5):
        assert {f"demo/clips/clip_{number:04d}.mp4", f"demo/clips/clip_{number:04d}.json"} <= package
    pair = {name: size for name, size in sizes.items() if name.startswith("lvspec_cli/demo/pair/")}
    assert sum(name.endswith("/model.safetensors") for name in pair) == 2
    assert sum(pair.values()) <= 30e6
    assert sum(sizes.values()) - sum(pair.values()) < 3e6
    assert {name.partition("/")[0] for name in sizes} == {"lvspec_cli", information.partition("/")[0]}
    assert (ROOT / "tools/seek.py").exists()  # which stays with the developers
    assert not any(name.startswith(("tools/", "tests/", "docs/")) for name in sizes)
    assert not any(name.endswith(("ruff.toml", ".pyc")) for name in sizes)
    assert information.replace("METADATA", "licenses/LICENSE") in sizes
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata


def test_it_runs_from_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shell = Shell(tmp_path, {"PYTHONPATH": str(site)})
    (commands,) = site.glob("*.dist-info/entry_points.txt")
    entries = ConfigParser()
    entries.read_string(commands.read_text())
    module, _, function = entries["console_scripts"]["lvspec"].partition(":")
    code = f"import {module}\nassert {module}.__file__.startswith({str(site)!r})\n{module}.{function}()\n"
    done = subprocess.run(
        [sys.executable, "-c", code, "models"],
        env=shell.environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert next(row for row in rows if row[0].startswith("demo"))[3] == "bundled"
