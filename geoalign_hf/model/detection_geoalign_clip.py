# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Arithmetic of detection from proposals: windows to look at, scores of labels, suppression of overlaps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

BACKGROUND = ("background", "bare ground", "grass", "trees", "water")  # words for what is no object
SMALLEST_WINDOW = 8.0  # pixels


def list_windows(
    size: tuple[int, int], sides: Sequence[float] | None = None, overlap: float = 0.5
) -> torch.Tensor:
    """List square windows of several sizes that cover an image evenly.

    Args:
        size: (width, height) of the image.
        sides: sides of the windows in pixels. None takes 1/16, 1/8, 1/4 and 1/2 of the image's longer side.
        overlap: smallest part of a side that neighbouring windows share, in [0, 1).

    Returns:
        (R, 4), float64, xyxy pixels. A window that is larger than the image is cut to it.

    Raises:
        ValueError: if there is no side, one is not positive, or `overlap` is out of range.

    Example:
        >>> list_windows((30, 20), sides=[20]).tolist()
        [[0.0, 0.0, 20.0, 20.0], [10.0, 0.0, 30.0, 20.0]]
    """
    if sides is None:
        sides = sorted({max(max(size) / part, SMALLEST_WINDOW) for part in (16, 8, 4, 2)})
    if not len(sides) or not all(math.isfinite(side) and side > 0 for side in sides):
        raise ValueError(f"sides is {list(sides)}; expected at least one positive number of pixels.")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; expected a part of a window's side, in [0, 1).")
    windows = []
    for side in sides:
        starts, extents = [], []
        for length in size:
            extent = min(float(side), float(length))
            steps = math.ceil((length - extent) / (extent * (1 - overlap)) - 1e-9)
            starts.append(torch.linspace(0, length - extent, steps + 1, dtype=torch.float64))
            extents.append(extent)
        y, x = torch.meshgrid(starts[1], starts[0], indexing="ij")
        windows.append(torch.stack([x, y, x + extents[0], y + extents[1]], dim=-1).view(-1, 4))
    return torch.cat(windows)


class Vocabulary(NamedTuple):
    """The words that regions are compared with.

    Args:
        labels: C names that a detection can have.
        words: W words; every label is a word of its own.
        owners: for each word the number of its label, or C for a word of the background.
    """

    labels: list[str]
    words: list[str]
    owners: list[int]


def build_vocabulary(
    labels: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
    background_labels: Sequence[str] | None = None,
) -> Vocabulary:
    """Collect labels, their synonyms and the words for the background.

    Args:
        labels: C different names.
        synonyms: further words for some of the labels.
        background_labels: words for what is no object. None takes those of `BACKGROUND` that are not a label
            or a synonym; an empty list compares the labels only with each other.

    Raises:
        ValueError: if there are no labels, a word is empty or occurs twice, or synonyms are given for what is
            not a label.

    Example:
        >>> build_vocabulary(["ship", "car"], {"ship": ["vessel"]}, ["sea"])
        Vocabulary(labels=['ship', 'car'], words=['ship', 'vessel', 'car', 'sea'], owners=[0, 0, 1, 2])
    """
    lists = {"candidate_labels": labels, "background_labels": background_labels or []}
    lists |= {f"synonyms of {label!r}": others for label, others in (synonyms or {}).items()}
    for name, entries in lists.items():
        if isinstance(entries, str) or not all(isinstance(word, str) and word.strip() for word in entries):
            raise ValueError(f"{name} is {entries!r}; expected a list of words, none of them empty.")
    if not labels:
        raise ValueError("no candidate_labels are given. Pass a list of at least one label.")
    if unknown := sorted((synonyms or {}).keys() - set(labels)):
        raise ValueError(f"synonyms are given for {unknown}, which are not among the labels {list(labels)}.")
    words, owners = [], []
    for number, label in enumerate(labels):
        group = [label, *(synonyms or {}).get(label, [])]
        words, owners = words + group, owners + [number] * len(group)
    background = BACKGROUND if background_labels is None else background_labels
    background = [word for word in background if background_labels is not None or word not in words]
    words, owners = words + background, owners + [len(labels)] * len(background)
    if repeated := sorted({word for word in words if words.count(word) > 1}):
        raise ValueError(f"the words {repeated} occur more than once. Give every word to one label.")
    return Vocabulary(list(labels), words, owners)


def score_labels(
    logits: torch.Tensor, vocabulary: Vocabulary, temperature: float = 1.0, background_bias: float = 0.0
) -> torch.Tensor:
    """Compute the probability of each label for each region.

    A label is as similar as the most similar of its words, and so is the background. The probabilities of the
    labels and of the background sum to 1.

    Args:
        logits: (R, W), cosines of regions and words times the model's scale.
        vocabulary: the words.
        temperature: divisor of the logits; above 1 the probabilities become more even.
        background_bias: number that is then added to the logit of the background.

    Returns:
        (R, C).

    Raises:
        ValueError: if `temperature` is not positive.

    Example:
        >>> words = build_vocabulary(["ship"], background_labels=["sea", "land"])
        >>> score_labels(torch.tensor([[1.0, 1.0, -5.0]]), words)
        tensor([[0.5000]])
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number.")
    num_labels, owners = len(vocabulary.labels), torch.tensor(vocabulary.owners, device=logits.device)
    groups = [logits[:, owners == number].amax(dim=1) / temperature for number in range(max(owners) + 1)]
    if len(groups) > num_labels:
        groups[num_labels] = groups[num_labels] + background_bias
    return torch.stack(groups, dim=1).softmax(dim=-1)[:, :num_labels]


def measure_box_ious(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compute the intersection over union of boxes.

    Args:
        first: (N, 4), xyxy.
        second: (M, 4), xyxy.

    Returns:
        (N, M), in [0, 1].

    Example:
        >>> measure_box_ious(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        tensor([[0.3333]])
    """
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def suppress_overlaps(
    regions: torch.Tensor,
    scores: torch.Tensor,
    max_iou: float,
    measure_ious: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = measure_box_ious,
) -> torch.Tensor:
    """Choose regions greedily by score, and drop those that overlap a chosen one.

    Args:
        regions: (N, ...), boxes or what `measure_ious` takes.
        scores: (N,).
        max_iou: largest intersection over union of two chosen regions.
        measure_ious: function of two sets of regions, (N, ...) and (M, ...), that returns (N, M).

    Returns:
        indices of the chosen regions, best first; of equal scores the first comes first.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
        >>> suppress_overlaps(boxes, torch.tensor([0.3, 0.9, 0.2]), max_iou=0.5).tolist()
        [1, 2]
    """
    left = scores.sort(descending=True, stable=True).indices
    chosen = []
    while len(left):
        best, left = left[:1], left[1:]
        chosen.append(best)
        left = left[measure_ious(regions[best], regions[left])[0] <= max_iou]
    return torch.cat(chosen) if chosen else left


def choose_detections(
    regions: torch.Tensor,
    scores: torch.Tensor,
    threshold: float,
    max_iou: float,
    top_k: int | None = None,
    measure_ious: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = measure_box_ious,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the detections of an image: pairs of a region and a label. Overlaps are suppressed by label.

    Args:
        regions: (R, ...), boxes or what `measure_ious` takes.
        scores: (R, C).
        threshold: smallest score of a detection.
        max_iou: largest intersection over union of two detections of one label.
        top_k: largest number of detections of the image. None returns all.
        measure_ious: function that compares regions, see `suppress_overlaps`.

    Returns:
        (N,) indices of regions and (N,) numbers of labels, best first.
    """
    chosen = []
    for label in range(scores.shape[1]):
        candidates = (scores[:, label] >= threshold).nonzero()[:, 0]
        kept = suppress_overlaps(regions[candidates], scores[candidates, label], max_iou, measure_ious)
        chosen.append(torch.stack([candidates[kept], torch.full_like(kept, label)]))
    found, labels = torch.cat(chosen, dim=1)
    order = scores[found, labels].sort(descending=True, stable=True).indices[:top_k]
    return found[order], labels[order]
