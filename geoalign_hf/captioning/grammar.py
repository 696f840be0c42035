"""English for what boxes show: articles, plurals, numbers, lists, and the vocabulary of phrases."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

NUMBERS = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty".split()
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
UNITS = ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred"))
COLOURS = ("white", "red", "green", "blue", "yellow")
SIZES = ("small", "large")
# Positions in the image, by the signs of x and y.
PLACES = {
    (-1, -1): "upper left", (0, -1): "top", (1, -1): "upper right",
    (-1, 0): "left", (0, 0): "center", (1, 0): "right",
    (-1, 1): "lower left", (0, 1): "bottom", (1, 1): "lower right",
}  # fmt: skip
# Ends of a row or column of regions: the least and the greatest x, the least and the greatest y.
ENDS = ("farthest to the left", "farthest to the right", "nearest to the top", "nearest to the bottom")
RELATIONS = ("next to", "to the left of", "to the right of")
# Words that refer to the whole image, and may be untrue of a part of it.
CONTEXT = re.compile(
    r"\b(left|right|top|bottom|upper|lower|above|below|north\w*|south\w*|east\w*|west\w*|cent(er|re)|middle"
    r"|next to|beside|near|between|row|group|one of|larger|smaller|largest|smallest)\b",
    re.IGNORECASE,
)
# Beginnings that take "an": spoken vowels, a silent h, letters whose names begin with a vowel, 8, 11, 18.
TAKES_AN = re.compile(
    r"(?i:(?!one\b|once\b|eu|u(?:sa?|av|fo|k|n)?\b|uni(?!n|dent|m|ll)|us[aeiu]|util|uranium)[aeiou]"
    r"|hour|heir|honest|honou?r|[fhlmnrsx](?![a-z])|(?:suv|rv|lng|lpg)s?\b|8|1[18]\b)"
    r"|[FHLMNRSX][B-DF-HJ-NP-TV-Z0-9]+\b"
)
PLURALS = {"person": "people", "people": "people", "leaf": "leaves"}


@lru_cache(maxsize=10_000)  # readers spell the concept of every region
def spell_concept(name: str) -> str:
    """Spell the name of a concept, class, folder or column as words.

    Camel case is split. Hyphens, underscores, slashes and white space become one space. The result is lower
    case, in composed Unicode. An acronym stays one word.

    Example:
        >>> [spell_concept(name) for name in ("Service_area", "BaseballField", "port/harbor", "SUV")]
        ['service area', 'baseball field', 'port harbor', 'suv']
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = " ".join(filter(None, re.split(r"[-_/\\\s]+", apart)))
    return unicodedata.normalize("NFC", words.lower())


@lru_cache(maxsize=10_000)
def add_article(noun: str) -> str:
    """Write a noun, or words that begin with an adjective, with its indefinite article.

    Example:
        >>> add_article("airplane"), add_article("utility truck")
        ('an airplane', 'a utility truck')
    """
    return f"{'an' if TAKES_AN.match(noun) else 'a'} {noun}"


@lru_cache(maxsize=10_000)
def pluralize(noun: str) -> str:
    """Write a noun in the plural; its last word changes.

    Example:
        >>> [pluralize(noun) for noun in ("bus", "ferry", "storage tank", "aircraft")]
        ['buses', 'ferries', 'storage tanks', 'aircraft']
    """
    before, space, last = noun.rpartition(" ")
    if last in PLURALS:
        return f"{before}{space}{PLURALS[last]}"
    if noun.endswith("craft") or (noun.endswith("s") and not noun.endswith(("ss", "us"))):
        return noun  # "aircraft", and class names that are plurals already
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def write_number(number: int) -> str:
    """Write a whole number from 0 in words, so that a text never mixes words and digits.

    Example:
        >>> [write_number(number) for number in (7, 42, 100, 365, 2020)]
        ['seven', 'forty-two', 'one hundred', 'three hundred and sixty-five', 'two thousand and twenty']
    """
    if number < len(NUMBERS):
        return NUMBERS[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return f"{TENS[tens - 2]}-{NUMBERS[ones]}" if ones else TENS[tens - 2]
    unit, name = next((unit, name) for unit, name in UNITS if number >= unit)
    whole, rest = divmod(number, unit)
    more = ("" if not rest else " and " if rest < 100 else " ") + (write_number(rest) if rest else "")
    return f"{write_number(whole)} {name}{more}"


def count_noun(noun: str, number: int) -> str:
    """Write how many there are, in words.

    Example:
        >>> [count_noun("white ship", number) for number in (1, 3, 24)]
        ['a white ship', 'three white ships', 'twenty-four white ships']
    """
    return add_article(noun) if number == 1 else f"{write_number(number)} {pluralize(noun)}"


def join_words(words: list[str]) -> str:
    """Write a list with commas and "and" before its last entry.

    Example:
        >>> join_words(["a ship", "a bridge", "two cars"])
        'a ship, a bridge and two cars'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def count_concepts(concepts: list[str]) -> str:
    """Write how many of each concept there are, the most frequent first.

    Example:
        >>> count_concepts(["ship", "bridge", "ship"])
        'two ships and a bridge'
    """
    return join_words([count_noun(concept, count) for concept, count in sort_concepts_by_count(concepts)])


def sort_concepts_by_count(concepts: list[str]) -> list[tuple[str, int]]:
    """Count concepts, the most frequent first, and those of equal counts in alphabetical order.

    Example:
        >>> sort_concepts_by_count(["ship", "bridge", "ship"])
        [('ship', 2), ('bridge', 1)]
    """
    return sorted(Counter(concepts).items(), key=lambda pair: (-pair[1], pair[0]))
