"""The measurement of a long batch's memory: what it makes of readings, and that it runs."""

import re
import subprocess
import sys

import pytest

from tools.batch_memory import Reading, fitted, growth, peak_of

MIB = 2**20


def test_growth_is_counted_from_a_quarter_of_the_rows_on():
    found = [Reading(10, 100 * MIB, 0), Reading(25, 200 * MIB, 60 * MIB), Reading(100, 230 * MIB, 50 * MIB)]
    assert growth(found) == 20 * MIB


def test_what_fit_says_grows_by_a_cache_a_slot():
    one, eight = fitted(1), fitted(8)
    assert one > 900_000_000
    assert 7 * 15_000_000 < eight - one < 7 * 25_000_000


def test_the_most_that_a_process_has_held():
    program = "import time; held = b'x' * {}; del held; time.sleep(0.2)"
    small, large = (peak_of([sys.executable, "-c", program.format(size * MIB)]) for size in (1, 200))
    assert 190 * MIB < large - small < 210 * MIB


@pytest.mark.thorough
def test_it_reads_the_memory_of_a_real_batch():
    command = "-m tools.batch_memory --clips 4 --tokens 4"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, check=True)
    lines = re.findall(r"(\d+) rows: +(\d+) MiB, decoding +(\d+) MiB", done.stdout)
    assert lines
    assert all(100 < int(main) < 10_000 and int(workers) < 10_000 for _, main, workers in lines)
    assert re.search(r"grown after a quarter: [+-][\d.]+ MiB\n$", done.stdout)
