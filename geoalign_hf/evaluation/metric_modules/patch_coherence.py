"""Coherence of dense maps."""

import datasets

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import SCORE, MetricModule
from geoalign_hf.evaluation.metrics.drift import measure_coherence


class PatchCoherence(MetricModule):
    """The scores of `measure_coherence`.

    Column: `predictions`, dense maps of one size, each (D, h, w).

    Example:
        >>> PatchCoherence().compute(predictions=[[[[1.0, 1.0], [1.0, 1.0]]]])["coherence"]
        0.0
    """

    summary = "How much more similar neighbouring patches are than any two patches of an image."
    columns = {"predictions": datasets.List(datasets.List(datasets.List(SCORE)))}

    def _compute(self, predictions) -> dict:
        return measure_coherence(predictions)
