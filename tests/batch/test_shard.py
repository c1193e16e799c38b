import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.work import Shard, parse_shard
from lvspec_cli.errors import UsageError
from tests.batch.conftest import Caption, rows


def test_shares_as_people_write_them():
    assert parse_shard("3/16") == Shard(3, 16)
    assert parse_shard(" 1/1 ") == Shard(1, 1)


@pytest.mark.parametrize(
    "text", ["", "3", "0/4", "5/4", "-1/4", "1/0", "1/2/3", "a/b", "1.0/2", "١/٢", "1 / 2"]
)
def test_what_is_no_share(text):
    with pytest.raises(UsageError, match="is not a share"):
        parse_shard(text)


@given(st.binary(), st.integers(1, 64))
def test_every_name_is_in_one_share(name, count):
    assert [Shard(index, count).holds(name) for index in range(1, count + 1)].count(True) == 1


def test_shares_stay_the_same_between_versions_and_machines():
    names = [b"a.mp4", b"sub/b.mp4", b"\xff.mp4", b""]
    held = [[Shard(index, 16).holds(name) for index in range(1, 17)].index(True) for name in names]
    assert held == [0x0, 0xD, 0xC, 0x4]  # the last of the digest's first 16 digits


def test_shares_are_of_about_one_size():
    sizes = [
        sum(Shard(index, 16).holds(b"clip_%05d.mp4" % n) for n in range(16_000)) for index in range(1, 17)
    ]
    assert all(850 < size < 1150 for size in sizes)


PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
(SCRIPT,) = re.findall(
    "^```bash\n(#!/bin/bash\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def as_slurm_runs_it(folder: Path, number: int) -> list[str]:
    """The arguments of lvspec in one task of the page's job array."""
    (folder / "lvspec").write_text('#!/bin/sh\nprintf "%s\\0" "$@" > said\n')
    (folder / "lvspec").chmod(0o755)
    (folder / "captions.sh").write_text(SCRIPT)
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2"}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "captions.sh"], cwd=folder, env={"PATH": path, **task}, check=True)
    return (folder / "said").read_text().split("\0")[:-1]


def test_the_pages_script_for_slurm_captions_every_clip_once(
    caption: Caption, here: Caption, some_clips: Path, tmp_path: Path
) -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", SCRIPT, re.MULTILINE))
    assert SCRIPT.count("#SBATCH") == len(options)
    first, last = map(int, options["array"].split("-"))
    assert (first, options["gpus"], options["signal"]) == (1, "1", "B:TERM@60")
    names = [path.relative_to(some_clips).as_posix() for path in some_clips.rglob("*.*")]
    (tmp_path / "clips").symlink_to(some_clips)
    outs = []
    for number in range(1, last + 1):
        command, *arguments = as_slurm_runs_it(tmp_path, number)
        assert command == "caption"
        shard = parse_shard(arguments[arguments.index("--shard") + 1])
        assert shard == Shard(number, last)
        if number == last or any(shard.holds(name.encode()) for name in names):
            assert caption(*arguments).returncode == 0
            outs.append(arguments[arguments.index("--out") + 1])
    assert len(outs) > 2
    done = [row["file_name"] for out in outs for row in rows(tmp_path / out)]
    assert sorted(done) == sorted(names)
    assert here("merge", "captions.jsonl", *outs, "--inputs", "clips").returncode == 0
