"""Losses that are means over rows, each of which is computed by itself: hard negatives and consistency.

As in `contrastive`, every function returns the local part of a loss.
"""

import torch
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from .contrastive import list_blocks
from .distributed import gather, sum_over_processes


def contrast_negatives(
    region_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    phrase_index: torch.Tensor,
    negative_index: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Contrast each region's phrase with the hard negatives of that phrase.

    Args:
        region_embeds: (B, R, D), unit vectors.
        text_embeds: (N, D), unit vectors.
        phrase_index: (B, R), rows of `text_embeds`.
        negative_index: (B, R, K), rows of `text_embeds`, -100 for padding. K may differ between processes.
        scale: (), the factor on cosines.

    Returns:
        (), the local part of the mean over all regions that have a hard negative; 0 without any.

    Source:
        FG-CLIP, https://arxiv.org/abs/2505.05071, section 3.2, which has ten negatives for every region.

    Example:
        >>> regions, texts = torch.ones(1, 1, 2) / 2**0.5, torch.ones(3, 2) / 2**0.5
        >>> phrase, negatives = torch.tensor([[0]]), torch.tensor([[[1, 2, -100]]])
        >>> contrast_negatives(regions, texts, phrase, negatives, torch.tensor(10.0))  # three equal texts
        tensor(1.0986)
    """
    # A text equal to the phrase is not a negative.
    is_real = (negative_index >= 0) & (negative_index != phrase_index.unsqueeze(-1))
    has_any = is_real.any(dim=-1)
    is_real = torch.nn.functional.pad(is_real[has_any], (1, 0), value=True)
    index = torch.cat([phrase_index[has_any].unsqueeze(-1), negative_index[has_any].clamp(min=0)], dim=-1)

    def compute_row_losses(regions, index, is_real):
        logits = scale * (text_embeds[index] @ regions.unsqueeze(-1)).squeeze(-1)  # (n, 1 + K)
        return -log_softmax(logits.masked_fill(~is_real, float("-inf")), dim=-1)[:, 0]

    row_size = index.shape[1] * region_embeds.shape[-1]
    row_losses = _compute_in_blocks(compute_row_losses, row_size, region_embeds[has_any], index, is_real)
    return local_mean(row_losses)


def align_distributions(
    embeds: torch.Tensor,
    part_means: torch.Tensor,
    ids: torch.Tensor,
    is_real: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Align the similarity distributions of an embedding and of the mean of its parts (symmetric KL).

    Both are compared with the embeddings of all other rows, which gives two distributions over these. The
    parts need not have the embedding of the whole: a ship is not a harbor, but harbors are more similar to it
    than deserts are. Gradients do not flow into the other rows or the scale; with a gradient, a scale of 0
    would make all distributions equal.

    Args:
        embeds: (B, D), unit vectors.
        part_means: (B, D), unit vectors, the mean of each row's parts.
        ids: (B,), equal for equal embeddings, -100 for a missing one; a row is not compared with embeddings
            of its own id.
        is_real: (B,), False ignores a row.
        scale: (), the factor on cosines.

    Returns:
        (), the local part of the mean over all real rows; 0 without any.

    Source:
        Ours. GeoAlignCLIP's abstract says no more than "intra-modal consistency". The form follows CyCLIP,
        https://arxiv.org/abs/2205.14459, section 3, with distributions in place of differences.

    Example:
        >>> embeds, turned = torch.eye(3), torch.eye(3)[[0, 2, 1]]
        >>> ids, is_real = torch.arange(3), torch.ones(3, dtype=torch.bool)
        >>> align_distributions(embeds, embeds, ids, is_real, torch.tensor(10.0))
        tensor(0.)
        >>> align_distributions(embeds, turned, ids, is_real, torch.tensor(10.0)) > 1
        tensor(True)
    """
    anchors, anchor_ids = gather(embeds.detach()), gather(ids)
    is_anchor = anchor_ids >= 0
    anchors, anchor_ids, scale = anchors[is_anchor], anchor_ids[is_anchor], scale.detach()

    def compute_row_losses(embeds, part_means, ids):
        is_own = ids.unsqueeze(1) == anchor_ids
        log_p, log_q = (
            log_softmax((scale * side @ anchors.T).masked_fill(is_own, -1e9), dim=-1)
            for side in (embeds, part_means)
        )
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1) / 2

    rows = embeds[is_real], part_means[is_real], ids[is_real]
    return local_mean(_compute_in_blocks(compute_row_losses, len(anchors), *rows))


def _compute_in_blocks(compute, row_size: int, *rows: torch.Tensor) -> torch.Tensor:
    """Compute one number per row, (n,), block by block, and once more in the backward pass.

    Args:
        compute: a function that takes a block of each of `rows`.
        row_size: number of values that it holds in memory for one row.
        *rows: (n, ...) each.
    """
    blocks = [
        checkpoint(
            compute, *(tensor[block] for tensor in rows), use_reentrant=False, preserve_rng_state=False
        )
        for block in list_blocks(len(rows[0]), row_size)
    ]
    return torch.cat(blocks) if blocks else compute(*rows)


def local_mean(row_losses: torch.Tensor) -> torch.Tensor:
    """Return the local part of the mean over the rows of all processes.

    Args:
        row_losses: (n,), where n differs between processes and may be 0.

    Returns:
        (); the values of all processes add up to the mean; 0 without rows.
    """
    num = sum_over_processes(torch.tensor(float(len(row_losses)), device=row_losses.device))
    return row_losses.sum() / num.clamp(min=1)
