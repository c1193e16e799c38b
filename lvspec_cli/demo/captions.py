"""Scene -> caption. Facts are fixed; words vary (synonyms, adverbs, order of clauses)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lvspec_cli.demo.scenes import (
    APPEAR_VERBS,
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
