"""Recalls of retrieval."""

import datasets
import numpy as np

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import INDEX, SCORE, MetricModule
from geoalign_hf.evaluation.metrics.retrieval import RECALL_AT, rank_own, score_ranks


class RetrievalRecall(MetricModule):
    """The scores of `score_ranks`.

    Columns: `predictions`, the scores of each query with all candidates, and `references`, the indices of the
    candidates that belong to it.

    Args:
        recall_at: values of k.
        **kwargs: arguments of every `evaluate.Metric`.

    Example:
        >>> metric = RetrievalRecall(recall_at=(1,))
        >>> metric.compute(predictions=[[0.9, 0.1], [0.9, 0.1]], references=[[0], [1]])["recall_at_1"]
        0.5
    """

    summary = "Fraction of queries with an own candidate among the first k; ties count against the model."
    columns = {"predictions": datasets.List(SCORE), "references": datasets.List(INDEX)}

    def __init__(self, recall_at: tuple[int, ...] = RECALL_AT, **kwargs):
        self.recall_at = recall_at
        super().__init__(**kwargs)

    def _compute(self, predictions, references) -> dict:
        ranks = [rank_own([scores], [own])[0] for scores, own in zip(predictions, references, strict=True)]
        return score_ranks(np.array(ranks), self.recall_at)
