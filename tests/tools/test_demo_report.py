"""The long report: its goals from figures made by hand, and all of it on two scenes with a tiny pair."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lvspec_cli.bench.results import read_results
from lvspec_cli.demo.facts import scene_facts
from lvspec_cli.demo.texts import caption
from lvspec_cli.demo.write import scene_of
from lvspec_cli.figures.answers import (
    BenchMode,
    Contrast,
    Costs,
    Estimate,
    Fidelity,
    Measurement,
    ModeResult,
    RelativeQuality,
    Spread,
    Variant,
)
from lvspec_cli.figures.summary import Measured, best_gammas
from lvspec_cli.types import Gamma
from tests.bench.made import SETTINGS, block, drafted, item, known, plain, results
from tools.demo_report import report as demo_report
from tools.demo_report.batched import REFERENCE
from tools.demo_report.further import with_further
from tools.demo_report.goals import goals, own_rule
from tools.demo_report.page import page
from tools.demo_report.report import (
    Report,
    main,
    measure_report,
    portions,
    seconds_left,
    speed_lines,
    text_lines,
)


def spread(value: float) -> Spread:
    return Spread(median=value, low=value - 0.1, high=value + 0.1)


def estimate(value: float, low: float | None = None) -> Estimate:
    return Estimate(value=value, low=value if low is None else low, high=value)


def line(gamma: Gamma, speed: float, kept: Estimate | None = None) -> ModeResult:
    return ModeResult(
        mode=BenchMode.LVSPEC, gamma=gamma, answers=4, speedup_vs_ar=spread(speed), retention=kept
    )


def against(other: str, speed: float, length: float = 1.0) -> Contrast:
    return Contrast(
        line="lvspec γ=8", other=other, speed=spread(speed), accepted_length=estimate(length),
        quality=estimate(1.001),
    )  # fmt: skip


def test_goals_are_read_off_the_figures():
    texts = results(
        (line("auto", 3.0, estimate(0.9995, low=0.9981)),), contrasts=(against("lvspec/plausible γ=4", 1),)
    )
    speed = results(
        (line("auto", 3.8), line(5, 3.0), line(8, 4.1)),
        contrasts=(
            against("exact-pruned γ=5", 2.3, 2.5),
            against("lvspec/plausible γ=4", 1.05),
            against("lvspec:random γ=4", 1.3),
        ),
    )
    found = goals(texts, speed)
    assert [(goal.found, goal.met) for goal in found] == [
        ("99.95 % (99.81-99.95)", True),
        ("2.50 (2.50-2.50)", False),
        ("2.30 (2.20-2.40)", False),
        ("4.10 (4.00-4.20)", True),
        ("", None),  # hf-assisted was not measured
        ("1.05 (0.95-1.15), quality 100.10 % (100.10-100.10) of its", False),  # 1 lies in the interval
        ("1.30 (1.20-1.40)", True),
        ("", None),
        ("", None),  # no answers to compare
    ]


@pytest.mark.parametrize(
    ("eight", "found", "met"), [(1.2, "1.20", True), (0.98, "0.98", True), (0.9, "0.90", False)]
)
def test_gamma_auto_stands_against_the_best_fixed_one_answer_by_answer(eight: float, found: str, met: bool):
    """Seconds of each clip's answers; gamma 3 is fastest of all, and was tried on fewer clips."""
    clips = [item(f"{number}.mp4") for number in range(3)]
    blocks = []
    for number, clip in enumerate(clips):
        slow = 1.0 + number  # no clip takes as long as another
        timed = [
            drafted(slow * seconds, (5, 5), BenchMode.LVSPEC, 4).model_copy(update={"gamma": gamma})
            for gamma, seconds in (("auto", 1.0), (8, eight), (5, 1.5))
        ]
        fewer = [drafted(slow * 0.1, (5, 5), BenchMode.LVSPEC, 3)] if number < 2 else []
        blocks.append(block(clip, plain(9.0 * slow), *timed, *fewer))
    lines = [line(gamma, 3.0).model_copy(update={"answers": 3}) for gamma in ("auto", 8, 5)]
    fewer_line = line(3, 9.0).model_copy(update={"answers": 2})
    speed = results((*lines, fewer_line), items=tuple(clips), blocks=tuple(blocks))
    goal = goals(results(()), speed)[-1]
    assert (goal.found.split(" ")[0], goal.met) == (found, met)
    assert best_gammas(speed.modes) == {"lvspec": Variant(BenchMode.LVSPEC, "auto")}


def test_the_time_left_is_that_of_the_pace_so_far():
    assert seconds_left(60.0, 30, 90) == 180.0
    assert seconds_left(0.0, 0, 90) is None


def test_further_scenes_come_in_portions():
    assert list(portions(1000, 2300)) == [(1001, 1000), (2001, 1000), (3001, 300)]
    assert list(portions(10, 0)) == []


def test_further_captions_stand_beside_those_that_were_there():
    """What generate says for ar's; of a line that was not asked for them it stays what it was."""
    scene, rng = scene_of(1, 1)
    whole = caption(scene, rng)
    own, control = Variant(BenchMode.LVSPEC, 4), Variant(BenchMode.LVSPEC, 4, label="random")

    def said(variant: Variant, text: str) -> Measurement:
        if variant.mode.is_plain:
            return plain(0.0, text=text).model_copy(update={"mode": variant.mode})
        return drafted(0.0, (5, 5), variant.mode, 4, text=text, label=variant.label)

    clips = [item(f"{number}.mp4", scene=scene.as_dict()) for number in range(3)]
    ar = Variant(BenchMode.AR)
    texts = results(
        tuple(ModeResult(**asdict(line), answers=1) for line in (ar, own, control)),
        items=(clips[0],),
        blocks=(block(clips[0], said(ar, whole), said(own, whole), said(control, "")),),
    )
    further = [
        Measured({each.id: each}, (block(each, said(line, text)),))
        for each, own_text in ((clips[1], whole), (clips[2], ""))
        for line, text in ((own, own_text), (REFERENCE, whole))
    ]
    assert with_further(texts, []) is texts
    found = {each.variant: each for each in with_further(texts, further).modes}
    assert list(found) == [ar, own, control]
    assert [found[line].answers for line in (ar, own, control)] == [3, 3, 1]
    facts = known(known(found[own].fidelity).facts)
    total = scene_facts(scene).total()
    assert facts.mode == pytest.approx(2 * 2 * total / (5 * total))  # two of three tell all, one nothing
    assert facts.ar == 1
    assert known(known(found[control].fidelity).facts).mode == 0
    assert found[ar].mean_accepted_length is None
    for twice in ([further[0], further[0]], [Measured({clips[0].id: clips[0]}, texts.blocks)]):
        with pytest.raises(ValueError, match="same clips"):
            with_further(texts, twice)


SIZES = Report(
    out=Path("out"), scenes=10, speed=4, page=Path("page.md"), control_scenes=3, ablation_scenes=2, few=1
)  # fmt: skip
CONTROL = Variant(BenchMode.LVSPEC, 12, label="plausible")


def test_texts_are_asked_of_the_rule_and_on_fewer_scenes_of_its_rivals():
    part = Variant(BenchMode.LVSPEC, label="no-shift")
    assert text_lines(SIZES, "auto", [CONTROL], [part]) == {
        Variant(BenchMode.LVSPEC, "auto"): 10,
        CONTROL: 3,
        replace(part, gamma="auto"): 2,
    }


def test_what_a_goal_is_about_is_timed_on_all_clips():
    found = speed_lines(SIZES, 5, [CONTROL])
    wanted = (
        Variant(BenchMode.AR), Variant(BenchMode.HF_ASSISTED), Variant(BenchMode.EXACT_PRUNED, "auto"),
        Variant(BenchMode.LVSPEC, 5), Variant(BenchMode.LVSPEC, "auto"), CONTROL,
    )  # fmt: skip
    assert {found[each] for each in wanted} == {4}
    assert found[Variant(BenchMode.LVSPEC, 3)] == found[Variant(BenchMode.HF_AR)] == 1


def test_what_stands_in_the_way_is_read_off_the_parts_of_a_round():
    costs = Costs(
        answers=1, draft_step_s=0.2, verification_s=3.0, overhead_s=0.2, drafted_a_round=10, ar_step_s=2.0
    )
    fields = {"costs": costs, "c": 0.1, "v": 1.5, "o": 0.1, "mean_accepted_length": 8.0}
    speed = results((line("auto", 3.0).model_copy(update=fields), line(5, 2.0)))
    text = page(results(()), speed, "command", Path("chart.svg"))
    # 8 tokens for 10 drafted at 0.1, a verification of 1.5 and 0.1 of all else.
    assert "| lvspec γ=auto | 10.0 | 1.00 | 1.50 | 0.10 | 2.60 | 8.00 | 3.08 |" in text
    assert (
        "lvspec γ=auto would be 5.00 times ar if drafting cost nothing, 3.81 if a verification cost no more"
        " than one step, 3.20 without the rest, and 4.23 if every drafted token were kept."
    ) in text
    assert "would be" not in page(results(()), results((line(5, 2.0),)), "command", Path("chart.svg"))


def test_captions_that_tell_more_and_fewer_facts_are_counted():
    scene, rng = scene_of(1, 1)
    whole = caption(scene, rng)
    clips = [item(f"{number}.mp4", scene=scene.as_dict()) for number in range(4)]
    texts = [(whole, ""), ("", whole), ("", whole), (whole, whole)]  # the mode's and ar's
    blocks = tuple(
        block(clip, drafted(1.0, (5, 5), BenchMode.LVSPEC, 4, text=ours), plain(1.0, text=ars))
        for clip, (ours, ars) in zip(clips, texts, strict=True)
    )
    found = results((line(4, 3.0),), items=tuple(clips), blocks=blocks)
    text = page(found, results(()), "command", Path("chart.svg"))
    assert "Of 4 captions by lvspec γ=4, 1 tell more facts rightly than ar's, and 2 fewer." in text


def test_the_kinds_of_facts_that_are_lost_are_named():
    def kept(low: float, high: float) -> RelativeQuality:
        middle = (low + high) / 2
        return RelativeQuality(
            mode=middle, ar=1.0, count=7, retention=Estimate(value=middle, low=low, high=high)
        )

    kinds = {"order": kept(0.9, 0.96), "count": kept(0.98, 1.02), "event": kept(0.97, 0.99)}
    lossy = line("auto", 3.0).model_copy(
        update={"fidelity": Fidelity(answers=4, clips=4, facts_by_kind=kinds)}
    )
    text = page(results((lossy,)), results(()), "command", Path("chart.svg"))
    assert "| order | 7 | 93.00 % (90.00-96.00) |" in text
    assert "It loses more than chance would of: event, order." in text
    unharmed = lossy.model_copy(
        update={"fidelity": Fidelity(answers=4, clips=4, facts_by_kind={"count": kinds["count"]})}
    )
    text = page(results((unharmed,)), results(()), "command", Path("chart.svg"))
    assert "| count | 7 | 100.00 % (98.00-102.00) |" in text
    assert "It loses" not in text


def test_rules_that_are_as_fast_are_named():
    found = {"lexicon": 1.05, "attention": 0.95, "random": 2.0, "no-list": 0.8}  # 0.1 to either side
    lengths = {"lexicon": 9.1, "attention": 9.3, "random": 3.0, "no-list": 9.9}
    own = line(8, 3.5).model_copy(update={"mean_accepted_length": 9.2})
    others = [
        line(8, 3.5).model_copy(update={"label": name, "mean_accepted_length": length})
        for name, length in lengths.items()
    ]
    contrasts = [against(f"lvspec/{name} γ=8", speed) for name, speed in found.items()]
    contrasts += [against("exact-pruned γ=5", 1.0)]
    speed = results((own, *others), contrasts=tuple(contrasts))
    text = page(speed, speed, "command", Path("chart.svg"))
    assert (
        "No difference in speed is shown to lvspec/lexicon γ=8 (9.10), lvspec/attention γ=8 (9.30): a round"
        in text
    )
    assert "as many tokens of it as lvspec γ=8 does (9.20)." in text
    assert "No difference" not in page(results((own,)), results((own,)), "command", Path("chart.svg"))


def test_rules_are_told_apart_at_one_gamma():
    tuned = against("lvspec/lexicon γ=16", 0.95)
    same = against("lvspec/lexicon γ=16", 1.02).model_copy(update={"line": "lvspec γ=16"})
    found = results((line("auto", 3.5),), contrasts=(tuned, same, against("exact γ=5", 2.0)))
    text = page(found, found, "command", Path("chart.svg"))
    assert (
        "Rule against rule, at one gamma: lvspec γ=16 is 1.02 (0.92-1.12) times as fast as"
        " lvspec/lexicon γ=16." in text
    )
    alone = results((line("auto", 3.5),), contrasts=(tuned,))
    assert "Rule against rule" not in page(alone, alone, "command", Path("chart.svg"))


def test_what_a_rule_lacks_is_told():
    base, rule = {"relevance": "plausible", "contraries": True}, {"relevance": "plausible", "max_loss": 0.07}
    settings = SETTINGS.model_copy(update={"rule": base, "rules": {"other": rule}})
    found = results((line("auto", 3.0),), settings=settings)
    text = page(found, found, "command", Path("chart.svg"))
    assert "| other | contraries False, max\\_loss 0.07 |" in text


@pytest.mark.parametrize(("relevance", "said"), [("attention", False), ("plausible", True)])
def test_a_control_that_won_is_said_to_be_the_default(relevance: str, said: bool):
    settings = SETTINGS.model_copy(update={"rule": {"relevance": relevance}, "first": {"lvspec/x": 3}})
    texts = results((line("auto", 3.0, estimate(1.0)),), settings=settings)
    text = page(texts, texts, "command", Path("chart.svg"))
    assert ("The pair's own rule is `plausible`" in text) == said
    assert ("it is the rule itself | no |" in text) == said
    assert "On the first 3 scenes only, speed of: lvspec/x." in text


def test_controls_whose_anchors_do_nothing_are_named():
    def own(margin: float | str, relevance: str = "lexicon") -> str | None:
        rule = {"relevance": relevance, "anchor_margin": margin, "filler_margin": 2.0}
        other = {"relevance": "attention", "anchor_margin": 0.5, "filler_margin": "Infinity"}
        settings = SETTINGS.model_copy(
            update={"rule": {"relevance": "plausible"}, "rules": {relevance: rule, "attention": other}}
        )
        return own_rule(results((line("auto", 3.0),), settings=settings))

    assert "As they are set here, anchors of `lexicon` are held" in (own(2.0) or "")
    assert "As they are set here" not in (own(1.5) or "")
    assert "As they are set here" not in (own(2.0, "random") or "")


@pytest.mark.thorough
def test_the_report_is_measured_and_written(tmp_path: Path, tiny_models: Path):
    said: list[str] = []
    report = Report(
        out=tmp_path / "out", scenes=1, speed=1, page=tmp_path / "page.md", models=tiny_models, pair="tiny",
        max_new_tokens=4, first=4, further_scenes=2, further_answers=1, command="python -m …",
    )  # fmt: skip
    measure_report(report, said.append)
    written = report.page.read_text()
    assert "Fidelity over 3 captions and 6 questions" in written
    assert (
        "By lvspec γ=4 alone: of scenes 5 to 6 the captions, of scenes 5 to 5 4 answers about each."
        in written
    )
    assert "Scenes are counted from 4 on" in written
    assert {path.stem for path in (report.out / "clips").glob("*.mp4")} == {
        "clip_0004", "clip_0005", "clip_0006"
    }  # fmt: skip
    for label, tasks in (("captions_5-6", ["caption"] * 2), ("answers_5-5", ["ask"] * 4)):
        rows = map(json.loads, (report.out / label / "measurements.jsonl").read_text().splitlines())
        assert [row["item"].get("task", "caption") for row in rows if "item" in row] == tasks
        rows = map(json.loads, (report.out / f"{label}-ar" / "measurements.jsonl").read_text().splitlines())
        modes = [each["mode"] for row in rows if "block" in row for each in row["block"]["measurements"]]
        assert modes == ["hf-ar"] * len(tasks)
    assert "speed over 1 of these captions" in written
    assert "| gamma auto against the best fixed one | 0.97 |" in written
    assert "| no-shift | shift\\_window 0 |" in written
    assert "    python -m …" in written
    texts, speed = (read_results(report.out / name) for name in ("texts", "speed"))
    assert (texts.settings.timed, speed.settings.timed) == (False, True)
    assert {each.mode for each in speed.modes} == set(BenchMode) - {BenchMode.CONTROL, BenchMode.HF_BATCHED}
    assert said[-1] == f"written: {report.page}"
    chart = ElementTree.parse(report.page.with_suffix(".svg")).getroot()
    assert chart.tag == "{http://www.w3.org/2000/svg}svg"
    assert f"]({report.page.stem}.svg)" in written


@pytest.fixture
def few_lines(no_charts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test measures whole: speed of two lines, texts without the rule's parts."""
    timed = {Variant(BenchMode.AR): 1, Variant(BenchMode.LVSPEC, 4): 1}
    monkeypatch.setattr(demo_report, "speed_lines", lambda *asked: timed)
    monkeypatch.setattr(demo_report, "ablations", lambda rule: ())


@pytest.mark.thorough
@pytest.mark.usefixtures("few_lines")
def test_texts_of_an_earlier_report_are_taken_over_where_nothing_changed(tmp_path: Path, tiny_models: Path):
    report = Report(
        out=tmp_path / "first", scenes=1, speed=1, page=tmp_path / "page.md", models=tiny_models, pair="tiny",
        max_new_tokens=4, further_scenes=1,
    )  # fmt: skip
    measure_report(report, lambda text: None)
    before = report.page.read_text()
    assert "Fidelity over 2 captions and 2 questions" in before
    assert not list(report.out.glob("answers_*"))
    assert "Texts of an earlier run" not in before
    other = tmp_path / "models.yaml"
    folder = tiny_models.parent
    other.write_text(
        tiny_models.read_text().replace("{folder: ", f"{{folder: {folder}/")
        + "    rules: {balanced: {relevance: plausible, anchor_margin: 0, filler_margin: 7}}\n"
    )
    said: list[str] = []
    again = replace(report, out=tmp_path / "second", models=other, earlier=report.out, redo=False)
    measure_report(again, said.append)
    label = "captions_2-2-ar"
    assert f"{label}: of the earlier run: hf-ar" in said
    assert "Texts of an earlier run with the same settings: hf-ar." in again.page.read_text()
    assert not (again.out / label).exists()
    assert '"mode":"lvspec"' in (again.out / "captions_2-2" / "measurements.jsonl").read_text()
    texts = [read_results(run.out / "texts") for run in (report, again)]
    ars = [[each.text for *_, each in found.measurements(Variant(BenchMode.AR))] for found in texts]
    assert ars[0] == ars[1]
    # Of other weights under the same name nothing is taken over.
    path = report.out / label / "measurements.jsonl"
    held = json.loads(path.read_text().splitlines()[-1])
    text = held["block"]["measurements"][0]["text"]
    path.write_text(path.read_text().replace(json.dumps(text, ensure_ascii=False), '"something else"'))
    said.clear()
    measure_report(replace(again, out=tmp_path / "third"), said.append)
    assert f"{label}: the earlier run's pair said something else" in said
    assert '"mode":"hf-ar"' in (tmp_path / "third" / label / "measurements.jsonl").read_text()


@pytest.mark.thorough
@pytest.mark.usefixtures("few_lines")
def test_another_machine_helps_with_further_scenes(
    tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
):
    report = Report(
        out=tmp_path / "own", scenes=1, speed=1, page=tmp_path / "page.md", models=tiny_models, pair="tiny",
        max_new_tokens=4, further_scenes=2,
    )  # fmt: skip
    monkeypatch.setattr(demo_report, "PORTION", 1)
    part = replace(report, out=tmp_path / "part", only_further=3)
    said: list[str] = []
    measure_report(part, said.append)
    assert {each.name for each in part.out.iterdir()} == {"clips", "captions_3-3", "captions_3-3-ar"}
    assert not report.page.exists()
    # What tells the machines apart is no hindrance.
    for folder in ("captions_3-3", "captions_3-3-ar"):
        path = part.out / folder / "measurements.jsonl"
        header, rest = path.read_text().split("\n", 1)
        held = json.loads(header)
        held["environment"] |= {"device_name": "another processor", "cores": 16}
        path.write_text(json.dumps(held) + "\n" + rest)

    whole = replace(report, elsewhere=part.out)
    measure_report(whole, said.append)

    assert {each.name for each in report.out.iterdir()} == {
        "clips", "speed", "texts", "texts-ar", "captions_2-2", "captions_2-2-ar"
    }  # fmt: skip
    assert "captions_3-3: of the other machine" in said
    page = report.page.read_text()
    assert "Fidelity over 3 captions" in page
    assert "On another machine, another processor (cpu), 16 cores" in page
    assert ": captions 3-3, captions 3-3-ar." in page
    # Of another scene, or of a part only, nothing is taken.
    texts = part.out / "captions_3-3" / "measurements.jsonl"
    whole_text = texts.read_text()
    for changed in (
        whole_text.replace('"prompt":"', '"prompt":"Please: '),
        "".join(f"{line}\n" for line in whole_text.splitlines() if '"block"' not in line),
    ):
        texts.write_text(changed)
        said.clear()
        measure_report(whole, said.append)
        assert "captions_3-3: the other machine's is not whole, or of something else" in said
    assert (report.out / "captions_3-3").exists()


def test_wrong_pairs_are_said_in_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["demo_report", "--pair", "gone", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause.startswith("error: there is no pair named 'gone'")
    assert remedy.startswith("try: ")


@pytest.mark.parametrize("missing", ["texts", "speed"])
def test_nothing_measured_is_said_so(missing: str):
    none = results(())
    some = results((line("auto", 3.4, estimate(1.0)), line(5, 3.0)))
    found = goals(none, some) if missing == "texts" else goals(some, none)
    assert any(goal.met is None for goal in found)
