import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lvspec_cli.demo.facts import Fact, FactScore, read_facts, scene_facts, score_facts
from lvspec_cli.demo.scenes import sample_scene
from lvspec_cli.demo.texts import Question, caption, is_right, questions
from tools.train_demo.evaluate import PAIR_FOLDER, add_scores

seeds = st.integers(0, 2**31)


@given(seeds)
def test_the_reader_reads_every_caption_back(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert read_facts(caption(scene, rng)) == scene_facts(scene)


@given(seeds)
def test_every_reference_answer_is_right(seed: int) -> None:
    rng = random.Random(seed)
    for question in questions(sample_scene(rng), rng):
        assert is_right(question, question.answer)


def test_captions_have_80_to_200_tokens_and_many_wordings() -> None:
    tokenizer = Tokenizer.from_file(str(PAIR_FOLDER / "target" / "tokenizer.json"))
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(200)]
    counts = [len(tokenizer.encode(caption(scene, rng)).ids) for scene in scenes]
    assert 80 <= min(counts) < 100 < 140 < max(counts) <= 200
    assert len({caption(scenes[0], rng) for _ in range(50)}) == 50


def test_questions_are_of_every_kind() -> None:
    rng = random.Random(0)
    kinds = {question.kind for _ in range(30) for question in questions(sample_scene(rng), rng)}
    assert {"count", "colour", "shape", "place", "motion", "first", "yes/no"} <= kinds


@pytest.mark.parametrize(
    ("sentence", "facts"),
    [
        ("Three objects", []),
        ("The clip shows three shapes on a plain black backdrop.",
         [("count", "three"), ("texture", "plain"), ("background", "black")]),
        ("A little red disc starts in the upper left part of the frame and drifts gently upward.",
         [("shape", "circle"), ("colour", "circle", "red"), ("size", "circle", "small"),
          ("place", "circle", "top", "left"), ("motion", "circle", "up")]),
        ("In the centre of the screen, there is a big blue plus that does not move.",
         [("shape", "cross"), ("colour", "cross", "blue"), ("size", "cross", "large"),
          ("place", "cross", "middle", "centre"), ("motion", "cross", "still")]),
        ("After a while, the red star vanishes.", [("event", "star", "disappears")]),
        ("At some point, the star becomes pink.", [("event", "star", "changes colour", "pink")]),
        ("First, the red star shows up, and later the blue disc turns green.",
         [("event", "star", "appears"), ("event", "circle", "changes colour", "green"),
          ("order", "star", "circle")]),
        ("After the red star shows up, the blue disc turns green.",
         [("event", "star", "appears"), ("event", "circle", "changes colour", "green"),
          ("order", "star", "circle")]),
        ("The blue disc stays still and the blue disc vanishes after the red star shows up.",
         [("event", "circle", "disappears"), ("event", "star", "appears"),
          ("order", "star", "circle")]),
        ("Nothing else happens in the scene.", [("event", "nothing")]),
        ("The camera is fixed throughout, and the light is even.", []),
    ],
)  # fmt: skip
def test_sentences(sentence: str, facts: list[tuple[str, ...]]) -> None:
    assert read_facts(sentence) == Counter(Fact(kind, tuple(values)) for kind, *values in facts)


def test_a_wrong_colour_and_a_left_out_object_cost_what_they_should() -> None:
    first = "A big red disc starts in the top left and moves up."
    expected = read_facts(f"{first} There is also a small blue star.")
    found = read_facts(first.replace("red", "pink"))
    scores = score_facts(found, expected)
    assert scores["colour"] == FactScore(0, 1, 2)
    assert scores["place"] == FactScore(1, 1, 1)
    assert scores["all"] == FactScore(4, 5, 8)
    assert scores["all"].precision == pytest.approx(0.8)
    assert scores["all"].recall == pytest.approx(0.5)
    assert scores["all"].f1 == pytest.approx(8 / 13)
    assert add_scores([scores, scores])["all"] == FactScore(8, 10, 16)


def test_a_fact_said_twice_counts_once_as_right() -> None:
    once = read_facts("At some point, the red star vanishes.")
    assert score_facts(once + once, once)["event"] == FactScore(1, 2, 1)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It is red.", True),
        ("RED", True),
        ("It is reddish.", False),
        ("It is red and blue.", False),
        ("", False),
    ],
)
def test_an_answer_needs_a_right_word_and_no_wrong_one(answer: str, right: bool) -> None:
    assert is_right(Question("colour", "?", "It is red.", ("red",), ("blue",)), answer) is right
