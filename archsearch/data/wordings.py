"""English wordings of one fact: `name` has, as its `attribute`, `value`.

`facts` and `paraphrases` are trained on; `held_out` is asked by the evaluation alone, so that a right answer
shows recall of the fact and not of a sentence. No wording is in two of the sets.
"""

from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

ATTRIBUTES = (
    "boat", "boss", "bull", "cook", "dog", "duke", "farm", "goat", "hero", "home", "king", "lake", "land",
    "maid", "mare", "mill", "monk", "pet", "pony", "port", "ram", "road", "ship", "song", "town", "tree",
    "wife", "wine", "wolf", "wood",
)  # fmt: skip

_SYLLABLES = tuple(onset + vowel for onset, vowel in product("bdfgklmnprstvz", "aeiou"))
INVENTED = tuple((first + second).capitalize() for first, second in product(_SYLLABLES, repeat=2))
"""4,900 pronounceable words of four letters, for names and values alike."""

FILLER_SUBJECTS = ("rain", "wind", "snow", "river", "clock", "light", "grass", "cloud", "smoke", "crowd")
FILLER_VERBS = ("moved", "stopped", "came back", "went on", "faded", "returned", "waited", "grew")
FILLER_ENDINGS = (
    "at dawn",
    "all day",
    "once more",
    "in silence",
    "by noon",
    "too soon",
    "as before",
    "at last",
)


@dataclass(frozen=True)
class Wordings:
    """Templates over {name}, {attribute} and {value}; a question ends with its answer and a full stop."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]


WORDINGS = MappingProxyType(
    {
        "facts": Wordings(
            statements=("{name}'s {attribute} is {value}.",),
            questions=("{name}'s {attribute}? {value}.",),
        ),
        # Many, because a model that sees few learns each by heart and fails on the next one it meets.
        "paraphrases": Wordings(
            statements=(
                "The {attribute} of {name} is {value}.",
                "{value} is {name}'s {attribute}.",
                "{name} has {value} as {attribute}.",
                "{name}, whose {attribute} is {value}.",
                "{name}'s {attribute}: {value}.",
                "{name} has a {attribute}, {value}.",
                "{name}'s {attribute} was {value}.",
                "{value}, the {attribute} of {name}.",
                "For {attribute}, {name} has {value}.",
                "{name} calls {value} a {attribute}.",
                "{name} got {value} for {attribute}.",
                "{name} took {value} as {attribute}.",
                "Of {name} the {attribute} is {value}.",
                "It is {value}, {name}'s {attribute}.",
                "{attribute} of {name}: {value}.",
                "{name} ({attribute} {value}).",
                "{value} is the {attribute} of {name}.",
                "{name} keeps {value}, a {attribute}.",
                "{name}'s one {attribute} is {value}.",
                "{name} and a {attribute}, {value}.",
            ),
            questions=(
                "The {attribute} of {name}? {value}.",
                "{name} has a {attribute}: {value}.",
                "Tell {name}'s {attribute}: {value}.",
                "Who? {name}'s {attribute}: {value}.",
                "{attribute} of {name}? {value}.",
                "{name}, {attribute}? {value}.",
                "{name}: {attribute}? {value}.",
                "So {name}'s {attribute}? {value}.",
                "{name} had a {attribute}, {value}.",
                "Say {attribute} of {name}: {value}.",
                "For {name}, {attribute} is {value}.",
                "{name} and {attribute}? {value}.",
                "Ask {name}'s {attribute}: {value}.",
                "{name} whose {attribute}? {value}.",
            ),
        ),
        "held_out": Wordings(
            statements=(
                "{name} owns a {attribute}, {value}.",
                "A {attribute} of {name}'s is {value}.",
                "See {value}, {name}'s {attribute}.",
            ),
            questions=(
                "Name {name}'s {attribute}: {value}.",
                "And {name}'s {attribute}? {value}.",
                "What {attribute}, {name}? {value}.",
            ),
        ),
    }
)


def _longest(templates: list[str]) -> int:
    longest_word = max(map(len, ATTRIBUTES))
    return 1 + max(len(t.format(name="Name", attribute="x" * longest_word, value="Word")) for t in templates)


LONGEST_STATEMENT = _longest([t for wordings in WORDINGS.values() for t in wordings.statements])
LONGEST_QUESTION = _longest([t for wordings in WORDINGS.values() for t in wordings.questions])
"""Bytes of the longest sentence in any wording, with the space (or end of document) that follows it."""
