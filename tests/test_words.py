"""Laws of words: articles, plurals, numbers."""

import pytest

from geoalign_hf.words import add_article, count_concepts


@pytest.mark.parametrize(
    ("concepts", "words"),
    [
        (["ship"], "a ship"),
        (["oil tank", "oil tank"], "2 oil tanks"),
        (["ship", "bridge", "ship"], "2 ships and a bridge"),
        (["bridge", "airport", "ship"], "an airport, a bridge and a ship"),
        (["bus", "bus", "bus", "ferry", "ferry", "quay", "quay", "bench", "bench"],
         "3 buses, 2 benches, 2 ferries and 2 quays"),
    ],
)  # fmt: skip
def test_concepts_are_counted_the_commonest_first(concepts, words):
    assert count_concepts(concepts) == words


def test_only_a_vowel_takes_the_article_an():
    found = {concept: add_article(concept) for concept in ("Airport", "oil tank", "ship", "Bridge")}
    assert found == {
        "Airport": "an Airport", "oil tank": "an oil tank", "ship": "a ship", "Bridge": "a Bridge",
    }  # fmt: skip
