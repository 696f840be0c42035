"""Accuracies of concepts that are predicted for scenes or regions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .checks import check_indices, check_lengths, check_names, check_numbers, mean

# COCO's bounds on the area of a box, in pixels of the image as given.
SIZE_BOUNDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}


def rank_concepts(scores: ArrayLike, k: int = 5) -> np.ndarray:
    """Find the best concepts of each row of scores.

    Args:
        scores: (N, C).
        k: number of concepts. With k or fewer concepts in all, the top k would always be correct; then only
            the best one is returned.

    Returns:
        (N, k) or (N, 1), indices of concepts, best first. Among equal scores the first concept wins.

    Raises:
        ValueError: if `scores` has another shape, is empty, or holds NaN.

    Example:
        >>> rank_concepts([[0.1, 0.9, 0.5]], k=2).tolist()
        [[1, 2]]
    """
    scores = check_numbers(scores, "scores", 2)
    k = k if scores.shape[1] > k else 1
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def score_concepts(
    predictions: ArrayLike, references: ArrayLike, concepts: Sequence[str], noun: str = "scenes"
) -> dict:
    """Score the concepts that are predicted for scenes, or for other things with one concept each.

    Args:
        predictions: (N,), index into `concepts` of the best one for each scene; or (N, k), best first.
        references: (N,), index of the correct concept.
        concepts: C names.
        noun: word for what is counted.

    Returns:
        `top1_micro`, the accuracy; `top1_macro`, the mean of the accuracies of the concepts that occur; with
        k of 5 or more also `top5_micro` and `top5_macro`; `per_concept`, accuracies by name; and the counts
        `num_<noun>` and `num_per_concept`.

    Raises:
        ValueError: if there is nothing to score, lengths differ, an entry is not an index, or a name occurs
            twice.

    Example:
        >>> score_concepts([0, 0, 1], [0, 1, 1], ["port", "park"])["top1_macro"]
        0.75
    """
    predictions, references = _check_predictions(predictions, references, len(concepts))
    check_names(concepts, "concepts")
    is_hit = predictions == references[:, None]  # (N, k)
    members = {name: references == c for c, name in enumerate(concepts)}
    members = {name: member for name, member in members.items() if member.any()}
    scores = {}
    for k in (1, 5) if is_hit.shape[1] >= 5 else (1,):
        is_correct = is_hit[:, :k].any(axis=1)
        accuracies = {name: float(is_correct[member].mean()) for name, member in members.items()}
        scores |= {f"top{k}_micro": float(is_correct.mean()), f"top{k}_macro": mean(accuracies.values())}
        if k == 1:
            per_concept = accuracies
    return scores | {
        f"num_{noun}": len(references),
        "per_concept": per_concept,
        "num_per_concept": {name: int(member.sum()) for name, member in members.items()},
    }


def score_regions(
    predictions: ArrayLike, references: ArrayLike, concepts: Sequence[str], areas: ArrayLike | None = None
) -> dict:
    """Score the concepts that are predicted for regions.

    Args:
        predictions: (N,), index into `concepts` of the best one for each region; or (N, k), best first.
        references: (N,), index of the correct one.
        concepts: C names.
        areas: (N,), areas of the boxes in square pixels of the image as given. None omits the scores by size.

    Returns:
        The scores of `score_concepts`; with `areas` also `by_size`, top-1 accuracies by the names of
        `SIZE_BOUNDS`, and `num_by_size`.

    Raises:
        ValueError: as `score_concepts`, or if an area is negative.

    Example:
        >>> scores = score_regions([0, 0, 1], [0, 1, 1], ["ship", "bridge"], areas=[100, 400, 2000])
        >>> scores["by_size"]
        {'small': 0.5, 'medium': 1.0}
    """
    scores = score_concepts(predictions, references, concepts, "regions")
    if areas is None:
        return scores
    areas = check_numbers(areas, "areas", 1)
    check_lengths(areas=areas, references=references)
    if (areas < 0).any():
        raise ValueError(f"areas[{int(areas.argmin())}] is {areas.min()}; an area cannot be negative.")
    is_correct = np.asarray(predictions).reshape(len(areas), -1)[:, 0] == np.asarray(references)
    sizes = {name: (low <= areas) & (areas < high) for name, (low, high) in SIZE_BOUNDS.items()}
    scores["by_size"] = {name: float(is_correct[size].mean()) for name, size in sizes.items() if size.any()}
    scores["num_by_size"] = {name: int(size.sum()) for name, size in sizes.items()}
    return scores


def count_confusions(predictions: ArrayLike, references: ArrayLike, num_concepts: int) -> np.ndarray:
    """Count how often each concept was predicted for each other.

    Args:
        predictions: (N,), the best concept of each thing; or (N, k), best first.
        references: (N,), the correct one.
        num_concepts: C.

    Returns:
        (C, C), counts; one row per correct concept, one column per prediction.

    Raises:
        ValueError: if there is nothing to count, lengths differ, or an entry is not an index.

    Example:
        >>> count_confusions([0, 0, 1], [0, 1, 1], 2).tolist()
        [[1, 0], [1, 1]]
    """
    predictions, references = _check_predictions(predictions, references, num_concepts)
    counts = np.zeros((num_concepts, num_concepts), dtype=np.int64)
    np.add.at(counts, (references, predictions[:, 0]), 1)
    return counts


def _check_predictions(
    predictions: ArrayLike, references: ArrayLike, num_concepts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Check both; predictions come back as (N, k)."""
    references = check_indices(references, "references", num_concepts, 1)
    predictions = check_indices(predictions, "predictions", num_concepts, 1, 2)
    check_lengths(predictions=predictions, references=references)
    return predictions.reshape(len(references), -1), references
