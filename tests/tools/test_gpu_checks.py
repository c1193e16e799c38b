"""The checks of a GPU, dry: they run to their end where there is none."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lvspec_cli.types import Quantisation
from tools.gpu_checks import CHECKS, PREDICTED, SECONDS, Check, Place, by_pytest, main, run, run_apart
from tools.real_size import ModelFigures


def test_a_dry_run_says_what_a_card_would_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry", "--only", "tower", "3B int4", "32B fp8", "products", "captions at once"]) == 0
    said = capsys.readouterr().out
    assert "tower of the 3B, 2 frames: " in said
    assert "2 layers joined, results differ by 0.0e+00" in said
    for what in (
        "3B int4: built",
        "milliseconds by rows: 1: ",
        "a step predicted: H100 1.5 ms",
        "32B fp8: built",
        "a step predicted: H100 13.5 ms, H200 10.2 ms",
        "one step: ",
        "8 draft steps, every token looked at: ",
        " ms, 8 waits, ",
        "8 draft steps, as a chain: ",
        "us, predicted 70",
        "  4 at once: ",
    ):
        assert what in said, what
    assert said.count("us, ours / torch's / fp8 / int4: 1 rows ") == 6
    assert said.endswith("failed: nothing\n")


def test_all_of_them_fit_the_time_that_they_are_given() -> None:
    assert sum(check.seconds for check in CHECKS) <= SECONDS + 15
    assert {
        ("3B", Quantisation.INT4),
        ("32B", Quantisation.NF4),
        ("32B", Quantisation.FP8),
    } <= PREDICTED.keys()
    assert [check.name for check in CHECKS[:3]] == ["tower", "kernels", "3B bf16"]


def test_a_check_that_fails_or_would_not_end_takes_no_other_with_it() -> None:
    def failing(_: Place) -> Iterator[str]:
        yield "begun"
        raise RuntimeError("an illegal memory access\nand more")

    def told(_: Place) -> Iterator[str]:
        yield "told"

    said: list[str] = []
    checks = (Check("one", 1, failing), Check("long", 99, told), Check("two", 1, told))
    place = Place(torch.device("cpu"), False, time.monotonic() + 50)
    assert run(checks, place, said.append) == ["one"]
    assert said[1:3] == ["begun", "failed: RuntimeError: an illegal memory access"]
    assert said[3].startswith("== long: left out, ")
    assert said[-1] == "told"


FIGURES = ModelFigures("7B", Quantisation.BF16, 2, 2, ())


def apart(checks: list[Check]) -> tuple[list[str], Place]:
    place = Place(torch.device("cpu"), False, time.monotonic() + 500)
    return run_apart(checks, place, print), place


# At the top of a module, because a process that begins anew takes them from there.


def noted(place: Place) -> Iterator[str]:
    place.found["7B", Quantisation.BF16] = FIGURES
    yield f"{os.getpid()}"


def failing(_: Place) -> Iterator[str]:
    yield f"{os.getpid()}"
    raise RuntimeError("an illegal memory access\nand more")


def killed(_: Place) -> Iterator[str]:
    yield f"{os.getpid()}"
    os.kill(os.getpid(), signal.SIGKILL)


def told(place: Place) -> Iterator[str]:
    yield f"{os.getpid()}"
    yield f"{len(place.found)} found"


def hanging(_: Place) -> Iterator[str]:
    yield "begun"
    time.sleep(600)


def test_behind_a_failure_a_new_process_goes_on_with_what_was_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = [
        Check("noted", 1, noted), Check("failing", 1, failing), Check("killed", 1, killed),
        Check("told", 1, told), Check("again", 1, told), Check("long", 999, told),
    ]  # fmt: skip
    failed, place = apart(checks)
    assert failed == ["failing", "killed"]
    assert place.found == {("7B", Quantisation.BF16): FIGURES}
    said = capsys.readouterr().out.splitlines()
    first, second, third = dict.fromkeys(line for line in said if line.isdigit())
    lines = [line for line in said if not line.startswith("== ")]
    assert lines == [
        first, first, "failed: RuntimeError: an illegal memory access", second,
        "failed: its process has ended", third, "1 found", third, "1 found",
    ]  # fmt: skip
    assert said[-1].startswith("== long: left out, ")
    assert str(os.getpid()) not in lines


def test_a_check_that_does_not_end_is_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.gpu_checks.LONGEST", 0)
    assert apart([Check("hanging", 1, hanging), Check("told", 1, told)])[0] == ["hanging"]
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == ["begun", "failed: it did not end in 10 s"]
    assert said[-1] == "0 found"


def test_what_a_process_imports_is_not_of_a_checks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.gpu_checks.LONGEST", 0)
    monkeypatch.setattr("tools.gpu_checks.BEGINNING", 2.0)  # torch and transformers take longer to import
    assert apart([Check("told", 1, told)])[0] == []


def test_tests_that_do_not_end_are_stopped_and_what_they_said_is_told(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest, time\npytestmark = pytest.mark.gpu\n"
        "def test_one(): assert 1 == 2\ndef test_two(): time.sleep(600)\n"
    )
    place, said = Place(torch.device("cpu"), False, time.monotonic() + 50), list[str]()
    with pytest.raises(RuntimeError, match="pytest ended with -9"):
        for line in by_pytest(4, ("-s", str(file)), place):
            said.append(line)
    assert said[-2:] == ["F", "stopped after 8 s"]
