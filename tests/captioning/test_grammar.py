"""Laws of words: articles, plurals, numbers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoalign_hf.captioning.grammar import (
    CONTEXT,
    add_article,
    count_concepts,
    count_noun,
    join_words,
    pluralize,
    spell_concept,
    write_number,
)


@pytest.mark.parametrize(
    ("concepts", "words"),
    [
        (["ship"], "a ship"),
        (["oil tank", "oil tank"], "two oil tanks"),
        (["ship", "bridge", "ship"], "two ships and a bridge"),
        (["bridge", "airport", "ship"], "an airport, a bridge and a ship"),
        (["bus", "bus", "bus", "ferry", "ferry", "quay", "quay", "bench", "bench"],
         "three buses, two benches, two ferries and two quays"),
    ],
)  # fmt: skip
def test_concepts_are_counted_the_most_frequent_first(concepts, words):
    assert count_concepts(concepts) == words


def test_only_a_vowel_takes_the_article_an():
    found = {concept: add_article(concept) for concept in ("Airport", "oil tank", "ship", "Bridge")}
    assert found == {
        "Airport": "an Airport", "oil tank": "an oil tank", "ship": "a ship", "Bridge": "a Bridge",
    }  # fmt: skip


@pytest.mark.parametrize(
    "words",
    ["a utility truck", "a university", "a unit", "a one-way road", "an hour", "an SUV", "an suv", "an x-ray",
     "a European car", "an uninhabited island", "an unimproved road", "an unloaded ship", "an umbrella",
     "a used car", "an usher", "a house", "a helicopter", "an L-shaped pier", "a SHIP", "an RV park",
     "a U-turn", "a UAV", "an upper deck", "an urban area", "an 8-lane road", "a 12-lane road",
     "an oil tank"],
)  # fmt: skip
def test_the_article_follows_the_sound(words):
    assert add_article(words.split(" ", 1)[1]) == words


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("ship", "ships"), ("bus", "buses"), ("ferry", "ferries"), ("quay", "quays"), ("bench", "benches"),
     ("aircraft", "aircraft"), ("storage tanks", "storage tanks"), ("overpass", "overpasses"),
     ("box", "boxes"), ("person", "people"), ("people", "people"), ("palm leaf", "palm leaves")],
)  # fmt: skip
def test_a_noun_has_its_plural(noun, plural):
    assert pluralize(noun) == plural


@pytest.mark.parametrize(
    ("number", "words"),
    [(2, "two"), (20, "twenty"), (21, "twenty-one"), (90, "ninety"), (100, "one hundred"),
     (101, "one hundred and one"), (110, "one hundred and ten"), (999, "nine hundred and ninety-nine"),
     (1000, "one thousand"), (1001, "one thousand and one"), (1100, "one thousand one hundred"),
     (123_456, "one hundred and twenty-three thousand four hundred and fifty-six")],
)  # fmt: skip
def test_numbers_are_words(number, words):
    assert count_noun("ship", number) == f"{words} ships"


def test_every_number_has_words_of_its_own_and_no_digits():
    words = [write_number(number) for number in range(3000)]
    assert len(set(words)) == 3000 and not any(map(re.compile(r"\d|  |^ | $").search, words))


@given(st.text())
def test_spelling_a_concept_twice_changes_nothing(name):
    assert spell_concept(spell_concept(name)) == spell_concept(name)


def test_names_of_files_become_nouns():
    names = ["small-vehicle", "Expressway_Service-area ", "_ship-", "basketball  court", " _ "]
    assert [spell_concept(name) for name in names] == [
        "small vehicle", "expressway service area", "ship", "basketball court", ""
    ]  # fmt: skip


def test_lists_end_with_and():
    assert [join_words(list("abc")[:number]) for number in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_words_of_the_whole_image_are_known():
    for words in (
        "at the upper left",
        "in the center",
        "one of three ships",
        "ships in a row",
        "next to a pier",
    ):
        assert CONTEXT.search(words)
    for words in ("a large white ship", "a storage tank", "three rowing boats"):
        assert not CONTEXT.search(words)
