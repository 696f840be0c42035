"""The functions of `metrics.py` as `evaluate.Metric`s: by shard and process, nothing is fetched.

    metric = RegionAccuracy(["ship", "bridge"], num_process=2, process_id=rank, experiment_id="run")
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    scores = metric.compute()  # of all processes on process 0, None on the others

Every process adds at least one batch.
"""

import datasets
import evaluate
import numpy as np

from .score_maps import polygons_to_truth, score_localization
from .scores import (
    RECALL_AT,
    measure_coherence,
    measure_drift,
    rank_own,
    score_choices,
    score_concepts,
    score_hard_negatives,
    score_ranks,
    score_regions,
)

INDEX, SCORE, NAME = (datasets.Value(kind) for kind in ("int64", "float64", "string"))


class _Module(evaluate.Metric):
    """What the modules share; summary and columns are each one's own."""

    summary, columns = "", {}

    def _info(self):
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description=", ".join(self.columns),
            features=datasets.Features(self.columns),
        )


class SceneAccuracy(_Module):
    """`score_concepts`: add `predictions` and `references`, indices into the concepts.

    Args:
        concepts: C names, in the order of the indices.
        **kwargs: as for any `evaluate.Metric`.

    Example:
        >>> metric = SceneAccuracy(["port", "park"])
        >>> metric.compute(predictions=[0, 1], references=[0, 0])["top1_micro"]
        0.5
    """

    summary = "Top-1 accuracy of concepts, micro and macro."
    columns = {"predictions": INDEX, "references": INDEX}

    def __init__(self, concepts: list[str], **kwargs):
        self.concepts = concepts
        super().__init__(**kwargs)

    def _compute(self, predictions, references):
        return score_concepts(np.asarray(predictions), np.asarray(references), self.concepts)


class RegionAccuracy(SceneAccuracy):
    """`score_regions`: as `SceneAccuracy`, of regions.

    Args:
        concepts: C names, in the order of the indices.
        **kwargs: as for any `evaluate.Metric`.
    """

    summary = "Top-1 accuracy of concepts predicted for regions, micro and macro."

    def _compute(self, predictions, references):
        return score_regions(np.asarray(predictions), np.asarray(references), self.concepts)


class RetrievalRecall(_Module):
    """`score_ranks`: add each query's scores as `predictions`, the indices of its own as `references`.

    Args:
        recall_at: every k.
        **kwargs: as for any `evaluate.Metric`.

    Example:
        >>> metric = RetrievalRecall(recall_at=(1,))
        >>> metric.compute(predictions=[[0.9, 0.1], [0.9, 0.1]], references=[[0], [1]])["recall_at_1"]
        0.5
    """

    summary = "Share of queries that find one of their own among the first k; ties count against us."
    columns = {"predictions": datasets.List(SCORE), "references": datasets.List(INDEX)}

    def __init__(self, recall_at: tuple[int, ...] = RECALL_AT, **kwargs):
        self.recall_at = recall_at
        super().__init__(**kwargs)

    def _compute(self, predictions, references):
        ranks = []
        for scores, own in zip(predictions, references, strict=True):
            is_own = np.zeros((1, len(scores)), dtype=bool)
            is_own[0, own] = True
            ranks.append(rank_own(np.asarray(scores)[None], is_own)[0])
        return score_ranks(np.array(ranks), self.recall_at)


class HardNegativeAccuracy(_Module):
    """`score_hard_negatives`: add `positives`, `negatives` and `kinds`.

    Args:
        **kwargs: as for any `evaluate.Metric`.

    Example:
        >>> HardNegativeAccuracy().compute(positives=[0.5], negatives=[[0.4]], kinds=[["colour"]])["accuracy"]
        1.0
    """

    summary = "Share of regions whose phrase scores higher than all of its hard negatives, by kind."
    columns = {"positives": SCORE, "negatives": datasets.List(SCORE), "kinds": datasets.List(NAME)}

    def _compute(self, positives, negatives, kinds):
        return score_hard_negatives(np.asarray(positives), negatives, kinds)


class ChoiceAccuracy(_Module):
    """`score_choices`: add scores of options as `predictions`, right ones as `references`, and `subjects`.

    Args:
        **kwargs: as for any `evaluate.Metric`.

    Example:
        >>> ChoiceAccuracy().compute(predictions=[[0.1, 0.9]], references=[1], subjects=["x"])["accuracy"]
        1.0
    """

    summary = "Share of questions whose right option scores higher than every other, by subject."
    columns = {"predictions": datasets.List(SCORE), "references": INDEX, "subjects": NAME}

    def _compute(self, predictions, references, subjects):
        return score_choices(predictions, references, subjects)


class LocalizationFigures(_Module):
    """`score_localization`, means over maps: add `maps` and, as `references`, the polygons of each.

    Args:
        stride: side of a cell of the maps, in pixels of the picture.
        **kwargs: as for any `evaluate.Metric`.

    Example:
        >>> corner = [[[0, 0], [50, 0], [50, 50], [0, 50]]]
        >>> metric = LocalizationFigures(stride=50)
        >>> metric.compute(maps=[[[1.0, 0.0], [0.0, 0.0]]], references=[corner])["rsu"]
        1.0
    """

    summary = "Rsu, Ras, Rda and Rmi of maps of scores, 0 to 1, against polygons."
    columns = {
        "maps": datasets.List(datasets.List(SCORE)),
        "references": datasets.List(datasets.List(datasets.List(SCORE))),
    }

    def __init__(self, stride: int = 1, **kwargs):
        self.stride = stride
        super().__init__(**kwargs)

    def _compute(self, maps, references):
        figures = []
        for values, polygons in zip(map(np.asarray, maps), references, strict=True):
            truth = polygons_to_truth(polygons, values.shape, self.stride)
            figures.append(score_localization(values, truth, self.stride))
        return {name: float(np.mean([of_map[name] for of_map in figures])) for name in figures[0]}


class PatchCoherence(_Module):
    """`measure_coherence`: add dense maps of one size, each (D, h, w), as `predictions`.

    Args:
        **kwargs: as for any `evaluate.Metric`.

    Example:
        >>> PatchCoherence().compute(predictions=[[[[1.0, 1.0], [1.0, 1.0]]]])["coherence"]
        0.0
    """

    summary = "How much more alike neighbouring patches are than any two of an image."
    columns = {"predictions": datasets.List(datasets.List(datasets.List(SCORE)))}

    def _compute(self, predictions):
        return measure_coherence(np.asarray(predictions))


class EmbeddingDrift(_Module):
    """`measure_drift`: add embeddings as `predictions`, those of the starting model as `references`.

    Args:
        **kwargs: as for any `evaluate.Metric`.

    Example:
        >>> EmbeddingDrift().compute(predictions=[[0.0, 1.0]], references=[[0.0, 1.0]])["cosine_to_start"]
        1.0
    """

    summary = "Cosine of embeddings to those of the model that training started from."
    columns = {"predictions": datasets.List(SCORE), "references": datasets.List(SCORE)}

    def _compute(self, predictions, references):
        return measure_drift(np.asarray(predictions), np.asarray(references))
