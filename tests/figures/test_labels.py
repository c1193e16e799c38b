import json
from pathlib import Path

import pytest

from lvspec_cli.demo.texts import Question, caption
from lvspec_cli.demo.write import describe, scene_of
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.labels import Judgement, Reference, judge_text, parse_choice, read_scene_labels

CHOICES = ("red", "dark red", "The ball is blue", "none of these")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", 0),
        ("b", 1),
        ("(c)", 2),
        ("B. dark red", 1),
        ("b) red", 1),
        ("Answer: D", 3),
        ("The correct answer is B.", 1),
        ("The answer is red.", 0),
        ("A red ball.", 0),  # an article is no letter
        ("It is dark  RED!", 1),  # the longer of two, one inside the other
        ("ball is blue", 2),  # articles do not count
        ("None of these.", 3),
        ("E", None),
        ("green", None),
        ("reddish", None),
        ("Either red or none of these", None),  # two at once
        ("", None),
    ],
)
def test_the_choice_of_an_answer(text: str, choice: int | None) -> None:
    assert parse_choice(text, CHOICES) == choice


def test_a_choice_between_single_letters_of_an_alphabet_of_choices() -> None:
    assert parse_choice("yes", ("yes", "no")) == 0
    assert parse_choice("No, it does not.", ("yes", "no")) == 1
    assert parse_choice("red", ("red", "red")) is None


@pytest.mark.parametrize(
    ("text", "label", "judgement"),
    [
        ("B", Reference("dark red", CHOICES), Judgement(right=True, choice=1)),
        ("B", Reference("b", CHOICES), Judgement(right=True, choice=1)),
        ("red", Reference("B", CHOICES), Judgement(right=False, choice=0)),
        ("green", Reference("B", CHOICES), Judgement(right=False, choice=None)),
        ("red", Reference(None, CHOICES), Judgement(choice=0)),
        ("There are two dogs.", Reference("Two dogs"), Judgement(right=True)),
        ("There are two big dogs.", Reference("two dogs"), Judgement(right=False)),
        ("两只狗在跑", Reference("狗"), Judgement(right=True)),
        ("It is red.", Question("colour", "?", "", ("red",), ("blue",)), Judgement(right=True)),
        ("It is red and blue.", Question("colour", "?", "", ("red",), ("blue",)), Judgement(right=False)),
        ("anything", None, Judgement()),
        ("anything", Reference(), Judgement()),
    ],
)
def test_the_judgement_of_an_answer(
    text: str, label: Reference | Question | None, judgement: Judgement
) -> None:
    assert judge_text(text, label) == judgement


def test_a_caption_is_judged_by_its_facts() -> None:
    scene, rng = scene_of(7, 1)
    right = judge_text(caption(scene, rng), scene)
    assert right.facts["all"].f1 == 1.0
    assert right.right is None
    assert judge_text("A dog barks.", scene).facts["all"].found_right == 0


def test_labels_are_read_from_beside_the_clip(tmp_path: Path) -> None:
    scene, rng = scene_of(7, 1)
    described = describe(scene, rng)
    (tmp_path / "clip.json").write_text(json.dumps(described))
    labels = read_scene_labels(tmp_path / "clip.mp4")
    assert labels is not None
    assert labels.scene == scene
    assert [each.question for each in labels.questions] == [
        each["question"] for each in described["questions"]
    ]
    assert all(judge_text(each.answer, each).right for each in labels.questions)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"scene": {}}', '{"fps": 3}'])
def test_another_file_of_that_name_is_no_label(tmp_path: Path, text: str) -> None:
    (tmp_path / "clip.json").write_text(text)
    assert read_scene_labels(tmp_path / "clip.mp4") is None
    assert read_scene_labels(tmp_path / "other.mp4") is None


def test_a_damaged_file_of_facts_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text('{"scene": {"objects": 3}, "questions": []}')
    with pytest.raises(UsageError, match=r"clip\.json.*not the facts"):
        read_scene_labels(tmp_path / "clip.mp4")
