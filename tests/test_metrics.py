"""Laws of the metrics: hand-worked scores, and scikit-learn's word on random ones."""

import re

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from geoalign_hf.metrics import RegionAccuracy, score_regions

CONCEPTS = ["ship", "bridge", "harbor"]


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_scores_are_what_is_worked_out_by_hand():
    references = np.array([0, 0, 0, 0, 1, 1])  # no harbor occurs
    predictions = np.array([0, 0, 0, 2, 0, 1])
    areas = np.array([10.0, 1023.9, 1024.0, 9215.9, 9216.0, 1e6])
    assert score_regions(predictions, references, CONCEPTS, areas) == {
        "top1_micro": 4 / 6,
        "top1_macro": (3 / 4 + 1 / 2) / 2,
        "num_regions": 6,
        "per_concept": {"ship": 3 / 4, "bridge": 1 / 2},
        "num_per_concept": {"ship": 4, "bridge": 2},
        "by_size": {"small": 1.0, "medium": 1 / 2, "large": 1 / 2},
        "num_by_size": {"small": 2, "medium": 2, "large": 2},
    }


def test_a_size_that_does_not_occur_has_no_score_but_a_count_of_zero():
    scores = score_regions(np.array([0]), np.array([0]), CONCEPTS, np.array([2000.0]))
    assert scores["by_size"] == {"medium": 1.0}
    assert scores["num_by_size"] == {"small": 0, "medium": 1, "large": 0}


def test_without_areas_there_is_no_score_by_size():
    assert score_regions(np.array([0]), np.array([1]), CONCEPTS) == {
        "top1_micro": 0.0, "top1_macro": 0.0, "num_regions": 1, "per_concept": {"bridge": 0.0},
        "num_per_concept": {"bridge": 1},
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_micro_is_accuracy_and_macro_is_balanced_accuracy_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    references = rng.choice(3, size=200, p=[0.7, 0.2, 0.1])
    predictions = np.where(rng.random(200) < 0.6, references, rng.integers(0, 3, 200))
    scores = score_regions(predictions, references, CONCEPTS)
    assert scores["top1_micro"] == pytest.approx(accuracy_score(references, predictions))
    assert scores["top1_macro"] == pytest.approx(balanced_accuracy_score(references, predictions))
    for c, name in enumerate(CONCEPTS):
        chosen = references == c
        assert scores["per_concept"][name] == pytest.approx(
            accuracy_score(references[chosen], predictions[chosen])
        )


@pytest.mark.parametrize("seed", range(3))
def test_shares_by_concept_and_by_size_average_to_the_whole(seed):
    rng = np.random.default_rng(seed)
    references, predictions = rng.integers(0, 3, (2, 100))
    scores = score_regions(predictions, references, CONCEPTS, rng.uniform(1, 20000, 100))
    for shares, counts in (("per_concept", "num_per_concept"), ("by_size", "num_by_size")):
        total = sum(share * scores[counts][name] for name, share in scores[shares].items())
        assert sum(scores[counts].values()) == 100
        assert total / 100 == pytest.approx(scores["top1_micro"])


def test_the_order_of_regions_does_not_matter():
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 3, (2, 50))
    areas, order = rng.uniform(1, 20000, 50), rng.permutation(50)
    assert score_regions(predictions, references, CONCEPTS, areas) == score_regions(
        predictions[order], references[order], CONCEPTS, areas[order]
    )


def test_lists_score_as_arrays_do():
    arrays = score_regions(np.array([0, 1]), np.array([0, 0]), CONCEPTS, np.array([5.0, 5000.0]))
    assert score_regions([0, 1], [0, 0], CONCEPTS, [5.0, 5000.0]) == arrays


def test_the_metric_of_evaluate_scores_as_the_function_does():
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 3, (2, 40))
    expected = score_regions(predictions, references, CONCEPTS)
    metric = RegionAccuracy(CONCEPTS)
    for start in range(0, 40, 15):
        part = slice(start, start + 15)
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == expected
    assert RegionAccuracy(CONCEPTS).compute(predictions=predictions, references=references) == expected


def test_no_regions_are_refused():
    with refuses("there are no regions to score. Give rows that have boxes."):
        score_regions(np.array([]), np.array([]), CONCEPTS)


def test_different_numbers_of_predictions_and_references_are_refused():
    with refuses("2 predictions and 3 references differ in number. Give one per region."):
        score_regions(np.array([0, 1]), np.array([0, 1, 1]), CONCEPTS)


def test_another_number_of_areas_is_refused():
    with refuses(
        "2 predictions and 2 references differ in number, or from the 3 areas. Give one per region."
    ):
        score_regions(np.array([0, 1]), np.array([0, 1]), CONCEPTS, np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("reference", [3, -100])
def test_a_reference_that_is_no_concept_is_refused(reference):
    with refuses(f"references[1] is {reference}, which is no index into the 3 concepts. Give 0 to 2."):
        score_regions(np.array([0, 1]), np.array([0, reference]), CONCEPTS)
