"""The terms of the training objective, one function each.

Every function takes the same `TermInputs` and returns the local part of its term (see `contrastive.py`). N
images here means those of the batch over all processes; regions and texts are counted the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import cosine_similarity, normalize

from .contrastive import contrast_concepts, contrast_pairs, contrast_vocabulary
from .distributed import get_rank
from .per_row import align_distributions, contrast_negatives, local_mean


@dataclass
class TermInputs:
    """The embeddings of the batch of one process, float32, and its index and id tensors.

    Args:
        images: (B, D), unit vectors.
        regions: (B, R, D), unit vectors; zeros for padding.
        texts: (N, D), unit vectors.
        scale: (), the factor on cosines of images.
        region_scale: (), the factor on cosines of regions.
        batch: batch of this process, as `RowCollator` makes it.
        crops: (Q, D), the crops of the regions `batch["crop_index"]`, embedded as images.
        crop_targets: (Q, D), the regions pooled from those crops, without gradient.
        label_smoothing: spread part of the targets of the two concept terms, in [0, 1].
    """

    images: torch.Tensor
    regions: torch.Tensor
    texts: torch.Tensor
    scale: torch.Tensor
    region_scale: torch.Tensor
    batch: dict[str, torch.Tensor]
    crops: torch.Tensor | None = None
    crop_targets: torch.Tensor | None = None
    label_smoothing: float = 0.0

    @property
    def flat_regions(self) -> torch.Tensor:
        """Return the regions of all images in one list, (B * R, D)."""
        return self.regions.flatten(0, 1)

    @property
    def flat_concept_ids(self) -> torch.Tensor:
        """Return the concept ids of the same list, (B * R,)."""
        return self.batch["concept_ids"].flatten()

    @property
    def flat_broader(self) -> torch.Tensor | None:
        """Return the ids of the broader concepts of the same list, (B * R, K), if the batch has them."""
        broader = self.batch.get("concept_broader")
        return None if broader is None else broader.flatten(0, 1)

    @cached_property
    def concepts(self) -> torch.Tensor:
        """Return the concept of each region, the mean over its templates at unit length, (B, R, D)."""
        return self.embed_concepts("concept_index")

    def embed_concepts(self, name: str) -> torch.Tensor:
        """Average texts over their last index axis, the templates, and normalize the means."""
        return normalize(self.texts[self.batch[name]].mean(dim=-2), dim=-1)


def scene_term(inputs: TermInputs) -> torch.Tensor:
    """Contrast each image with its caption against all other captions and images (CLIP's own loss).

    Columns: `image` and the first of `captions`. A row without a caption is ignored, and images with equal
    captions are not negatives of each other.
    Use it: for scene classification and retrieval. It keeps a pretrained CLIP close to what it was.
    Cost: one pass of each image and caption, and N x N logits that are never held at once.

    Source:
        CLIP, https://arxiv.org/abs/2103.00020, section 2.3.
    """
    batch = inputs.batch
    captions = inputs.texts[batch["caption_index"]]
    return contrast_pairs(inputs.images, captions, batch["caption_ids"].unsqueeze(-1), inputs.scale)


def description_term(inputs: TermInputs) -> torch.Tensor:
    """Contrast each image with its long description against all other descriptions and images.

    Columns: `image` and `description`. A row without a description is ignored.
    Use it: for retrieval by detailed text. Texts longer than the text tower are cut, so use a model with
    stretched positions (`text_length=248`) where descriptions have more than 77 tokens.
    Cost: as the scene term, with longer texts.

    Source:
        Long-CLIP, https://arxiv.org/abs/2403.15378; FG-CLIP, https://arxiv.org/abs/2505.05071, section 3.1.
    """
    batch = inputs.batch
    descriptions = inputs.texts[batch["description_index"]]
    return contrast_pairs(inputs.images, descriptions, batch["description_ids"].unsqueeze(-1), inputs.scale)


def region_term(inputs: TermInputs) -> torch.Tensor:
    """Contrast each region with its phrase against all other phrases and regions.

    Regions are pooled from the patches of the whole image.

    Columns: `boxes` or `quads`, and `phrases`; `concepts` if there are any. Regions with equal phrases, of
    one concept, or of a concept and a broader one are not negatives of each other. So a phrase that several
    regions of an image share, and that therefore distinguishes none of them, is never used against them.
    Use it: to find a region by a phrase.
    Cost: one text per unique phrase, and logits of all regions by all phrases, never held at once.

    Source:
        FG-CLIP, https://arxiv.org/abs/2505.05071, section 3.1.
    """
    batch = inputs.batch
    phrases = inputs.texts[batch["phrase_index"]].flatten(0, 1)
    ids = torch.stack([batch["phrase_ids"].flatten(), inputs.flat_concept_ids], dim=-1)
    return contrast_pairs(inputs.flat_regions, phrases, ids, inputs.region_scale, inputs.flat_broader)


def concept_term(inputs: TermInputs) -> torch.Tensor:
    """Contrast each region with its concept against all other concepts.

    Regions are pooled from the patches of the whole image. The other concepts are those of the collator's
    `vocabulary`, or those of the batch if there is no vocabulary.

    Columns: `boxes` or `quads`, and `concepts`. A region without a concept is ignored. All regions of a
    concept are its positives. Concepts that are broader or narrower than that of a region, as in
    `captioning/vocabulary.yaml`, are not its negatives: a bus is a vehicle.
    Use it: for region classification. Prefer a vocabulary as long as it has at most a few hundred concepts:
    in a small batch the concepts that are easily confused rarely meet.
    Cost: T texts (templates) per concept of the vocabulary or batch, on every process.

    Source:
        Supervised contrastive learning, https://arxiv.org/abs/2004.11362; for regions FarSLIP,
        https://arxiv.org/abs/2511.14901.
    """
    return _contrast_concepts(inputs, inputs.flat_regions, inputs.flat_concept_ids, inputs.region_scale)


def crop_concept_term(inputs: TermInputs) -> torch.Tensor:
    """Contrast the crop of each region, embedded as an image, with its concept against all other concepts.

    Columns: as the concept term.
    Use it: if regions will be scored by their crops, or to train on crops as FarSLIP does.
    Cost: one pass of the vision tower per crop, with gradients; `max_crops` limits their number per image.

    Source:
        FarSLIP, https://arxiv.org/abs/2511.14901, section 3.
    """
    index, concept_ids = inputs.batch["crop_index"], inputs.flat_concept_ids
    crops = torch.zeros_like(inputs.flat_regions).index_copy(0, index, inputs.crops)
    ids = torch.full_like(concept_ids, -100).index_copy(0, index, concept_ids[index])
    return _contrast_concepts(inputs, crops, ids, inputs.scale)


def _contrast_concepts(inputs, embeds, concept_ids, scale) -> torch.Tensor:
    smoothing, broader = inputs.label_smoothing, inputs.flat_broader
    if "vocabulary_ids" not in inputs.batch:
        concepts = inputs.concepts.flatten(0, 1)
        return contrast_concepts(embeds, concepts, concept_ids, scale, smoothing, broader)
    vocabulary, ids = inputs.embed_concepts("vocabulary_index"), inputs.batch["vocabulary_ids"]
    of_vocabulary = inputs.batch.get("vocabulary_broader")
    return contrast_vocabulary(embeds, vocabulary, ids, concept_ids, scale, smoothing, broader, of_vocabulary)


def hard_negative_term(inputs: TermInputs) -> torch.Tensor:
    """Contrast each region's phrase with the hard negatives of that phrase.

    Columns: `boxes` or `quads`, `phrases` and `hard_negatives`. A region without a phrase or without hard
    negatives is ignored.
    Use it: to distinguish texts that differ in one word, such as a color, a count or a position.
    Cost: one text per unique hard negative; usually the largest part of the text tower's work.

    Source:
        FG-CLIP, https://arxiv.org/abs/2505.05071, section 3.2.
    """
    batch = inputs.batch
    has_no_phrase = (batch["phrase_ids"] < 0).unsqueeze(-1)
    negatives = batch["negative_index"].masked_fill(has_no_phrase, -100)
    return contrast_negatives(
        inputs.regions, inputs.texts, batch["phrase_index"], negatives, inputs.region_scale
    )


def crop_consistency_term(inputs: TermInputs) -> torch.Tensor:
    """Align each region, pooled from the whole image, with the same region pooled from a crop of its own.

    The term is 1 - cosine. The target has no gradient and comes from the teacher (`teacher` of the trainer).

    Columns: `boxes` or `quads`.
    Use it: for small objects in large images, whose patches carry much of their surroundings. Off by default.
    Cost: one pass of the vision tower per crop, without gradients.

    Source:
        CLIPSelf, https://arxiv.org/abs/2310.01403, and FarSLIP, https://arxiv.org/abs/2511.14901.
    """
    regions = inputs.flat_regions[inputs.batch["crop_index"]]
    return local_mean(1 - cosine_similarity(regions, inputs.crop_targets, dim=-1))


def image_consistency_term(inputs: TermInputs) -> torch.Tensor:
    """Align the similarity distributions of an image and of the mean of its regions.

    Gradients flow into the regions alone. In experiments in which the image moved too, retrieval and region
    accuracy fell.

    Columns: `image`, and `boxes` or `quads`. An image without regions is ignored.
    Use it: as a light regularizer. GeoAlignCLIP calls it visual consistency. It is off by default.
    Cost: N x N logits, never held at once; no further pass of a tower.

    Source:
        Ours, see `align_distributions`.
    """
    mask = inputs.batch["region_mask"]
    means = normalize((inputs.regions * mask.unsqueeze(-1)).sum(dim=1), dim=-1)
    B = len(inputs.images)
    ids = torch.arange(B, device=mask.device) + get_rank() * B
    return align_distributions(inputs.images.detach(), means, ids, mask.any(dim=1), inputs.scale)


def text_consistency_term(inputs: TermInputs) -> torch.Tensor:
    """Align the similarity distributions of a description and of the mean of the row's other texts.

    Columns: `description`, and `captions`, `phrases` or `concepts`. A row without a description is
    ignored.
    Use it: as a light regularizer. GeoAlignCLIP calls it textual consistency. It is off by default.
    Cost: as the image consistency term.

    Source:
        Ours, see `align_distributions`.
    """
    batch, texts = inputs.batch, inputs.texts
    captions, phrases = texts[batch["caption_index"]].unsqueeze(1), texts[batch["phrase_index"]]
    parts = torch.cat([captions, phrases, inputs.concepts], dim=1)
    part_ids = [batch["caption_ids"].unsqueeze(1), batch["phrase_ids"], batch["concept_ids"]]
    is_real = torch.cat(part_ids, dim=1) >= 0  # (B, 1 + 2 R)
    means = normalize((parts * is_real.unsqueeze(-1)).sum(dim=1), dim=-1)
    descriptions, ids = texts[batch["description_index"]], batch["description_ids"]
    return align_distributions(descriptions, means, ids, is_real.any(dim=1) & (ids >= 0), inputs.scale)


TERMS: dict[str, Callable[[TermInputs], torch.Tensor]] = {
    "scene": scene_term,
    "description": description_term,
    "region": region_term,
    "concept": concept_term,
    "crop_concept": crop_concept_term,
    "hard_negative": hard_negative_term,
    "crop_consistency": crop_consistency_term,
    "image_consistency": image_consistency_term,
    "text_consistency": text_consistency_term,
}
