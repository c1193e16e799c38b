"""The words of the demo world: every fact's values and the synonyms a text may use for them."""

from __future__ import annotations

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


#: Words that carry a fact: another one in their place says something else about the scene.
FACT_WORDS = frozenset(
    _words(list(COLOURS)) | _words(list(BACKGROUNDS)) | _words(TEXTURES) | _words(list(SHAPES.values()))
    | _words(list(SIZES.values())) | _words(list(ROWS.values())) | _words(COLUMNS) | _words(COUNTS)
    | {"still", "place", "not", "leftward", "rightward", "up", "upward", "down", "downward"}
    | {"appears", "shows", "comes", "disappears", "vanishes", "goes", "turns", "becomes", "changes"}
    | {"Nothing", "Yes", "No"}
)  # fmt: skip
