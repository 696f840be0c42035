"""Boxes to language: phrases, captions and a description, by rule or by a vision-language model.

What enters is a row with its image; what leaves is the row with its words. By rule, everything said is true
as far as the boxes tell, and the wording varies with the seed. By a model, every answer is kept as it came.
"""

import numpy as np

from .attributes import Facts
from .grammar import (
    NUMBERS,
    RELATIONS,
    SIZES,
    add_article,
    count_noun,
    join_words,
    pluralize,
    sort_concepts_by_count,
)

VIEWS = ("an aerial image", "an overhead image", "a view from above")
MOST_CONCEPTS = 5  # in one enumeration; the commonest are named
MOST_SENTENCES = 7  # in a description
MOST_ASKED = 50  # regions are looked at for one of them


def describe_row(row: dict, facts: Facts, rng: np.random.Generator) -> dict:
    """Word a row by rule.

    Args:
        row: with regions.
        facts: of the row.
        rng: chooses among what is true, and its wording.

    Returns:
        The row with `phrases`; with `captions` and `description` if it has regions. Captions that the row has
        are kept and come first.
    """
    words = {"phrases": [word_region(facts, r, rng) for r in range(len(facts))]}
    if len(facts):
        words["captions"] = list(dict.fromkeys([*(row.get("captions") or []), *word_captions(facts, rng)]))
        words["description"] = row.get("description") or word_description(facts, rng)
    return row | words


def word_region(facts: Facts, r: int, rng: np.random.Generator) -> str:
    """Word one region: what it is, and some of what is known of it.

    It reads `a [size] [colour] concept [place | relation]`, or
    `one of three [colour] concepts [in a row] [place]`: forms that `negatives` relies on.
    """
    group = facts.list_group(r)
    if is_countable(facts, group) and rng.random() < 0.5:
        return f"one of {word_group(facts, group, rng)}"
    relation, place = find_relation(facts, r, rng), facts.find_place([r])
    place = word_place(place, rng) if place else None
    more = relation if relation and (not place or rng.random() < 0.5) else place
    return " ".join(filter(None, (word_noun(facts, [r], rng), more)))


def word_group(facts: Facts, group: list[int], rng: np.random.Generator) -> str:
    """Word all regions of a group: "three white storage tanks in a row at the upper left"."""
    row = "in a row" if facts.is_in_row(group) else None
    place = find_own_place(facts, group)
    place = word_place(place, rng) if place else None
    return " ".join(filter(None, (word_noun(facts, group, rng), row, place)))


def word_noun(facts: Facts, group: list[int], rng: np.random.Generator) -> str:
    """Word regions of one concept by number, size and colour: "two white ships", "a large ship"."""
    concept = facts.concepts[group[0]]
    size = facts.sizes[group[0]] if len(group) == 1 else None
    colours = {facts.colours[r] for r in group}
    colour = colours.pop() if len(colours) == 1 else None
    # "a large small vehicle" says nothing, and a concept may have a colour in its name.
    said = [word for word in (size, colour) if word and not {*SIZES, word} & set(concept.split())]
    return count_noun(" ".join([*(said if rng.random() < 0.9 else []), concept]), len(group))


def is_countable(facts: Facts, group: list[int]) -> bool:
    """Say whether "one of three" can only mean this group: they are all there are, or stand in a row."""
    concept = facts.concepts[group[0]]
    if not 2 <= len(group) < len(NUMBERS) or concept in facts.uncounted:
        return False
    return len(group) == len(facts.kinds[concept]) or facts.is_in_row(group)


def find_own_place(facts: Facts, group: list[int]) -> str | None:
    """Name the place of a group, if no other region of its concept might be said to lie there."""
    place = facts.find_place(group)
    others = set(facts.kinds[facts.concepts[group[0]]]) - set(group)
    return None if place and any(facts.may_lie_at(s, place) for s in others) else place


def find_relation(facts: Facts, r: int, rng: np.random.Generator) -> str | None:
    """Word how a region lies to one of another concept: "next to a harbor"."""
    found = [
        f"{relation} {add_article(facts.concepts[s])}"
        for s in facts.list_nearest(r)
        for relation in RELATIONS
        if facts.holds(r, relation, s)
    ]
    return str(rng.choice(sorted(set(found)))) if found else None


def word_place(place: str, rng: np.random.Generator) -> str:
    """Say a place.

    Example:
        >>> word_place("upper left", np.random.default_rng(0))
        'at the upper left'
    """
    return f"{'in' if place == 'center' else 'at'} the {place}{rng.choice([' of the image', ''])}"


def count_kinds(facts: Facts, rng: np.random.Generator) -> str:
    """Say how many of each concept there are; where boxes do not tell the number, no number is said."""
    counted = []
    for concept, number in sort_concepts_by_count(facts.concepts)[:MOST_CONCEPTS]:
        if concept in facts.uncounted:
            counted.append(pluralize(concept))
        elif number >= 10 and rng.random() < 0.5:
            counted.append(f"many {pluralize(concept)}")
        else:
            counted.append(count_noun(concept, number))
    return join_words(counted)


def word_captions(facts: Facts, rng: np.random.Generator) -> list[str]:
    """Write short captions: one that counts, one of a group that can be placed, one that names the kinds."""
    captions = [f"{rng.choice(VIEWS)} with {count_kinds(facts, rng)}"]
    groups = [group for group in list_groups(facts) if is_placed(facts, group)]
    if groups:
        captions.append(word_group(facts, groups[int(rng.integers(min(3, len(groups))))], rng))
    kinds = sort_concepts_by_count(facts.concepts)[:MOST_CONCEPTS]
    nouns = [
        add_article(concept) if number == 1 and concept not in facts.uncounted else pluralize(concept)
        for concept, number in kinds
    ]
    return [*captions, f"{join_words(nouns)} seen from above"]


def list_groups(facts: Facts) -> list[list[int]]:
    """List the groups of regions, the largest first, as far as their numbers are known."""
    groups = [np.flatnonzero(facts.groups == number).tolist() for number in np.unique(facts.groups)]
    countable = [group for group in groups if facts.concepts[group[0]] not in facts.uncounted]
    return sorted(countable, key=len, reverse=True)


def is_placed(facts: Facts, group: list[int]) -> bool:
    """Say whether more can be said of a group than its number."""
    return facts.is_in_row(group) or find_own_place(facts, group) is not None


def word_description(facts: Facts, rng: np.random.Generator) -> str:
    """Write a long description: numbers, then where groups lie, then single regions and neighbours."""
    sentences = [f"{_capitalize(str(rng.choice(VIEWS)))} that shows {count_kinds(facts, rng)}."]
    placed = [group for group in list_groups(facts) if is_placed(facts, group)]
    for group in placed[: MOST_SENTENCES // 2]:
        words, verb = word_group(facts, group, rng), "is" if len(group) == 1 else "are"
        sentences.append(
            f"There {verb} {words}." if rng.random() < 0.5 else f"{_capitalize(words)} can be seen."
        )
    said, said_places = {r for group in placed for r in group}, set()
    for r in rng.permutation([r for r in range(len(facts)) if r not in said])[:MOST_ASKED].tolist():
        place = facts.find_place([r])
        if place and (facts.concepts[r], place) not in said_places and len(sentences) < MOST_SENTENCES - 2:
            said_places.add((facts.concepts[r], place))
            sentences.append(f"{_capitalize(word_noun(facts, [r], rng))} is {word_place(place, rng)}.")
    told = ""
    for r in rng.permutation(len(facts))[:MOST_ASKED].tolist():
        relation = find_relation(facts, r, rng) if len(sentences) < MOST_SENTENCES else None
        if relation and facts.concepts[r] not in told:  # who is next to me has been said to be so
            told += relation
            sentences.append(f"{_capitalize(add_article(facts.concepts[r]))} is {relation}.")
    return " ".join(dict.fromkeys(sentences))


def _capitalize(words: str) -> str:
    return words[0].upper() + words[1:]
