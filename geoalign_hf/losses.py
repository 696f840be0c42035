"""Embeddings to named loss terms, over the regions and texts of all processes.

What enters is the model's output and the index and id tensors of the batch; what leaves is a dictionary
of scalars, the unweighted terms by name and their weighted sum `loss`. Everything is float32.
"""

from dataclasses import dataclass, field, fields

import torch
from torch.nn.functional import normalize

from .distributed import gather


@dataclass(frozen=True)
class LossWeights:
    """What each term of the objective weighs; a term of weight 0 is not computed.

    Args:
        scene: whole image against its caption, and against its description.
        region: region against its phrase.
        concept: region against the concepts of the batch.
    """

    scene: float = field(default=1.0, metadata={"help": "weight of image against caption and description"})
    region: float = field(default=0.1, metadata={"help": "weight of region against phrase"})
    concept: float = field(default=0.5, metadata={"help": "weight of region against the batch's concepts"})

    def __post_init__(self):
        for term in fields(self):
            weight = getattr(self, term.name)
            if not weight >= 0:
                raise ValueError(f"the loss weight {term.name} is {weight}; it must be at least 0.")


def compute_losses(output, batch: dict[str, torch.Tensor], weights: LossWeights) -> dict[str, torch.Tensor]:
    """Compute every term that weighs something.

    Args:
        output: a `GeoAlignCLIPOutput` of this process's images, regions and texts.
        batch: as `RowCollator` makes it.
        weights: of the terms.

    Returns:
        The terms by name, unweighted, and `loss`, their weighted sum; () each, float32, equal on all
        processes.
    """
    text_embeds = output.text_embeds.float()
    image_embeds = gather(output.image_embeds.float())  # (B, D), of all processes
    region_embeds = gather(output.region_embeds.float()).flatten(0, 1)  # (B * R, D)
    region_scale = output.region_logit_scale.float()
    terms = {}
    if weights.scene:
        terms["scene"] = sum(
            contrast_pairs(
                image_embeds,
                gather(text_embeds[batch[f"{name}_index"]]),
                gather(batch[f"{name}_ids"]).unsqueeze(-1),
                output.logit_scale.float(),
            )
            for name in ("caption", "description")
        )
    concept_ids = gather(batch["concept_ids"]).flatten()
    if weights.region:
        phrase_ids = gather(batch["phrase_ids"]).flatten()
        phrase_embeds = gather(text_embeds[batch["phrase_index"]]).flatten(0, 1)
        ids = torch.stack([phrase_ids, concept_ids], dim=-1)
        terms["region"] = contrast_pairs(region_embeds, phrase_embeds, ids, region_scale)
    if weights.concept:
        concept_embeds = normalize(text_embeds[batch["concept_index"]].mean(dim=-2), dim=-1)  # (B, R, D)
        concept_embeds = gather(concept_embeds).flatten(0, 1)
        terms["concept"] = contrast_concepts(region_embeds, concept_embeds, concept_ids, region_scale)
    # A process whose batch leaves some output unused still takes part in every gradient.
    nothing = 0 * (
        image_embeds.sum() + region_embeds.sum() + text_embeds.sum() + region_scale + output.logit_scale
    )
    return terms | {"loss": sum((getattr(weights, name) * term for name, term in terms.items()), nothing)}


def contrast_pairs(
    left: torch.Tensor, right: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Contrast each left with its right against all others, both ways: symmetric InfoNCE.

    A pair that shares an id with another is no negative of it: equal words cannot be told apart.

    Args:
        left: (N, D), unit vectors.
        right: (N, D), unit vectors; row i belongs to row i of `left`.
        ids: (N, I), I ids of each pair; a pair with a first id of -100 is left out.
        scale: (), the factor on cosines.

    Returns:
        (), the mean over pairs and both ways; 0 without pairs.

    Source:
        InfoNCE, https://arxiv.org/abs/1807.03748, made symmetric as in CLIP, https://arxiv.org/abs/2103.00020.

    Example:
        >>> same = torch.ones(4, 2) / 2**0.5  # four pairs that all look alike: the loss is log(4)
        >>> contrast_pairs(same, same, torch.arange(4).unsqueeze(-1), torch.tensor(10.0))
        tensor(1.3863)
    """
    is_real = ids[:, 0] >= 0
    left, right, ids = left[is_real], right[is_real], ids[is_real]
    logits = scale * left @ right.T
    is_alike = (ids.unsqueeze(0) == ids.unsqueeze(1)).any(dim=-1)
    is_alike.fill_diagonal_(False)
    logits = logits.masked_fill(is_alike, float("-inf"))
    own = logits.diagonal()
    loss = logits.logsumexp(dim=1) - own + logits.logsumexp(dim=0) - own
    return loss.sum() / (2 * max(len(loss), 1))


def contrast_concepts(
    region_embeds: torch.Tensor, concept_embeds: torch.Tensor, concept_ids: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Contrast regions with the unique concepts among them, both ways, with every right answer right.

    A region has one concept; a concept has all its regions as positives, each with the same share.

    Args:
        region_embeds: (N, D), unit vectors.
        concept_embeds: (N, D), unit vectors, of each region's own concept.
        concept_ids: (N,), equal for equal concepts; -100 leaves a region out.
        scale: (), the factor on cosines.

    Returns:
        (), the mean of both ways; 0 without regions.

    Source:
        Supervised contrastive learning, https://arxiv.org/abs/2004.11362, equation 2; for regions FarSLIP,
        https://arxiv.org/abs/2511.14901.

    Example:
        >>> same = torch.ones(4, 2) / 2**0.5  # log(2) over two concepts, log(4) over four regions, halved
        >>> contrast_concepts(same, same, torch.tensor([7, 7, 9, 9]), torch.tensor(10.0))
        tensor(1.0397)
    """
    is_real = concept_ids >= 0
    region_embeds, concept_embeds = region_embeds[is_real], concept_embeds[is_real]
    unique_ids, concept_of_region = concept_ids[is_real].unique(return_inverse=True)
    N, C = len(region_embeds), len(unique_ids)
    if N == 0:
        return 0 * (region_embeds.sum() + concept_embeds.sum() + scale)
    positions = torch.arange(N, device=concept_of_region.device)
    first = positions.new_full((C,), N).scatter_reduce(0, concept_of_region, positions, "amin")
    logits = scale * region_embeds @ concept_embeds[first].T  # (N, C)
    to_concepts = torch.nn.functional.cross_entropy(logits, concept_of_region)
    own = (logits - logits.logsumexp(dim=0)).gather(1, concept_of_region.unsqueeze(-1)).squeeze(-1)
    num_own = torch.bincount(concept_of_region, minlength=C)
    to_regions = -(own / num_own[concept_of_region]).sum() / C
    return (to_concepts + to_regions) / 2
