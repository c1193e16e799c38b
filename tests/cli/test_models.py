"""``lvspec models`` and ``lvspec doctor``."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lvspec_cli.memory.plan import CONTEXT, GIGABYTE, SLACK, Device, Machine, need, together
from lvspec_cli.memory.plan import Choice as Kept
from lvspec_cli.memory.resolve import first_that_fits, fit_pair, workload_of_pair
from lvspec_cli.pairs.hub import Missing
from lvspec_cli.pairs.registry import load_registry, shipped_models
from lvspec_cli.types import Quantisation
from tests.conftest import Printed
from tests.memory.test_sizes import size
from tests.tiny_models import save_model, save_pair

Run = Callable[..., Printed]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pairs.md"


def machine(gpus: int, each: int, memory: int = 64) -> Machine:
    cards = tuple(Device(f"cuda:{n}", each * GIGABYTE, each * GIGABYTE, "a card") for n in range(gpus))
    return Machine(Device("cpu", memory * GIGABYTE, memory * GIGABYTE), cards)


def test_alone_it_lists(here: Run) -> None:
    alone, listed = here("models"), here("models", "list")
    assert alone == listed
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert [row[0] for row in rows[:2]] == ["pair", "demo"]
    assert len(rows) == 20
    assert [row[0] for row in rows if row[5].endswith("; gains nothing")] == ["qwen2.5-vl-7b-3b"]
    assert all(row[4] for row in rows)
    assert sorted({row[3] for row in rows[2:]}) == ["not downloaded"]


def test_show(here: Run, tiny_models: Path) -> None:
    shown = here("models", "show", "qwen2.5-vl-7b-3b").stdout
    assert "Qwen/Qwen2.5-VL-3B-Instruct at 66285546d2b821cf421d4f5eb2576359d3770cd3" in shown
    assert "Qwen Research (non-commercial)" in shown
    assert "frames 64, fps 2, max-pixels 200704" in shown
    assert "Qwen3.6-27B at main, no commit is pinned" in here("models", "show", "qwen3.6-27b-0.8b").stdout
    assert "gain           none: a step of the draft takes 0.76 of its target's" in shown
    intern = here("models", "show", "internvl3.5-38b-1b").stdout
    assert "InternVL3_5-1B-HF at 9191dbccf312b537016f041b25d61c72e7c5c9f3" in intern
    assert "38.4B, 76.8 GB, not downloaded" in intern
    mine = here("models", "show", "tiny", "--models", tiny_models).stdout
    assert f"folder: {tiny_models.parent / 'target'}" in mine
    assert here("models", "show", "nope").returncode == 3


def test_fit_of_large_pairs_on_cards(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine(2, 80))
    monkeypatch.setattr("lvspec_cli.memory.resolve.nf4_rows", lambda machine: 5)
    shown = here("models", "fit", "qwen2.5-vl-32b-7b")
    assert shown.returncode == 0
    rows = {line.split("\t")[0]: line.split("\t") for line in shown.stdout.splitlines()}
    assert rows["none"][1:3] == ["66.9 GB", "16.6 GB"]
    assert rows["none"][-1] == "cuda:0; draft cuda:1"
    assert rows["nf4"][-1] == "cuda:0"
    assert rows["fp8"][1] == rows["int8"][1] > rows["torchao-int4"][1] > rows["nf4"][1]
    assert "cuda:1 a card, 80.0 GB free of 80.0 GB" in shown.stderr
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine(1, 48))
    packed = here("models", "fit", "qwen2.5-vl-32b-7b").stdout
    assert "auto: nf4 on cuda:0: " in packed
    assert "nf4 takes 5 rows at once here, so gamma is 4 at most" in packed
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine(1, 24))
    short = here("models", "fit", "qwen2.5-vl-32b-7b").stdout
    assert "auto: does not fit, " in short
    fewer = here("models", "fit", "qwen2.5-vl-7b-3b", "--frames", "16").stdout
    assert "16 frames of 200704 pixels at most (2048 visual tokens)" in fewer
    assert "\ngain: none: a step of the draft takes 0.76 of its target's" in fewer
    internvl = here("models", "fit", "internvl3.5-8b-1b").stdout
    assert internvl.startswith("internvl3.5-8b-1b: 32 frames of 200704 pixels at most (8192 visual tokens)")


def advice(text: str, row: str) -> list[tuple[int, str, str]]:
    """GB, pair and quantisation of the lines that match."""
    return [(int(found[1]), found[2], found[3]) for found in re.finditer(row, text, re.MULTILINE)]


def test_the_advice_is_what_fit_computes() -> None:
    """In models.yaml and docs/pairs.md: the first pair that fits a card whose memory is free. The README
    pulls one that fits 24 GB in 16 bits, in which speculation pays, and names the first for quality."""
    pairs = load_registry(environment={"XDG_CONFIG_HOME": "/nowhere"}).pairs
    computed = []
    for card in (8, 16, 24, 48, 80):
        fit = first_that_fits(pairs, machine(1, card))
        assert fit is not None
        kinds = dict.fromkeys((str(fit.decision.target), f"draft {fit.decision.draft}"))
        same = fit.decision.target == fit.decision.draft
        computed.append((card, fit.name, str(fit.decision.target) if same else ", ".join(kinds)))
    assert advice(shipped_models().read_text(), r"^# +(\d+) GB  (\S+) +(.+)$") == computed
    assert advice(PAGE.read_text(encoding="utf-8"), r"^\| (\d+) \| `(.+)` \| (.+) \|$") == computed
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pulled = re.search(r"^    lvspec models pull (.+)$", readme, re.MULTILINE)
    assert pulled is not None
    chosen = pairs[pulled[1]]
    taken = fit_pair(pulled[1], chosen, machine(1, 24), workload_of_pair(chosen)).decision
    assert (taken.plan.fits, taken.target) == (True, Quantisation.NONE)
    best = next(pair for card, pair, _ in computed if card == 24)
    assert f"quality rather than speed: `{best}`" in readme


def test_fit_names_the_first_choice(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``auto`` would take it with all files here; pairs that gain nothing are passed over, and marked."""
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine(1, 24))
    monkeypatch.setattr("lvspec_cli.memory.resolve.nf4_rows", lambda machine: 5)
    registry = load_registry(environment={"XDG_CONFIG_HOME": "/nowhere"})
    few = {name: registry.pairs[name] for name in ("qwen2.5-vl-7b-3b", "smolvlm2-2.2b-256m")}
    monkeypatch.setattr("lvspec_cli.pairs.registry.load_registry", lambda *_: replace(registry, pairs=few))
    shown = here("models", "fit")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split("\t") for line in shown.stdout.splitlines()]
    assert [row[-1] for row in rows[1:]] == ["cuda:0; gains nothing", "cuda:0"]
    assert (
        "first choice for this machine: smolvlm2-2.2b-256m, weights kept in none, draft nf4\n" in shown.stderr
    )
    # And ``pull auto`` asks before it loads that one, however small it is.
    monkeypatch.setattr("lvspec_cli.cli.models._missing", lambda source: Missing(source, ("a",), 1_000_000))
    asked = here("models", "pull", "auto")
    assert asked.returncode == 2
    assert shown.stderr.splitlines()[-1] in asked.stderr
    assert asked.stderr.splitlines()[-2:] == [
        "error: smolvlm2-2.2b-256m is 0.0 GB to download",
        "try: say --yes, as there is no terminal to ask on",
    ]
    assert "goes with a pair's name" in here("models", "pull", "auto", "--draft", "mtp").stderr
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine(1, 2, memory=1))
    for words in (("fit",), ("pull", "auto")):
        assert "nothing but the bundled pair fits this machine\n" in here("models", *words).stderr


def test_a_pair_of_your_own_is_added(here: Run, tiny_models: Path, tmp_path: Path) -> None:
    folders = [str(tiny_models.parent / name) for name in ("target", "draft")]
    done = here("models", "add", "mine", *folders)
    file = tmp_path / "lvspec/models.yaml"
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"{file}: mine is added, and auto takes it first if it fits",
        "next: lvspec models pull mine, then lvspec models verify mine",
    ]
    file.write_text(f"# mine\n{file.read_text()}")
    assert here("models", "add", "other", "owner/name", "mtp").returncode == 0
    assert file.read_text().startswith("# mine\npairs:\n  other:\n")
    rows = [line.split("\t") for line in here("models", "list").stdout.splitlines()]
    assert [(row[0], row[3]) for row in rows[1:3]] == [("other", "not downloaded"), ("mine", "folder")]
    before = file.read_bytes()
    for words, cause in (
        (("mine", *folders), "there is a pair named 'mine' already"),
        (("new", "./nowhere", folders[1]), "there is no folder ./nowhere"),
        (("new", "~nosuch/x", folders[1]), "there is no folder ~nosuch/x"),
    ):
        refused = here("models", "add", *words)
        assert refused.returncode in (2, 3)
        assert cause in refused.stderr
        assert file.read_bytes() == before


def test_fit_of_what_is_here(here: Run, tiny_models: Path) -> None:
    shown = here("models", "fit", "tiny", "--models", tiny_models, "--device", "cpu")
    assert (
        shown.returncode,
        "auto: none on cpu: the target fits as it is, so does the draft" in shown.stdout,
    ) == (0, True)
    rows = [line.split("\t")[0] for line in shown.stdout.splitlines()]
    assert rows[2:-2] == ["none", "int8", "nf4", "int4", "fp8", "torchao-int4"]
    assert rows[-1].startswith("at once: memory for ")
    unknown = tiny_models.parent / "unknown.yaml"
    unknown.write_text("pairs:\n  odd:\n    target: {repo: a/b}\n    draft: {repo: a/c}\n")
    one = here("models", "fit", "odd", "--models", unknown)
    assert (one.returncode, "its size is not known beforehand" in one.stderr) == (3, True)


@pytest.mark.thorough
def test_memory_in_models_yaml_is_what_fit_says() -> None:
    from lvspec_cli.memory.resolve import workload_of_pair

    for name, pair in load_registry(environment={"XDG_CONFIG_HOME": "/nowhere"}).pairs.items():
        if pair.target.repo is None:
            continue
        assert list(pair.memory) == ["none", "int8", "fp8", "nf4", "torchao-int4"], name
        load = workload_of_pair(pair)
        for kind, least in pair.memory.items():
            both = [
                need(size((source.repo or "").split("/")[1]), load, Kept(kind))
                for source in (pair.target, pair.draft)
            ]
            assert math.ceil((together(*both) + CONTEXT["gpu"]) / (1 - SLACK) / 1e9) == least, (name, kind)


def pairs_table() -> list[str]:
    """The table of docs/pairs.md, as models.yaml has it."""
    lines = ["| pair | target | draft | GB at bfloat16, nf4 | licence |", "| --- | --- | --- | --- | --- |"]
    for name, pair in load_registry(environment={"XDG_CONFIG_HOME": "/nowhere"}).pairs.items():
        models = ["bundled" if source.bundled else source.name for source in (pair.target, pair.draft)]
        least = (
            f"{pair.memory[Quantisation.NONE]:g}, {pair.memory[Quantisation.NF4]:g}"
            if pair.memory
            else "any machine"
        )
        lines.append(f"| `{name}` | {models[0]} | {models[1]} | {least} | {pair.licence} |")
    return lines


def test_the_page_has_the_pairs_of_models_yaml() -> None:
    assert "\n".join(pairs_table()) in PAGE.read_text(encoding="utf-8")


def test_the_pages_example_of_an_own_pair_is_valid(tmp_path: Path) -> None:
    own = tmp_path / "models.yaml"
    own.write_text(PAGE.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0])
    pair = load_registry(own, environment={}).pairs["mine"]
    assert (len(pair.contraries), pair.rules.balanced.contraries) == (2, True)
    assert pair.rules.percentiles.balanced.filler == 75


def test_verify_finds_a_pair_right(here: Run, tiny_models: Path) -> None:
    done = here("models", "verify", "tiny", "--models", tiny_models, "--device", "cpu", "--quiet")
    assert done.returncode == 0, done.stderr
    rows = {line.split("\t")[1]: line.split("\t")[0] for line in done.stdout.splitlines()}
    assert rows.pop("target: files") == rows.pop("draft: files") == "not checked"
    assert set(rows.values()) == {"ok"}
    assert "self-test" in rows


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", {"added": "<|vision_pad|>"}, "failed\ttokenizers\t"),
        ("config.json", {"video_token_id": 5}, "failed\tconfigs\tdiffer in video_token_id"),
        ("generation_config.json", {"eos_token_id": [3]}, "failed\tconfigs\tdiffer in eos_token_id"),
        ("config.json", {"layers": 1}, "failed\tdraft: weights\t"),
    ],
)
def test_verify_finds_what_is_wrong(
    here: Run, tiny_models: Path, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    draft = Path(shutil.copytree(tiny_models.parent / "draft", tmp_path / "draft"))
    spoil(draft / file, change)
    models = tmp_path / "m.yaml"
    target = tiny_models.parent / "target"
    models.write_text(f"pairs:\n  p:\n    target: {{folder: {target}}}\n    draft: {{folder: draft}}\n")
    done = here("models", "verify", "p", "--models", models, "--quiet")
    assert done.returncode == 3
    assert message in done.stdout
    assert "not checked\tself-test\tthe pair has to be right first" in done.stdout
    assert "p: 1 check has failed" in done.stderr


def test_a_target_with_experts_and_a_draft_without(here: Run, tmp_path: Path) -> None:
    """As Qwen3.5-35B-A3B with the 0.8B: of one family but for the experts."""
    save_model(tmp_path / "target", "qwen3_5_moe")
    save_model(tmp_path / "draft", "qwen3_5")
    models = tmp_path / "m.yaml"
    models.write_text("pairs:\n  experts:\n    target: {folder: target}\n    draft: {folder: draft}\n")
    done = here("models", "verify", "experts", "--models", models, "--device", "cpu", "--quiet")
    assert done.returncode == 0, done.stdout
    assert "ok\tconfigs\tqwen3_5_moe and qwen3_5\n" in done.stdout
    assert "ok\tself-test\texact mode gives the target's " in done.stdout
    fitting = here("models", "fit", "experts", "--models", models, "--device", "cpu")
    assert (fitting.returncode, "auto: none on cpu" in fitting.stdout) == (0, True)


def test_of_smolvlm_the_template_for_videos_is_compared(here: Run, tmp_path: Path) -> None:
    """Its files' own template is for pictures; about a video the library's is used, of both models."""
    _, draft = save_pair(tmp_path, "smolvlm")
    (draft / "chat_template.jinja").write_text("{{ messages }}, as nobody writes them")
    models = tmp_path / "m.yaml"
    models.write_text("pairs:\n  tiny:\n    target: {folder: target}\n    draft: {folder: draft}\n")
    done = here("models", "verify", "tiny", "--models", models, "--no-self-test", "--device", "cpu")
    assert (done.returncode, "ok\tchat templates\twrite the same about a video\n" in done.stdout) == (0, True)


def test_templates_that_differ_are_no_failure(here: Run, tiny_models: Path, tmp_path: Path) -> None:
    """Only the target's is used."""
    draft = Path(shutil.copytree(tiny_models.parent / "draft", tmp_path / "draft"))
    (draft / "chat_template.jinja").write_text((draft / "chat_template.jinja").read_text() + "!")
    models = tmp_path / "m.yaml"
    target = tiny_models.parent / "target"
    models.write_text(f"pairs:\n  p:\n    target: {{folder: {target}}}\n    draft: {{folder: draft}}\n")
    done = here("models", "verify", "p", "--models", models, "--quiet", "--device", "cpu")
    assert done.returncode == 0, done.stdout
    assert "ok\tchat templates\tdiffer: both models read what the target's writes" in done.stdout


def spoil(path: Path, change: dict[str, object]) -> None:
    values = json.loads(path.read_text())
    if "added" in change:
        row = next(row for row in values["added_tokens"] if row["content"] == change["added"])
        row["content"] = "<|other|>"
    elif "layers" in change:
        values["text_config"]["num_hidden_layers"] = 1
        values["text_config"].pop("layer_types", None)
    else:
        values.update(change)
    path.write_text(json.dumps(values))


def test_ask_says_which_pair_it_takes_and_why(here: Run, video_file: Path) -> None:
    asked = ["ask", video_file, "What happens?", "--max-new-tokens", "3"]
    first, *others = here(*asked).stderr.splitlines()
    assert "pair demo (auto) knows only the demo world; for real videos: `lvspec models fit`" in (
        first,
        *others,
    )
    others = [line for line in others if "(auto)" not in line]
    assert not any("knows only" in line for line in others)
    assert here(*asked, "--quiet").stderr == "warning: demo knows only the demo world\n"
    named = here(*asked, environment={"LVSPEC_PAIR": "demo"}).stderr
    assert ("(auto)" in named, named.count("knows only")) == (False, 1)


def test_doctor(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    plain = here("doctor")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "PyAV: " in plain.stdout
    assert "hub" not in [line.split(":")[0].split()[-1] for line in plain.stdout.splitlines()]
    report = json.loads(here("doctor", "--json", "--hub").stdout)
    found = {row["what"]: row for row in report["findings"]}
    assert {"lvspec", "torch", "memory", "PyAV", "decord", "bitsandbytes", "cache", "pairs", "hub"} <= set(
        found
    )
    assert found["bitsandbytes"]["facts"]["nf4"][0] == found["bitsandbytes"]["facts"]["int8"][0] == "cpu"
    assert found["pairs"]["facts"]["here"] == ["demo"]
    assert (found["hub"]["state"], "127.0.0.1:9 cannot be reached" in found["hub"]["text"]) == ("bad", True)
    assert all(row["remedy"] for row in report["findings"] if row["state"] == "bad")


def test_doctor_on_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch would tell of two of them: none is here."""
    from lvspec_cli.checks import doctor

    free = [70 * GIGABYTE, 5 * GIGABYTE]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        mem_get_info=lambda number: (free[number], 80 * GIGABYTE),
        get_device_capability=lambda number: (9, 0),
        get_device_name=lambda number: "a card",
    )
    first, second = doctor._gpus(SimpleNamespace(cuda=cuda))
    assert (first.what, first.state, first.remedy) == ("GPU 0", "ok", "")
    assert first.text == "a card, 70.0 GB free of 80.0 GB, compute 9.0"
    assert (second.state, second.facts["free"]) == ("note", 5 * GIGABYTE)
    assert second.remedy == "other processes hold its memory: nvidia-smi"
    monkeypatch.setattr("lvspec_cli.checks.doctor.Path.exists", lambda path: True)  # a driver
    cuda.is_available = lambda: False
    for build, said in ((None, "this torch is for CPUs"), ("13.2", "torch sees no GPU")):
        mps = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
        torch = SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=build), backends=mps)
        (found,) = doctor._gpus(torch)
        assert (found.state, said in found.text, bool(found.remedy)) == ("bad", True, True)


def test_doctor_says_what_is_wrong_with_settings(here: Run, tmp_path: Path) -> None:
    bad = tmp_path / "m.yaml"
    bad.write_text("pairs: 3\n")
    shown = here("doctor", "--models", bad)
    assert (shown.returncode, f"bad   pairs: {bad}, line 1" in shown.stdout) == (0, True)
    named = here("doctor", environment={"LVSPEC_PAIR": "nope"}).stdout
    assert "LVSPEC_PAIR names nope, which is none\n      try: " in named


@pytest.mark.parametrize("flag", ["--quant-target", "--quant-draft"])
def test_what_needs_other_files_is_refused_before_anything_slow(
    here: Run, video_file: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr(
        "lvspec_cli.models.load.load_models", lambda *_, **__: pytest.fail("weights are read")
    )
    done = here("ask", video_file, "What happens?", "--pair", "demo", "--device", "cpu", flag, "awq")
    assert (done.returncode, done.stdout) == (3, "")
    half = "target" if flag == "--quant-target" else "draft"
    assert re.fullmatch(
        rf"error: \S*{half} is not quantised by awq, which needs files made so\n"
        "try: name a model that is, or use nf4\n",
        done.stderr,
    )


def test_a_pair_in_fp8_answers_on_a_cpu_too(here: Run) -> None:
    clip = ROOT / "lvspec_cli" / "demo" / "clips" / "clip_0001.mp4"
    kept = ("--quant-target", "fp8", "--quant-draft", "fp8", "--device", "cpu", "--mode", "exact")
    done = here("ask", clip, "What happens?", "--pair", "demo", *kept, "--max-new-tokens", "8", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["lossless"]
    loading = record["settings"]["loading"]
    assert (loading["target"], loading["draft"], loading["dtype"]) == ("fp8", "fp8", "float32")
