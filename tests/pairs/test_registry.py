from __future__ import annotations

from dataclasses import fields
from math import inf
from pathlib import Path

import pytest

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.pairs.files import locate, missing_files, require
from lvspec_cli.pairs.registry import (
    Defaults,
    Pair,
    Source,
    load_registry,
    read_models_file,
    rule_of,
    settings_of_pair,
    shipped_models,
    user_models,
    with_pair,
)
from lvspec_cli.table import gigabytes
from lvspec_cli.types import Looseness, RoundCosts, RuleSettings

PAIR = "target: {folder: big}\n    draft: {repo: someone/small}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_bundled_pair_is_taken_where_nothing_was_chosen():
    registry = load_registry(environment={"XDG_CONFIG_HOME": "/nowhere"})
    name, pair = registry.pair(None)
    assert name == "demo"
    assert pair.target.bundled is not None
    assert pair.world


def test_flag_then_environment_then_user_file(tmp_path: Path):
    own = write(tmp_path / "lvspec/models.yaml", f"default: own\npairs:\n  own:\n    {PAIR}")
    named = write(tmp_path / "named.yaml", f"default: named\npairs:\n  named:\n    {PAIR}")
    flagged = write(tmp_path / "flagged.yaml", f"default: flagged\npairs:\n  flagged:\n    {PAIR}")
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert user_models(environment) == own
    assert load_registry(environment=environment).default == "own"
    environment["LVSPEC_MODELS"] = str(named)
    assert load_registry(environment=environment).default == "named"
    registry = load_registry(flagged, environment)
    assert registry.default == "flagged"
    assert {"demo", "flagged"} <= set(registry.pairs)
    assert "named" not in registry.pairs


def test_a_pair_of_the_user_wins_over_a_shipped_one(tmp_path: Path):
    models = write(tmp_path / "m.yaml", f"pairs:\n  demo:\n    {PAIR}")
    registry = load_registry(models, {})
    assert registry.pairs["demo"].target.path == tmp_path / "big"


@pytest.mark.parametrize(("name", "remedy"), [("nope", "lvspec models"), ("dem0", "did you mean demo")])
def test_an_unknown_pair_is_said_with_one_that_is_near(name: str, remedy: str):
    with pytest.raises(PairError, match=f"no pair named '{name}'") as caught:
        load_registry(environment={"XDG_CONFIG_HOME": "/nowhere"}).pair(name)
    assert remedy in caught.value.remedy


def test_a_prediction_layer_in_place_of_the_draft(tmp_path: Path):
    """Costs that were measured with the pair's own draft are not its, those of its own pair are."""
    costs = "    defaults: {gamma: 3, adaptation: {most: 5, costs: {draft: 0.2}}}\n"
    text = (
        f"pairs:\n  a:\n    {PAIR}{costs}  b:\n    target: {{folder: x}}\n    draft: {{mtp: true}}\n{costs}"
    )
    pairs = load_registry(write(tmp_path / "m.yaml", text), {}).with_mtp().pairs
    for name in ("a", "b"):
        assert (pairs[name].draft, pairs[name].draft.name) == (Source(mtp=True), "mtp")
        assert (pairs[name].defaults.gamma, pairs[name].defaults.adaptation.most) == (3, 5)
    assert pairs["a"].defaults.adaptation.costs is None
    assert pairs["b"].defaults.adaptation.costs == RoundCosts(draft=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "pairs:\n  a:\n    target: {folder: x}\n    draft: {folder: y}\n    gama: 3\n",
            "line 5: pairs.a.gama: there is no such key",
        ),
        ("pairs:\n  a:\n    target: {folder: x}\n", "line 2: pairs.a.draft: is missing"),
        (
            f"pairs:\n  a:\n    {PAIR}    defaults:\n      gamma: 0\n",
            "line 6: pairs.a.defaults.gamma: 0 is neither auto nor a number from 1 to 64",
        ),
        (
            f"pairs:\n  a:\n    {PAIR}    rules:\n      balanced:\n        anchor_margin: -1\n",
            "line 7: pairs.a.rules.balanced.anchor_margin: Input should be greater",
        ),
        (
            "pairs:\n  a:\n    target: {folder: x, repo: b/c}\n    draft: {folder: y}\n",
            "line 3: pairs.a.target: needs exactly one of",
        ),
        (
            "pairs:\n  a:\n    target: {mtp: true}\n    draft: {folder: y}\n",
            "line 3: pairs.a.target: mtp is for a draft: the target needs repo or folder",
        ),
        (
            "pairs:\n  a:\n    target: {folder: x}\n    draft: {mtp: true, folder: y}\n",
            "line 4: pairs.a.draft: needs exactly one of",
        ),
        (
            "pairs:\n  a:\n    target: {folder: x}\n    draft: {repo: models/small/7b}\n",
            "line 4: pairs.a.draft.repo: 'models/small/7b' is no hub id, owner/name, and no path that",
        ),
        (
            "pairs:\n  a:\n    target: {repo: ./x, folder: y}\n    draft: {folder: y}\n",
            "line 3: pairs.a.target",
        ),
        (f"pairs:\n  a:\n    {PAIR}  a:\n    {PAIR}", "line 5: a: stands there twice"),
        ("pairs: [1, 2]\n", "line 1: pairs: Input should be a valid dictionary"),
        ("pairs:\n  'a b':\n    about: x\n", "line 2: pairs.a b"),
        (
            "pairs:\n  a:\n    target: {folder: /t, vocabulary: 999}\n    draft: {folder: /d}\n",
            "vocabulary is for a draft",
        ),
        (
            "pairs:\n  a:\n    target: {folder: /t}\n    draft: {mtp: true, vocabulary: 999}\n",
            "vocabulary goes with a draft of its own",
        ),
        ("pairs: {\n", "line 2: "),
        ("just words\n", "line 1: the file: "),
        ("default: gone\n", "default: there is no pair named 'gone'"),
    ],
)
def test_messages_name_file_line_and_key(tmp_path: Path, text: str, message: str):
    models = write(tmp_path / "m.yaml", text)
    with pytest.raises(UsageError) as caught:
        load_registry(models, {})
    assert caught.value.cause.startswith(str(models))
    assert message in caught.value.cause
    assert "\n" not in caught.value.cause


NUMBERS = {
    "defaults.frames": "2049",
    "defaults.fps": "241",
    "defaults.max_pixels": "67108865",
    "defaults.gamma": "65",
    "defaults.max_new_tokens": "1000001",
    "defaults.draft_frames": "2049",
    "defaults.draft_pixels": "67108865",
    "defaults.adaptation.most": "65",
    "defaults.adaptation.costs.draft": "1001",
    "defaults.adaptation.costs.verification": ".inf",
    "defaults.adaptation.costs.row": ".nan",
    "defaults.adaptation.costs.overhead": "1e300",
    "memory.none": "1000001",
    "rules.balanced.anchor_threshold": ".inf",
    "rules.balanced.attention_scale": "1.1",
    "rules.balanced.anchor_margin": ".nan",
    "rules.balanced.filler_margin": ".nan",
    "rules.balanced.sentence_margin": ".nan",
    "rules.balanced.shift_window": "17",
    "rules.balanced.defer": "17",
    "rules.balanced.max_loss": ".nan",
    "rules.balanced.max_loose_run": "1000001",
    "rules.balanced.max_loose_in_window": "1000001",
    "rules.balanced.loose_window": "1000001",
    "rules.balanced.random_rate": "1.1",
    "rules.loose.layers.0": "1000",
}


@pytest.mark.parametrize(("key", "number"), NUMBERS.items())
def test_every_number_has_a_greatest_value(tmp_path: Path, key: str, number: str):
    """What is beyond it, or is no number, is one line; the margins alone may be infinite."""
    *above, last = key.removesuffix(".0").split(".")
    value = f"[{number}]" if key.endswith(".0") else number
    inner = "".join(f"{name}: {{" for name in above) + f"draft: 1, {last}: {value}" + "}" * len(above)
    inner = inner.replace("draft: 1, ", "" if "costs" not in above or last == "draft" else "draft: 1, ")
    models = write(tmp_path / "m.yaml", f"pairs:\n  a:\n    {PAIR}    {inner}\n")
    with pytest.raises(UsageError) as caught:
        load_registry(models, {})
    assert f"{models}, line 5: pairs.a.{key}: " in caught.value.cause
    assert "\n" not in caught.value.cause


def test_the_numbers_of_the_table_are_all_there_are():
    named = {key.removesuffix(".0").rpartition(".")[2] for key in NUMBERS}
    numbers = {field.name for field in fields(RuleSettings)} - {
        "relevance",
        "never_loosely",
        "contraries",
        "defer_sure",
    }
    numbers |= {*Defaults.model_fields} - {"adaptation", "fallback"}
    numbers |= {field.name for field in fields(RoundCosts)} | {"most"}
    assert numbers | {"none"} == named


def test_a_local_folder_is_as_good_as_a_repository(tmp_path: Path):
    written = "pairs:\n  a:\n    target: {repo: ./big}\n    draft: {repo: /models/small}\n"
    pair = load_registry(write(tmp_path / "m.yaml", written), {}).pairs["a"]
    assert (pair.target.path, pair.draft.path) == (tmp_path / "big", Path("/models/small"))
    assert pair.target.repo is None


def test_missing_file_and_bytes_that_are_no_text(tmp_path: Path):
    with pytest.raises(UsageError, match="No such file"):
        read_models_file(tmp_path / "none.yaml")
    (tmp_path / "m.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_models_file(tmp_path / "m.yaml")


def test_an_empty_file_adds_nothing(tmp_path: Path):
    models = write(tmp_path / "m.yaml", "# nothing yet\n")
    assert load_registry(models, {}).default == "auto"


def test_rule_under_each_looseness(tmp_path: Path):
    models = write(
        tmp_path / "m.yaml",
        f"pairs:\n  a:\n    {PAIR}    rules:\n      balanced: {{relevance: lens, filler_margin: 1.5}}\n"
        "      loose: {filler_margin: .inf}\n",
    )
    pair = load_registry(models, {}).pairs["a"]
    strict = rule_of(pair, Looseness.STRICT)
    assert (strict.anchor_margin, strict.filler_margin, strict.shift_window) == (0, 0, 0)
    assert rule_of(pair, Looseness.BALANCED) == RuleSettings(relevance=strict.relevance, filler_margin=1.5)
    assert rule_of(pair, Looseness.LOOSE) == RuleSettings(filler_margin=inf)
    paper = settings_of_pair(pair, Looseness.PAPER)
    assert (paper.rule.relevance, paper.rule.anchor_threshold, paper.gamma) == ("paper", 0.7, 10)


def test_shipped_file_is_the_one_at_the_top_of_the_checkout():
    assert shipped_models().name == "models.yaml"
    shipped = read_models_file(shipped_models())
    assert all(isinstance(pair, Pair) for pair in shipped.pairs.values())
    assert {field.name for field in fields(RuleSettings)} >= {"relevance", "filler_margin"}


PINNED = {
    "Qwen/Qwen2.5-VL-72B-Instruct": "89c86200743eec961a297729e7990e8f2ddbc4c5",
    "Qwen/Qwen2.5-VL-32B-Instruct": "7cfb30d71a1f4f49a57592323337a4a4727301da",
    "Qwen/Qwen2.5-VL-7B-Instruct": "cc594898137f460bfe9f0759e9844b3ce807cfb5",
    "Qwen/Qwen2.5-VL-3B-Instruct": "66285546d2b821cf421d4f5eb2576359d3770cd3",
    "Qwen/Qwen3-VL-32B-Instruct": "0cfaf48183f594c314753d30a4c4974bc75f3ccb",
    "Qwen/Qwen3-VL-8B-Instruct": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    "Qwen/Qwen3-VL-4B-Instruct": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "Qwen/Qwen3-VL-2B-Instruct": "89644892e4d85e24eaac8bacfd4f463576704203",
    "Qwen/Qwen3.8-27B": "1d4bf0f2ff6012fd82039f2fa52739d0dd7c60c0",
    "Qwen/Qwen3.5-0.8B": "2fc06364715b967f1860aea9cf38778875588b17",
    "OpenGVLab/InternVL3_5-8B-HF": "741a7d03020411e666c6109218ab71e08151ef86",
    "OpenGVLab/InternVL3_5-1B-HF": "9191dbccf312b537016f041b25d61c72e7c5c9f3",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "482adb537c021c86670beed01cd58990d01e72e4",
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": "067788b187b95ebe7b2e040b3e4299e342e5b8fd",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "0d50680527681998e456c7b78950205bedd8a068",
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "74dd0bf867a4cda7950c17663794267c60cf4b40",
    # No commit was found of these.
    "Qwen/Qwen3.6-27B": None,
    "Qwen/Qwen3.5-27B": None,
    "Qwen/Qwen3.5-9B": None,
    "Qwen/Qwen3.5-4B": None,
    "OpenGVLab/InternVL3_5-38B-HF": None,
    "llava-hf/llava-onevision-qwen2-72b-ov-hf": None,
}
# Of weight files whose bytes public sources give.
FILES = {
    "Qwen/Qwen2.5-VL-32B-Instruct": 68_280_000_000,
    "OpenGVLab/InternVL3_5-1B-HF": 2_121_890_856,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": 1_787_445_680,
}


def test_what_the_shipped_pairs_are_pinned_to():
    """A commit that changes unseen would load other weights than those that are described."""
    pairs = read_models_file(shipped_models()).pairs.values()
    sources = [source for pair in pairs for source in (pair.target, pair.draft) if source.repo]
    assert {(source.repo, source.revision) for source in sources} == set(PINNED.items())
    sizes = {source.repo: source.size for source in sources}
    assert {repo: sizes[repo] for repo in FILES} == {repo: gigabytes(size) for repo, size in FILES.items()}


def test_require_says_how_to_download_what_is_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = Source(repo="someone/large", revision="v2", size="66.9 GB")
    with pytest.raises(PairError, match=r"someone/large \(66.9 GB\)") as caught:
        require(source)
    assert "hf download someone/large --revision v2" in caught.value.remedy
    assert locate(source).place == "not downloaded"


def test_a_snapshot_in_the_cache_is_found_when_it_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    folder = tmp_path / "models--someone--large" / "snapshots" / commit
    write(tmp_path / "models--someone--large/refs/main", commit)
    write(folder / "config.json", "{}")
    write(
        folder / "model.safetensors.index.json",
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}',
    )
    write(folder / "1.safetensors", "")
    source = Source(repo="someone/large")
    with pytest.raises(PairError):
        require(source)
    write(folder / "2.safetensors", "")
    assert require(source) == folder
    assert locate(source).place == "cached"


def test_a_folder_that_is_missing_or_incomplete(tmp_path: Path):
    with pytest.raises(PairError, match="no folder"):
        require(Source(folder=tmp_path / "none"))
    assert missing_files(tmp_path) == ["config.json", "model.safetensors"]
    with pytest.raises(PairError, match=r"holds no config\.json"):
        require(Source(folder=tmp_path))


def test_sizes_come_from_the_files(tiny_models: Path):
    pair = load_registry(tiny_models, {}).pairs["tiny"]
    stored = locate(pair.target)
    assert stored.place == "folder"
    assert stored.parameters is not None
    assert stored.size is not None
    assert 0 <= stored.size - 4 * stored.parameters < 100_000  # float32, and the header


BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
SOURCE = "draft: {repo: a/b}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line [0-9]+: aliases repeat too much, or themselves"),
        ("pairs: &p {x: *p}", "line 1: aliases repeat too much, or themselves"),
        ("pairs: &p [*p]", "line 1: aliases repeat too much, or themselves"),
        ("- " * 200_000, "line 1: nested too deep"),
        ("[" * 200_000, "line 1: "),
        ("about: 2001-99-99", "month must be in 1..12"),
        ("about: !!timestamp x", "models.yaml: "),
        ("about: !!bool x", "models.yaml: "),
        ("about: !!int ''", "models.yaml: "),
        (f"default: {'9' * 10_000}", "4300 digits"),
        (f"pairs: {{a: {{target: {{folder: ~nosuchuser/x}}, {SOURCE}}}}}", "no home folder for ~nosuchuser"),
        (f"pairs: {{a: {{target: {{folder: {'x/' * 5000}}}, {SOURCE}}}}}", "too long for a path"),
        (f"pairs: {{a: {{target: {{folder: {'x' * 300}}}, {SOURCE}}}}}", "too long for a path"),
        (f'pairs: {{a: {{target: {{folder: "x\\0"}}, {SOURCE}}}}}', "has a NUL"),
        ("#" * (2**20 + 1), "larger than 1 MiB"),
    ],
    ids=lambda value: value[:24],
)
def test_a_models_yaml_that_would_take_forever_or_break_is_one_line(tmp_path: Path, text: str, words: str):
    models = write(tmp_path / "models.yaml", text)
    with pytest.raises(UsageError, match=words) as caught:
        load_registry(models, {})
    assert str(models) in caught.value.cause
    assert caught.value.remedy


def test_aliases_that_repeat_a_little_are_read(tmp_path: Path):
    models = write(
        tmp_path / "models.yaml",
        "pairs:\n  a: &pair {target: &same {repo: a/b}, draft: *same}\n  b: *pair\n",
    )
    pairs = load_registry(models, {}).pairs
    assert pairs["a"] == pairs["b"]
    assert pairs["a"].draft.repo == "a/b"


ADDED = """pairs: # all
    mine:
      target: {repo: "o/t"}
      draft: {folder: "/d"}
    # the good one
    a:
      target: {repo: a/b}
      draft: {mtp: true}
# end
"""


ADDED_LINES = ADDED.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("".join([ADDED_LINES[0], *ADDED_LINES[4:]]), ADDED),
        ("", 'pairs:\n  mine:\n    target: {repo: "o/t"}\n    draft: {folder: "/d"}\n'),
        ("# no pairs", '# no pairs\npairs:\n  mine:\n    target: {repo: "o/t"}\n    draft: {folder: "/d"}\n'),
    ],
)
def test_a_pair_is_added_before_the_others_and_all_lines_stay(text: str, changed: str) -> None:
    assert with_pair(text, "mine", "o/t", "/d", Path("m.yaml")) == changed


@pytest.mark.parametrize(
    ("text", "words", "cause"),
    [
        (ADDED, ("mine", "o/t", "mtp"), "there is a pair named 'mine' already"),
        ("pairs: {}\n", ("mine", "o/t", "mtp"), "pairs stand in one line"),
        ("pairs: 3\n", ("mine", "o/t", "mtp"), "m.yaml, line 1: pairs"),
        ("", ("auto", "o/t", "mtp"), "auto cannot be a pair's name"),
        ("", ("a b", "o/t", "mtp"), "String should match"),
        ("", ("mine", "mtp", "o/d"), "mtp is for a draft"),
        ("", ("mine", "t", "o/d"), "'t' is no hub id"),
    ],
)
def test_a_pair_that_cannot_be_added(text: str, words: tuple[str, str, str], cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_pair(text, *words, Path("m.yaml"))
    assert cause in caught.value.cause


def test_names_that_yaml_would_read_as_something_else_are_quoted(tmp_path: Path) -> None:
    for name in ("on", "1.5", "2024-01-01", "null"):
        (tmp_path / "m.yaml").write_text(with_pair("", name, "o/t", "mtp", tmp_path / "m.yaml"))
        assert list(read_models_file(tmp_path / "m.yaml").pairs) == [name]
