"""The training objective: weights of its terms, presets, and the function that computes the loss.

Each term is one function in `terms.py`, which documents what it does, the columns it needs and its cost.
"""

from dataclasses import dataclass, fields

import torch
from torch.nn.functional import normalize

from ..options import option
from .contrastive import full_precision
from .distributed import count_processes, sum_over_processes
from .terms import TERMS, TermInputs


def _weight(default: float, comparison: str) -> float:
    return option(default=default, help=f"Weight of the term that compares {comparison}.")


@dataclass(frozen=True)
class LossWeights:
    """The weight of each term of the objective. A term of weight 0 is not computed.

    The defaults are for windows around regions and fresh weights. The concept term must lead: with equal
    weights on images and phrases a small model learns regions more slowly (docs/results.md). Consistency and
    the long description are off, since no measurement showed a gain.

    The functions in `geoalign_hf.losses.terms` document the terms: the columns of a row that each needs, when
    to use it, what it costs, and its source.

    Args:
        scene: whole image against its caption.
        description: whole image against its long description.
        region: region, pooled from the whole image, against its phrase.
        concept: region, pooled from the whole image, against all concepts of the vocabulary or the batch.
        crop_concept: crop of a region, embedded as an image, against the same concepts.
        hard_negative: region against its phrase and the hard negatives of that phrase.
        crop_consistency: region pooled from the whole image against the same region pooled from its crop.
        image_consistency: similarity distribution of an image against that of the mean of its regions.
        text_consistency: similarity distribution of a description against that of the mean of its caption,
            phrases and concepts.

    Raises:
        ValueError: if a weight is negative or NaN.

    Example:
        >>> LossWeights(concept=1.0).text_kinds >= {"caption", "concept"}
        True
    """

    _argument_group_name = "loss weights"

    scene: float = _weight(0.1, "an image with its caption")
    description: float = _weight(0.0, "an image with its long description")
    region: float = _weight(0.1, "a region with its phrase")
    concept: float = _weight(1.0, "a region with all concepts")
    crop_concept: float = _weight(0.0, "the crop of a region with all concepts")
    hard_negative: float = _weight(0.1, "a region with its phrase and the hard negatives of that phrase")
    crop_consistency: float = _weight(0.0, "a region in the image with the same region in its crop")
    image_consistency: float = _weight(0.0, "an image with the mean of its regions")
    text_consistency: float = _weight(0.0, "a description with the mean of the row's other texts")

    def __post_init__(self):
        for term in fields(self):
            weight = getattr(self, term.name)
            if not weight >= 0:
                raise ValueError(
                    f"the loss weight {term.name} is {weight}; it must be at least 0, which switches the "
                    "term off."
                )

    @property
    def text_kinds(self) -> frozenset[str]:
        """Return the kinds of text that some term reads. Other texts need not be encoded."""
        readers = {
            "caption": self.scene + self.text_consistency,
            "description": self.description + self.text_consistency,
            "phrase": self.region + self.hard_negative + self.text_consistency,
            "concept": self.concept + self.crop_concept + self.text_consistency,
            "negative": self.hard_negative,
        }
        return frozenset(kind for kind, weight in readers.items() if weight)

    @property
    def reads_crops(self) -> bool:
        """Return whether some term reads crops of regions."""
        return self.crop_consistency + self.crop_concept > 0


_OFF = dict.fromkeys((term.name for term in fields(LossWeights)), 0.0)
# The objectives of the peers as far as they are public, to compare them with one model on the same data.
PRESETS = {
    "geoalign": LossWeights(),
    # https://arxiv.org/abs/2103.00020, with the description as a second caption
    "clip": LossWeights(**_OFF | {"scene": 1.0, "description": 1.0}),
    # https://arxiv.org/abs/2505.05071, where each term has its own scale and regions are of one process
    "fg_clip": LossWeights(**_OFF | {"scene": 1.0, "description": 1.0, "region": 0.1, "hard_negative": 0.5}),
    # https://arxiv.org/abs/2511.14901, its two stages in one: crops against concepts, patches against patches
    "far_slip": LossWeights(
        **_OFF | {"scene": 1.0, "description": 1.0, "crop_concept": 1.0, "crop_consistency": 0.1}
    ),
}


def compute_losses(
    output,
    batch: dict[str, torch.Tensor],
    loss_weights: LossWeights,
    crop_embeds: torch.Tensor | None = None,
    target_embeds: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Compute every term that has a weight, over the batches of all processes, in float32.

    Args:
        output: `GeoAlignCLIPOutput` of this process's batch, or any object with `image_embeds` (B, D),
            `region_embeds` (B, R, D), `text_embeds` (N, D), `logit_scale` and `region_logit_scale`.
        batch: batch of this process, as `RowCollator` makes it.
        loss_weights: the weights of the terms.
        crop_embeds: (Q, D), the crops of the regions `batch["crop_index"]`, embedded as images; for
            `crop_concept`.
        target_embeds: (Q, D), the regions pooled from those crops by a teacher; for `crop_consistency`.
        label_smoothing: the part of a region's target that is spread evenly over all concepts, in [0, 1]; for
            `concept` and `crop_concept`.

    Returns:
        The terms by name, unweighted and without gradient, and `loss`, their weighted sum, with gradient;
        each a float32 scalar that is equal on all processes.

    Raises:
        ValueError: if a term on crops has a weight, but its crops are not passed.
    """
    for name, argument, embeds in (
        ("crop_concept", "crop_embeds", crop_embeds), ("crop_consistency", "target_embeds", target_embeds)
    ):  # fmt: skip
        if getattr(loss_weights, name) and embeds is None:
            raise ValueError(
                f"the loss weight {name} is {getattr(loss_weights, name)}, but {argument} is None. Pass the "
                f"embeddings of the crops, or set {name} to 0."
            )
    with full_precision(batch["concept_ids"]):
        inputs = _prepare_inputs(output, batch, crop_embeds, target_embeds, label_smoothing)
        local = {name: term(inputs) for name, term in TERMS.items() if getattr(loss_weights, name)}
        # A process whose batch does not use some output still takes part in the gradient of all of them.
        tensors = (inputs.images, inputs.regions, inputs.texts, inputs.scale, inputs.region_scale)
        zero = 0 * torch.stack([tensor.sum() for tensor in tensors]).sum()
        zero = zero if inputs.crops is None else zero + 0 * inputs.crops.sum()
    if not local:
        return {"loss": zero}
    local_loss = sum((getattr(loss_weights, name) * term for name, term in local.items()), zero)
    terms = dict(zip(local, sum_over_processes(torch.stack(list(local.values()))), strict=True))
    total = sum(getattr(loss_weights, name) * term for name, term in terms.items())
    loss = count_processes() * local_loss
    return terms | {"loss": loss + (total - loss).detach()}  # the value of all processes, the local gradient


def _prepare_inputs(output, batch, crop_embeds, target_embeds, label_smoothing) -> TermInputs:
    images, regions, texts = (  # autocast may have left them slightly off unit length
        normalize(getattr(output, f"{name}_embeds").float(), dim=-1) for name in ("image", "region", "text")
    )
    return TermInputs(
        images,
        regions,
        texts,
        output.logit_scale.float(),
        output.region_logit_scale.float(),
        batch,
        None if crop_embeds is None else crop_embeds.float(),
        None if target_embeds is None else target_embeds.float(),
        label_smoothing,
    )
