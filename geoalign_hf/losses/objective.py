"""Embeddings to named loss terms, over the regions and texts of all processes.

What enters are the embeddings of this process's batch and its index and id tensors; what leaves is a
dictionary of scalars, the unweighted terms by name and their weighted sum `loss`. Everything is float32.
"""

from dataclasses import dataclass, field, fields

import torch
from torch.nn.functional import cosine_similarity, normalize

from .contrastive import (
    align_distributions,
    contrast_concepts,
    contrast_negatives,
    contrast_pairs,
    full_precision,
    local_mean,
)
from .distributed import count_processes, get_rank, sum_over_processes


def _weight(default: float, what: str):
    return field(default=default, metadata={"help": f"weight of: {what}"})


@dataclass(frozen=True)
class LossWeights:
    """What each term of the objective weighs; a term of weight 0 is not computed.

    Visual consistency has two terms, `crop_consistency` and `image_consistency`.

    Args:
        scene: whole image against its caption.
        description: whole image against its long description.
        region: region against its phrase.
        concept: region, pooled from the whole image, against the concepts of the batch.
        crop_concept: the same for the region's own crop, embedded as an image.
        hard_negative: region against its phrase and that phrase's hard negatives.
        crop_consistency: region pooled from the whole image against the same ground in a crop of its own.
        image_consistency: the mean of an image's regions against the image, in what they are near to.
        text_consistency: description against the mean of its caption, phrases and concepts, likewise.
    """

    scene: float = _weight(1.0, "image against caption")
    description: float = _weight(1.0, "image against long description")
    region: float = _weight(0.1, "region against phrase")
    concept: float = _weight(0.5, "region against the batch's concepts")
    crop_concept: float = _weight(0.0, "crop of a region against the batch's concepts")
    hard_negative: float = _weight(0.5, "region's phrase against its hard negatives")
    crop_consistency: float = _weight(0.1, "region in the image against the same in its own crop")
    image_consistency: float = _weight(0.02, "mean of an image's regions against the image")
    text_consistency: float = _weight(0.0, "description against the mean of its parts")

    def __post_init__(self):
        for term in fields(self):
            weight = getattr(self, term.name)
            if not weight >= 0:
                raise ValueError(f"the loss weight {term.name} is {weight}; it must be at least 0.")

    @property
    def text_kinds(self) -> frozenset[str]:
        """Name the kinds of text that some term reads; no other need be encoded."""
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
        """Say whether some term reads crops of regions."""
        return self.crop_consistency + self.crop_concept > 0


_OFF = dict.fromkeys((term.name for term in fields(LossWeights)), 0.0)
# The peers' objectives as far as they are public, for side-by-side runs of one model on the same data.
PRESETS = {
    "geoalign": LossWeights(),
    # https://arxiv.org/abs/2103.00020, with the description as a second caption
    "clip": LossWeights(**_OFF | {"scene": 1.0, "description": 1.0}),
    # https://arxiv.org/abs/2505.05071; there each term has a scale of its own, and regions of one process
    "fg_clip": LossWeights(**_OFF | {"scene": 1.0, "description": 1.0, "region": 0.1, "hard_negative": 0.5}),
    # https://arxiv.org/abs/2511.14901, its two stages in one: crops against concepts, patches against patches
    "far_slip": LossWeights(
        **_OFF | {"scene": 1.0, "description": 1.0, "crop_concept": 1.0, "crop_consistency": 0.1}
    ),
}


def compute_losses(
    output,
    batch: dict[str, torch.Tensor],
    weights: LossWeights,
    crop_embeds: torch.Tensor | None = None,
    target_embeds: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Compute every term that weighs something.

    Args:
        output: has `image_embeds` (B, D), `region_embeds` (B, R, D), `text_embeds` (N, D), `logit_scale` and
            `region_logit_scale`, as a `GeoAlignCLIPOutput` of this process's batch has.
        batch: as `RowCollator` makes it.
        weights: of the terms.
        crop_embeds: (Q, D), the crops of the regions `batch["crop_index"]` as images; for `crop_concept`.
        target_embeds: (Q, D), the regions pooled from those crops by a teacher; for `crop_consistency`.

    Returns:
        The terms by name, unweighted and without gradient, and `loss`, their weighted sum, which has it; ()
        each, float32, equal on all processes.

    Raises:
        ValueError: if a term weighs something whose crops are not given.
    """
    for name, embeds in (("crop_concept", crop_embeds), ("crop_consistency", target_embeds)):
        if getattr(weights, name) and embeds is None:
            raise ValueError(
                f"{name} weighs {getattr(weights, name)}, but its crops are not given. Pass them."
            )
    with full_precision(batch["concept_ids"]):
        shares, loss = _compute_shares(output, batch, weights, crop_embeds, target_embeds)
    if not shares:
        return {"loss": loss}
    loss = count_processes() * sum((getattr(weights, name) * share for name, share in shares.items()), loss)
    terms = dict(zip(shares, sum_over_processes(torch.stack(list(shares.values()))), strict=True))
    total = sum(getattr(weights, name) * term for name, term in terms.items())
    return terms | {"loss": loss + (total - loss).detach()}  # this process's gradient, everybody's value


def _compute_shares(output, batch, weights, crop_embeds, target_embeds) -> tuple[dict, torch.Tensor]:
    """Compute this process's share of every term, and a zero that everything it was given takes part in."""
    images, regions, texts = (  # autocast may have left them a little off unit length
        normalize(getattr(output, f"{name}_embeds").float(), dim=-1) for name in ("image", "region", "text")
    )
    scale, region_scale = output.logit_scale.float(), output.region_logit_scale.float()
    regions_flat, concept_ids = regions.flatten(0, 1), batch["concept_ids"].flatten()
    if weights.concept + weights.crop_concept + weights.text_consistency:
        concepts = normalize(texts[batch["concept_index"]].mean(dim=-2), dim=-1)  # (B, R, D)

    shares = {}
    if weights.scene:
        captions = texts[batch["caption_index"]]
        shares["scene"] = contrast_pairs(images, captions, batch["caption_ids"].unsqueeze(-1), scale)
    if weights.description:
        descriptions = texts[batch["description_index"]]
        ids = batch["description_ids"].unsqueeze(-1)
        shares["description"] = contrast_pairs(images, descriptions, ids, scale)
    if weights.region:
        phrases = texts[batch["phrase_index"]].flatten(0, 1)
        ids = torch.stack([batch["phrase_ids"].flatten(), concept_ids], dim=-1)
        shares["region"] = contrast_pairs(regions_flat, phrases, ids, region_scale)
    if weights.concept:
        shares["concept"] = contrast_concepts(regions_flat, concepts.flatten(0, 1), concept_ids, region_scale)
    if weights.crop_concept:
        index = batch["crop_index"]
        crops = torch.zeros_like(regions_flat).index_copy(0, index, crop_embeds.float())
        ids = torch.full_like(concept_ids, -100).index_copy(0, index, concept_ids[index])
        shares["crop_concept"] = contrast_concepts(crops, concepts.flatten(0, 1), ids, scale)
    if weights.hard_negative:
        without_phrase = (batch["phrase_ids"] < 0).unsqueeze(-1)
        negatives = batch["negative_index"].masked_fill(without_phrase, -100)
        shares["hard_negative"] = contrast_negatives(
            regions, texts, batch["phrase_index"], negatives, region_scale
        )
    if weights.crop_consistency:
        cosines = cosine_similarity(regions_flat[batch["crop_index"]], target_embeds.float(), dim=-1)
        shares["crop_consistency"] = local_mean(1 - cosines)
    if weights.image_consistency:
        has_parts = batch["region_mask"].any(dim=1)
        aggregates = normalize((regions * batch["region_mask"].unsqueeze(-1)).sum(dim=1), dim=-1)
        numbers = torch.arange(len(images), device=images.device) + get_rank() * len(images)
        # The image itself is led by words alone: moved by its regions, too, it lost retrieval and regions.
        shares["image_consistency"] = align_distributions(
            images.detach(), aggregates, numbers, has_parts, scale
        )
    if weights.text_consistency:
        descriptions, ids = texts[batch["description_index"]], batch["description_ids"]
        aggregates, has_parts = _aggregate_texts(texts, concepts, batch)
        shares["text_consistency"] = align_distributions(
            descriptions, aggregates, ids, has_parts & (ids >= 0), scale
        )

    # A process whose batch leaves some output unused still takes part in every gradient.
    nothing = 0 * (images.sum() + regions.sum() + texts.sum() + scale + region_scale)
    return shares, nothing if crop_embeds is None else nothing + 0 * crop_embeds.sum()


def _aggregate_texts(texts, concepts, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Average caption, phrases and concepts of each image: (B, D) unit vectors, and which have any, (B,)."""
    parts = torch.cat(
        [texts[batch["caption_index"]].unsqueeze(1), texts[batch["phrase_index"]], concepts], dim=1
    )
    is_real = (
        torch.cat([batch["caption_ids"].unsqueeze(1), batch["phrase_ids"], batch["concept_ids"]], dim=1) >= 0
    )  # (B, 1 + 2 R)
    return normalize((parts * is_real.unsqueeze(-1)).sum(dim=1), dim=-1), is_real.any(dim=1)
