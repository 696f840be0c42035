"""Laws of the metrics: scores worked out by hand, and random ones compared with scikit-learn."""

import numpy as np
import pytest
from refusals import refuses
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from geoalign_hf.evaluation.metrics.choice import score_choices, score_hard_negatives
from geoalign_hf.evaluation.metrics.classification import (
    count_confusions,
    rank_concepts,
    score_concepts,
    score_regions,
)
from geoalign_hf.evaluation.metrics.drift import measure_coherence, measure_drift
from geoalign_hf.evaluation.metrics.retrieval import rank_own, score_ranks, score_retrieval

CONCEPTS = ["ship", "bridge", "harbor"]


def test_region_scores_equal_those_worked_out_by_hand():
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


def test_a_size_that_does_not_occur_has_no_score_and_the_count_zero():
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
def test_accuracies_by_concept_and_by_size_average_to_the_overall_accuracy(seed):
    rng = np.random.default_rng(seed)
    references, predictions = rng.integers(0, 3, (2, 100))
    scores = score_regions(predictions, references, CONCEPTS, rng.uniform(1, 20000, 100))
    for accuracies, counts in (("per_concept", "num_per_concept"), ("by_size", "num_by_size")):
        total = sum(accuracy * scores[counts][name] for name, accuracy in scores[accuracies].items())
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


def test_top_five_accuracies_equal_those_worked_out_by_hand():
    predictions = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [4, 3, 2, 1, 0]])
    scores = score_concepts(predictions, np.array([0, 0, 5]), list("abcdef"))
    assert scores["top1_micro"] == 1 / 3 and scores["top1_macro"] == 1 / 4
    assert scores["top5_micro"] == 2 / 3 and scores["top5_macro"] == 1 / 2
    assert scores["num_scenes"] == 3 and scores["per_concept"] == {"a": 0.5, "f": 0.0}


@pytest.mark.parametrize("seed", range(5))
def test_top_five_and_confusions_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    cosines, references = rng.normal(size=(300, 12)), rng.integers(0, 12, 300)
    ranked = rank_concepts(cosines)
    scores = score_concepts(ranked, references, [f"c{c}" for c in range(12)])
    for k in (1, 5):
        expected = top_k_accuracy_score(references, cosines, k=k, labels=range(12))
        assert scores[f"top{k}_micro"] == pytest.approx(expected)
    assert scores["top1_macro"] == pytest.approx(recall_score(references, ranked[:, 0], average="macro"))
    expected = confusion_matrix(references, cosines.argmax(axis=1), labels=range(12))
    assert (count_confusions(ranked, references, 12) == expected).all()


def test_with_five_concepts_or_fewer_only_the_best_one_is_ranked():
    assert rank_concepts(np.eye(5)).tolist() == [[0], [1], [2], [3], [4]]
    assert rank_concepts(np.eye(6)).shape == (6, 5)


# Ranks and recalls


def test_ranks_equal_those_worked_out_by_hand():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2], [0.1, 0.9, 0.5]])
    # The last query has two own candidates. The better one counts, and the other does not compete.
    assert rank_own(scores, [[0], [2], [1], [0, 2]]).tolist() == [1, 3, 3, 2]


def test_a_candidate_that_ties_within_rounding_ranks_before_the_own_one():
    third = np.float32(1) / 3
    scores = np.array([[third, np.nextafter(third, np.float32(0))]])
    assert rank_own(scores, [[0]]).tolist() == [2]
    assert rank_own(np.array([[0.5, 0.4999]]), [[0]]).tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_a_sort_that_puts_own_candidates_last_among_equals(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (40, 15)) / 5.0  # full of ties
    is_own = rng.random((40, 15)) < 0.2
    is_own[np.arange(40), rng.integers(0, 15, 40)] = True
    expected = []
    for values, own in zip(scores, is_own, strict=True):
        order = sorted(range(15), key=lambda i: (-values[i], own[i]))
        first = next(place for place, i in enumerate(order) if own[i])
        expected.append(1 + first)
    own = [np.flatnonzero(of_query).tolist() for of_query in is_own]
    assert rank_own(scores, own).tolist() == expected


def test_a_model_with_one_embedding_for_everything_has_zero_recall():
    five, one = [list(range(5 * i, 5 * i + 5)) for i in range(20)], [[i // 5] for i in range(100)]
    scores = score_retrieval(
        {"a": rank_own(np.ones((20, 100)), five), "b": rank_own(np.ones((100, 20)), one)}
    )
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize("seed", range(3))
def test_recall_at_k_with_one_own_candidate_is_top_k_accuracy_of_scikit_learn(seed):
    scores, own = np.random.default_rng(seed).normal(size=(60, 60)), np.arange(60)
    ranks = rank_own(scores, own[:, None].tolist())
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(own, scores, k=k, labels=own)
        assert score_ranks(ranks)[f"recall_at_{k}"] == pytest.approx(expected)


def test_mean_recall_is_the_mean_over_two_directions_and_three_k():
    scores = score_retrieval(
        {"image_to_text": np.array([1, 6, 11]), "text_to_image": np.array([2, 2])}, (1, 5, 10, 100)
    )
    assert scores == {
        "image_to_text_recall_at_1": 1 / 3,
        "image_to_text_recall_at_5": 1 / 3,
        "image_to_text_recall_at_10": 2 / 3,
        "image_to_text_recall_at_100": 1.0,
        "image_to_text_mean_recall": pytest.approx(4 / 9),
        "text_to_image_recall_at_1": 0.0,
        "text_to_image_recall_at_5": 1.0,
        "text_to_image_recall_at_10": 1.0,
        "text_to_image_recall_at_100": 1.0,
        "text_to_image_mean_recall": pytest.approx(2 / 3),
        "mean_recall": pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 0 + 1 + 1) / 6),
    }  # recall at 100 is not part of the mean


# Hard negatives and choices


def test_hard_negative_scores_equal_those_worked_out_by_hand():
    positives = np.array([0.5, 0.5, 0.5, 0.9])
    negatives = [np.array([0.1, 0.6]), np.array([0.4]), np.array([0.5]), np.array([])]
    kinds = [["size", "colour"], ["colour"], ["colour"], []]
    assert score_hard_negatives(positives, negatives, kinds) == {
        "accuracy": 1 / 3,  # beaten, right, a tie
        "chance": pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3),
        "num_regions": 3,
        "num_negatives": 4,
        "per_kind": {"colour": 1 / 3, "size": 1.0},
        "chance_per_kind": {"colour": 0.5, "size": 0.5},
        "num_per_kind": {"colour": 3, "size": 1},
        "by_number": {"1": 0.5, "2": 0.0},
        "num_by_number": {"1": 2, "2": 1},
    }


@pytest.mark.parametrize("seed", range(3))
def test_random_hard_negative_scores_equal_a_plain_loop_and_are_at_chance(seed):
    rng = np.random.default_rng(seed)
    positives = rng.normal(size=3000)
    negatives = [rng.normal(size=rng.integers(1, 6)) for _ in positives]
    kinds = [rng.choice(["colour", "size"], len(scores)).tolist() for scores in negatives]
    scores = score_hard_negatives(positives, negatives, kinds)
    right = {"colour": [], "size": []}
    for positive, rivals, names in zip(positives, negatives, kinds, strict=True):
        for kind in right:
            of_kind = [rival for rival, name in zip(rivals, names, strict=True) if name == kind]
            if of_kind:
                right[kind].append(positive > max(of_kind))
    assert scores["per_kind"] == {kind: pytest.approx(np.mean(wins)) for kind, wins in right.items()}
    assert scores["accuracy"] == pytest.approx(scores["chance"], abs=0.03)
    total = sum(value * scores["num_by_number"][name] for name, value in scores["by_number"].items())
    assert total / 3000 == pytest.approx(scores["accuracy"])


@pytest.mark.parametrize("seed", range(3))
def test_choice_scores_with_equal_numbers_of_options_are_accuracies_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, answers = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    subjects = rng.choice(["caption", "scene"], 200).tolist()
    result = score_choices(list(scores), answers.tolist(), subjects)
    best = scores.argmax(axis=1)
    assert result["accuracy"] == pytest.approx(accuracy_score(answers, best))
    assert result["chance"] == 0.25
    for subject in ("caption", "scene"):
        chosen = np.array(subjects) == subject
        assert result["per_subject"][subject] == pytest.approx(accuracy_score(answers[chosen], best[chosen]))
        assert result["num_per_subject"][subject] == chosen.sum()


def test_a_tied_choice_is_wrong_and_without_subjects_there_are_no_scores_by_subject():
    assert score_choices([[0.5, 0.5], [0.6, 0.5]], [0, 0]) == {
        "accuracy": 0.5, "chance": 0.5, "num_questions": 2
    }  # fmt: skip


# Drift and coherence


def test_coherence_equals_a_plain_loop_over_patches():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(2, 5, 3, 4))
    patches /= np.linalg.norm(patches, axis=1, keepdims=True)
    neighbours, anywhere = [], []
    for image in patches:
        places = [(y, x) for y in range(3) for x in range(4)]
        for a in places:
            for b in places:
                cosine = image[:, a[0], a[1]] @ image[:, b[0], b[1]]
                if a != b:
                    anywhere.append(cosine)
                if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1:
                    neighbours.append(cosine)
    assert measure_coherence(patches) == {
        "neighbour_cosine": pytest.approx(np.mean(neighbours)),
        "any_cosine": pytest.approx(np.mean(anywhere)),
        "coherence": pytest.approx(np.mean(neighbours) - np.mean(anywhere)),
    }


def test_a_map_of_one_colour_and_a_map_of_noise_have_no_coherence():
    flat = np.zeros((1, 4, 6, 6))
    flat[:, 0] = 1
    assert measure_coherence(flat) == {"neighbour_cosine": 1.0, "any_cosine": 1.0, "coherence": 0.0}
    noise = np.random.default_rng(0).normal(size=(20, 64, 12, 12))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert abs(measure_coherence(noise)["coherence"]) < 0.01


def test_drift_is_the_mean_and_the_lowest_cosine():
    start, turned = np.eye(3), np.eye(3)
    turned[2] = [0, 0, -1]
    assert measure_drift(turned, start) == {
        "cosine_to_start": pytest.approx(1 / 3), "lowest_cosine_to_start": -1.0
    }  # fmt: skip


# Refusals


def test_no_regions_are_refused():
    with refuses("references", "empty"):
        score_regions(np.array([]), np.array([]), CONCEPTS)


def test_different_numbers_of_predictions_and_references_are_refused():
    with refuses("'predictions': 2", "'references': 3"):
        score_regions(np.array([0, 1]), np.array([0, 1, 1]), CONCEPTS)


def test_a_wrong_number_of_areas_is_refused():
    with refuses("'areas': 3", "'references': 2"):
        score_regions(np.array([0, 1]), np.array([0, 1]), CONCEPTS, np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("reference", [3, -100])
def test_a_reference_that_is_not_an_index_is_refused(reference):
    with refuses(f"references[1] is {reference}", "0 to 2"):
        score_regions(np.array([0, 1]), np.array([0, reference]), CONCEPTS)


def test_a_query_without_a_candidate_of_its_own_is_refused():
    with refuses("query 1 has no candidate"):
        rank_own(np.eye(2), [[0], []])


def test_nan_scores_are_refused():
    with refuses("scores[1, 0] is nan"):
        rank_own(np.array([[1.0, 0.0], [np.nan, 0.0]]), [[0], [1]])


def test_no_queries_are_refused():
    with refuses("ranks is empty"):
        score_ranks(np.array([]))


def test_negatives_of_other_lengths_are_refused():
    with refuses("'positives': 2", "'negatives': 1"):
        score_hard_negatives([0.5, 0.5], [[0.1]])
    with refuses("'negatives[1]': 1", "'kinds[1]': 0"):
        score_hard_negatives([0.5, 0.5], [[0.1], [0.2]], [["colour"], []])
    with refuses("No region has a hard negative"):
        score_hard_negatives([0.5], [[]])


def test_questions_without_a_correct_option_are_refused():
    with refuses("'scores': 1", "'answers': 2"):
        score_choices([[0.1, 0.2]], [0, 1])
    with refuses("Question 0", "1 options"):
        score_choices([[0.1]], [0])
    with refuses("Question 0", "2 options", "answer 2"):
        score_choices([[0.1, 0.2]], [2])


def test_grids_of_one_row_and_embeddings_of_other_shapes_are_refused():
    with refuses("1 x 4 patches", "2 x 2"):
        measure_coherence(np.ones((1, 3, 1, 4)))
    with refuses("(2, 3)", "(4, 3)"):
        measure_drift(np.ones((2, 3)), np.ones((4, 3)))
