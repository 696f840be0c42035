"""Calibrated scores: a temperature and a bias of the background, fitted on boxes that are known."""

from collections.abc import Iterable

import torch
from torch.nn.functional import nll_loss

from ..model.detection_geoalign_clip import Vocabulary, measure_box_ious, score_labels
from .proposals import Proposals

OBJECT_IOU, BACKGROUND_IOU = 0.5, 0.3  # a proposal between the two is neither
LEAST_PROBABILITY = 1e-12


def match_proposals(proposals: Proposals, boxes: torch.Tensor, labels: torch.Tensor, num_labels: int):
    """Say for each proposal what it shows.

    Args:
        proposals: R proposals of one image.
        boxes: (N, 4), ground truth, xyxy.
        labels: (N,), numbers of their labels.
        num_labels: C, which stands for the background.

    Returns:
        (R,): the label of the box that overlaps most, C if none overlaps by `BACKGROUND_IOU`, and -100 if the
        overlap is between that and `OBJECT_IOU`.
    """
    if not len(boxes):
        return torch.full((len(proposals),), num_labels)
    overlaps, nearest = measure_box_ious(proposals.boxes, boxes.double()).max(dim=1)
    targets = torch.where(overlaps >= OBJECT_IOU, labels[nearest], num_labels)
    return torch.where((overlaps >= BACKGROUND_IOU) & (overlaps < OBJECT_IOU), -100, targets)


def fit_calibration(
    parts: Iterable[tuple[torch.Tensor, torch.Tensor]], vocabulary: Vocabulary
) -> dict[str, float]:
    """Fit a temperature and a bias of the background, so that scores are probabilities.

    Both minimise the negative log-likelihood of the targets. Without words for the background only the
    temperature is fitted, on the proposals that are objects.

    Args:
        parts: for each image logits (R, W) and targets (R,), as `match_proposals` gives them.
        vocabulary: the W words.

    Returns:
        `temperature` and `background_bias`, options of `DetectionOptions`.

    Raises:
        ValueError: if no proposal is an object.

    Source:
        Temperature scaling, https://arxiv.org/abs/1706.04599.
    """
    logits, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    num_labels = len(vocabulary.labels)
    has_background = max(vocabulary.owners) == num_labels
    used = targets != -100 if has_background else (targets != -100) & (targets < num_labels)
    logits, targets = logits[used].double(), targets[used]
    if not (targets < num_labels).any():
        raise ValueError(
            f"None of the {len(targets)} proposals overlaps an object by {OBJECT_IOU} or more, so there is "
            "nothing to fit. Give better proposals or more images."
        )
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature, bias], max_iter=200, line_search_fn="strong_wolfe")

    def measure() -> torch.Tensor:
        scores = score_labels(logits, vocabulary, log_temperature.exp(), bias)
        if has_background:
            scores = torch.cat([scores, 1 - scores.sum(dim=1, keepdim=True)], dim=1)
        return nll_loss(scores.clamp(min=LEAST_PROBABILITY).log(), targets)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = measure()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(step)
    return {"temperature": log_temperature.exp().item(), "background_bias": bias.item()}
