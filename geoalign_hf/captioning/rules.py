"""Phrases, captions and descriptions from boxes, by rule. They are true as far as the boxes show."""

from collections.abc import Sequence

import numpy as np

from .attributes import Facts
from .grammar import add_article, count_noun, join_words, pluralize, sort_concepts_by_count
from .phrases import (
    is_countable,
    is_distinguishing,
    is_sayable,
    list_extreme_phrases,
    list_phrases,
    name_place,
)

# `{}` stands for what the image shows.
COUNT_FRAMES = (
    "an aerial image with {}",
    "an overhead image of {}",
    "an aerial photograph that shows {}",
    "an aerial view of {}",
    "a top-down view of {}",
    "a bird's-eye view of {}",
    "{} in an aerial image",
    "{} photographed from the air",
)
CONCEPT_FRAMES = (
    "{} seen from above",
    "an area with {}",
    "a scene with {}",
    "an overhead view of {}",
    "{} from a bird's-eye view",
    "aerial imagery of {}",
)
OPENINGS = (
    "This aerial image shows {}.",
    "This is an overhead image of {}.",
    "The aerial image shows {}.",
    "This is an aerial view of {}.",
    "Seen from the air, there {verb} {}.",
)
MOST_CONCEPTS = 5  # in one enumeration; the most frequent are named
MOST_SENTENCES = 7  # in a description
MOST_ASKED = 50  # regions are examined for one sentence
GROUP_PROBABILITY = 0.15  # that a region is called one of its group, although another phrase may be clearer
ATTEMPTS = 6  # phrases are drawn for a region until one refers to it alone


def describe_row(row: dict, facts: Facts, rng: np.random.Generator, one_attribute: bool = False) -> dict:
    """Write the text of a row by rule.

    Args:
        row: A row with regions.
        facts: Facts of the row.
        rng: Generator that chooses among true statements and their wordings.
        one_attribute: Whether phrases say only one thing besides the concept, for balanced hard negatives.

    Returns:
        The row with `phrases` and `ambiguous` (which of them may also mean another region of the image). If
        it has regions, also with `captions` and `description`. Captions of the row are kept and come first.
    """
    word = word_plainly if one_attribute else word_region
    phrases = [word(facts, r, rng) for r in range(len(facts))]
    text: dict = {"phrases": phrases, "ambiguous": list_ambiguous(facts, phrases)}
    if len(facts):
        text["captions"] = list(dict.fromkeys([*(row.get("captions") or []), *word_captions(facts, rng)]))
        text["description"] = row.get("description") or word_description(facts, rng)
    return row | text


def list_ambiguous(facts: Facts, phrases: list[str]) -> list[bool]:
    """Return for each phrase whether it may also mean another region of the image."""
    return [not is_distinguishing(facts, phrase, r) for r, phrase in enumerate(phrases)]


def word_region(facts: Facts, r: int, rng: np.random.Generator) -> str:
    """Write a phrase of one region, preferably one that refers to no other region of the image.

    The forms are those of `phrases.match_phrase`:

    - `a [size] [colour] concept [place | relation]`
    - `the largest concept`
    - `the concept farthest to the left`
    - `one of three [colour] concepts [in a row] [place]`
    """
    group = facts.list_group(r)
    if is_countable(facts, group) and rng.random() < GROUP_PROBABILITY:
        return f"one of {word_group(facts, group, rng)}"
    drawn = []
    for _ in range(ATTEMPTS):
        drawn.append(_draw_phrase(facts, r, rng))
        if is_distinguishing(facts, drawn[-1], r):
            return drawn[-1]
        if len(facts.kinds[facts.concepts[r]]) > MOST_ASKED:  # hopeless, and slow to find out
            break
    extremes = [phrase for phrase in list_extreme_phrases(facts, r) if is_distinguishing(facts, phrase, r)]
    if extremes:
        return _choose(extremes, rng)
    return f"one of {word_group(facts, group, rng)}" if is_countable(facts, group) else drawn[0]


def word_plainly(facts: Facts, r: int, rng: np.random.Generator) -> str:
    """Write a phrase that says one thing about a region besides its concept. Its kind is drawn first."""
    by_kind: dict[str, list[str]] = {}
    for kind, phrase in list_phrases(facts, r):
        by_kind.setdefault(kind, []).append(phrase)
    return _choose(by_kind[_choose(sorted(by_kind), rng)], rng)


def _choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _draw_phrase(facts: Facts, r: int, rng: np.random.Generator) -> str:
    relations = facts.relations[r]
    relation = relations[int(rng.integers(len(relations)))] if relations else None
    place = word_place(facts.find_place([r]), rng)
    more = (
        f"{relation[0]} {add_article(relation[1])}"
        if relation and (not place or rng.random() < 0.5)
        else place
    )
    return " ".join(filter(None, (word_noun(facts, [r], rng), more)))


def word_group(facts: Facts, group: list[int], rng: np.random.Generator) -> str:
    """Write a phrase of all regions of a group: "three white storage tanks in a row in the upper left"."""
    return " ".join(_word_group_parts(facts, group, rng))


def _word_group_parts(facts: Facts, group: list[int], rng: np.random.Generator) -> list[str]:
    """Write the noun of a group, that it stands in a row, and its place, as far as they are known."""
    row = "in a row" if facts.is_in_row(group) else None
    place = word_place(find_own_place(facts, group), rng)
    return [part for part in (word_noun(facts, group, rng), row, place) if part]


def word_noun(facts: Facts, group: list[int], rng: np.random.Generator) -> str:
    """Write regions of one concept with number, size and colour: "two white ships", "a large ship"."""
    concept = facts.concepts[group[0]]
    size = facts.sizes[group[0]] if len(group) == 1 else None
    colours = {facts.colours[r] for r in group}
    colour = colours.pop() if len(colours) == 1 else None
    words = [word for word in (size, colour) if word and is_sayable(word, concept)]
    return count_noun(" ".join([*(words if rng.random() < 0.9 else []), concept]), len(group))


def find_own_place(facts: Facts, group: list[int]) -> str | None:
    """Name the place of a group, if no other region of its concept might be said to lie there."""
    place = facts.find_place(group)
    others = set(facts.kinds[facts.concepts[group[0]]]) - set(group)
    return None if place and any(facts.may_lie_at(s, place) for s in others) else place


def word_place(place: str | None, rng: np.random.Generator) -> str | None:
    """Write a place in one of two ways; None stays None.

    Example:
        >>> word_place("upper left", np.random.default_rng(0))
        'in the upper left'
    """
    return None if place is None else f"{name_place(place)}{_choose([' of the image', ''], rng)}"


def count_kinds(facts: Facts, rng: np.random.Generator) -> str:
    """Write how many of each concept there are, without a number where the boxes do not show it."""
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
    """Write short captions: one with counts, one of a group that has a place, one that names the concepts."""
    captions = [_choose(COUNT_FRAMES, rng).format(count_kinds(facts, rng))]
    groups = [group for group in list_groups(facts) if is_placed(facts, group)]
    if groups:
        captions.append(word_group(facts, groups[int(rng.integers(min(3, len(groups))))], rng))
    kinds = sort_concepts_by_count(facts.concepts)[:MOST_CONCEPTS]
    nouns = [
        add_article(concept) if number == 1 and concept not in facts.uncounted else pluralize(concept)
        for concept, number in kinds
    ]
    return [*captions, _choose(CONCEPT_FRAMES, rng).format(join_words(nouns))]


def list_groups(facts: Facts) -> list[list[int]]:
    """List the groups of regions whose concepts can be counted, the largest first."""
    groups = [np.flatnonzero(facts.groups == number).tolist() for number in np.unique(facts.groups)]
    countable = [group for group in groups if facts.concepts[group[0]] not in facts.uncounted]
    return sorted(countable, key=len, reverse=True)


def is_placed(facts: Facts, group: list[int]) -> bool:
    """Return whether more can be said about a group than its number."""
    return facts.is_in_row(group) or find_own_place(facts, group) is not None


def word_description(facts: Facts, rng: np.random.Generator) -> str:
    """Write a long description: numbers, then the places of groups, then single regions and neighbours."""
    counts = count_kinds(facts, rng)
    verb = "is" if counts.startswith(("a ", "an ")) else "are"
    sentences = [_choose(OPENINGS, rng).format(counts, verb=verb)]
    placed = [group for group in list_groups(facts) if is_placed(facts, group)]
    of_groups, seen = {}, set()
    for group in placed:
        parts = _word_group_parts(facts, group, rng)
        if tuple(parts) not in seen:
            seen.add(tuple(parts))
            of_groups[_word_group_sentence(facts, group, parts, rng)] = group
    mentioned = list(of_groups)[: MOST_SENTENCES // 2]
    sentences += mentioned
    concepts = {facts.concepts[of_groups[text][0]] for text in mentioned}
    placed_regions = {r for group in placed for r in group}
    sentences += _word_places(facts, rng, placed_regions, concepts, MOST_SENTENCES - 2 - len(sentences))
    sentences += _word_neighbours(facts, rng, MOST_SENTENCES - len(sentences))
    return " ".join(sentences)


def _word_group_sentence(facts: Facts, group: list[int], parts: list[str], rng: np.random.Generator) -> str:
    """Write a sentence about a group from its parts: its noun, and its place or that it stands in a row."""
    noun, *rest = parts
    verb = "is" if len(group) == 1 else "are"
    if len(group) == len(facts.kinds[facts.concepts[group[0]]]):  # their number was written before
        bare = noun.partition(" ")[2]
        subject = {1: f"The {bare}", 2: f"Both {bare}"}.get(len(group), f"All {noun}")
        return f"{subject} {verb} {' '.join(rest)}."
    text = " ".join([noun, *rest])
    return f"There {verb} {text}." if rng.random() < 0.5 else f"{_capitalize(text)} can be seen."


def _word_places(
    facts: Facts, rng: np.random.Generator, placed: set[int], mentioned: set[str], most: int
) -> list[str]:
    """Write sentences about the places of regions other than the placed ones.

    Args:
        facts: Facts of the image.
        rng: Generator that chooses the regions.
        placed: Regions of groups whose places are written already.
        mentioned: Concepts of which a region is mentioned already, so that the next is "another" one.
        most: Maximum number of sentences.
    """
    sentences, places = [], set()
    others = [r for r in range(len(facts)) if r not in placed]
    for r in rng.permutation(others)[:MOST_ASKED].tolist():
        place, concept = facts.find_place([r]), facts.concepts[r]
        if not place or (concept, place) in places or len(sentences) >= most:
            continue
        places.add((concept, place))
        noun = word_noun(facts, [r], rng)
        if concept not in facts.uncounted:
            is_only = len(facts.kinds[concept]) == 1
            noun = f"{'the' if is_only else 'one'} {noun.partition(' ')[2]}"
            noun = f"another {concept}" if concept in mentioned else noun
        mentioned = mentioned | {concept}
        sentences.append(f"{_capitalize(noun)} is {word_place(place, rng)}.")
    return sentences


def _word_neighbours(facts: Facts, rng: np.random.Generator, most: int) -> list[str]:
    """Write sentences about neighbours, each pair of concepts once."""
    sentences, pairs = [], set()
    for r in rng.permutation(len(facts))[:MOST_ASKED].tolist():
        relations = facts.relations[r]
        if not relations or len(sentences) >= most:
            continue
        relation, other = relations[int(rng.integers(len(relations)))]
        pair = frozenset((facts.concepts[r], other))
        if pair not in pairs:
            pairs.add(pair)
            subject, neighbour = (_refer_to(facts, concept) for concept in (facts.concepts[r], other))
            sentences.append(f"{_capitalize(subject)} is {relation} {neighbour}.")
    return sentences


def _refer_to(facts: Facts, concept: str) -> str:
    """Refer to a region of a concept that the text has named before."""
    if concept in facts.uncounted:
        return add_article(concept)
    is_only = len(facts.kinds[concept]) == 1
    return f"the {concept}" if is_only else f"one of the {pluralize(concept)}"


def _capitalize(words: str) -> str:
    return words[0].upper() + words[1:]
