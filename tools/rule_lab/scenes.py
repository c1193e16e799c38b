"""Scenes that stand in for videos: what a detector would note, and eyes that are not sure of it.

A scene is six or seven notes with times, without articles or sentences, so that a caption's own words are the
model's. Their words come from open classes: people, animals, things, colours, actions and so on. Unsure eyes
are blends of embeddings: where the note says ``fox``, the model sees a mixture of ``fox`` and ``dog``.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

WORDS: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split())
    for kind, words in {
        "person": "woman man boy girl cook nurse farmer fisherman artist teacher policeman"
        " photographer plumber doctor dancer carpenter waiter gardener sailor mechanic monk cyclist clown"
        " soldier student barber",
        "name": "Anna Marco Priya Tom Elena Omar Sofia Kenji Lucy David Grace Ivan",
        "colour": "red blue green yellow white black brown grey purple orange pink turquoise silver",
        "garment": "coat jacket scarf hat apron dress sweater shirt vest helmet raincoat uniform cloak",
        "animal": "dog cat parrot horse rabbit goat duck pigeon squirrel hedgehog donkey turtle goose lamb"
        " crow owl fox monkey pig",
        "material": "wooden metal plastic glass paper leather stone",
        "thing": "guitar umbrella suitcase kite ladder bicycle basket drum trumpet lantern camera backpack"
        " bucket broom clock candle vase mirror teapot ball telescope skateboard wheelbarrow hammer pillow",
        "instrument": "guitar violin drum trumpet accordion flute",
        "food": "apple pizza sandwich pancake cake carrot banana onion watermelon cheese lemon pear",
        "place": "bakery library harbour kitchen office garage rooftop beach forest market classroom park"
        " museum station playground bridge barn gym hospital greenhouse garden church stadium cafe",
        "time": "sunrise dusk night rain snow fog noon",
        "spot": "table fence bench window door wall shelf counter fountain tree stairs carpet boat van",
        "number": "two three four five",
        "look": "old young tall bearded blonde small large spotted thin fluffy",
        "group": "children tourists neighbours workers musicians",
    }.items()
}
# A person's actions and an animal's, as detectors write them. In brackets: a word of that kind; "other" is
# the scene's second person, "pet" its animal.
DEEDS = (
    "juggles [number] [food]s",
    "plays [material] [instrument]",
    "peels [colour] [food]",
    "carries [colour] [thing] | towards [spot]",
    "drops [material] [thing] | beside [spot]",
    "feeds [pet]",
    "climbs | onto [spot]",
    "polishes [material] [thing]",
    "hides [colour] [thing] | behind [spot]",
    "paints [spot] [colour]",
    "throws [colour] [thing] | to [other]",
    "whispers | to [other]",
    "hugs [other]",
    "photographs [spot]",
    "kneels | next to [spot]",
    "pushes [colour] [thing] | past [spot]",
    "slices [food] | on [spot]",
    "reads [colour] letter",
    "laughs | at [other]",
    "chases [pet] | around [spot]",
    "repairs broken [thing]",
    "balances [food] | on one hand",
    "waves | to [other]",
    "lifts [pet] | over [spot]",
    "wraps [thing] | in [colour] paper",
    "dances | with [other]",
    "stumbles | over [material] [thing]",
)
PET_DEEDS = (
    "jumps | onto [spot]",
    "sleeps | under [spot]",
    "steals [food]",
    "runs | around [spot]",
    "sniffs [colour] [thing]",
    "hides | behind [spot]",
    "drinks | from [material] bowl",
    "scratches [spot]",
    "watches [other]",
    "eats [food]",
)
CROWD_DEEDS = ("clap", "cheer", "march", "sing")
QUESTIONS = (
    "Describe the video in detail.",
    "What happens in this video? Describe it in detail.",
    "Give a detailed description of the video.",
    "Please describe in detail what can be seen in this clip.",
)
INSTRUCTION = (
    "You caption videos. You are given what was detected in a video, with times. Write one flowing"
    " paragraph of about 80 words in plain English. Tell the whole video in your own words and in"
    " order, with all people, colours, objects and actions. Write no times and no lists."
)
DEED_WORDS = frozenset(deed.split()[0] for deed in (*DEEDS, *PET_DEEDS, *CROWD_DEEDS))
_KIND = {word: kind for kind, words in WORDS.items() for word in words} | dict.fromkeys(DEED_WORDS, "deed")
_SLOT = re.compile(r"\[(\w+)\]")
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Doubt:
    """A word of the notes that is taken for another one of its kind."""

    start: int  # in the notes' text
    end: int
    others: tuple[str, ...]  # in order of choice; the first that has as many tokens is taken
    share: float  # of the other word in the blend, 0 to 1


@dataclass(frozen=True)
class Scene:
    """``lines``: the notes without their times, one for each event, in order."""

    seed: int
    lines: tuple[str, ...]
    notes: str
    question: str


def kind_of(word: str) -> str | None:
    """The class of a word of the notes, also in the plural; None for words that are no facts."""
    return _KIND.get(word) or _KIND.get(word.removesuffix("s"))


def make_scene(seed: int) -> Scene:
    """The scene with this number: always the same."""
    rng = random.Random(seed)
    hero, other = rng.sample(WORDS["person"], 2)
    pet = rng.choice(WORDS["animal"])
    unused = {kind: rng.sample(words, len(words)) for kind, words in WORDS.items()}

    def fill(deed: str, seen: str) -> str:
        def word(slot: re.Match[str]) -> str:
            kind = slot[1]
            if kind in ("other", "pet"):
                return seen if kind == "other" else pet
            # Colours and materials may come twice in a scene, things and spots may not.
            return rng.choice(WORDS[kind]) if kind in ("colour", "material", "number") else unused[kind].pop()

        return _SLOT.sub(word, deed)

    def person(who: str) -> str:
        look = rng.choice((*WORDS["look"][:5], "", "", ""))
        return f"{look} {who} | in {rng.choice(WORDS['colour'])} {rng.choice(WORDS['garment'])}".strip()

    deeds = rng.sample(DEEDS, 4)
    name = f" | name {rng.choice(WORDS['name'])}" if rng.random() < 0.35 else ""
    when = f" | {rng.choice(WORDS['time'])}" if rng.random() < 0.8 else ""
    look = rng.choice((*WORDS["look"][5:], "", ""))
    lines = [
        f"{person(hero)}{name} | {rng.choice(WORDS['place'])}{when}",
        f"{hero} {fill(deeds[0], other)}",
        f"{person(other)} | arrives | {fill(deeds[1], hero)}",
        f"{look} {rng.choice(WORDS['colour'])} {pet} {fill(rng.choice(PET_DEEDS), hero)}".strip(),
        f"{other} {fill(deeds[2], hero)}",
        f"{hero} {fill(deeds[3], other)}",
    ]
    if rng.random() < 0.6:
        lines.append(f"{rng.choice(WORDS['number'])} {rng.choice(WORDS['group'])} {rng.choice(CROWD_DEEDS)}")
    second, timed = 0, []
    for line in lines:
        timed.append(f"[0:{second:02}] {line}")
        second += rng.randint(2, 5)
    return Scene(seed, tuple(lines), "\n".join(timed), rng.choice(QUESTIONS))


def doubts(scene: Scene) -> tuple[tuple[Doubt, ...], tuple[Doubt, ...]]:
    """What the target and the draft are unsure of in a scene. The draft sees worse, on average.

    Seven facts in ten are blended by less than a quarter, the others by a quarter to a half.
    """
    rng = random.Random(f"doubts {scene.seed}")
    target, draft = [], []
    for word in _WORD.finditer(scene.notes):
        kind = kind_of(word[0])
        if kind is None:
            continue
        bank = sorted(DEED_WORDS) if kind == "deed" else WORDS[kind]
        others = [candidate for candidate in bank if not word[0].startswith(candidate)]
        share = rng.uniform(0.0, 0.25) if rng.random() < 0.7 else rng.uniform(0.25, 0.5)
        worse = min(0.6, max(0.0, share + rng.uniform(-0.1, 0.2)))
        order = tuple(rng.sample(others, len(others)))
        target.append(Doubt(*word.span(), order, share))
        draft.append(Doubt(*word.span(), order, worse))
    return tuple(target), tuple(draft)
