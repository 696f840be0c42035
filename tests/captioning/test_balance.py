"""Laws of balance: what text alone can tell is worth nothing, and what cannot be balanced is reported."""

from collections import Counter

import numpy as np
import pytest

from geoalign_hf.captioning.balance import (
    balance_negatives,
    find_change,
    list_contrasts,
    match_reciprocals,
)
from geoalign_hf.captioning.text_baseline import score_text_baseline

CONCEPTS = ("ship", "bridge", "harbor", "plane")


def make_rows(num_rows: int, seed: int = 0) -> list[dict]:
    """Rows whose phrases are biased as real ones: most are white, and ships are commoner than harbors."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(num_rows):
        phrases, negatives, kinds = [], [], []
        for _ in range(int(rng.integers(1, 5))):
            concept = str(rng.choice(CONCEPTS, p=[0.5, 0.25, 0.15, 0.1]))
            colour = str(rng.choice(["white", "red"], p=[0.9, 0.1]))
            place = str(rng.choice(["at the left", "at the right", "at the top"], p=[0.5, 0.3, 0.2]))
            if rng.random() < 0.5:
                phrases.append(f"a {colour} {concept}")
                negatives.append([f"a {'red' if colour == 'white' else 'white'} {concept}"])
                kinds.append(["colour"])
            else:
                others = [word for word in ("at the left", "at the right", "at the top", "at the bottom")]
                others.remove(place)
                phrases.append(f"a {concept} {place}")
                negatives.append([f"a {concept} {other}" for other in others])
                kinds.append(["position"] * 3)
            others = [name for name in CONCEPTS if name != concept]
            negatives[-1] += [phrases[-1].replace(concept, other) for other in others]
            kinds[-1] += ["concept"] * 3
        rows.append({"phrases": phrases, "hard_negatives": negatives, "negative_kinds": kinds})
    return rows


def count_pairs(rows, key=lambda contrast: (contrast.right, contrast.wrong)) -> Counter:
    return Counter((contrast.kind, *key(contrast)) for contrast in list_contrasts(rows))


@pytest.mark.parametrize("max_negatives", [None, 3])
def test_right_and_wrong_are_exchanged_equally_often(max_negatives):
    rows, counts = balance_negatives(make_rows(80), max_negatives=max_negatives)
    pairs = count_pairs(rows)
    assert pairs and all(pairs[kind, wrong, right] == n for (kind, right, wrong), n in pairs.items())
    assert sum(pairs.values()) == sum(count["kept"] for count in counts.values())
    assert max(map(len, (words for row in rows for words in row["hard_negatives"]))) <= (max_negatives or 6)


def test_by_change_the_changed_words_are_exchanged_equally_often():
    rows, _ = balance_negatives(make_rows(80), by_change=True)
    pairs = count_pairs(rows, lambda contrast: find_change(contrast.right, contrast.wrong))
    assert pairs and all(pairs[kind, wrong, right] == n for (kind, right, wrong), n in pairs.items())


def test_nothing_is_made_up_and_nothing_else_changes():
    before = make_rows(40)
    after, counts = balance_negatives(before)
    for old, new in zip(before, after, strict=True):
        assert new["phrases"] == old["phrases"]
        for r, words in enumerate(new["hard_negatives"]):
            pairs = list(zip(old["hard_negatives"][r], old["negative_kinds"][r], strict=True))
            assert all(pair in pairs for pair in zip(words, new["negative_kinds"][r], strict=True))
    assert {kind: count["candidates"] for kind, count in counts.items()} == Counter(
        contrast.kind for contrast in list_contrasts(before)
    )


def test_balance_is_as_large_as_it_can_be_and_balancing_twice_changes_nothing():
    before = count_pairs(make_rows(60))
    rows, _ = balance_negatives(make_rows(60))
    after = count_pairs(rows)
    for kind, right, wrong in before:
        assert after[kind, right, wrong] == min(before[kind, right, wrong], before[kind, wrong, right])
    assert count_pairs(balance_negatives(rows, seed=5)[0]) == after


def test_a_kind_that_cannot_be_balanced_is_reported_with_none_kept():
    rows = [
        {"phrases": ["a white ship"], "hard_negatives": [["a red ship"]], "negative_kinds": [["colour"]]}
    ] * 3
    balanced, counts = balance_negatives(rows)
    assert counts == {"colour": {"candidates": 3, "kept": 0}}
    assert all(row["hard_negatives"] == [[]] for row in balanced)


def test_the_two_of_a_pair_are_of_different_regions_and_none_comes_twice():
    contrasts = list_contrasts(make_rows(60))
    pairs = match_reciprocals(contrasts)
    members = [contrast for pair in pairs for contrast in pair]
    assert len(set(members)) == len(members)
    for first, second in pairs:
        assert (first.right, first.wrong) == (second.wrong, second.right) and first.kind == second.kind
        assert (first.row, first.region) != (second.row, second.region)


@pytest.mark.parametrize("seed", range(5))
def test_every_scorer_of_text_is_right_in_half_of_the_balanced_cases(seed):
    rows, _ = balance_negatives(make_rows(60, seed), max_negatives=4)
    scores = {}
    rng = np.random.default_rng(seed)
    wins = []
    for contrast in list_contrasts(rows):
        right, wrong = (scores.setdefault(text, rng.random()) for text in (contrast.right, contrast.wrong))
        wins.append(right > wrong)
    assert np.mean(wins) == 0.5


def test_words_alone_tell_free_negatives_and_not_balanced_ones():
    rows = make_rows(150)
    free = score_text_baseline(rows)
    assert free["accuracy"] > 0.75 and free["per_kind"]["colour"] > 0.8
    balanced = balance_negatives(rows)[0]
    assert score_text_baseline(balanced)["accuracy"] == pytest.approx(0.5)
    assert score_text_baseline(balanced, fit_rows=make_rows(150, seed=1))["accuracy"] == pytest.approx(0.5)
    by_change = score_text_baseline(balance_negatives(rows, by_change=True)[0])
    assert by_change["accuracy"] < free["accuracy"] - 0.15


def test_without_negatives_there_is_no_baseline():
    rows = [{"phrases": ["a ship"], "hard_negatives": [[]], "negative_kinds": [[]]}]
    assert score_text_baseline(rows) == {"accuracy": None, "per_kind": {}, "num_negatives": 0}
    assert score_text_baseline(make_rows(1))["accuracy"] is None
    assert score_text_baseline(rows, fit_rows=make_rows(5))["accuracy"] is None


@pytest.mark.parametrize(
    ("right", "wrong", "change"),
    [("a ship", "a bridge", ("ship", "bridge")), ("an airplane", "a ship", ("an airplane", "a ship")),
     ("one of two ships", "one of three ships", ("two", "three")), ("a b a", "a b a b a", ("", "b a")),
     ("a ship", "a ship", ("", ""))],
)  # fmt: skip
def test_a_change_is_what_differs(right, wrong, change):
    assert find_change(right, wrong) == change
