"""Generated inputs to the metrics: every score is a finite number, or a ValueError says why there is none."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geoalign_hf.evaluation.metrics.choice import score_choices, score_hard_negatives
from geoalign_hf.evaluation.metrics.classification import (
    count_confusions,
    rank_concepts,
    score_concepts,
    score_regions,
)
from geoalign_hf.evaluation.metrics.drift import measure_coherence, measure_drift
from geoalign_hf.evaluation.metrics.localization import (
    masks_to_truth,
    normalize_map,
    polygons_to_truth,
    score_localization,
)
from geoalign_hf.evaluation.metrics.retrieval import rank_own, score_ranks, score_retrieval

BOUNDED = settings(max_examples=60)
LONG = settings(max_examples=1000)

usual = st.floats(-1, 1, width=32)
odd = st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300, None, "x", True, 1j, [], [0.5]])
numbers = st.one_of(usual, usual, usual, usual, odd)
indices = st.one_of(st.integers(0, 4), st.integers(0, 4), st.integers(-3, 9), odd)
names = st.lists(st.sampled_from(["ship", "road", "pier", "tank", "quay", "dock"]), max_size=6)


def lists(entries, max_size=6):
    return st.lists(entries, max_size=max_size)


def grids(entries):
    """Rows that mostly have one length."""
    even = st.integers(1, 4).flatmap(lambda width: lists(st.lists(entries, min_size=width, max_size=width)))
    return st.one_of(even, even, even, lists(lists(entries)))


polygons = lists(lists(st.lists(st.one_of(st.floats(-5, 20), odd), min_size=2, max_size=2), max_size=5), 3)
arrays = st.tuples(st.lists(st.integers(0, 4), min_size=2, max_size=4), st.integers(0, 99), numbers)


def make_array(shape, seed, value) -> np.ndarray:
    """Random numbers with one odd value, if there is a place for one."""
    array = np.random.default_rng(seed).normal(size=shape)
    if array.size and isinstance(value, float):
        array.flat[seed % array.size] = value
    with np.errstate(over="ignore"):  # 1e300 becomes infinite
        return array.astype(np.float32 if seed % 2 else np.float64)


CASES = {
    "rank_concepts": (rank_concepts, [grids(numbers)]),
    "score_concepts": (score_concepts, [st.one_of(lists(indices), grids(indices)), lists(indices), names]),
    "score_regions": (score_regions, [lists(indices), lists(indices), names, lists(numbers)]),
    "count_confusions": (count_confusions, [lists(indices), lists(indices), st.integers(0, 6)]),
    "rank_own": (rank_own, [grids(numbers), lists(lists(indices))]),
    "score_ranks": (score_ranks, [lists(st.one_of(st.integers(-1, 20), odd))]),
    "score_retrieval": (score_retrieval, [st.dictionaries(st.text(max_size=3), lists(st.integers(0, 9)))]),
    "score_hard_negatives": (score_hard_negatives, [lists(numbers, 3), lists(lists(numbers, 3), 3)]),
    "score_hard_negatives, kinds": (
        score_hard_negatives,
        [lists(numbers, 2), lists(lists(numbers, 2), 2), lists(lists(st.sampled_from("ab"), 2), 2)],
    ),
    "score_choices": (score_choices, [lists(lists(numbers, 3), 3), lists(indices, 3)]),
    "score_choices, subjects": (score_choices, [lists(lists(numbers, 3), 3), lists(indices, 3), names]),
    "measure_coherence": (lambda case: measure_coherence(make_array(*case)), [arrays]),
    "measure_drift": (lambda one, two: measure_drift(make_array(*one), make_array(*two)), [arrays, arrays]),
    "normalize_map": (lambda case: normalize_map(make_array(*case), 100), [arrays]),
    "masks_to_truth": (lambda case: masks_to_truth(make_array(*case) > 0), [arrays]),
    "score_localization": (
        lambda case, corners, stride: score_localization(
            make_array(*case), polygons_to_truth(corners, (4, 4), stride), stride
        ),
        [arrays, polygons, st.integers(-1, 9)],
    ),
}


def list_values(result) -> list:
    """All numbers of a result."""
    if isinstance(result, dict):
        return [value for entry in result.values() for value in list_values(entry)]
    if isinstance(result, tuple):
        return [value for entry in result for value in list_values(entry)]
    return np.asarray(result).ravel().tolist()


def check(call, arguments) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns of overflows and of the mean of nothing
        try:
            result = call(*arguments)
        except ValueError as error:
            assert len(str(error)) > 20 and "inhomogeneous" not in str(error)[:30], error
            return
    assert all(math.isfinite(value) for value in list_values(result)), result


@pytest.mark.parametrize("case", CASES)
def test_scores_are_finite_or_refused_with_the_place(case):
    call, strategies = CASES[case]
    BOUNDED(given(st.tuples(*strategies))(lambda arguments: check(call, arguments)))()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_scores_are_finite_or_refused_for_many_inputs(case):
    call, strategies = CASES[case]
    LONG(given(st.tuples(*strategies))(lambda arguments: check(call, arguments)))()


@BOUNDED
@given(st.data())
@example(None)
def test_ranks_are_those_of_a_plain_loop(data):
    if data is None:  # a tie within rounding, next to one that is none
        scores, own = [[0.5, 0.5 + 1e-9, 0.4]], [[0]]
    else:
        num_candidates = data.draw(st.integers(1, 6))
        row = st.lists(
            st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=num_candidates, max_size=num_candidates
        )
        scores = data.draw(st.lists(row, min_size=1, max_size=5))
        some = st.lists(st.integers(0, num_candidates - 1), min_size=1, unique=True)
        own = data.draw(st.lists(some, min_size=len(scores), max_size=len(scores)))
    expected = []
    for values, mine in zip(scores, own, strict=True):
        best = max(values[i] for i in mine)
        expected.append(1 + sum(value >= best - 1e-6 for i, value in enumerate(values) if i not in mine))
    assert rank_own(scores, own).tolist() == expected


@BOUNDED
@given(
    st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 2), min_size=n, max_size=n)] * 2))
)
def test_accuracies_are_fractions_whose_mean_by_count_is_the_whole(pair):
    predictions, references = pair
    scores = score_concepts(predictions, references, ["ship", "road", "pier"])
    assert scores["top1_micro"] == np.mean([a == b for a, b in zip(*pair, strict=True)])
    total = sum(scores["per_concept"][name] * count for name, count in scores["num_per_concept"].items())
    assert total / len(references) == pytest.approx(scores["top1_micro"])
