"""Phrases of one region: their form, which are true of it, and which regions they may refer to."""

import re
from collections.abc import Iterator
from functools import lru_cache

from .attributes import Facts
from .grammar import COLOURS, ENDS, NUMBERS, PLACES, RELATIONS, SIZES, add_article, count_noun, pluralize
from .vocabulary import may_be_same

MOST_OF_A_KIND = 50  # among more regions of one concept, only the largest, leftmost etc. are singled out


def match_phrase(phrase: str, concept: str) -> re.Match | None:
    """Match a phrase that `rules.word_region` writes about a concept, with its parts as named groups.

    Example:
        >>> match_phrase("a large ship on the left", "ship").group("size", "noun", "place")
        ('large', 'ship', 'on the left')
    """
    return _compile_form(concept).fullmatch(phrase)


@lru_cache(maxsize=1_000)
def _compile_form(concept: str) -> re.Pattern:
    """Compile the form of the phrases of a concept."""
    places = "|".join(sorted(PLACES.values(), key=len, reverse=True))
    return re.compile(
        r"(?:an?|the(?: (?P<extreme>largest|smallest))?|one of (?P<number>[\w-]+))"
        rf"(?: (?P<size>{'|'.join(SIZES)}))?(?: (?P<colour>{'|'.join(COLOURS)}))?"
        rf" (?P<noun>{re.escape(concept)}|{re.escape(pluralize(concept))})(?: in a row)?"
        rf"(?: (?P<end>{'|'.join(ENDS)}))?"
        rf"(?: (?P<place>(?:at|in|on) the (?:{places}))(?: of the image)?)?"
        rf"(?: (?P<relation>{'|'.join(RELATIONS)}) (?P<neighbour>an? (?P<neighbour_noun>.+)))?"
    )


def name_place(place: str) -> str:
    """Write a place with its preposition.

    Example:
        >>> [name_place(place) for place in ("center", "left", "top", "lower right")]
        ['in the center', 'on the left', 'at the top', 'in the lower right']
    """
    preposition = {"left": "on", "right": "on", "top": "at", "bottom": "at"}.get(place, "in")
    return f"{preposition} the {place}"


def list_phrases(facts: Facts, r: int) -> Iterator[tuple[str, str]]:
    """List the phrases that say one thing about a region besides its concept.

    Such short phrases come again with other regions, which balanced hard negatives need.

    Args:
        facts: Facts of the image.
        r: The region.

    Yields:
        (kind, phrase), with the kinds of `hard_negatives.KINDS`.
    """
    concept = facts.concepts[r]
    yield "concept", add_article(concept)
    for kind, word in (("colour", facts.colours[r]), ("size", facts.sizes[r])):
        if word and is_sayable(word, concept):
            yield kind, add_article(f"{word} {concept}")
    if place := facts.find_place([r]):
        yield "position", f"{add_article(concept)} {name_place(place)}"
    group = facts.list_group(r)
    if is_countable(facts, group):
        yield "count", f"one of {count_noun(concept, len(group))}"
    for relation, other in facts.relations[r]:
        yield "relation", f"{add_article(concept)} {relation} {add_article(other)}"


def list_extreme_phrases(facts: Facts, r: int) -> list[str]:
    """List phrases that single a region out: "the largest ship", "the ship nearest to the top"."""
    concept = facts.concepts[r]
    extremes = facts.list_extremes(r)
    sizes = [f"the {word} {concept}" for word in extremes if word not in ENDS and is_sayable(word, concept)]
    return [*sizes, *(f"the {concept} {end}" for end in extremes if end in ENDS)]


def is_sayable(word: str, concept: str) -> bool:
    """Return whether a size or colour may stand before a concept: not in "a large small vehicle".

    Example:
        >>> is_sayable("large", "ship"), is_sayable("large", "small vehicle")
        (True, False)
    """
    return not {*SIZES, word} & set(concept.split())


def is_countable(facts: Facts, group: list[int]) -> bool:
    """Return whether "one of three" can only mean this group: it is complete, or stands in a row."""
    concept = facts.concepts[group[0]]
    if not 2 <= len(group) < len(NUMBERS) or concept in facts.uncounted:
        return False
    return len(group) == len(facts.kinds[concept]) or facts.is_in_row(group)


def is_distinguishing(facts: Facts, phrase: str, r: int) -> bool:
    """Return whether a phrase can only mean region `r` of an image, even in the widest sense of its words.

    It cannot be known of concepts that may be in the image without a region, or under another name. A phrase
    without the form of `match_phrase` is distinguishing if there is no other region of its concept.
    """
    concept = facts.concepts[r]
    kinds = [name for name in {*facts.kinds, *facts.uncounted} if may_be_same(name, concept)]
    if kinds != [concept] or concept in facts.uncounted:
        return False
    kind = facts.kinds[concept]
    match = match_phrase(phrase, concept)
    if match is not None and (match["extreme"] or match["end"]):
        return True
    if match is None or len(kind) > MOST_OF_A_KIND:
        return len(kind) == 1
    return not any(_may_mean(facts, match, s) for s in kind if s != r)


def _may_mean(facts: Facts, match: re.Match, s: int) -> bool:
    parts = match.groupdict()
    if parts["size"] and parts["size"] not in facts.possible_sizes[s]:
        return False
    if parts["colour"] and parts["colour"] not in facts.possible_colours[s]:
        return False
    if parts["number"]:  # the others of the group are meant as well
        return True
    if parts["place"] and not facts.may_lie_at(s, parts["place"].split(" the ")[1]):
        return False
    if parts["relation"]:
        others = facts.kinds.get(parts["neighbour_noun"], [])
        return any(facts.may_hold(s, parts["relation"], t) for t in others)
    return True
