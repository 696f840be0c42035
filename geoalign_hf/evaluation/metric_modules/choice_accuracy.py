"""Accuracy of multiple choice."""

import datasets

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import INDEX, NAME, SCORE, MetricModule
from geoalign_hf.evaluation.metrics.choice import score_choices


class ChoiceAccuracy(MetricModule):
    """The scores of `score_choices`.

    Columns: `predictions`, the scores of the options of each question; `references`, the index of the correct
    one; and `subjects`, what the question is about.

    Example:
        >>> ChoiceAccuracy().compute(predictions=[[0.1, 0.9]], references=[1], subjects=["x"])["accuracy"]
        1.0
    """

    summary = "Fraction of questions whose correct option scores higher than every other, by subject."
    columns = {"predictions": datasets.List(SCORE), "references": INDEX, "subjects": NAME}

    def _compute(self, predictions, references, subjects) -> dict:
        return score_choices(predictions, references, subjects)
