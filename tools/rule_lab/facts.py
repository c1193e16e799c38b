"""Matches captions with what their scene's notes say: facts told, wrong facts, words that captions share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lvspec_cli.models.words import FUNCTION_WORDS, NEGATIONS
from tools.rule_lab.scenes import WORDS, Scene, kind_of

# Words that say the same as the first one of their line; irregular forms too.
_SAME = """
woman lady female | man guy gentleman male | boy kid child lad | girl kid child | dog puppy hound | cat kitten
horse pony | bicycle bike | coat jacket overcoat | jacket coat | raincoat coat jacket
sweater jumper pullover | hat cap | cloak cape | grey gray | purple violet | violin fiddle | suitcase luggage
backpack bag rucksack | market marketplace bazaar | forest woods woodland | harbour harbor port dock
garage workshop | beach shore | station platform | cafe coffee | teacher instructor
photographer cameraman | policeman officer police | doctor physician | cook chef | fisherman angler
artist painter | small little tiny | large big huge
old elderly aged | young youthful | thin slim skinny | sunrise dawn morning | dusk sunset evening twilight
night nighttime nightfall | rain rainy raining | snow snowy snowing | fog foggy mist misty | noon midday
lantern lamp | lamb sheep | goose geese | pig piglet | rabbit bunny | stairs staircase steps | carpet rug
boat ship | wooden wood | statue sculpture | pillow cushion | broom brush | basket hamper
children kids | musicians band | neighbours neighbors | workers labourers laborers
two pair couple both | three trio
carries carry bringing brings | throws tosses threw thrown | repairs fixes mends
watches observes gazes looks | hugs embraces
chases pursues | slices cuts | sleeps asleep naps rests | eats ate munches | drinks drank
jumps leaps hops | runs ran | hides hid hidden | steals stole stolen snatches | lifts raises | kneels knelt
stumbles trips | feeds fed | drops dropped | wraps wrapped | photographs pictures photo photos | waves waved
clap applaud applause | cheer cheering | paints painted | reads reading
"""
_IDLE = frozenset(  # what every caption may say
    word
    for line in (
        "video clip scene begins begin starts start continues continue meanwhile nearby wears wearing wear",
        "dressed person people someone figure takes take taking place while then next finally suddenly",
    )
    for word in line.split()
)
_MODIFIERS = ("colour", "material", "number", "look")
_NAMED = ("person", "garment", "animal", "thing", "instrument", "food", "spot")
_WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")


def stem(word: str) -> str:
    """A word without its ending, so that ``carries``, ``carried`` and ``carrying`` are the same."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    if word.endswith(("ies", "ied")) and len(word) > 4:
        return word[:-3] + "i"
    for ending, least in (("ing", 6), ("ed", 5), ("es", 5), ("s", 4)):
        if word.endswith(ending) and len(word) >= least and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") else word.removesuffix("e")


_SYNONYMS: dict[str, frozenset[str]] = {}
for _line in _SAME.replace("\n", "|").split("|"):
    if _words := _line.split():
        _SYNONYMS[stem(_words[0])] = frozenset(map(stem, _words))
_NOUNS = {stem(word): kind for kind in _NAMED for word in WORDS[kind]}
_MODIFYING = {stem(word) for kind in _MODIFIERS for word in WORDS[kind]}
# Wrong wherever nothing in the notes supports them. Numbers and looks depend on their noun; anybody may be a
# man.
_CLAIMS = {
    stem(word) for kind in (*_NAMED, "name", "colour", "material", "place", "group") for word in WORDS[kind]
} - {"man", "woman", "boy", "girl"}


def words_of(text: str) -> list[str]:
    return _WORD.findall(text)


def content(text: str) -> frozenset[str]:
    """Stems of a text's words that carry content: no function words, nothing that every caption says."""
    words = (word for word in words_of(text) if len(word) > 2)
    idle = FUNCTION_WORDS | NEGATIONS | _IDLE
    return frozenset(stem(word) for word in words if word.lower() not in idle)


def synonyms(key: str) -> frozenset[str]:
    """All stems that tell the fact of a stem."""
    return _SYNONYMS.get(key, frozenset((key,)))


def bound_pairs(text: str) -> frozenset[tuple[str, str]]:
    """Modifiers before a noun, both known to the scenes: ``a small red fox`` has two. Stems."""
    pairs, modifiers = set(), list[str]()
    for word in words_of(text):
        key = stem(word)
        if key in _MODIFYING:
            modifiers.append(key)
        elif key in _NOUNS:
            pairs |= {(modifier, key) for modifier in modifiers}
            modifiers = []
        elif key != "and":
            modifiers = []
    return frozenset(pairs)


@dataclass(frozen=True)
class Facts:
    """What a scene's notes say."""

    keys: tuple[str, ...]  # stems of the words that are facts, in order, each once
    supported: frozenset[str]  # all stems of the notes, with their synonyms
    pairs: frozenset[tuple[str, str]]  # modifier and noun

    @classmethod
    def of(cls, scene: Scene) -> Facts:
        words = [word for line in scene.lines for word in words_of(line)]
        keys = dict.fromkeys(stem(word) for word in words if kind_of(word))
        supported = frozenset(same for word in words for same in synonyms(stem(word)))
        pairs = frozenset(pair for line in scene.lines for pair in bound_pairs(line))
        return cls(tuple(keys), supported, pairs)

    def told(self, text: str) -> frozenset[str]:
        """The facts that a caption tells, in the notes' words or their synonyms."""
        said = {stem(word) for word in words_of(text)}
        return frozenset(key for key in self.keys if synonyms(key) & said)

    def wrong(self, text: str) -> frozenset[str | tuple[str, str]]:
        """Words of the scenes' classes that nothing in the notes supports, and modifiers that are not that
        noun's."""
        said = {stem(word) for word in words_of(text) if word.lower() not in _IDLE}
        words = said & _CLAIMS - self.supported
        pairs = {pair for pair in bound_pairs(text) if not set(pair) & words and not self._holds(*pair)}
        return frozenset(words | pairs)

    def _holds(self, modifier: str, noun: str) -> bool:
        return any(modifier in synonyms(own) and noun in synonyms(of) for own, of in self.pairs)
