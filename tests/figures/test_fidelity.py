from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.demo.facts import scene_facts
from lvspec_cli.demo.scenes import COLOURS
from lvspec_cli.demo.texts import Question, caption
from lvspec_cli.demo.write import scene_of
from lvspec_cli.figures.answers import (
    BenchMode,
    Block,
    Estimate,
    Fidelity,
    Item,
    Measurement,
    RelativeQuality,
    Variant,
    retention_lower_bound,
)
from lvspec_cli.figures.fidelity import (
    Comparison,
    answer_quality,
    combined_quality,
    compare_blocks,
    fidelity_of,
    freedom_of,
    label_of,
)
from lvspec_cli.figures.labels import Reference


def said(text: str, mode: BenchMode = BenchMode.AR, **more: Any) -> Measurement:
    return Measurement(mode=mode, text=text, **more)


def asked(clip: str, text: str, ar_text: str, answer: str = "red", **item: Any) -> Comparison:
    whole = Item(id=f"{clip}/{len(item)}", file_name=clip, prompt="?", reference=answer, **item)
    return Comparison(whole, said(text, BenchMode.LVSPEC), said(ar_text))


def captioned(number: int, *, wrong_colour: bool) -> tuple[Comparison, int]:
    """ar's caption with every fact right, the mode's with one colour wrong; and how many facts there are."""
    scene, rng = scene_of(7, number)
    text = caption(scene, rng)
    named = {each.colour for each in scene.objects} | {each.new_colour for each in scene.objects}
    other = next(colour for colour in COLOURS if colour not in named)
    changed = text.replace(scene.objects[-1].colour, other) if wrong_colour else text
    assert (changed != text) == wrong_colour
    item = Item(id=str(number), file_name=f"{number}.mp4", prompt="Describe", scene=scene.as_dict())
    return Comparison(item, said(changed, BenchMode.LVSPEC), said(text)), scene_facts(scene).total()


def test_facts_kept_by_hand() -> None:
    (first, facts), (second, more) = captioned(1, wrong_colour=True), captioned(2, wrong_colour=False)
    found = fidelity_of([first, second])
    assert found is not None
    assert found.facts is not None
    assert found.facts.retention is not None
    f1 = (facts + more - 1) / (facts + more)
    assert found.facts.count == facts + more
    assert found.facts.ar == 1.0
    assert found.facts.mode == pytest.approx(f1)
    assert (found.facts.lost, found.facts_by_kind["colour"].lost) == (1, 1)
    assert found.facts_by_kind["shape"].lost == 0
    assert found.facts.retention.value == pytest.approx(f1)
    colours = sum(len(each.item.scene["objects"]) for each in (first, second) if each.item.scene)
    assert found.facts_by_kind["colour"].mode == pytest.approx((colours - 1) / colours)
    assert found.facts_by_kind["shape"].retention == Estimate(value=1.0, low=1.0, high=1.0)
    assert found.identical is not None
    assert found.identical.value == 0.5
    assert found.questions is None
    assert found.retention == found.facts.retention


def test_answers_kept_by_hand() -> None:
    compared = [
        asked("1.mp4", "It is red.", "red", kind="colour"),
        asked("1.mp4", "blue", "red", kind="colour"),
        asked("2.mp4", "red", "blue", kind="size"),
        asked("2.mp4", "red", "red", kind="size"),
        asked("3.mp4", "blue", "blue", kind="size"),
        asked("3.mp4", "red", "red", kind="size"),
    ]
    found = fidelity_of(compared)
    assert found is not None
    assert found.clips == 3
    assert found.questions is not None
    assert found.questions.mode == pytest.approx(4 / 6)
    assert found.questions.ar == pytest.approx(4 / 6)
    assert found.questions.retention is not None
    assert found.questions.retention.value == pytest.approx(1.0)
    # Clip 1 keeps 1 of 2, clip 2 has 2 of 1, clip 3 1 of 1: no draw is below one half or above two.
    assert found.questions.retention.low is not None
    assert found.questions.retention.high is not None
    assert 0.5 <= found.questions.retention.low < 1.0 < found.questions.retention.high <= 2.0
    assert found.questions_by_kind["colour"].mode == pytest.approx(1 / 2)
    assert found.questions_by_kind["size"].ar == pytest.approx(2 / 4)
    assert found.same_answers is not None
    assert found.same_answers.value == pytest.approx(3 / 6)  # "It is red." and "red" are other words
    assert found.short_answers == 6


def test_choices_agree_by_what_they_choose() -> None:
    choices = ("red", "blue")
    found = fidelity_of(
        [
            asked("1.mp4", "A", "A. red", choices=choices),
            asked("2.mp4", "The red one.", "B", choices=choices),
            asked("3.mp4", "Neither.", "neither", answer="B", choices=choices),
        ]
    )
    assert found is not None
    assert found.same_answers is not None
    assert found.same_answers.value == pytest.approx(2 / 3)
    assert found.questions is not None
    assert found.questions.mode == pytest.approx(2 / 3)
    assert found.questions.ar == pytest.approx(1 / 3)


def test_without_labels_the_texts_are_compared() -> None:
    item = Item(id="1", file_name="1.mp4", prompt="Describe")
    mode = said("the cat sat " * 4, BenchMode.LVSPEC, log_probability=-0.75, output_tokens=4, tokens=(7,) * 8)
    ar = said("the cat is on the mat", log_probability=-0.5, output_tokens=6, tokens=(1, 2, 3, 4, 5, 6))
    found = fidelity_of([Comparison(item, mode, ar)])
    assert found is not None
    assert found.retention is None
    assert found.facts is None
    assert found.questions is None
    assert found.log_probability_change == Estimate(value=-0.25, low=None, high=None)
    assert found.ar_log_probability == Estimate(value=-0.5, low=None, high=None)
    assert found.rouge_l is not None
    assert found.rouge_l.value == pytest.approx(100 * 2 * 3 / (12 + 6))  # the cat the
    assert found.content_kept is not None
    assert 0 < found.content_kept.value < 1
    assert found.chrf is not None
    assert 0 < found.chrf.value < 100
    assert found.repetition == pytest.approx(4 / 5)
    assert found.ar_repetition == 0.0
    assert (found.length, found.ar_length) == (4.0, 6.0)
    assert found.short_answers == 1  # cat is on mat
    assert found.same_answers == Estimate(value=0.0, low=None, high=None)


def test_an_unscored_text_leaves_the_scores_out() -> None:
    item = Item(id="1", file_name="1.mp4", prompt="Describe")
    found = fidelity_of([Comparison(item, said("x", BenchMode.EXACT, log_probability=-1.0), said("x"))])
    assert found is not None
    assert found.log_probability is None
    assert found.log_probability_change is None


def test_where_ar_gets_nothing_right_nothing_is_kept_or_lost() -> None:
    found = fidelity_of([asked("1.mp4", "red", "blue"), asked("2.mp4", "blue", "blue")])
    assert found is not None
    assert found.questions == RelativeQuality(mode=0.5, ar=0.0, count=2, retention=None, lost=0)
    assert found.retention is None


def test_the_weaker_of_facts_and_questions_is_what_is_kept() -> None:
    def kept(value: float, low: float | None) -> RelativeQuality:
        return RelativeQuality(
            mode=value, ar=1.0, count=1, retention=Estimate(value=value, low=low, high=value)
        )

    def retention(facts: RelativeQuality, questions: RelativeQuality) -> Estimate | None:
        return Fidelity(answers=1, clips=1, facts=facts, questions=questions).retention

    assert retention(kept(0.99, 0.9), kept(0.98, 0.95)) == kept(0.99, 0.9).retention
    assert retention(kept(0.99, None), kept(0.98, None)) == kept(0.98, None).retention


def test_facts_and_answers_together_by_hand() -> None:
    (caption_, facts), right = captioned(1, wrong_colour=True), asked("1.mp4", "red", "red")
    found = combined_quality([caption_, right, asked("2.mp4", "blue", "red")])
    assert found is not None
    assert (found.ar, found.count) == (1.0, facts + 2)
    assert found.mode == pytest.approx((facts - 1 + 1) / (facts + 2))
    alone = answer_quality([asked("1.mp4", "red", "red")])
    assert alone is not None
    assert combined_quality([asked("1.mp4", "red", "red")]) == alone.model_copy(update={"lost": None})
    assert combined_quality([]) is None


def test_where_nothing_changed_the_count_is_what_tells() -> None:
    same = Estimate(value=1.0, low=1.0, high=1.0)
    assert retention_lower_bound(
        RelativeQuality(mode=0.9, ar=0.9, count=30, retention=same)
    ) == pytest.approx(0.9)
    assert retention_lower_bound(
        RelativeQuality(mode=0.9, ar=0.9, count=3000, retention=same)
    ) == pytest.approx(0.999)
    wide = Estimate(value=1.0, low=0.95, high=1.05)
    assert retention_lower_bound(RelativeQuality(mode=0.9, ar=0.9, count=3000, retention=wide)) == 0.95
    assert retention_lower_bound(RelativeQuality(mode=0.9, ar=0.0, count=3000, retention=None)) is None


def test_nothing_compared_is_no_figure() -> None:
    assert fidelity_of([]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=20))
def test_a_mode_that_says_the_same_keeps_all(rows: list[tuple[int, bool]]) -> None:
    texts = [(f"{clip}.mp4", "red" if right else "blue") for clip, right in rows]
    found = fidelity_of([asked(clip, text, text) for clip, text in texts])
    assert found is not None
    assert found.identical is not None
    assert found.identical.value == 1.0
    assert found.questions is not None
    if found.questions.ar:
        assert found.questions.retention is not None
        assert found.questions.retention.value == 1.0


def test_the_first_answers_of_a_variant_and_of_ar_are_paired() -> None:
    items = {name: Item(id=name, file_name=name, prompt="?") for name in "abc"}
    fast, slow = Variant(BenchMode.LVSPEC, 8), Variant(BenchMode.LVSPEC, 3)

    def block(item: str, repeat: int, text: str, ar: Measurement) -> Block:
        mode = said(text, BenchMode.LVSPEC)
        measurements = (ar, *(mode.model_copy(update={"gamma": each.gamma}) for each in (fast, slow)))
        return Block(item=item, repeat=repeat, measurements=measurements)

    blocks = [
        block("a", 0, "first", said("x")),
        block("a", 1, "second", said("x")),
        block("b", 0, "broken", Measurement(mode=BenchMode.AR, error="no")),
        block("b", 1, "whole", said("y")),
    ]
    found = compare_blocks(items, blocks, fast, Variant(BenchMode.AR))
    assert [(each.item.id, each.mode.text, each.ar.text) for each in found] == [
        ("a", "first", "x"),
        ("b", "whole", "y"),
    ]
    assert {each.mode.gamma for each in found if isinstance(each.mode, Measurement)} == {8}
    assert compare_blocks(items, blocks, Variant(BenchMode.EXACT, 8), Variant(BenchMode.AR)) == []


def test_an_item_says_how_its_answers_are_judged() -> None:
    scene = scene_of(7, 1)[0]
    item = Item(id="1", file_name="1.mp4", prompt="What colour?", kind="colour")
    assert label_of(item) is None
    assert label_of(item.model_copy(update={"scene": scene.as_dict()})) == scene
    assert label_of(item.model_copy(update={"any_of": ("red",), "reference": "It is red."})) == Question(
        "colour", "What colour?", "It is red.", ("red",)
    )
    assert label_of(item.model_copy(update={"choices": ("red", "blue")})) == Reference(None, ("red", "blue"))


def test_a_mode_is_held_beside_the_control_over_what_both_answered():
    def beside(clip: str, mode: str, control: str) -> tuple[Comparison, Comparison]:
        ours, theirs = (asked(clip, text, "red ball rolls left") for text in (mode, control))
        return ours, replace(theirs, mode=said(control, loss=0.5, output_tokens=5))

    pairs = [
        beside("1.mp4", "red ball rolls left", "red ball rolls"),
        beside("2.mp4", "a ball rolls", "red cat left"),
    ]
    others = asked("3.mp4", "nothing", "red ball rolls left")  # which the control did not answer
    found = freedom_of([*(mode for mode, _ in pairs), others], [control for _, control in pairs])
    assert found is not None
    # 6 of ar's 8 content words are kept, by the control 5.
    assert found.control_content == 5 / 8
    assert found.content.value == pytest.approx(6 / 5)
    assert (found.control_loss, found.control_length) == (0.1, 5.0)
    assert freedom_of([mode for mode, _ in pairs], []) is None
