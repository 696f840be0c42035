"""Hard negatives: phrases with exactly one thing changed, so that they are nearly right and yet wrong.

None of them is true of the image as far as the boxes show. In cases of doubt, no hard negative is made.
"""

import re
from collections.abc import Iterator

import numpy as np

from .attributes import Facts
from .grammar import COLOURS, NUMBERS, PLACES, RELATIONS, SIZES, add_article, pluralize
from .phrases import is_sayable, match_phrase, name_place
from .vocabulary import may_be_same, prefer_look_alikes

KINDS = ("concept", "colour", "size", "count", "position", "relation")
FARTHEST_COUNT = 3  # a wrong number differs from the right one by at most so many


def add_negatives(
    row: dict,
    facts: Facts,
    vocabulary: list[str],
    rng: np.random.Generator,
    max_negatives: int | None = 4,
) -> dict:
    """Make hard negatives for each phrase of a row.

    Args:
        row: A row with phrases. Of a phrase without the form of a rule, only the concept is exchanged.
        facts: Facts of the row.
        vocabulary: Concepts that are annotated wherever they occur. No others are put in.
        rng: Generator that chooses among the possible negatives.
        max_negatives: Maximum number for one phrase. There may be fewer, or none. None returns all that are
            possible, which `balance_negatives` chooses from.

    Returns:
        The row with `hard_negatives` and `negative_kinds`.
    """
    texts = {*row["phrases"], *(row.get("captions") or []), row.get("description")}
    absent = list_absent(facts, vocabulary)
    negatives, kinds = [], []
    for r, phrase in enumerate(row["phrases"]):
        exchanged = absent if max_negatives is None else prefer_look_alikes(facts.concepts[r], absent)
        changes = {words: kind for kind, words in list_changes(phrase, r, facts, absent, exchanged)}
        changes = {words: kind for words, kind in changes.items() if words not in texts}
        chosen = list(changes) if max_negatives is None else _draw_negatives(changes, max_negatives, rng)
        negatives.append(chosen)
        kinds.append([changes[words] for words in chosen])
    return row | {"hard_negatives": negatives, "negative_kinds": kinds}


def _draw_negatives(changes: dict[str, str], most: int, rng: np.random.Generator) -> list[str]:
    """Draw one negative of each kind in random order, then more that exchange the concept."""
    by_kind = {kind: [words for words in changes if changes[words] == kind] for kind in KINDS}
    found = []
    for kind in rng.permutation([kind for kind in KINDS if by_kind[kind]]):
        found.append(by_kind[str(kind)][int(rng.integers(len(by_kind[str(kind)])))])
    spare = [words for words in by_kind["concept"] if words not in found]
    wanted = rng.integers(min(1, most), most + 1)
    while spare and len(found) < wanted:
        found.append(spare.pop(int(rng.integers(len(spare)))))
    return found[:most]


def list_changes(
    phrase: str, r: int, facts: Facts, absent: list[str], exchanged: list[str] | None = None
) -> Iterator[tuple[str, str]]:
    """List the phrases that differ in one thing and are untrue of the image.

    Args:
        phrase: Phrase of region `r`.
        r: The region.
        facts: Facts of its image.
        absent: Concepts that the image does not show, see `list_absent`.
        exchanged: Those of them that may replace the concept; by default all.

    Yields:
        (kind, changed phrase).
    """
    concept = facts.concepts[r]
    exchanged = absent if exchanged is None else exchanged
    match = match_phrase(phrase, concept)
    if match is None:
        found = list(re.finditer(rf"\b{re.escape(concept)}\b", phrase))
        if len(found) == 1:
            for other in exchanged:
                yield "concept", _exchange(phrase, found[0].span(), other)
        return
    is_plural = match["number"] is not None
    adjectives = [match[name] for name in ("size", "colour", "extreme") if match[name]]
    for other in exchanged:
        if not all(is_sayable(word, other) for word in adjectives):
            continue  # "a small large vehicle", which no phrase says
        yield "concept", _exchange(phrase, match.span("noun"), pluralize(other) if is_plural else other)
    if match["neighbour"]:
        for other in absent:
            yield "relation", _exchange(phrase, match.span("neighbour"), add_article(other))
    if concept not in facts.uncounted:  # otherwise there may be one of which anything is true
        yield from _list_attribute_changes(phrase, match, r, facts)
        yield from _list_relation_changes(phrase, match, r, facts)


def _list_attribute_changes(phrase: str, match: re.Match, r: int, facts: Facts) -> Iterator[tuple[str, str]]:
    """List the changes of colour, size, number and place that no region of the concept makes true."""
    kind = facts.kinds[facts.concepts[r]]
    if match["colour"]:
        for colour in COLOURS:
            if not any(colour in facts.possible_colours[s] for s in kind):
                yield "colour", _exchange(phrase, match.span("colour"), colour)
    if match["size"] and match["size"] == facts.sizes[r]:
        for size in SIZES:
            if not any(size in facts.possible_sizes[s] for s in kind):
                yield "size", _exchange(phrase, match.span("size"), size)
    if match["number"]:
        is_all = len(kind) < len(NUMBERS) and match["number"] == NUMBERS[len(kind)]
        fewest = (
            max(2, len(kind) - FARTHEST_COUNT) if is_all else len(kind) + 1
        )  # of five, four are there, too
        for number in range(fewest, min(len(kind) + FARTHEST_COUNT + 1, len(NUMBERS))):
            if number != len(kind):
                yield "count", _exchange(phrase, match.span("number"), NUMBERS[number])
    if match["place"]:
        for place in PLACES.values():
            if not any(facts.may_lie_at(s, place) for s in kind):
                yield "position", _exchange(phrase, match.span("place"), name_place(place))


def _list_relation_changes(phrase: str, match: re.Match, r: int, facts: Facts) -> Iterator[tuple[str, str]]:
    """List the other relations to the same neighbour that hold for no pair of these concepts."""
    if not match["relation"] or match["neighbour_noun"] in facts.uncounted:
        return
    kind, others = facts.kinds[facts.concepts[r]], facts.kinds.get(match["neighbour_noun"], [])
    for relation in RELATIONS:
        if not any(facts.may_hold(s, relation, t) for s in kind for t in others):
            yield "relation", _exchange(phrase, match.span("relation"), relation)


def list_absent(facts: Facts, vocabulary: list[str]) -> list[str]:
    """List the concepts that the image does not show, under any name."""
    present = {*facts.concepts, *facts.uncounted}
    return [name for name in vocabulary if not any(may_be_same(name, other) for other in present)]


def _exchange(phrase: str, span: tuple[int, int], words: str) -> str:
    """Replace a part of a phrase, and adapt the article before it."""
    before, after = phrase[: span[0]], phrase[span[1] :]
    article = re.search(r"\ban? $", before)
    if article:
        before, words = before[: article.start()], add_article(words)
    return f"{before}{words}{after}"
