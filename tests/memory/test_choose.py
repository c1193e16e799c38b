"""Which pair is taken where nobody names one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.memory.choose import StoredPair, best, choose_pair, local_pairs
from lvspec_cli.pairs.files import Stored
from lvspec_cli.pairs.registry import load_registry, read_models_file, shipped_models

PAIRS = read_models_file(shipped_models()).pairs
NOWHERE = {"XDG_CONFIG_HOME": "/nowhere"}


def here(name: str, target: int, draft: int) -> StoredPair:
    return StoredPair(name, PAIRS[name], *(Stored("cached", Path("x"), 2 * n, n) for n in (target, draft)))


LARGE, MIDDLE, SMALL = (
    here("qwen2.5-vl-32b-7b", 33, 8),
    here("qwen2.5-vl-32b-3b", 33, 3),
    here("qwen2.5-vl-7b-3b", 8, 3),
)


def test_the_first_that_fits() -> None:
    chosen = best(PAIRS, [LARGE, MIDDLE, SMALL], lambda each: True)
    assert chosen.name == "qwen2.5-vl-32b-7b"
    assert chosen.note == "pair qwen2.5-vl-32b-7b (auto); `lvspec models fit` shows what else would fit"
    assert best(PAIRS, [LARGE, MIDDLE, SMALL], lambda each: each is not LARGE).name == "qwen2.5-vl-32b-3b"
    asked: list[StoredPair] = []

    def is_fitting(each: StoredPair) -> bool:
        asked.append(each)
        return True

    best(PAIRS, [LARGE, MIDDLE, SMALL], is_fitting)
    assert asked == [LARGE]  # no machine is looked at more often than need be


def test_a_pair_that_gains_nothing_is_never_taken() -> None:
    assert SMALL.pair.no_gain
    asked: list[StoredPair] = []
    alone = best(PAIRS, [SMALL], lambda each: asked.append(each) or True)  # type: ignore[func-returns-value]
    assert (alone.name, asked) == ("demo", [])
    assert "qwen2.5-vl-7b-3b is no faster than its target: `--pair qwen2.5-vl-7b-3b`" in alone.note
    assert best(PAIRS, [SMALL, LARGE], lambda each: True).name == LARGE.name
    registry = load_registry(environment=NOWHERE)
    assert choose_pair(registry, "qwen2.5-vl-7b-3b").name == "qwen2.5-vl-7b-3b"  # who names it gets it


def test_the_users_pairs_come_first(tmp_path: Path, tiny_models: Path) -> None:
    registry = load_registry(tiny_models, {})
    assert list(registry.pairs)[:2] == ["tiny", "demo"]
    own = tmp_path / "m.yaml"
    own.write_text("pairs:\n  smolvlm2-2.2b-256m:\n    target: {folder: x}\n    draft: {folder: y}\n")
    assert next(iter(load_registry(own, {}).pairs)) == "smolvlm2-2.2b-256m"


def test_the_bundled_one_else_and_what_to_pull() -> None:
    none = best(PAIRS, [], lambda each: True)
    assert none.name == "demo"
    assert none.note == "pair demo (auto) knows only the demo world; for real videos: `lvspec models fit`"
    large = best(PAIRS, [LARGE], lambda each: False)
    assert (large.name, large.pair) == ("demo", PAIRS["demo"])
    assert large.note.endswith("; qwen2.5-vl-32b-7b is too large: `lvspec models fit`")
    both = best(PAIRS, [LARGE, LARGE], lambda each: False).note
    assert both.endswith("; 2 others are too large: `lvspec models fit`")
    assert len(both) <= 100


def test_a_name_wins_and_has_no_note(tmp_path: Path, tiny_models: Path) -> None:
    registry = load_registry(environment=NOWHERE)
    assert (registry.default, registry.pair(None)[0]) == ("auto", "demo")
    assert choose_pair(registry, "smolvlm2-2.2b-256m").note == ""
    assert choose_pair(load_registry(tiny_models, {}), None).name == "tiny"
    with pytest.raises(PairError, match="no pair named 'nope'"):
        choose_pair(registry, "nope")
    named = tmp_path / "m.yaml"
    named.write_text("pairs:\n  auto:\n    target: {folder: x}\n    draft: {folder: y}\n")
    with pytest.raises(UsageError, match="line 1: pairs: auto cannot be a pair's name"):
        load_registry(named, {})


def test_a_pair_that_is_here_and_fits(tmp_path: Path, tiny_models: Path) -> None:
    """A user's folder counts, half a pair does not."""
    folder = tiny_models.parent
    models = tmp_path / "m.yaml"
    models.write_text(
        f"pairs:\n  half:\n    target: {{folder: {folder / 'target'}}}\n    draft: {{folder: gone}}\n"
        f"  whole:\n    target: {{folder: {folder / 'target'}}}\n    draft: {{folder: {folder / 'draft'}}}\n"
        "    defaults: {frames: 4, max_pixels: 10000, max_new_tokens: 40}\n"
    )
    registry = load_registry(models, {})
    assert [each.name for each in local_pairs(registry)] == ["whole"]
    assert choose_pair(registry, "auto", "cpu").name == "whole"


def test_nothing_heavy_is_imported_where_only_the_bundled_pair_is(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lvspec_cli.memory.choose import choose_pair\n"
        "from lvspec_cli.pairs.registry import load_registry\n"
        "assert choose_pair(load_registry(), None).name == 'demo'\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
