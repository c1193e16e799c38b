"""Files of lvspec 0.1.0 (tests/data/pinned) are still read by the commands that go on from them."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvspec_cli.bench.journal import environment_of
from lvspec_cli.bench.run import words_digest
from lvspec_cli.models.load import load_pair
from lvspec_cli.output.records import with_null
from lvspec_cli.pairs.registry import PACKAGE
from tests.conftest import Printed

pytestmark = pytest.mark.usefixtures("no_charts")

PINNED = Path(__file__).parent / "data" / "pinned"
BUNDLED = PACKAGE / "demo" / "pair"
CAPTION = ("caption", "clips", "--device", "cpu", "--prompt", "Describe the video.")

Run = Callable[..., Printed]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working directory."""
    folder = tmp_path / "old"
    shutil.copytree(PINNED, folder)
    for role in ("target", "draft"):
        (folder / role).symlink_to(BUNDLED / role)
    (folder / "clips" / "c.mp4").write_text("no video\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def clips(old: Path) -> Path:
    """The clips that can be read."""
    (old / "clips" / "c.mp4").unlink()
    return old / "clips"


@pytest.fixture
def lvspec(here: Run, old: Path) -> Run:
    """The command line with the pair that made the files."""
    return partial(here, environment={"LVSPEC_MODELS": "models.yaml"})


@pytest.fixture
def moved_here(old: Path) -> Callable[[str], bytes]:
    """Makes a file one of this machine: measurements of another one are refused."""
    pair = load_pair(BUNDLED / "target", BUNDLED / "draft", device="cpu", dtype="float32")
    this_machine = environment_of(pair).model_dump(mode="json")

    def move(name: str) -> bytes:
        path = old / name
        header, newline, lines = path.read_text().partition("\n")
        whole = json.loads(header) if name.endswith(".jsonl") else json.loads(path.read_text())
        facts = whole if "environment" in whole else whole["asked"]
        draft = facts["environment"]["draft_dtype"]  # of mode ar there is none
        facts["environment"] = {**this_machine, "draft_dtype": draft}
        for part in (whole.get("settings", {}), facts):  # other words are another run, too
            if "words" in part:
                part["words"] = words_digest(pair.words)
        text = json.dumps(whole, separators=(",", ":"))
        path.write_text(text + newline + lines if name.endswith(".jsonl") else text)
        return path.read_bytes()

    return move


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- records of captions ---------------------------------------------------------------------------------


def test_captions_are_not_made_again(lvspec: Run, old: Path) -> None:
    before = (old / "captions.jsonl").read_bytes()
    done = lvspec(*CAPTION)
    assert done.stderr.splitlines()[0] == "2 done, 1 failed, 0 to do"
    assert done.returncode == 1  # the row of the file that is no video
    assert (old / "captions.jsonl").read_bytes() == before


def test_segments_are_not_captioned_again(lvspec: Run, old: Path) -> None:
    before = (old / "segments.jsonl").read_bytes()
    done = lvspec("caption", "clips/b.mp4", *CAPTION[2:], "--segment", 2, "--out", "segments.jsonl")
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, "3 done, 0 failed, 0 to do")
    assert (old / "segments.jsonl").read_bytes() == before


def test_captions_of_clips_that_have_other_names_now_are_known(lvspec: Run, old: Path) -> None:
    done = lvspec("caption", ".", *CAPTION[2:])  # clips/a.mp4 was a.mp4
    assert done.stderr.startswith("2 done, 1 failed, 0 to do\n3 of these rows stand under other names")


@pytest.mark.parametrize("to", ["txt", "srt", "vtt", "csv", "videofolder", "musubi"])
def test_captions_are_exported(lvspec: Run, old: Path, to: str) -> None:
    folder = ("--out-dir", "new") if to in ("txt", "srt", "vtt") else ()
    done = lvspec("export", "captions.jsonl", "--to", to, "--videos", "clips", *folder)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (1, ["left out: 1 that failed"])


def test_an_exported_table_says_what_the_records_say(lvspec: Run, old: Path) -> None:
    lvspec("export", "captions.jsonl", "--to", "csv")
    with (old / "captions.csv").open(newline="") as stream:
        texts = {row["file_name"]: row["text"] for row in csv.DictReader(stream)}
    records = rows(old / "captions.jsonl")
    assert texts == {row["file_name"]: row["text"] for row in records if row["status"] == "ok"}


def test_exported_files_are_known_as_our_own(lvspec: Run, old: Path) -> None:
    export = ("export", "captions.jsonl", "--to", "txt", "--out-dir", "export")
    assert lvspec(*export).stderr.startswith("txt files: 0 written, 2 unchanged\n")
    assert lvspec(*export, "--suffix", " More.").stderr.startswith("txt files: 2 written, 0 unchanged\n")


def test_records_are_merged(lvspec: Run, old: Path) -> None:
    done = lvspec("merge", "all.jsonl", "captions.jsonl", "segments.jsonl")
    assert done.stderr.endswith("all.jsonl: 6 rows, 1 failed\n")
    assert done.returncode == 1
    assert rows(old / "all.jsonl") == rows(old / "captions.jsonl") + rows(old / "segments.jsonl")


def test_a_trace_is_replaced(lvspec: Run, old: Path) -> None:
    done = lvspec("ask", "clips/c.mp4", "What happens?", "--trace", "rounds.jsonl")
    assert done.returncode == 1  # and not 5: it is no file of somebody else
    assert (old / "rounds.jsonl").read_text() == ""


# --- what is remembered for the user ---------------------------------------------------------------------


def test_the_history_gives_an_estimate(lvspec: Run, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "state" / "lvspec").mkdir(parents=True)
    shutil.copy(PINNED / "state" / "runs.jsonl", tmp_path / "state" / "lvspec")
    done = lvspec("caption", clips, "--device", "cpu", "--dry-run", "--out", "new.jsonl")
    assert done.stderr.splitlines()[-1] == "about 1 s, as past runs like this one went"


def test_known_scenes_are_not_looked_for(lvspec: Run, clips: Path, tmp_path: Path) -> None:
    """The file has a cut that no detector finds in that clip."""
    folder = tmp_path / "state" / "lvspec" / "scenes"
    folder.mkdir(parents=True)
    shutil.copy(PINNED / "state" / "scenes.json", folder / f"{scenes_key(clips / 'b.mp4')}.json")
    done = lvspec("caption", clips / "b.mp4", "--device", "cpu", "--scenes", "--dry-run")
    stretches = [line.split("\t")[1] for line in done.stdout.splitlines()[1:]]
    assert stretches == ["0-2", "2-5.66667"]


def scenes_key(video: Path) -> str:
    """Of a video of less than 64 KiB, whose beginning, middle and end are sampled."""
    data = video.read_bytes()
    sample = hashlib.sha256(data + data[len(data) // 2 :] if len(data) // 2 else data).hexdigest()
    facts = {"start": None, "end": None, "by": f"{version('scenedetect-headless')}, 2"}
    whole = {"name": "", "size": len(data), "sample": sample, "facts": facts}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- bench -----------------------------------------------------------------------------------------------


def test_results_are_compared(lvspec: Run, old: Path) -> None:
    same = lvspec("bench-compare", "bench", "bench/results.json")
    assert (same.returncode, same.stderr) == (0, "")
    assert "lvspec γ=8\tspeedup\t3.52" in same.stdout
    other = lvspec("bench-compare", "bench", "later")
    assert other.returncode == 0
    assert other.stderr.startswith("not measured in B: lvspec γ=8\nnot measured in A: lvspec γ=4\n")
    assert "items: 4, now 1, or others" in other.stderr


def test_a_finished_bench_measures_nothing_again(
    lvspec: Run, clips: Path, old: Path, moved_here: Callable[[str], bytes]
) -> None:
    journal = moved_here("bench/measurements.jsonl")
    before = json.loads((old / "bench" / "results.json").read_text())
    command = ("bench", clips, "--device", "cpu", "--modes", "ar,lvspec", "--questions-per-clip", 1)
    done = lvspec(*command, "--out", "bench", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert (old / "bench" / "measurements.jsonl").read_bytes() == journal
    after = json.loads((old / "bench" / "results.json").read_text())
    # What is newer: a digest of other words, and fields that say nothing of what was measured before.
    after["settings"] = {**{name: after["settings"][name] for name in before["settings"]}}
    after["settings"]["words"] = before["settings"]["words"]
    for part in (before["settings"], *(mode["settings"] for mode in before["modes"])):
        if "rule" in part:  # where a limit that is infinite was a text
            part["rule"] = with_null(part["rule"])
    for measurement in (each for block in after["blocks"] for each in block["measurements"]):
        assert measurement.pop("loss") is None
    for mode in after["modes"]:
        fidelity = mode.get("fidelity") or {}
        assert (fidelity.pop("loss_per_token", None), fidelity.pop("freedom", None)) == (None, None)
        assert fidelity.pop("content_kept", None) is not None or mode["mode"] == "ar"
        kinds = [fidelity.get(f"{name}_by_kind", {}).values() for name in ("facts", "questions")]
        for quality in (fidelity.get("facts"), fidelity.get("questions"), *kinds[0], *kinds[1]):
            assert quality is None or quality.pop("lost") is not None
    assert {name: after[name] for name in STANDING} == {name: before[name] for name in STANDING}


# All but the time, the machine and the command.
STANDING = ("schema", "settings", "reference", "modes", "contrasts", "items", "blocks")


def test_scored_captions_are_not_scored_again(
    lvspec: Run, clips: Path, old: Path, moved_here: Callable[[str], bytes]
) -> None:
    journal = moved_here("relevance/relevance.jsonl")
    before = json.loads((old / "relevance" / "relevance.json").read_text())
    command = ("bench-relevance", clips, "--device", "cpu", "--relevance", "lexicon", "--relevance", "random")
    done = lvspec(*command, "--out", "relevance", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert (old / "relevance" / "relevance.jsonl").read_bytes() == journal
    after = json.loads((old / "relevance" / "relevance.json").read_text())
    assert (after["schemes"], after["facts"]) == (before["schemes"], before["facts"])


# --- tune ------------------------------------------------------------------------------------------------

TUNED = ("tune/calibration.json", "tune/search/measurements.jsonl", "tune/report/measurements.jsonl")


def test_a_finished_search_finds_the_same_again(
    lvspec: Run, clips: Path, old: Path, moved_here: Callable[[str], bytes]
) -> None:
    kept = {name: moved_here(name) for name in TUNED}
    rules = (old / "tune" / "variants.yaml").read_text()
    found = yaml.safe_load((old / "tune" / "models.yaml").read_text())["pairs"]["pinned"]
    command = ("tune", clips, "--device", "cpu", "--budget", 2, "--gamma", 4, "--min-fidelity", 1)
    done = lvspec(*command, "--questions-per-clip", 0, "--out", "tune", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: (old / name).read_bytes() for name in TUNED} == kept
    assert (old / "tune" / "variants.yaml").read_text() == rules
    printed = yaml.safe_load(done.stdout)["pairs"]["pinned"]
    assert (printed["defaults"], printed["rules"]) == (found["defaults"], found["rules"])


def test_what_was_tuned_is_a_pair_and_rules_of_the_bench(lvspec: Run, old: Path) -> None:
    shown = lvspec("models", "show", "pinned", "--models", "tune/models.yaml")
    assert shown.returncode == 0, shown.stderr
    assert "gamma 4" in shown.stdout
    done = lvspec("bench", "gone.mp4", "--variants", "tune/variants.yaml", "--out", "new")
    assert (done.returncode, "gone.mp4" in done.stderr) == (4, True)  # the rules were read before
