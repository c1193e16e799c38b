from pathlib import Path

import pytest

from lvspec_cli.demo.facts import FACT_KINDS, FactScore
from lvspec_cli.models.load import load_model
from tools.train_demo.evaluate import Report, evaluate, held_out_scenes, report_lines
from tools.train_demo.halves import build_model, build_processor, save_half, train_tokenizer


def test_an_untrained_model_gets_almost_nothing_right(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(texts=100)
    save_half(build_model("draft", tokenizer, 1, 1), build_processor(tokenizer), tmp_path)
    report = evaluate(load_model(tmp_path, dtype="float32"), held_out_scenes(2), batch=2, asked_per_scene=2)
    assert report.scenes == 2
    assert report.facts["all"].f1 < 0.1
    assert sum(asked for _, asked in report.answers.values()) == 4


def test_the_table_holds_each_model_and_kind() -> None:
    facts = {kind: FactScore(1, 2, 2) for kind in (*FACT_KINDS, "all")}
    reports = {
        "target": Report(1, facts, {"colour": (3, 4), "count": (0, 1)}),
        "draft": Report(1, facts, {"colour": (1, 4), "count": (1, 1)}),
    }
    assert reports["target"].accuracy == pytest.approx(0.6)
    lines = list(report_lines(reports))
    assert "| all | 5 | 0.600 | 0.400 |" in lines
    assert "| colour | 4 | 0.750 | 0.250 |" in lines
    assert "| order | 0.500 | 0.500 |" in lines
