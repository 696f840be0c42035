"""Accuracy of the concepts that are predicted for regions."""

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import INDEX, MetricModule
from geoalign_hf.evaluation.metrics.classification import score_regions


class RegionAccuracy(MetricModule):
    """The scores of `score_regions`.

    Columns: `predictions` and `references`, indices of concepts.

    Args:
        concepts: C names, in the order of the indices.
        **kwargs: arguments of every `evaluate.Metric`.

    Example:
        >>> metric = RegionAccuracy(["ship", "bridge"])
        >>> metric.compute(predictions=[0, 1], references=[0, 0])["top1_micro"]
        0.5
    """

    summary = "Top-1 accuracy of the concepts of regions, micro and macro."
    columns = {"predictions": INDEX, "references": INDEX}

    def __init__(self, concepts: list[str], **kwargs):
        self.concepts = concepts
        super().__init__(**kwargs)

    def _compute(self, predictions, references) -> dict:
        return score_regions(predictions, references, self.concepts)
