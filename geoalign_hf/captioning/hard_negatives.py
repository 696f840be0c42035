"""Hard negatives: phrases of which exactly one thing is changed, so that they are nearly right and wrong.

What enters is a row with phrases and its `Facts`; what leaves is the row with `hard_negatives` and, beside
each of them, its kind. None is true of the image as far as the boxes tell; where that is in doubt, none is
made.
"""

import re
from collections.abc import Iterator

import numpy as np

from .attributes import Facts
from .grammar import COLOURS, NUMBERS, PLACES, RELATIONS, SIZES, add_article, pluralize

KINDS = ("concept", "colour", "size", "count", "position", "relation")
# Concepts that look alike from above: the first that are exchanged for each other.
LOOK_ALIKES = (
    {"tennis court", "basketball court", "baseball diamond", "ground track field", "soccer ball field"},
    {"ship", "harbor", "bridge"},
    {"airplane", "helicopter", "airport"},
    {"storage tank", "roundabout", "chimney", "windmill"},
    {"small vehicle", "large vehicle"},
    {"car", "truck", "bus", "van"},
    {"bridge", "dam", "road", "runway"},
    {"road", "tennis court"},
)
# Concepts that may name one and the same thing: never exchanged.
SYNONYMS = (
    {"airplane", "plane", "aircraft"},
    {"ship", "boat", "vessel", "ferry", "yacht"},
    {"harbor", "harbour", "port", "dock", "pier"},
    {"storage tank", "oil tank", "tank", "storagetank"},
    {"baseball diamond", "baseball field", "baseballfield"},
    {"ground track field", "groundtrackfield", "athletic field", "stadium", "playground"},
    {"soccer ball field", "football field", "soccer field", "ground track field", "stadium", "playground"},
    {"bridge", "overpass"},
    {"airport", "runway", "apron"},
    {"car", "small vehicle"},
    {"truck", "large vehicle"},
    {"bus", "large vehicle"},
    *({"vehicle", name} for name in ("car", "truck", "bus", "van")),
)


def add_negatives(
    row: dict, facts: Facts, vocabulary: list[str], rng: np.random.Generator, max_negatives: int = 4
) -> dict:
    """Make hard negatives for each phrase of a row.

    Args:
        row: with phrases; where one has not the form of a rule, the concept alone is exchanged.
        facts: of the row.
        vocabulary: the concepts that are annotated wherever they occur; no others are put in.
        rng: chooses.
        max_negatives: for one phrase; there may be fewer, also none.

    Returns:
        The row with `hard_negatives` and `negative_kinds`.
    """
    positives = {*row["phrases"], *(row.get("captions") or []), row.get("description")}
    absent = list_absent(facts, vocabulary)
    negatives, kinds = [], []
    for r, phrase in enumerate(row["phrases"]):
        found: dict[str, str] = {}  # words: kind
        choices = {kind: [] for kind in KINDS}
        for kind, words in list_changes(phrase, r, facts, absent):
            if words not in positives:
                choices[kind].append(words)
        for kind in rng.permutation([kind for kind in KINDS if choices[kind]]):
            found[_choose(choices[kind], rng)] = str(kind)
        spare = [words for words in choices["concept"] if words not in found]
        wanted = rng.integers(min(1, max_negatives), max_negatives + 1)
        while spare and len(found) < wanted:
            found[spare.pop(int(rng.integers(len(spare))))] = "concept"
        negatives.append(list(found)[:max_negatives])
        kinds.append(list(found.values())[:max_negatives])
    return row | {"hard_negatives": negatives, "negative_kinds": kinds}


def _choose(words: list[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def list_changes(phrase: str, r: int, facts: Facts, absent: list[str]) -> Iterator[tuple[str, str]]:
    """List all phrases that change one thing and are then untrue of the image, each with its kind.

    Args:
        phrase: of region `r`.
        r: the region.
        facts: of its image.
        absent: concepts that the image does not show, see `list_absent`.

    Yields:
        (kind, words).
    """
    concept = facts.concepts[r]
    match = match_phrase(phrase, concept)
    if match is None:
        found = list(re.finditer(rf"\b{re.escape(concept)}\b", phrase))
        if len(found) == 1:
            for other in prefer_look_alikes(concept, absent):
                yield "concept", _exchange(phrase, found[0].span(), other)
        return
    parts, kind = match.groupdict(), facts.kinds[concept]
    is_plural = parts["number"] is not None
    for other in prefer_look_alikes(concept, absent):
        yield "concept", _exchange(phrase, match.span("noun"), pluralize(other) if is_plural else other)
    if parts["neighbour"]:
        for other in absent:
            yield "relation", _exchange(phrase, match.span("neighbour"), add_article(other))
    if concept in facts.uncounted:  # there may be one of which anything is true
        return
    if parts["colour"]:
        for colour in COLOURS:
            if not any(colour in facts.possible_colours[s] for s in kind):
                yield "colour", _exchange(phrase, match.span("colour"), colour)
    if parts["size"] and parts["size"] == facts.sizes[r]:
        for size in SIZES:
            if not any(size in facts.possible_sizes[s] for s in kind):
                yield "size", _exchange(phrase, match.span("size"), size)
    if is_plural:
        # More than there are: of fewer one might say that they are there, too.
        for number in range(len(kind) + 1, min(len(kind) + 4, len(NUMBERS))):
            yield "count", _exchange(phrase, match.span("number"), NUMBERS[number])
    if parts["place"]:
        for place in PLACES.values():
            if not any(facts.may_lie_at(s, place) for s in kind):
                start, stop = match.span("place")
                words = f"{'in' if place == 'center' else 'at'} the {place}"
                yield "position", _exchange(phrase, (start, stop), words)
    if parts["relation"] in RELATIONS[1:] and not facts.uncounted & {match["neighbour_noun"]}:
        relation = RELATIONS[1] if parts["relation"] == RELATIONS[2] else RELATIONS[2]
        others = facts.kinds[match["neighbour_noun"]]
        if not any(facts.may_hold(s, relation, t) for s in kind for t in others):
            yield "relation", _exchange(phrase, match.span("relation"), relation)


def match_phrase(phrase: str, concept: str) -> re.Match | None:
    """Take a phrase of the forms of `describe.word_region` apart.

    Example:
        >>> match_phrase("a large ship at the left", "ship").group("size", "noun", "place")
        ('large', 'ship', 'at the left')
    """
    places = "|".join(sorted(PLACES.values(), key=len, reverse=True))
    return re.fullmatch(
        r"(?:an?|one of (?P<number>\w+))"
        rf"(?: (?P<size>{'|'.join(SIZES)}))?(?: (?P<colour>{'|'.join(COLOURS)}))?"
        rf" (?P<noun>{re.escape(concept)}|{re.escape(pluralize(concept))})(?: in a row)?"
        rf"(?: (?P<place>(?:at|in) the (?:{places}))(?: of the image)?)?"
        rf"(?: (?P<relation>{'|'.join(RELATIONS)}) (?P<neighbour>an? (?P<neighbour_noun>.+)))?",
        phrase,
    )


def list_absent(facts: Facts, vocabulary: list[str]) -> list[str]:
    """List the concepts that the image does not show, under any name."""
    present = {*facts.concepts, *facts.uncounted}
    return [name for name in vocabulary if not any(may_be_same(name, other) for other in present)]


def may_be_same(first: str, second: str) -> bool:
    """Say whether two concepts may name one thing: synonyms, or a kind and a narrower one.

    Example:
        >>> may_be_same("vehicle", "small vehicle"), may_be_same("small vehicle", "large vehicle")
        (True, False)
    """
    words = [set(name.split()) for name in (first, second)]
    is_narrower = words[0] <= words[1] or words[1] <= words[0]
    return is_narrower or any({first, second} <= names for names in SYNONYMS)


def prefer_look_alikes(concept: str, absent: list[str]) -> list[str]:
    """Give those of the absent concepts that look like this one, or all of them if none does."""
    alike = [name for name in absent if any({concept, name} <= names for names in LOOK_ALIKES)]
    return alike or absent


def _exchange(phrase: str, span: tuple[int, int], words: str) -> str:
    """Put words in place of a part of a phrase, and mend the article before it."""
    before, after = phrase[: span[0]], phrase[span[1] :]
    article = re.search(r"\ban? $", before)
    if article:
        before, words = before[: article.start()], add_article(words)
    return f"{before}{words}{after}"
