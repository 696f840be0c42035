"""The base class of our `evaluate.Metric`s, and the types of their columns."""

from abc import ABC, abstractmethod

import datasets
import evaluate

INDEX, SCORE, NAME = (datasets.Value(kind) for kind in ("int64", "float64", "string"))


class MetricModule(evaluate.Metric, ABC):
    """A metric of `geoalign_hf.evaluation.metrics` as an `evaluate.Metric`.

    A subclass sets `summary` and `columns`, and defines `_compute`. This class is abstract, so that
    `evaluate.load` passes over it when it looks for the metric of a file.
    """

    summary: str
    columns: dict

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description=", ".join(self.columns),
            features=datasets.Features(self.columns),
        )

    @abstractmethod
    def _compute(self, **columns) -> dict:
        """Compute the scores from whole columns."""
