"""Scene -> questions with answers, and the check whether an answer is right."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lvspec_cli.demo.captions import event_clause, motion_phrase, place_name
from lvspec_cli.demo.scenes import (
    APPEAR_VERBS,
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DISAPPEAR_VERBS,
    MOTIONS,
    RECOLOUR_VERBS,
    ROWS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
)


@dataclass(frozen=True)
class Question:
    """A question. An answer is right if it contains one of ``any_of`` and none of ``none_of``.

    ``about``: the index of the object that the answer is about.
    """

    kind: str
    question: str
    answer: str
    any_of: tuple[str, ...]
    none_of: tuple[str, ...] = ()
    about: int | None = None


def is_right(question: Question, answer: str) -> bool:
    """Whether ``answer`` contains one of ``any_of`` as a whole phrase and none of ``none_of``."""
    return _contains(answer, question.any_of) and not _contains(answer, question.none_of)


def _contains(text: str, phrases: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE) for phrase in phrases)


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """One question of each kind that the scene allows, in random order."""
    questions = [question for ask in _KINDS for question in ask(scene, rng)]
    rng.shuffle(questions)
    return questions


def yes_no_questions(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """So many further yes/no questions of both kinds."""
    return [question for _ in range(count) for question in rng.choice((_exists, _does_it))(scene, rng)]


def _named(item: SceneObject, rng: random.Random, *, full: bool = False) -> str:
    """A name of the object that is clear in its scene: colours and shapes are each unique."""
    shape = rng.choice(SHAPES[item.shape])
    names = [f"{item.colour} {shape}"] if full else [f"{item.colour} {shape}", shape, f"{item.colour} object"]
    return f"the {rng.choice(names)}"


def _others(values: object, right: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for value in values if value not in right)  # type: ignore[attr-defined]


def _about(
    item: SceneObject,
    scene: Scene,
    kind: str,
    question: str,
    answer: str,
    any_of: tuple[str, ...],
    none_of: tuple[str, ...] = (),
) -> Question:
    return Question(kind, question, answer, any_of, none_of, scene.objects.index(item))


def _count(scene: Scene, rng: random.Random) -> Iterator[Question]:
    right = COUNTS[len(scene.objects)]
    question = rng.choice(("How many objects are there?", "How many objects does the video show?"))
    answer = rng.choice((f"There are {right} objects.", f"The video shows {right} objects."))
    digit = str(len(scene.objects))
    yield Question("count", question, answer, (right, digit), _others(COUNTS, (right,)))


def _colour(scene: Scene, rng: random.Random) -> Iterator[Question]:
    item = rng.choice(scene.objects)
    shape = rng.choice(SHAPES[item.shape])
    moment = " at first" if item.new_colour else ""
    question = rng.choice(
        (f"What colour is the {shape}{moment}?", f"Which colour does the {shape} have{moment}?")
    )
    answer = rng.choice((f"The {shape} is {item.colour}{moment}.", f"It is {item.colour}{moment}."))
    yield _about(item, scene, "colour", question, answer, (item.colour,), _others(COLOURS, (item.colour,)))


def _shape(scene: Scene, rng: random.Random) -> Iterator[Question]:
    item = rng.choice(scene.objects)
    question = rng.choice(
        (f"What shape is the {item.colour} object?", f"Which shape does the {item.colour} object have?")
    )
    shape = rng.choice(SHAPES[item.shape])
    answer = rng.choice((f"The {item.colour} object is a {shape}.", f"It is a {shape}."))
    wrong = tuple(name for key, names in SHAPES.items() if key != item.shape for name in names)
    yield _about(item, scene, "shape", question, answer, SHAPES[item.shape], wrong)


def _size(scene: Scene, rng: random.Random) -> Iterator[Question]:
    item = rng.choice(scene.objects)
    name = _named(item, rng)
    question = rng.choice((f"How big is {name}?", f"What size is {name}?"))
    answer = rng.choice(("It is {size}.", "{name} is {size}.")).format(
        size=rng.choice(SIZES[item.size]), name=name[0].upper() + name[1:]
    )
    wrong = SIZES["large" if item.size == "small" else "small"]
    yield _about(item, scene, "size", question, answer, SIZES[item.size], wrong)


def _place(scene: Scene, rng: random.Random) -> Iterator[Question]:
    item = rng.choice(scene.objects)
    name = _named(item, rng)
    question = rng.choice((f"Where is {name} at first?", f"Where does {name} start?"))
    position = place_name(item, rng)
    answer = rng.choice(
        (f"It starts in the {position}.", f"{name[0].upper()}{name[1:]} is in the {position}.")
    )
    if (item.row, item.column) == ("middle", "centre"):
        wrong = tuple(f"{row} centre" for rows in ROWS.values() for row in rows)
        yield _about(item, scene, "place", question, answer, ("centre", "middle"), wrong)
    else:
        right = tuple(f"{row} {item.column}" for row in ROWS[item.row])
        yield _about(item, scene, "place", question, answer, right)


def _motion(scene: Scene, rng: random.Random) -> Iterator[Question]:
    item = rng.choice(scene.objects)
    name = _named(item, rng)
    question = rng.choice((f"How does {name} move?", f"In which direction does {name} move?"))
    subject = rng.choice(("It", name[0].upper() + name[1:]))
    wrong = tuple(word for key, words in MOTIONS.items() if key != item.motion for word in words)
    answer = f"{subject} {motion_phrase(item, rng)}."
    yield _about(item, scene, "motion", question, answer, MOTIONS[item.motion], wrong)


def _background(scene: Scene, rng: random.Random) -> Iterator[Question]:
    question = rng.choice(("What colour is the background?", "Which colour does the background have?"))
    answer = rng.choice((f"The background is {scene.background}.", f"It is {scene.background}."))
    yield Question(
        "background", question, answer, (scene.background,), _others(BACKGROUNDS, (scene.background,))
    )


def _first(scene: Scene, rng: random.Random) -> Iterator[Question]:
    question = rng.choice(("What happens first?", "Which event comes first?"))
    if not scene.events:
        yield Question("first", question, "Nothing happens.", ("nothing",))
        return
    event = scene.events[0]
    item = scene.objects[event.index]
    clause = event_clause(scene, event, rng)
    wrong = tuple(
        other.colour for other in scene.objects if other is not item and other.colour != item.new_colour
    )
    verbs = {
        "appears": APPEAR_VERBS,
        "disappears": DISAPPEAR_VERBS,
        "changes colour": tuple(f"{verb} {item.new_colour}" for verb in RECOLOUR_VERBS),
    }[event.kind]
    right = tuple(f"{shape} {verb}" for shape in SHAPES[item.shape] for verb in verbs)
    answer = f"{clause[0].upper()}{clause[1:]}."
    yield _about(item, scene, "first", question, answer, right, (*wrong, "nothing"))


def _final_colour(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for event in scene.events:
        item = scene.objects[event.index]
        if event.kind == "changes colour" and item.new_colour is not None:
            shape = rng.choice(SHAPES[item.shape])
            question = rng.choice(
                (f"What colour is the {shape} at the end?", f"Which colour does the {shape} have in the end?")
            )
            answer = rng.choice((f"The {shape} is {item.new_colour}.", f"It is {item.new_colour}."))
            wrong = _others(COLOURS, (item.new_colour,))
            yield _about(item, scene, "colour", question, answer, (item.new_colour,), wrong)


def _exists(scene: Scene, rng: random.Random) -> Iterator[Question]:
    item = rng.choice(scene.objects)
    used_colours = {other.colour for other in scene.objects} | {other.new_colour for other in scene.objects}
    shapes = [shape for shape in SHAPES if all(shape != other.shape for other in scene.objects)]
    colours = [colour for colour in COLOURS if colour not in used_colours]
    right = rng.random() < 0.5
    colour, shape = item.colour, item.shape
    if not right and rng.random() < 0.5:
        colour = rng.choice(colours)
    elif not right:
        shape = rng.choice(shapes)
    name = f"{colour} {rng.choice(SHAPES[shape])}"
    question = rng.choice((f"Is there a {name}?", f"Does the video show a {name}?"))
    yield _yes_no(right, question, rng.choice((f"there is {{}} {name}", f"the video shows {{}} {name}")))


def _does_it(scene: Scene, rng: random.Random) -> Iterator[Question]:
    index = rng.randrange(len(scene.objects))
    item = scene.objects[index]
    kind = next((event.kind for event in scene.events if event.index == index), None)
    verb = rng.choice(("disappear", "change colour", "appear later"))
    if kind is not None and rng.random() < 0.6:
        verb = {"disappears": "disappear", "changes colour": "change colour", "appears": "appear later"}[kind]
    asked_kind = {"disappear": "disappears", "change colour": "changes colour", "appear later": "appears"}[
        verb
    ]
    answer, right, wrong = (
        ("Yes, it does.", "yes", "no") if kind == asked_kind else ("No, it does not.", "no", "yes")
    )
    question = f"Does {_named(item, rng, full=True)} {verb}?"
    yield _about(item, scene, "yes/no", question, answer, (right,), (wrong,))


def _yes_no(right: bool, question: str, statement: str) -> Question:
    word, wrong, article = ("yes", "no", "a") if right else ("no", "yes", "no")
    answer = f"{word.capitalize()}, {statement.format(article)}."
    # A "Yes" is never followed by "no", so the first word alone decides.
    return Question("yes/no", question, answer, (word,), (wrong,))


_KINDS: tuple[Callable[[Scene, random.Random], Iterator[Question]], ...] = (
    _count, _colour, _shape, _size, _place, _motion, _background, _first, _final_colour, _exists, _does_it,
)  # fmt: skip
