"""lmms-eval's score of a local task beside that of bench: ``python -m tools.lmms_eval_score --out DIR``.

Clips of the demo world are drawn, and a task of their questions is written. ``python -m lmms_eval`` runs it
with the plug-in, ``lvspec bench`` asks the same questions about the same clips. Both judge an answer by what
it has to contain. The exit code is 1 if the scores differ. It needs the extras ``lvspec[bench,lmms-eval]``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lvspec_cli.bench.results import read_results
from lvspec_cli.figures.labels import read_scene_labels

TASK = "lvspec_demo"
CONFIG = """\
task: lvspec_demo
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: generate_until
doc_to_visual: !function judge.visual
doc_to_text: !function judge.text
doc_to_target: answer
process_results: !function judge.right
generation_kwargs: {max_new_tokens: 256}
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
JUDGE = """\
from lvspec_cli.demo.texts import Question, is_right


def visual(doc):
    return [doc["path"]]


def text(doc, **options):
    return doc["question"]


def right(doc, answers):
    question = Question("", doc["question"], doc["answer"], tuple(doc["any_of"]), tuple(doc["none_of"]))
    return {"right": float(is_right(question, answers[0]))}
"""


def write_task(clips: Path, folder: Path) -> int:
    """Writes the task; returns its number of questions."""
    folder.mkdir()
    rows = [
        {"path": str(clip), **asdict(question)}
        for clip in sorted(clips.glob("*.mp4"))
        for question in getattr(read_scene_labels(clip), "questions", ())
    ]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / f"{TASK}.yaml").write_text(CONFIG.replace("QUESTIONS", json.dumps(str(questions))))
    (folder / "judge.py").write_text(JUDGE)
    return len(rows)


def score_of_lmms_eval(folder: Path, out: Path, model_args: str) -> float:
    run("lmms_eval", "--model", "lvspec", "--model_args", model_args, "--tasks", TASK, "--batch_size", "1",
        "--include_path", str(folder), "--output_path", str(out))  # fmt: skip
    (file,) = out.rglob("*results.json")
    return float(json.loads(file.read_text())["results"][TASK]["right,none"])


def score_of_bench(clips: Path, out: Path, pair: str, mode: str) -> float:
    run("lvspec_cli", "bench", str(clips), "--out", str(out), "--pair", pair, "--modes", f"ar,{mode}",
        "--questions-per-clip", "99", "--texts-only")  # fmt: skip
    (found,) = (one for one in read_results(out).modes if one.mode == mode)
    assert found.fidelity is not None and found.fidelity.questions is not None
    return found.fidelity.questions.mode


def run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--count", type=int, default=4, help="of clips")
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--mode", default="lvspec")
    flags = parser.parse_args(arguments)
    out = flags.out.absolute()
    run("lvspec_cli", "demo", "--dir", str(out / "clips"), "--count", str(flags.count))
    count = write_task(out / "clips", out / "task")
    theirs = score_of_lmms_eval(out / "task", out / "lmms-eval", f"pair={flags.pair},mode={flags.mode}")
    ours = score_of_bench(out / "clips", out / "bench", flags.pair, flags.mode)
    print(f"{count} questions about {flags.count} clips: lmms-eval {theirs:.4f}, bench {ours:.4f}")
    return 0 if abs(theirs - ours) < 1e-9 else 1


if __name__ == "__main__":
    sys.exit(main())
