"""``lvspec doctor``: what this machine has of what is needed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, write_json, write_line
from lvspec_cli.host import quieten_libraries


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One object, for a report of a bug.")] = False,
    hub: Annotated[bool, typer.Option("--hub", help="Ask the model hub, too, whether it answers.")] = False,
    models_file: options.ModelsPath = None,
    debug: options.Debug = False,
) -> None:
    """Look at this machine and say what to fix. Python, torch, GPUs, decoders, quantisation, cache, pairs.

    lvspec doctor
    lvspec doctor --json > report.json
    """
    with reporting(debug):
        quieten_libraries()
        from lvspec_cli.checks.doctor import examine

        if as_json:
            findings = [asdict(finding) for finding in examine(models_file, hub=hub)]
            write_json(json.dumps({"schema": 1, "findings": findings}, indent=2))
            return
        for finding in examine(models_file, hub=hub):
            write_line(f"{finding.state:4}  {finding.what}: {finding.text}", " " * 6)
            if finding.remedy:
                write_line(f"      try: {finding.remedy}", " " * 6)
