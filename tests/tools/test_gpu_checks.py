"""The checks of a GPU, dry: they run to their end where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from lvspec_cli.types import Quantisation
from tools.gpu_checks import CHECKS, PREDICTED, SECONDS, Check, Place, main, run


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
