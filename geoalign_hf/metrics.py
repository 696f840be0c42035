"""Arrays to numbers: pure functions, each also in the dress of an `evaluate.Metric`."""

import datasets
import evaluate
import numpy as np

# COCO's bounds on the area of a box, in pixels of the image as given.
SIZE_BOUNDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}


def score_regions(
    predictions: np.ndarray, references: np.ndarray, concepts: list[str], areas: np.ndarray | None = None
) -> dict:
    """Score the concepts predicted for regions.

    Args:
        predictions: (N,), index into `concepts` of the best one for each region.
        references: (N,), index of the right one.
        concepts: C names.
        areas: (N,), of the boxes, in pixels of the image as given; None leaves out the scores by size.

    Returns:
        `top1_micro`, the share of regions that are right; `top1_macro`, the mean over the concepts that occur
        of each one's share; `per_concept` and `by_size`, shares by name; and counts: `num_regions`,
        `num_per_concept`, `num_by_size`. Shares are in [0, 1].

    Raises:
        ValueError: if there are no regions, or lengths differ.

    Example:
        >>> score_regions(np.array([0, 0, 1]), np.array([0, 1, 1]), ["ship", "bridge"])["top1_macro"]
        0.75
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    areas = None if areas is None else np.asarray(areas)
    if len(references) == 0:
        raise ValueError("there are no regions to score. Give rows that have boxes.")
    if predictions.shape != references.shape or (areas is not None and len(areas) != len(references)):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references differ in number"
            f"{'' if areas is None else f', or from the {len(areas)} areas'}. Give one per region."
        )
    for i, reference in enumerate(references.tolist()):
        if not 0 <= reference < len(concepts):
            raise ValueError(
                f"references[{i}] is {reference}, which is no index into the {len(concepts)} concepts. "
                f"Give 0 to {len(concepts) - 1}."
            )
    is_right = predictions == references
    members = {name: references == c for c, name in enumerate(concepts)}
    members = {name: member for name, member in members.items() if member.any()}
    per_concept = {name: float(is_right[member].mean()) for name, member in members.items()}
    scores = {
        "top1_micro": float(is_right.mean()),
        "top1_macro": float(np.mean(list(per_concept.values()))),
        "num_regions": len(references),
        "per_concept": per_concept,
        "num_per_concept": {name: int(member.sum()) for name, member in members.items()},
    }
    if areas is not None:
        sizes = {name: (low <= areas) & (areas < high) for name, (low, high) in SIZE_BOUNDS.items()}
        scores["by_size"] = {name: float(is_right[size].mean()) for name, size in sizes.items() if size.any()}
        scores["num_by_size"] = {name: int(size.sum()) for name, size in sizes.items()}
    return scores


class RegionAccuracy(evaluate.Metric):
    """`score_regions` for those who work with `evaluate`: add batches, then compute. Needs no download.

    Args:
        concepts: C names, in the order of the indices.
        **kwargs: as for any `evaluate.Metric`.
    """

    def __init__(self, concepts: list[str], **kwargs):
        self.concepts = concepts
        super().__init__(**kwargs)

    def _info(self):
        index = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Top-1 accuracy of concepts predicted for regions, micro and macro.",
            citation="",
            inputs_description="predictions and references: indices into the concepts",
            features=datasets.Features({"predictions": index, "references": index}),
        )

    def _compute(self, predictions, references):
        return score_regions(np.asarray(predictions), np.asarray(references), self.concepts)
