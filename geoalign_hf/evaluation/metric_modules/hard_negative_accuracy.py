"""Accuracy of phrases against their hard negatives."""

import datasets

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import NAME, SCORE, MetricModule
from geoalign_hf.evaluation.metrics.choice import score_hard_negatives


class HardNegativeAccuracy(MetricModule):
    """The scores of `score_hard_negatives`.

    Columns: `positives`, the score of each region with its phrase; `negatives`, those with its hard
    negatives; and `kinds`, what each negative changes.

    Example:
        >>> HardNegativeAccuracy().compute(positives=[0.5], negatives=[[0.4]], kinds=[["colour"]])["accuracy"]
        1.0
    """

    summary = "Fraction of regions whose phrase scores higher than all of its hard negatives, by kind."
    columns = {"positives": SCORE, "negatives": datasets.List(SCORE), "kinds": datasets.List(NAME)}

    def _compute(self, positives, negatives, kinds) -> dict:
        return score_hard_negatives(positives, negatives, kinds)
