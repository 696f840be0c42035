"""Drift of embeddings during training."""

import datasets

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import SCORE, MetricModule
from geoalign_hf.evaluation.metrics.drift import measure_drift


class EmbeddingDrift(MetricModule):
    """The scores of `measure_drift`.

    Columns: `predictions`, embeddings, and `references`, those of the model that training started from.

    Example:
        >>> EmbeddingDrift().compute(predictions=[[0.0, 1.0]], references=[[0.0, 1.0]])["cosine_to_start"]
        1.0
    """

    summary = "Cosine of embeddings to those of the model that training started from."
    columns = {"predictions": datasets.List(SCORE), "references": datasets.List(SCORE)}

    def _compute(self, predictions, references) -> dict:
        return measure_drift(predictions, references)
