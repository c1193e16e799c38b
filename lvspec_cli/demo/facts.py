"""The fact reader: caption -> facts, and their score against the facts of the scene.

A fact is a kind and a tuple of words. The key of facts about an object is its shape, which is unique in a
scene: if a caption names the wrong shape, all of its facts about the object are wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lvspec_cli.demo.scenes import (
    APPEAR_VERBS,
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    COUNTS,
    DISAPPEAR_VERBS,
    MOTIONS,
    RECOLOUR_VERBS,
    ROWS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
)

FACT_KINDS = (
    "count",
    "background",
    "texture",
    "shape",
    "colour",
    "size",
    "place",
    "motion",
    "event",
    "order",
)


@dataclass(frozen=True, order=True)
class Fact:
    kind: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class FactScore:
    """Counts over any number of captions. Ratios are 1.0 if there is nothing to find."""

    found_right: int = 0
    found: int = 0
    expected: int = 0

    @property
    def precision(self) -> float:
        return self.found_right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.found_right / self.expected if self.expected else 1.0

    @property
    def f1(self) -> float:
        return 2 * self.found_right / (self.found + self.expected) if self.found + self.expected else 1.0

    def __add__(self, other: FactScore) -> FactScore:
        return FactScore(
            self.found_right + other.found_right, self.found + other.found, self.expected + other.expected
        )


def scene_facts(scene: Scene) -> Counter[Fact]:
    """All facts of a scene that a caption states."""
    facts = [
        Fact("count", (COUNTS[len(scene.objects)],)),
        Fact("background", (scene.background,)),
        Fact("texture", (scene.texture,)),
    ]
    for item in scene.objects:
        facts += [
            Fact("shape", (item.shape,)),
            Fact("colour", (item.shape, item.colour)),
            Fact("size", (item.shape, item.size)),
            Fact("place", (item.shape, item.row, item.column)),
            Fact("motion", (item.shape, item.motion)),
        ]
    for event in scene.events:
        item = scene.objects[event.index]
        values = (item.shape, event.kind) + ((item.new_colour,) if item.new_colour else ())
        facts.append(Fact("event", values))
    if not scene.events:
        facts.append(Fact("event", ("nothing",)))
    if len(scene.events) == 2:
        facts.append(Fact("order", tuple(scene.objects[event.index].shape for event in scene.events)))
    return Counter(facts)


def score_facts(stated: Counter[Fact], expected: Counter[Fact]) -> dict[str, FactScore]:
    """Scores for each kind of fact, and for all of them under ``"all"``. Repetitions count."""
    scores = {}
    for kind in FACT_KINDS:
        own = Counter({fact: count for fact, count in stated.items() if fact.kind == kind})
        wanted = Counter({fact: count for fact, count in expected.items() if fact.kind == kind})
        scores[kind] = FactScore((own & wanted).total(), own.total(), wanted.total())
    scores["all"] = sum(scores.values(), FactScore())
    return scores


# --- reading -------------------------------------------------------------------------------


def _choice(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _canonical(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {word: name for name, words in table.items() for word in words}


_SHAPE_OF, _SIZE_OF, _ROW_OF = _canonical(SHAPES), _canonical(SIZES), _canonical(ROWS)
_MOTION_OF = _canonical(MOTIONS)
_SHAPE = re.compile(rf"\b({_choice(_SHAPE_OF)})\b")
_COLOUR = re.compile(rf"\b({_choice(COLOURS)})\b")
_SIZE = re.compile(rf"\b({_choice(_SIZE_OF)})\b")
_PLACE = re.compile(rf"\b({_choice(_ROW_OF)}) ({_choice(COLUMNS)})\b|\b[Ii]n the (centre)\b")
_MOTION = re.compile(rf"\b({_choice(_MOTION_OF)})\b")
_EVENT = re.compile(
    rf"\bthe (?:(?:{_choice(COLOURS)}) )?({_choice(_SHAPE_OF)}) "
    rf"(?:({_choice(APPEAR_VERBS)})|({_choice(DISAPPEAR_VERBS)})"
    rf"|(?:{_choice(RECOLOUR_VERBS)}) ({_choice(COLOURS)}))\b"
)
_GROUND = re.compile(rf"\b({_choice(TEXTURES)}) ({_choice(BACKGROUNDS)})\b")
_COUNT = re.compile(rf"\b({_choice(COUNTS)}) (?:objects|shapes|figures)\b")


def read_facts(text: str) -> Counter[Fact]:
    """The facts that a caption of the demo world states, sentence by sentence; repetitions count."""
    facts: Counter[Fact] = Counter()
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        facts.update(_read_sentence(sentence))
    return facts


def _read_sentence(sentence: str) -> list[Fact]:
    events = _read_events(sentence)
    if events:
        return events
    if re.match(r"Nothing\b", sentence):
        return [Fact("event", ("nothing",))]
    facts = [Fact("count", (match[1],)) for match in _COUNT.finditer(sentence)]
    for match in _GROUND.finditer(sentence):
        facts += [Fact("texture", (match[1],)), Fact("background", (match[2],))]
    shape = _SHAPE.search(sentence)
    return facts + (_read_object(sentence, _SHAPE_OF[shape[1]]) if shape else [])


def _read_object(sentence: str, shape: str) -> list[Fact]:
    facts = [Fact("shape", (shape,))]
    facts += [Fact("colour", (shape, match[1])) for match in _COLOUR.finditer(sentence)]
    facts += [Fact("size", (shape, _SIZE_OF[match[1]])) for match in _SIZE.finditer(sentence)]
    for match in _PLACE.finditer(sentence):
        row, column = ("middle", "centre") if match[3] else (_ROW_OF[match[1]], match[2])
        facts.append(Fact("place", (shape, row, column)))
    facts += [Fact("motion", (shape, _MOTION_OF[match[1]])) for match in _MOTION.finditer(sentence)]
    return facts


def _read_events(sentence: str) -> list[Fact]:
    facts, shapes = [], []
    for match in _EVENT.finditer(sentence):
        shape = _SHAPE_OF[match[1]]
        shapes.append(shape)
        if match[2]:
            facts.append(Fact("event", (shape, "appears")))
        elif match[3]:
            facts.append(Fact("event", (shape, "disappears")))
        else:
            facts.append(Fact("event", (shape, "changes colour", match[4])))
    if len(shapes) == 2:
        # Every form tells the earlier event first ("After E1, E2", "First, E1, and then E2") ...
        order = tuple(reversed(shapes)) if re.search(r"\b(?<!^)after the\b", sentence) else tuple(shapes)
        facts.append(Fact("order", order))  # ... but "E2 after the E1" turns them round.
    return facts
