"""Laws of the `evaluate.Metric`s: they give the scores of the functions, by batches and by processes."""

import subprocess
import sys

import evaluate
import numpy as np
import pytest
from refusals import refuses

from geoalign_hf.evaluation.metric_modules import find_metric, list_metrics
from geoalign_hf.evaluation.metrics.choice import score_choices, score_hard_negatives
from geoalign_hf.evaluation.metrics.classification import score_concepts, score_regions
from geoalign_hf.evaluation.metrics.drift import measure_coherence, measure_drift
from geoalign_hf.evaluation.metrics.localization import polygons_to_truth, score_localization
from geoalign_hf.evaluation.metrics.retrieval import rank_own, score_ranks

CONCEPTS = ["ship", "bridge", "harbor"]
RNG = np.random.default_rng(0)
N = 40
REFERENCES, PREDICTIONS = RNG.integers(0, 3, (2, N))
COSINES, OWN = RNG.normal(size=(N, 12)), [[i % 12, (i + 3) % 12] for i in range(N)]
NEGATIVES = [RNG.normal(size=1 + i % 3).tolist() for i in range(N)]
KINDS = [["colour", "size", "colour"][: len(scores)] for scores in NEGATIVES]
SUBJECTS = ["caption" if i % 3 else "scene" for i in range(N)]
MAPS = RNG.random((4, 10, 12))
PLACES = [[[[k, 1], [k + 3, 1], [k + 3, 5], [k, 5]]] for k in range(4)]
FIGURES = [
    score_localization(values, polygons_to_truth(polygons, (10, 12), 50), 50)
    for values, polygons in zip(MAPS, (50 * np.array(PLACES)).tolist(), strict=True)
]

CASES = {
    "scene_accuracy": (
        {"concepts": CONCEPTS},
        {"predictions": PREDICTIONS, "references": REFERENCES},
        score_concepts(PREDICTIONS, REFERENCES, CONCEPTS),
    ),
    "region_accuracy": (
        {"concepts": CONCEPTS},
        {"predictions": PREDICTIONS, "references": REFERENCES},
        score_regions(PREDICTIONS, REFERENCES, CONCEPTS),
    ),
    "retrieval_recall": (
        {"recall_at": (1, 3)},
        {"predictions": COSINES.tolist(), "references": OWN},
        score_ranks(rank_own(COSINES, OWN), (1, 3)),
    ),
    "hard_negative_accuracy": (
        {},
        {"positives": COSINES[:, 0], "negatives": NEGATIVES, "kinds": KINDS},
        score_hard_negatives(COSINES[:, 0], NEGATIVES, KINDS),
    ),
    "patch_coherence": (
        {},
        {"predictions": COSINES.reshape(N, 3, 2, 2).tolist()},
        measure_coherence(COSINES.reshape(N, 3, 2, 2)),
    ),
    "embedding_drift": (
        {},
        {"predictions": COSINES.tolist(), "references": COSINES[::-1].tolist()},
        measure_drift(COSINES, COSINES[::-1]),
    ),
    "choice_accuracy": (
        {},
        {"predictions": COSINES.tolist(), "references": REFERENCES, "subjects": SUBJECTS},
        score_choices(list(COSINES), REFERENCES.tolist(), SUBJECTS),
    ),
}


pytestmark = pytest.mark.usefixtures("modules_folder")


def test_every_metric_is_tested_here_and_an_unknown_one_is_refused():
    assert {*CASES, "localization_scores"} == set(list_metrics())
    with refuses("'accuracy'", "region_accuracy"):
        find_metric("accuracy")


def test_scores_of_maps_are_means_over_maps():
    metric = evaluate.load(find_metric("localization_scores"), stride=50)
    for part in (slice(0, 3), slice(3, 4)):
        metric.add_batch(maps=MAPS[part].tolist(), references=(50 * np.array(PLACES[part])).tolist())
    expected = {name: pytest.approx(np.mean([of[name] for of in FIGURES])) for name in FIGURES[0]}
    assert metric.compute() == expected


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_metric_gives_the_scores_of_its_function_at_once_and_by_batches(case):
    options, columns, expected = CASES[case]
    metric = evaluate.load(find_metric(case), **options)
    assert metric.compute(**columns) == expected
    for start in range(0, N, 15):
        metric.add_batch(**{name: column[start : start + 15] for name, column in columns.items()})
    assert metric.compute() == expected


PROCESS = """
import sys
sys.path.insert(0, "..")
import evaluate
evaluate.config.HF_MODULES_CACHE = f"{sys.argv[3]}/modules-{sys.argv[2]}"
from test_metric_modules import CASES, N, find_metric
case, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
options, columns, expected = CASES[case]
metric = evaluate.load(
    find_metric(case), num_process=2, process_id=rank, experiment_id="law", cache_dir=folder, **options
)
bounds = (0, 25, N)  # shards of different lengths
metric.add_batch(**{name: column[bounds[rank] : bounds[rank + 1]] for name, column in columns.items()})
scores = metric.compute()
assert scores == (expected if rank == 0 else None), scores
"""


@pytest.mark.slow
def test_two_processes_score_as_one_process_does(tmp_path):
    command = [sys.executable, "-c", PROCESS, "retrieval_recall"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], cwd=__file__.rsplit("/", 1)[0], stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    for process in processes:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors.decode()
