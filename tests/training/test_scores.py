"""Laws of scores in training: finite numbers, by name, in plain values."""

import json

import numpy as np
import pytest
import torch
from refusals import refuses
from runs import ServedScores

from geoalign_hf.training.scores import check_scores


@pytest.mark.parametrize(
    ("scores", "place", "number"),
    [
        ({"other": float("nan")}, "other", "nan"),
        ({"other": np.float32("inf")}, "other", "inf"),
        ({"per_concept": {"ship": float("nan")}}, "per_concept.ship", "nan"),
        ({"each": [0.5, torch.tensor(float("nan"))]}, "each[1]", "nan"),
        ({"each": np.array([0.5, -np.inf])}, "each[1]", "-inf"),
    ],
)
def test_a_score_that_is_not_finite_is_refused_with_its_name(scores, place, number):
    with refuses("'served'", f"{place} = {number}"):
        check_scores("served", {"score": 0.5} | scores)


def test_a_score_that_is_not_finite_stops_the_run(start):
    trainer = start(evaluators=[ServedScores({"score": 0.5}, {"score": 0.5, "other": float("nan")})])
    with refuses("'served'", "other = nan"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_scores_of_numpy_and_torch_are_logged_and_saved_as_plain_numbers(start, tmp_path):
    scores = {"score": np.float32(0.5), "other": torch.tensor(0.25), "each": np.arange(2)}
    trainer = start(num_train_epochs=1, evaluators=[ServedScores(scores, scores)])
    trainer.train()
    assert trainer.state.log_history[-2]["eval_served_other"] == 0.25
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["served final"]["score"] == 0.5 and metrics["served final"]["each"] == [0, 1]


def test_what_is_no_score_is_refused_with_its_name():
    with refuses("'served'", "model", "Linear", kind=TypeError):
        check_scores("served", {"score": 0.5, "model": torch.nn.Linear(1, 1)})
    with refuses("'served'", "float", "dictionary", kind=TypeError):
        check_scores("served", 0.5)


@pytest.mark.parametrize("name", ["served_score", "eval_served_score"])
def test_the_direction_of_a_primary_metric_is_that_of_its_evaluator(start, name):
    evaluators = [ServedScores(greater_is_better=False)]
    trainer = start(evaluators=evaluators, metric_for_best_model=name, eval_on_start=False)
    assert trainer.args.greater_is_better is False


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"metric_for_best_model": "regions_top1"}, "eval_served_score"),
        ({"metric_for_best_model": "served_top1", "eval_on_start": False}, "eval_on_start"),
        ({"metric_for_best_model": "served_score", "eval_strategy": "no"}, "eval_strategy"),
    ],
)
def test_a_best_metric_that_could_fail_later_is_refused_before_the_run(start, options, fact):
    with refuses("metric_for_best_model", options["metric_for_best_model"], fact):
        start(evaluators=[ServedScores(0.5)], **options)
