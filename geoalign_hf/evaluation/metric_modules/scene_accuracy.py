"""Accuracy of the concepts that are predicted for scenes."""

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import INDEX, MetricModule
from geoalign_hf.evaluation.metrics.classification import score_concepts


class SceneAccuracy(MetricModule):
    """The scores of `score_concepts`.

    Columns: `predictions` and `references`, indices of concepts.

    Args:
        concepts: C names, in the order of the indices.
        **kwargs: arguments of every `evaluate.Metric`.

    Example:
        >>> metric = SceneAccuracy(["port", "park"])
        >>> metric.compute(predictions=[0, 1], references=[0, 0])["top1_micro"]
        0.5
    """

    summary = "Top-1 accuracy of the concepts of scenes, micro and macro."
    columns = {"predictions": INDEX, "references": INDEX}

    def __init__(self, concepts: list[str], **kwargs):
        self.concepts = concepts
        super().__init__(**kwargs)

    def _compute(self, predictions, references) -> dict:
        return score_concepts(predictions, references, self.concepts)
