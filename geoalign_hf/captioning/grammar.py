"""Words for what boxes show: articles, plurals, numbers, lists, and the vocabulary of phrases.

What enters are concepts and facts about regions; what leaves are strings. `describe` writes with these
words, `negatives` exchanges them, `augment` knows by them which words a change of the image makes untrue.
"""

import re
from collections import Counter

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
NUMBERS += (
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
COLOURS = ("white", "red", "green", "blue", "yellow")
SIZES = ("small", "large")
# Where in the image, by the sign of x and y.
PLACES = {
    (-1, -1): "upper left", (0, -1): "top", (1, -1): "upper right",
    (-1, 0): "left", (0, 0): "center", (1, 0): "right",
    (-1, 1): "lower left", (0, 1): "bottom", (1, 1): "lower right",
}  # fmt: skip
RELATIONS = ("next to", "to the left of", "to the right of")
# Words that tell of the whole image, and may be untrue of a part of it.
CONTEXT = re.compile(
    r"\b(left|right|top|bottom|upper|lower|above|below|north\w*|south\w*|east\w*|west\w*|cent(er|re)|middle"
    r"|next to|beside|near|between|row|group|one of|larger|smaller|largest|smallest)\b",
    re.IGNORECASE,
)
# What takes "an": a vowel that is heard, a silent h, letters whose names begin with a vowel, 8, 11 and 18.
TAKES_AN = re.compile(
    r"(?i:(?!one\b|once\b|eu|u(?:sa?|av|fo|k|n)?\b|uni(?!n|dent|m|ll)|us[aeiu]|util|uranium)[aeiou]"
    r"|hour|heir|honest|honou?r|[fhlmnrsx](?![a-z])|(?:suv|rv|lng|lpg)s?\b|8|1[18]\b)"
    r"|[FHLMNRSX][B-DF-HJ-NP-TV-Z0-9]+\b"
)
PLURALS = {"person": "people", "people": "people", "leaf": "leaves"}


def spell_concept(name: str) -> str:
    """Spell the name of a concept, class, folder or column as words.

    Camel case is split; hyphens, underscores, slashes and white space become one space; the result is lower
    case. An acronym stays one word.

    Example:
        >>> [spell_concept(name) for name in ("Service_area", "BaseballField", "port/harbor", "SUV")]
        ['service area', 'baseball field', 'port harbor', 'suv']
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return " ".join(filter(None, re.split(r"[-_/\\\s]+", apart))).lower()


def add_article(noun: str) -> str:
    """Write a noun, or words that begin with an adjective, with the article that fits.

    Example:
        >>> add_article("airplane"), add_article("utility truck")
        ('an airplane', 'a utility truck')
    """
    return f"{'an' if TAKES_AN.match(noun) else 'a'} {noun}"


def pluralize(noun: str) -> str:
    """Write a noun in the plural, by its last word.

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


def count_noun(noun: str, number: int) -> str:
    """Write how many there are, in words up to twenty.

    Example:
        >>> [count_noun("white ship", number) for number in (1, 3, 24)]
        ['a white ship', 'three white ships', '24 white ships']
    """
    if number == 1:
        return add_article(noun)
    return f"{NUMBERS[number] if number < len(NUMBERS) else number} {pluralize(noun)}"


def join_words(words: list[str]) -> str:
    """Write a list with commas and a last "and".

    Example:
        >>> join_words(["a ship", "a bridge", "two cars"])
        'a ship, a bridge and two cars'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def count_concepts(concepts: list[str]) -> str:
    """Write how many of each concept there are, the commonest first, numbers as digits.

    Example:
        >>> count_concepts(["ship", "bridge", "ship"])
        '2 ships and a bridge'
    """
    return join_words(
        [
            add_article(concept) if count == 1 else f"{count} {pluralize(concept)}"
            for concept, count in sort_concepts_by_count(concepts)
        ]
    )


def sort_concepts_by_count(concepts: list[str]) -> list[tuple[str, int]]:
    """Count concepts, the commonest first, equals by the alphabet.

    Example:
        >>> sort_concepts_by_count(["ship", "bridge", "ship"])
        [('ship', 2), ('bridge', 1)]
    """
    return sorted(Counter(concepts).items(), key=lambda pair: (-pair[1], pair[0]))
