"""Laws of hard negatives: each changes one thing, is untrue of its image, and is no text of its row."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_rules import CONCEPTS, draw_scene, lies

from geoalign_hf.captioning.attributes import find_facts
from geoalign_hf.captioning.grammar import NUMBERS
from geoalign_hf.captioning.hard_negatives import (
    KINDS,
    add_negatives,
    list_absent,
    list_changes,
)
from geoalign_hf.captioning.phrases import match_phrase
from geoalign_hf.captioning.rules import describe_row
from geoalign_hf.captioning.vocabulary import may_be_same

VOCABULARY = [*CONCEPTS, "harbor", "tennis court"]
PARTS = {  # what of a phrase may differ, by kind
    "concept": "noun", "colour": "colour", "size": "size", "count": "number", "position": "place",
}  # fmt: skip


def make(seed: int, **columns) -> dict:
    row = draw_scene(seed) | columns
    facts, rng = find_facts(row), np.random.default_rng(seed)
    return add_negatives(describe_row(row, facts, rng), facts, VOCABULARY, rng)


@pytest.fixture(scope="module")
def made():
    return [make(seed) for seed in range(120)]


def list_negatives(row: dict):
    for r, phrase in enumerate(row["phrases"]):
        for words, kind in zip(row["hard_negatives"][r], row["negative_kinds"][r], strict=True):
            yield r, phrase, words, kind


def take_apart(words: str, row: dict) -> dict:
    """Return the parts of a phrase about any concept."""
    matches = [match_phrase(words, concept) for concept in VOCABULARY]
    return next(match.groupdict() for match in matches if match)


def measure_gap(a, b) -> float:
    return np.hypot(max(0, a[0] - b[2], b[0] - a[2]), max(0, a[1] - b[3], b[1] - a[3]))


def may_be_true(parts: dict, row: dict, is_of_all: bool) -> bool:
    """Return whether some region of the scene fits the words, in their widest sense.

    `is_of_all` says that the phrase counts all regions of its concept, so that another number is wrong.
    """
    concepts, boxes, size = row["concepts"], row["boxes"], row["image"].size
    noun = next(concept for concept in VOCABULARY if parts["noun"] in (concept, f"{concept}s"))
    fitting = [s for s, concept in enumerate(concepts) if concept == noun]
    number = NUMBERS.index(parts["number"]) if parts["number"] else None
    if number and (number > len(fitting) or (is_of_all and number != len(fitting))):
        return False
    if parts["colour"]:
        fitting = [s for s in fitting if row["colours"][s] == parts["colour"]]
    if parts["place"]:
        fitting = [s for s in fitting if lies(boxes[s], size, parts["place"].split("the ")[1])]
    if parts["relation"]:
        others = [s for s, concept in enumerate(concepts) if concept == parts["neighbour_noun"]]
        sign = {"to the left of": 1, "to the right of": -1}.get(parts["relation"])
        sides = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]

        def may_hold(s, t):
            if sign is None:  # next to
                return measure_gap(boxes[s], boxes[t]) <= 1.5 * max(sides[s], sides[t])
            return sign * (sum(boxes[t][::2]) - sum(boxes[s][::2])) > 0

        fitting = [s for s in fitting if any(may_hold(s, t) for t in others)]
    return bool(fitting)


def test_every_kind_is_made_and_the_number_varies(made):
    kinds = Counter(kind for row in made for _, _, _, kind in list_negatives(row))
    assert set(kinds) == set(KINDS)
    assert {len(words) for row in made for words in row["hard_negatives"]} >= {1, 2, 3, 4}


def test_a_negative_differs_from_its_phrase_in_one_part_alone(made):
    for row in made:
        for _, phrase, words, kind in list_negatives(row):
            before, after = take_apart(phrase, row), take_apart(words, row)
            changed = {name for name in before if before[name] != after[name]}
            allowed = {"relation"}, {"neighbour", "neighbour_noun"}
            assert changed in allowed if kind == "relation" else changed == {PARTS[kind]}, (phrase, words)


def test_no_negative_is_true_of_its_image(made):
    for row in made:
        for r, phrase, words, kind in list_negatives(row):
            if kind != "size":
                number, kind = take_apart(phrase, row)["number"], row["concepts"].count(row["concepts"][r])
                is_of_all = number is not None and NUMBERS.index(number) == kind
                assert not may_be_true(take_apart(words, row), row, is_of_all), (phrase, words)


def test_a_negative_of_size_names_a_size_that_no_region_of_its_concept_has(made):
    for row in made:
        sizes = find_facts(row).sizes
        for r, _, words, kind in list_negatives(row):
            if kind == "size":
                own = {sizes[s] for s, concept in enumerate(row["concepts"]) if concept == row["concepts"][r]}
                assert words.split()[1] not in own


def test_a_size_that_a_region_cut_by_the_edge_may_have_is_not_denied():
    boxes = [[50, 50, 150, 150], [200, 50, 250, 100], [300, 50, 350, 100], [50, 200, 100, 250]]
    row = {"image": Image.new("RGB", (400, 400)), "boxes": boxes, "concepts": ["ship"] * 4}

    def list_sizes(row):
        return [
            words for kind, words in list_changes("a large ship", 0, find_facts(row), []) if kind == "size"
        ]

    assert list_sizes(row) == ["a small ship"]
    assert list_sizes(row | {"boxes": [*boxes, [0, 300, 8, 308]], "concepts": ["ship"] * 5}) == []


def test_no_negative_is_a_text_of_its_row_and_none_comes_twice(made):
    for row in made:
        positives = {*row["phrases"], *row["captions"], row["description"]}
        for words in row["hard_negatives"]:
            assert not positives & set(words)
            assert len(set(words)) == len(words) <= 4


def test_a_number_may_be_too_small_where_the_group_is_all_there_is_and_nothing_else_fits():
    boxes = [[x, 10.0, x + 15, 25.0] for x in (10.0, 32.0, 54.0, 76.0, 98.0)]
    row = {"image": Image.new("RGB", (400, 400)), "boxes": boxes, "concepts": ["ship"] * 5}

    def list_numbers(row, phrase):
        changes = list_changes(phrase, 0, find_facts(row), [])
        return [words.split()[2] for kind, words in changes if kind == "count"]

    assert list_numbers(row, "one of five ships") == ["two", "three", "four", "six", "seven", "eight"]
    far = row | {"boxes": [*boxes, [300.0, 300.0, 315.0, 315.0]], "concepts": ["ship"] * 6}
    assert list_numbers(far, "one of five ships in a row") == ["seven", "eight", "nine"]


def test_next_to_is_denied_only_of_what_is_far():
    def list_relations(gap):
        boxes = [[10.0, 10.0, 50.0, 30.0], [50.0 + gap, 10.0, 90.0 + gap, 30.0]]
        row = {"image": Image.new("RGB", (400, 400)), "boxes": boxes, "concepts": ["ship", "harbor"]}
        changes = list_changes("a ship to the left of a harbor", 0, find_facts(row), [])
        return [words for kind, words in changes if kind == "relation"]

    assert list_relations(100) == ["a ship next to a harbor", "a ship to the right of a harbor"]
    assert list_relations(60) == ["a ship to the right of a harbor"]


def test_the_seed_decides(made):
    assert make(7)["hard_negatives"] == made[7]["hard_negatives"]


def test_of_what_may_be_there_unseen_nothing_but_the_concept_is_changed():
    for seed in range(60):
        row = make(seed, unboxed=["ship", "harbor"])
        for r, phrase, words, kind in list_negatives(row):
            assert "harbor" not in words
            if row["concepts"][r] == "ship":
                before, after = take_apart(phrase, row), take_apart(words, row)
                assert kind == "concept" or before["relation"] == after["relation"] is not None


def test_articles_follow_the_word_that_was_put_in():
    row = make(3)
    wrong = re.compile(r"\ban [^aeiou]|\ba [aeiou]")
    for seed in range(60):
        row = make(seed)
        assert not [words for _, _, words, _ in list_negatives(row) if wrong.search(words)]


def test_of_free_words_the_concept_alone_is_exchanged():
    row = {"image": Image.new("RGB", (50, 50)), "boxes": [[5.0, 5.0, 20.0, 20.0]], "concepts": ["ship"]}
    row["phrases"] = ["the ship that lies at anchor on the left"]
    facts = find_facts(row)
    row = add_negatives(row, facts, VOCABULARY, np.random.default_rng(0))
    assert row["hard_negatives"][0] and set(row["negative_kinds"][0]) == {"concept"}
    assert "the harbor that lies at anchor on the left" in [
        words for _, words in list_changes(row["phrases"][0], 0, facts, list_absent(facts, VOCABULARY))
    ]
    for words in ("a ship by a ship", "a grey vessel"):
        assert list(list_changes(words, 0, facts, VOCABULARY)) == []


def test_names_of_one_thing_are_not_exchanged_for_each_other():
    assert may_be_same("vehicle", "small vehicle") and may_be_same("plane", "airplane")
    assert may_be_same("ship", "ship") and not may_be_same("ship", "harbor")
    row = {"image": Image.new("RGB", (50, 50)), "boxes": [[5.0, 5.0, 20.0, 20.0]], "concepts": ["plane"]}
    assert list_absent(find_facts(row), ["airplane", "plane", "ship"]) == ["ship"]


def test_without_another_concept_there_is_no_negative():
    row = {"image": Image.new("RGB", (50, 50)), "boxes": [[5.0, 20.0, 20.0, 35.0]], "concepts": ["ship"]}
    row = add_negatives(row | {"phrases": ["a ship"]}, find_facts(row), ["ship"], np.random.default_rng(0))
    assert row["hard_negatives"] == [[]] and row["negative_kinds"] == [[]]


def test_no_negative_puts_a_size_before_a_concept_that_has_one():
    vocabulary = [*VOCABULARY, "small vehicle", "large vehicle", "white car"]
    count = 0
    for seed in range(40):
        row = draw_scene(seed)
        facts = find_facts(row)
        for r, concept in enumerate(row["concepts"]):
            for word in ("small", "white", "small white", "largest"):
                phrase = f"the largest {concept}" if word == "largest" else f"a {word} {concept}"
                for kind, words in list_changes(phrase, r, facts, list_absent(facts, vocabulary)):
                    adjectives = words.replace("vehicle", "").replace("car", "").split()
                    count += kind == "concept"
                    assert adjectives.count("white") < 2, words
                    assert sum(adjectives.count(size) for size in ("small", "large", "largest")) < 2, words
    assert count > 100
