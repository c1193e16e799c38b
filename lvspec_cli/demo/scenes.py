"""The demo world: its words, and its scenes with objects, motions and events.

A scene is a value; ``sample_scene`` draws one from a seeded generator. Positions are fractions of the frame
(x to the right, y down), radii are fractions of its shorter side, times are in seconds.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

# The words of the world: every fact's values and the synonyms that a text may use for them.
COLOURS = {
    "red": (214, 38, 40),
    "orange": (250, 140, 20),
    "yellow": (248, 226, 50),
    "green": (40, 160, 60),
    "cyan": (60, 215, 225),
    "blue": (40, 70, 215),
    "purple": (130, 45, 170),
    "pink": (250, 150, 195),
}
BACKGROUNDS = {
    "black": (18, 18, 20),
    "grey": (112, 114, 116),
    "white": (238, 238, 236),
    "brown": (98, 66, 40),
}
TEXTURES = ("plain", "striped", "checkered")
SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "diamond": ("diamond", "rhombus"),
}
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
ROWS = {"top": ("top", "upper"), "middle": ("middle",), "bottom": ("bottom", "lower")}
COLUMNS = ("left", "centre", "right")
MOTIONS = {
    "still": ("stays still", "remains still", "does not move", "stays in place", "remains in place"),
    "left": ("to the left", "leftward", "toward the left"),
    "right": ("to the right", "rightward", "toward the right"),
    "up": ("up", "upward", "toward the top"),
    "down": ("down", "downward", "toward the bottom"),
}
MOVE_VERBS = ("moves", "drifts", "slides", "glides", "travels")
APPEAR_VERBS = ("appears", "shows up", "comes into view")
DISAPPEAR_VERBS = ("disappears", "vanishes", "goes out of view")
RECOLOUR_VERBS = ("turns", "becomes", "changes to", "changes its colour to")
COUNTS = ("zero", "one", "two", "three", "four", "five")


def _words(phrases: object) -> set[str]:
    if isinstance(phrases, str):
        return set(phrases.split())
    return set().union(*(_words(phrase) for phrase in phrases))  # type: ignore[attr-defined]


#: Words that carry a fact: replacing one of them changes what a text says about the scene.
FACT_WORDS = frozenset(
    _words(list(COLOURS)) | _words(list(BACKGROUNDS)) | _words(TEXTURES) | _words(list(SHAPES.values()))
    | _words(list(SIZES.values())) | _words(list(ROWS.values())) | _words(COLUMNS) | _words(COUNTS)
    | {"still", "place", "not", "leftward", "rightward", "up", "upward", "down", "downward"}
    | {"appears", "shows", "comes", "disappears", "vanishes", "goes", "turns", "becomes", "changes"}
    | {"Nothing", "Yes", "No"}
)  # fmt: skip

EventKind = Literal["appears", "disappears", "changes colour"]
SIZE_RADII = {"small": (0.12, 0.135), "large": (0.2, 0.22)}
FRAME_SIZES = ((320, 240), (320, 180), (256, 192), (384, 216), (426, 240), (240, 240), (288, 288), (240, 320))
FRAME_RATES = (12, 15, 20, 24, 25, 30)
DIRECTIONS = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class SceneObject:
    """One object. ``row`` and ``column`` name its first position."""

    colour: str
    shape: str
    size: str
    row: str
    column: str
    motion: str
    start: tuple[float, float]
    end: tuple[float, float]
    radius: float
    visible_from: float = 0.0
    visible_to: float | None = None
    new_colour: str | None = None
    recoloured_at: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that happens to the object at ``index`` of the scene's objects."""

    kind: EventKind
    index: int
    time: float


@dataclass(frozen=True)
class Scene:
    """One scene. ``objects`` are in the order in which captions name them, which is that of ``COLOURS``."""

    objects: tuple[SceneObject, ...]
    events: tuple[Event, ...]
    background: str
    texture: str
    duration: float
    frame_rate: int
    width: int
    height: int
    noise: float  # standard deviation of the camera noise, of 255
    seed: int  # of the noise

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def scene_from_dict(data: dict[str, Any]) -> Scene:
    """The scene that ``Scene.as_dict`` (after a trip through JSON) describes."""
    return _SCENE.validate_python(data)


_SCENE = TypeAdapter(Scene)


def position(item: SceneObject, time: float, duration: float) -> tuple[float, float]:
    """The object's centre. It moves at a constant speed while the object is visible."""
    until = duration if item.visible_to is None else item.visible_to
    share = min(1.0, max(0.0, (time - item.visible_from) / max(1e-6, until - item.visible_from)))
    (x0, y0), (x1, y1) = item.start, item.end
    return x0 + (x1 - x0) * share, y0 + (y1 - y0) * share


def is_visible(item: SceneObject, time: float) -> bool:
    return time >= item.visible_from and (item.visible_to is None or time < item.visible_to)


def colour_at(item: SceneObject, time: float) -> str:
    if item.new_colour is not None and item.recoloured_at is not None and time >= item.recoloured_at:
        return item.new_colour
    return item.colour


def sample_scene(rng: random.Random) -> Scene:
    """Draw a scene: two to four objects of different colours and shapes, and up to two events."""
    width, height = rng.choice(FRAME_SIZES)
    duration = round(rng.uniform(2.0, 12.0), 1)
    count = rng.choices((2, 3, 4), (0.4, 0.4, 0.2))[0]
    objects = None
    while objects is None:
        objects = _sample_objects(rng, count, width / min(width, height), height / min(width, height))
    colours = rng.sample(list(COLOURS), count + 2)
    named = sorted(colours[:count], key=list(COLOURS).index)
    rng.shuffle(objects)
    objects = [replace(item, colour=colour) for item, colour in zip(objects, named, strict=True)]
    timed, events = _sample_events(rng, objects, colours[count:], duration)
    return Scene(
        objects=tuple(timed),
        events=events,
        background=rng.choice(list(BACKGROUNDS)),
        texture=rng.choice(TEXTURES),
        duration=duration,
        frame_rate=rng.choice(FRAME_RATES),
        width=width,
        height=height,
        noise=round(rng.uniform(0.0, 7.0), 1),
        seed=rng.getrandbits(31),
    )


def _sample_objects(
    rng: random.Random, count: int, aspect_x: float, aspect_y: float
) -> list[SceneObject] | None:
    """Objects at different positions whose paths do not meet; None if one of them finds no room."""
    cells = rng.sample(list(itertools.product(range(3), range(3))), count)  # (column, row)
    objects: list[SceneObject] = []
    for (column, row), shape in zip(cells, rng.sample(list(SHAPES), count), strict=True):
        size = rng.choice(list(SIZE_RADII))
        for _ in range(8):
            item = _sample_object(rng, (column, row), shape, size, (aspect_x, aspect_y))
            if not any(_too_close(item, other, aspect_x, aspect_y) for other in objects):
                objects.append(item)
                break
        else:
            return None
    return objects


def _sample_object(
    rng: random.Random, cell: tuple[int, int], shape: str, size: str, aspect: tuple[float, float]
) -> SceneObject:
    radius = rng.uniform(*SIZE_RADII[size])
    margin = (radius / aspect[0], radius / aspect[1])
    start = (
        _inside((cell[0] + 0.5) / 3 + rng.uniform(-0.05, 0.05), margin[0]),
        _inside((cell[1] + 0.5) / 3 + rng.uniform(-0.05, 0.05), margin[1]),
    )
    motion, end = _sample_motion(rng, start, margin)
    row, column = list(ROWS)[cell[1]], COLUMNS[cell[0]]
    return SceneObject("", shape, size, row, column, motion, start, end, radius)


def _sample_motion(
    rng: random.Random, start: tuple[float, float], margin: tuple[float, float]
) -> tuple[str, tuple[float, float]]:
    """A motion and where it ends, among those that stay inside the frame; still one time in five."""
    travel = rng.uniform(0.28, 0.45)
    ends = {
        name: (start[0] + step_x * travel, start[1] + step_y * travel)
        for name, (step_x, step_y) in DIRECTIONS.items()
    }
    inside = [
        name
        for name, end in ends.items()
        if name != "still" and end == (_inside(end[0], margin[0]), _inside(end[1], margin[1]))
    ]
    motion = "still" if not inside or rng.random() < 0.2 else rng.choice(inside)
    return motion, ends[motion]


def _inside(value: float, margin: float) -> float:
    return min(1 - margin, max(margin, value))


def _too_close(first: SceneObject, second: SceneObject, aspect_x: float, aspect_y: float) -> bool:
    # Events shift the two objects in time, so all pairs of their positions must be apart.
    def path(item: SceneObject) -> list[tuple[float, float]]:
        return [position(item, share / 4, 1.0) for share in range(5 if item.motion != "still" else 1)]

    reach = first.radius + second.radius + 0.02
    return any(
        ((x0 - x1) * aspect_x) ** 2 + ((y0 - y1) * aspect_y) ** 2 < reach**2
        for (x0, y0), (x1, y1) in itertools.product(path(first), path(second))
    )


def _sample_events(
    rng: random.Random, objects: list[SceneObject], spare_colours: list[str], duration: float
) -> tuple[list[SceneObject], tuple[Event, ...]]:
    count = rng.choices((0, 1, 2), (0.25, 0.4, 0.35))[0]
    shares = [[], [rng.uniform(0.35, 0.65)], [rng.uniform(0.2, 0.35), rng.uniform(0.62, 0.8)]][count]
    objects = list(objects)
    events = []
    for share, index, colour in zip(
        shares, rng.sample(range(len(objects)), count), spare_colours, strict=False
    ):
        time = round(share * duration, 2)
        kind: EventKind = rng.choice(("appears", "disappears", "changes colour"))
        fields: dict[EventKind, dict[str, Any]] = {
            "appears": {"visible_from": time},
            "disappears": {"visible_to": time},
            "changes colour": {"new_colour": colour, "recoloured_at": time},
        }
        objects[index] = replace(objects[index], **fields[kind])
        events.append(Event(kind, index, time))
    return objects, tuple(events)
