"""Scene -> caption, and questions with answers; whether an answer is right.

In captions the facts are fixed, and words vary (synonyms, adverbs, order of clauses).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lvspec_cli.demo.scenes import (
    APPEAR_VERBS,
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DISAPPEAR_VERBS,
    MOTIONS,
    MOVE_VERBS,
    RECOLOUR_VERBS,
    ROWS,
    SHAPES,
    SIZES,
    Event,
    Scene,
    SceneObject,
)

CAPTION_PROMPTS = (
    "Describe the video.",
    "Describe this video in detail.",
    "What happens?",
    "What happens in this video?",
    "Caption this clip.",
    "What does the clip show?",
)


@dataclass(frozen=True)
class Span:
    """A part of a text, and the index of the object that it is about."""

    text: str
    about: int | None = None


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene that states every fact once: 80 to 200 tokens of the demo tokenizer."""
    return "".join(span.text for span in caption_spans(scene, rng))


def caption_spans(scene: Scene, rng: random.Random) -> Iterator[Span]:
    """The parts of a caption, each with the object that it is about."""
    yield Span(f"{_opening(scene, rng)} {_viewpoint(rng)}")
    for index, item in enumerate(scene.objects):
        yield Span(f" {_object_sentence(item, rng)}", index)
    yield from _event_spans(scene, rng)
    yield Span(f" {_closing(rng)}")


def _opening(scene: Scene, rng: random.Random) -> str:
    count = COUNTS[len(scene.objects)]
    ground = f"a {scene.texture} {scene.background} {rng.choice(('background', 'backdrop'))}"
    noun = rng.choice(("objects", "shapes", "figures"))
    subject = rng.choice(("The video", "The clip", "The scene", "This clip", "This short video"))
    if rng.random() < 0.6:
        verb = rng.choice(("shows", "contains", "presents", "features"))
        preposition = rng.choice(("on", "against", "in front of"))
        return f"{subject} {verb} {count} {noun} {preposition} {ground}."
    verb = rng.choice(("is set on", "takes place on", "plays against", "has"))
    tail = rng.choice(("in all", "in total", "altogether"))
    return f"{subject} {verb} {ground}, with {count} {noun} {tail}."


def _viewpoint(rng: random.Random) -> str:
    subject = rng.choice(("Everything", "All of it", "The whole scene"))
    verb = rng.choice(("is seen", "is filmed", "is shown", "is viewed"))
    where = rng.choice(("from the front", "straight on", "head on", "from directly in front"))
    ending = rng.choice(("with nothing else in sight", "and no text is to be seen", "and nobody is in view"))
    return f"{subject} {verb} {where}, {ending}."


def _object_sentence(item: SceneObject, rng: random.Random) -> str:
    size, shape, colour = rng.choice(SIZES[item.size]), rng.choice(SHAPES[item.shape]), item.colour
    position, motion = place_phrase(item, rng), motion_phrase(item, rng)
    form = rng.randrange(4)
    if form == 0:
        opening = rng.choice(("there is", "we see", "one can see", "you can see"))
        link = rng.choice(("that", "which"))
        return f"{position[0].upper()}{position[1:]}, {opening} a {size} {colour} {shape} {link} {motion}."
    if form == 1:
        begins = rng.choice(("starts", "begins", "is first seen", "can first be found"))
        return f"A {size} {colour} {shape} {begins} {position} and {motion}."
    if form == 2:
        lead = rng.choice(("There is also", "Another thing to see is", "Then there is", "Next comes"))
        return f"{lead} a {size} {colour} {shape}, which {motion}, at first {position}."
    lead = rng.choice(("One of them", "One of these", "Another one"))
    begins = rng.choice(("starts", "begins", "is first seen"))
    return f"{lead} is a {size} {colour} {shape}: it {begins} {position}, and it {motion}."


def place_name(item: SceneObject, rng: random.Random) -> str:
    row = rng.choice(ROWS[item.row])
    if (item.row, item.column) == ("middle", "centre"):
        return "centre"
    return f"{row} {item.column}"


def place_phrase(item: SceneObject, rng: random.Random) -> str:
    part = rng.choice(("", " part", " area", " region"))
    frame = rng.choice(("frame", "picture", "image", "screen"))
    return f"in the {place_name(item, rng)}{part} of the {frame}"


def motion_phrase(item: SceneObject, rng: random.Random) -> str:
    if item.motion == "still":
        return rng.choice(MOTIONS["still"])
    adverb = rng.choice(("", "", " steadily", " smoothly", " evenly", " gently"))
    return f"{rng.choice(MOVE_VERBS)}{adverb} {rng.choice(MOTIONS[item.motion])}"


def event_clause(scene: Scene, event: Event, rng: random.Random) -> str:
    item = scene.objects[event.index]
    subject = f"the {item.colour} {rng.choice(SHAPES[item.shape])}"
    if event.kind == "appears":
        return f"{subject} {rng.choice(APPEAR_VERBS)}"
    if event.kind == "disappears":
        return f"{subject} {rng.choice(DISAPPEAR_VERBS)}"
    return f"{subject} {rng.choice(RECOLOUR_VERBS)} {item.new_colour}"


def _event_spans(scene: Scene, rng: random.Random) -> Iterator[Span]:
    """One sentence about the events. Two events are in order of time, or joined by ``after``."""
    if not scene.events:
        when = rng.choice(("during the clip", "in the scene", "from start to finish", "while we watch"))
        yield Span(f" Nothing else {rng.choice(('happens', 'changes'))} {when}.")
        return
    clauses = [event_clause(scene, event, rng) for event in scene.events]
    first, last = scene.events[0].index, scene.events[-1].index
    if len(clauses) == 1:
        lead = rng.choice(("Partway through", "After a while", "At some point", "During the clip"))
        yield Span(f" {lead}, {clauses[0]}.", first)
    elif rng.random() < 0.35:
        yield Span(f" After {clauses[0]}", first)
        yield Span(f", {clauses[1]}.", last)
    else:
        link = rng.choice(("and then", "and later", "and after that"))
        yield Span(f" First, {clauses[0]}", first)
        yield Span(f", {link} {clauses[1]}.", last)


def _closing(rng: random.Random) -> str:
    subject = rng.choice(("The camera", "The view", "The viewpoint"))
    verb = rng.choice(("is fixed", "is steady", "keeps its position", "holds its position"))
    light = rng.choice(("light", "lighting", "brightness"))
    when = rng.choice(("throughout", "the whole time", "all along", "for the entire clip"))
    return f"{subject} {verb} {when}, and the {light} {rng.choice(('is even', 'is constant', 'is uniform'))}."


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
