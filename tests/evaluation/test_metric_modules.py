"""Laws of the `evaluate.Metric`s: what the functions say, by shard, by process, without a network."""

import subprocess
import sys

import numpy as np
import pytest

from geoalign_hf.evaluation.metrics.modules import (
    ChoiceAccuracy,
    EmbeddingDrift,
    HardNegativeAccuracy,
    LocalizationFigures,
    PatchCoherence,
    RegionAccuracy,
    RetrievalRecall,
    SceneAccuracy,
)
from geoalign_hf.evaluation.metrics.score_maps import polygons_to_truth, score_localization
from geoalign_hf.evaluation.metrics.scores import (
    measure_coherence,
    measure_drift,
    rank_own,
    score_choices,
    score_concepts,
    score_hard_negatives,
    score_ranks,
    score_regions,
)

CONCEPTS = ["ship", "bridge", "harbor"]
RNG = np.random.default_rng(0)
N = 40
REFERENCES, PREDICTIONS = RNG.integers(0, 3, (2, N))
COSINES, OWN = RNG.normal(size=(N, 12)), [[i % 12, (i + 3) % 12] for i in range(N)]
NEGATIVES = [RNG.normal(size=1 + i % 3).tolist() for i in range(N)]
KINDS = [["colour", "size", "colour"][: len(scores)] for scores in NEGATIVES]
SUBJECTS = ["caption" if i % 3 else "scene" for i in range(N)]
IS_OWN = np.array([[c in own for c in range(12)] for own in OWN])
MAPS = RNG.random((4, 10, 12))
PLACES = [[[[k, 1], [k + 3, 1], [k + 3, 5], [k, 5]]] for k in range(4)]
FIGURES = [
    score_localization(values, polygons_to_truth(polygons, (10, 12), 50), 50)
    for values, polygons in zip(MAPS, (50 * np.array(PLACES)).tolist(), strict=True)
]

CASES = {
    "scenes": (
        lambda **kwargs: SceneAccuracy(CONCEPTS, **kwargs),
        {"predictions": PREDICTIONS, "references": REFERENCES},
        score_concepts(PREDICTIONS, REFERENCES, CONCEPTS),
    ),
    "regions": (
        lambda **kwargs: RegionAccuracy(CONCEPTS, **kwargs),
        {"predictions": PREDICTIONS, "references": REFERENCES},
        score_regions(PREDICTIONS, REFERENCES, CONCEPTS),
    ),
    "retrieval": (
        lambda **kwargs: RetrievalRecall((1, 3), **kwargs),
        {"predictions": COSINES.tolist(), "references": OWN},
        score_ranks(rank_own(COSINES, IS_OWN), (1, 3)),
    ),
    "hard negatives": (
        HardNegativeAccuracy,
        {"positives": COSINES[:, 0], "negatives": NEGATIVES, "kinds": KINDS},
        score_hard_negatives(COSINES[:, 0], NEGATIVES, KINDS),
    ),
    "coherence": (
        PatchCoherence,
        {"predictions": COSINES.reshape(N, 3, 2, 2).tolist()},
        measure_coherence(COSINES.reshape(N, 3, 2, 2)),
    ),
    "drift": (
        EmbeddingDrift,
        {"predictions": COSINES.tolist(), "references": COSINES[::-1].tolist()},
        measure_drift(COSINES, COSINES[::-1]),
    ),
    "choices": (
        ChoiceAccuracy,
        {"predictions": COSINES.tolist(), "references": REFERENCES, "subjects": SUBJECTS},
        score_choices(list(COSINES), REFERENCES.tolist(), SUBJECTS),
    ),
}


def test_figures_of_maps_are_means_over_maps():
    metric = LocalizationFigures(stride=50)
    for part in (slice(0, 3), slice(3, 4)):
        metric.add_batch(maps=MAPS[part].tolist(), references=(50 * np.array(PLACES[part])).tolist())
    expected = {name: pytest.approx(np.mean([of[name] for of in FIGURES])) for name in FIGURES[0]}
    assert metric.compute() == expected


@pytest.mark.parametrize("case", CASES)
def test_a_module_says_what_its_function_says_at_once_and_by_batches(case):
    build, columns, expected = CASES[case]
    assert build().compute(**columns) == expected
    metric = build()
    for start in range(0, N, 15):
        metric.add_batch(**{name: column[start : start + 15] for name, column in columns.items()})
    assert metric.compute() == expected


PROCESS = """
import sys
from test_metric_modules import CASES, N
case, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
build, columns, expected = CASES[case]
metric = build(num_process=2, process_id=rank, experiment_id="law", cache_dir=folder)
bounds = (0, 25, N)  # shards of different lengths
metric.add_batch(**{name: column[bounds[rank] : bounds[rank + 1]] for name, column in columns.items()})
scores = metric.compute()
assert scores == (expected if rank == 0 else None), scores
"""


@pytest.mark.slow
def test_the_shards_of_two_processes_score_as_the_whole_on_the_first(tmp_path):
    command = [sys.executable, "-c", PROCESS, "retrieval"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], cwd=__file__.rsplit("/", 1)[0], stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    for process in processes:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors.decode()
