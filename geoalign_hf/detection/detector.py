"""The detector: names proposals with labels, and suppresses overlaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image

from ..embedding.embedder import Embedder
from ..embedding.templates import TEMPLATE_SETS, resolve_templates
from ..model.detection_geoalign_clip import (
    build_vocabulary,
    choose_detections,
    measure_box_ious,
    score_labels,
)
from ..options import option
from .overlap import measure_quad_ious
from .peaks import propose_peaks
from .proposals import Proposals, join_proposals, propose_grid


@dataclass(frozen=True)
class DetectionOptions:
    """How proposals are made where none are given, scored and chosen. Also options of the command line.

    The score of a region and a label is `objectness ** objectness_weight * probability`. The probability is
    the softmax over the labels and the background of the logits divided by `temperature`.
    """

    _argument_group_name = "detection"

    proposer: Literal["grid", "peaks", "both"] = option(
        default="grid",
        help="Source of proposals if there is no file of them: a grid of windows, peaks of the dense map, or "
        "both.",
    )
    sides: list[float] | None = option(
        default=None,
        help="Sides of the grid's windows, in pixels. By default, 1/16, 1/8, 1/4 and 1/2 of the image's "
        "longer side.",
    )
    overlap: float = option(default=0.5, help="Part of a side that neighbouring windows of the grid share.")
    background_labels: list[str] | None = option(
        default=None, help="Words for what is not an object. By default, five general words."
    )
    templates: str = option(
        default="geoalign", help="Template set that labels are put into.", choices=TEMPLATE_SETS
    )
    objectness_weight: float = option(
        default=1.0, help="Exponent of the objectness in the score; 0 ignores the objectness."
    )
    temperature: float = option(
        default=1.0, help="Number that divides the logits. Above 1, the scores become more even."
    )
    background_bias: float = option(default=0.0, help="Number that is added to the logit of the background.")
    threshold: float = option(default=0.1, help="Smallest score of a detection.")
    max_iou: float = option(default=0.5, help="Largest overlap of two detections of one label.")
    top_k: int = option(default=100, help="Largest number of detections per image.")

    def __post_init__(self):
        resolve_templates(self.templates)
        if self.temperature <= 0 or self.objectness_weight < 0 or self.top_k < 1:
            raise ValueError(
                f"temperature is {self.temperature}, objectness_weight {self.objectness_weight} and top_k "
                f"{self.top_k}; expected numbers above 0, of at least 0, and of at least 1."
            )
        if not (0 <= self.threshold <= 1 and 0 <= self.max_iou <= 1):
            raise ValueError(
                f"threshold is {self.threshold} and max_iou {self.max_iou}; both must lie between 0 and 1."
            )


@dataclass
class Detections:
    """The detections of one image, best first.

    Args:
        boxes: (N, 4), xyxy pixels of the image as given.
        labels: (N,), numbers of the labels.
        scores: (N,), in [0, 1].
        quads: (N, 4, 2), if the proposals were oriented boxes.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor
    quads: torch.Tensor | None = None


@dataclass(eq=False)
class Detector:
    """Detects objects: names the proposals of an image with labels.

    Args:
        embedder: a model and its processor. A stock CLIP can name proposals and grids, but has no peaks.
        labels: C names.
        options: settings of the detection, see `DetectionOptions`.
        synonyms: further words for some of the labels.

    Raises:
        ValueError: if the labels are empty or repeated, see `build_vocabulary`.

    Example:
        `Detector(embedder, ["ship", "car"])(image)` gives the detections of an image.
    """

    embedder: Embedder
    labels: Sequence[str]
    options: DetectionOptions = field(default_factory=DetectionOptions)
    synonyms: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self):
        self.vocabulary = build_vocabulary(self.labels, self.synonyms, self.options.background_labels)
        self.word_embeds = self.embedder.embed_concepts(self.vocabulary.words, self.options.templates)
        self.scale = find_region_scale(self.embedder.model)

    def __call__(self, image: Image.Image, proposals: Proposals | None = None) -> Detections:
        """Detect the objects of an image.

        Args:
            image: the image.
            proposals: regions to name. None makes them by `options.proposer`.
        """
        options = self.options
        proposals = self.propose(image) if proposals is None else proposals
        scores = self.score(self.compare(image, proposals), proposals.objectness)
        is_oriented = proposals.quads is not None
        found, labels = choose_detections(
            proposals.quads if is_oriented else proposals.boxes,
            scores,
            options.threshold,
            options.max_iou,
            options.top_k,
            measure_quad_ious if is_oriented else measure_box_ious,
        )
        quads = proposals.quads[found] if is_oriented else None
        return Detections(proposals.boxes[found], labels, scores[found, labels], quads)

    def propose(self, image: Image.Image) -> Proposals:
        """Make proposals for an image, as `options.proposer` says."""
        options, made = self.options, []
        if options.proposer in ("grid", "both"):
            made.append(propose_grid(image.size, options.sides, options.overlap))
        if options.proposer in ("peaks", "both"):
            calibration = {"temperature": options.temperature, "background_bias": options.background_bias}
            peaks = propose_peaks(self.embedder, image, self.vocabulary, self.word_embeds, **calibration)
            made.append(peaks)
        return made[0] if len(made) == 1 else join_proposals(*made)

    def compare(self, image: Image.Image, proposals: Proposals) -> torch.Tensor:
        """Compute the logits of regions and words: (R, W), cosines times the model's scale."""
        row = {"image": image, "boxes": proposals.boxes.tolist()}
        if proposals.quads is not None:
            row["quads"] = proposals.quads.tolist()
        form = "boxes" if proposals.quads is None else "quads"
        source = None if hasattr(self.embedder.model, "embed_regions") else "crop"
        return self.embedder.embed_regions([row], source, form=form) @ self.word_embeds.T * self.scale

    def score(self, logits: torch.Tensor, objectness: torch.Tensor | None) -> torch.Tensor:
        """Compute the scores of labels, (R, C), from logits, (R, W), and objectness, (R,), or 1."""
        options = self.options
        scores = score_labels(logits, self.vocabulary, options.temperature, options.background_bias)
        return scores if objectness is None else objectness[:, None] ** options.objectness_weight * scores


def find_region_scale(model) -> float:
    """Find the factor on the cosines of regions and texts: CLIP's own for a model without one for regions."""
    with torch.no_grad():
        scale = model.region_scale() if hasattr(model, "region_scale") else model.logit_scale.exp()
    return float(scale)
