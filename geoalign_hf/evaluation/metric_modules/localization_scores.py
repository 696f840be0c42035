"""The four scores of semantic localisation."""

import datasets
import numpy as np

# evaluate.load copies this file to another folder, so it imports by full names.
from geoalign_hf.evaluation.metric_modules.base import SCORE, MetricModule
from geoalign_hf.evaluation.metrics.localization import polygons_to_truth, score_localization


class LocalizationScores(MetricModule):
    """The scores of `score_localization`, as means over maps.

    Columns: `maps`, in [0, 1], and `references`, the polygons of each map in pixels of the picture.

    Args:
        stride: side of a cell of the maps, in pixels of the picture.
        **kwargs: arguments of every `evaluate.Metric`.

    Example:
        >>> corner = [[[0, 0], [50, 0], [50, 50], [0, 50]]]
        >>> metric = LocalizationScores(stride=50)
        >>> metric.compute(maps=[[[1.0, 0.0], [0.0, 0.0]]], references=[corner])["rsu"]
        1.0
    """

    summary = "Rsu, Ras, Rda and Rmi of score maps against polygons."
    columns = {
        "maps": datasets.List(datasets.List(SCORE)),
        "references": datasets.List(datasets.List(datasets.List(SCORE))),
    }

    def __init__(self, stride: int = 1, **kwargs):
        self.stride = stride
        super().__init__(**kwargs)

    def _compute(self, maps, references) -> dict:
        figures = []
        for values, polygons in zip(map(np.asarray, maps), references, strict=True):
            truth = polygons_to_truth(polygons, values.shape, self.stride)
            figures.append(score_localization(values, truth, self.stride))
        return {name: float(np.mean([of_map[name] for of_map in figures])) for name in figures[0]}
