"""Contrastive losses over the regions and texts of all processes, computed in blocks of rows.

Every function returns the *local part* of a loss: the sum over the rows of this process, divided by a count
over all processes. The local parts of all processes add up to the loss. Let W be the number of processes.
DistributedDataParallel averages gradients, so W times the local part gives the gradient of one process that
has all the rows.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from .distributed import gather, get_rank, sum_over_processes

# Logits held at once, 16 MiB in float32. A larger matrix is computed in blocks of rows.
BLOCK_SIZE = 2**22


def contrast_pairs(
    left: torch.Tensor, right: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Contrast each left row with its right row against the rows of all processes (symmetric InfoNCE).

    Two pairs that share an id are not negatives of each other, because equal words cannot be distinguished.

    Args:
        left: (N, D), unit vectors.
        right: (N, D), unit vectors; row i belongs to row i of `left`.
        ids: (N, I), I ids of each pair, compared column by column; a pair whose first id is -100 is ignored.
        scale: (), the factor on cosines.

    Returns:
        (), the local part of the mean over pairs and both directions; 0 without pairs.

    Source:
        InfoNCE, https://arxiv.org/abs/1807.03748, made symmetric as in CLIP, https://arxiv.org/abs/2103.00020.

    Example:
        >>> same = torch.ones(4, 2) / 2**0.5  # four pairs with equal embeddings: the loss is log(4)
        >>> contrast_pairs(same, same, torch.arange(4).unsqueeze(-1), torch.tensor(10.0))
        tensor(1.3863)
    """
    all_ids = gather(ids)
    is_real, is_local = all_ids[:, 0] >= 0, ids[:, 0] >= 0
    column = (is_real.cumsum(0) - 1)[_local_rows(len(left))]  # of each local pair
    column_ids = all_ids[is_real]
    return _Contrast.apply(
        _select(left, is_local),
        _select(gather(right), is_real),
        scale,
        column[is_local],
        torch.ones(len(column_ids), device=left.device),
        0.0,
        ids[is_local],
        column_ids,
    )


def contrast_concepts(
    region_embeds: torch.Tensor,
    concept_embeds: torch.Tensor,
    concept_ids: torch.Tensor,
    scale: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Contrast regions with the unique concepts of the regions of all processes, in both directions.

    Args:
        region_embeds: (N, D), unit vectors.
        concept_embeds: (N, D), unit vectors, the concept of each region.
        concept_ids: (N,), equal for equal concepts; -100 ignores a region.
        scale: (), the factor on cosines.
        label_smoothing: see `contrast_vocabulary`.

    Returns:
        (), the local part of the mean of both directions; 0 without regions.

    Source:
        Supervised contrastive learning, https://arxiv.org/abs/2004.11362, equation 2; for regions FarSLIP,
        https://arxiv.org/abs/2511.14901.

    Example:
        >>> same = torch.ones(4, 2) / 2**0.5  # log(2) over two concepts, log(4) over four regions, halved
        >>> contrast_concepts(same, same, torch.tensor([7, 7, 9, 9]), torch.tensor(10.0))
        tensor(1.0397)
    """
    all_ids = gather(concept_ids)
    is_real = all_ids >= 0
    unique_ids, column_of_real = all_ids[is_real].unique(return_inverse=True)
    positions = is_real.nonzero().squeeze(1)
    first = positions.new_full((len(unique_ids),), len(all_ids))
    first = first.scatter_reduce(0, column_of_real, positions, "amin")
    vocabulary_embeds = gather(concept_embeds)[first]
    return contrast_vocabulary(
        region_embeds, vocabulary_embeds, unique_ids, concept_ids, scale, label_smoothing
    )


def contrast_vocabulary(
    region_embeds: torch.Tensor,
    vocabulary_embeds: torch.Tensor,
    vocabulary_ids: torch.Tensor,
    concept_ids: torch.Tensor,
    scale: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Contrast regions with every concept of a vocabulary, in both directions.

    A region has one concept and is compared with all C. A concept has all its regions as positives, each with
    equal weight, and is compared with the regions of all processes. A concept without regions is a negative
    of every region, and takes no part in the second direction.

    Args:
        region_embeds: (N, D), unit vectors.
        vocabulary_embeds: (C, D), unit vectors, the same concepts in the same order on all processes.
        vocabulary_ids: (C,), the unique ids of the concepts.
        concept_ids: (N,), the id of each region's concept, one of `vocabulary_ids`; -100 ignores a region.
        scale: (), the factor on cosines.
        label_smoothing: the part of a region's target that is spread evenly over all C concepts, in [0, 1].

    Returns:
        (), the local part of the mean of both directions; 0 without regions.

    Source:
        As `contrast_concepts`; label smoothing: https://arxiv.org/abs/1512.00567, section 7.

    Example:
        >>> regions, concepts = torch.ones(2, 2) / 2**0.5, torch.ones(8, 2) / 2**0.5
        >>> # log(8) over eight concepts, log(2) over two regions, halved
        >>> contrast_vocabulary(regions, concepts, torch.arange(8), torch.tensor([3, 5]), torch.tensor(10.0))
        tensor(1.3863)
    """
    is_local = concept_ids >= 0
    sorted_ids, order = vocabulary_ids.sort()
    column = order[torch.searchsorted(sorted_ids, concept_ids[is_local])]
    counts = sum_over_processes(torch.bincount(column, minlength=len(vocabulary_ids)))
    return _Contrast.apply(
        _select(region_embeds, is_local), vocabulary_embeds, scale, column, counts, label_smoothing
    )


def _select(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Select rows by a mask, without a copy if it selects all of them."""
    return tensor if mask.all() else tensor[mask]


def _local_rows(num: int) -> slice:
    """Return the slice of the gathered rows that holds the `num` rows of this process."""
    return slice(get_rank() * num, (get_rank() + 1) * num)


class _Contrast(torch.autograd.Function):
    """Symmetric cross-entropy of local rows against all columns; several rows may belong to one column.

    The first half of the loss is the mean over rows of `logsumexp(row) - target logit`. The second half is
    the mean over columns that have rows of the mean over their rows of `logsumexp(column) - target logit`.
    Logits are computed block by block, once in the forward pass for the log-sum-exps (a running one for the
    columns) and once more in the backward pass. So memory holds one block, whatever the number of rows.

    Args of forward:
        left: (n, D), local rows. right: (M, D), all columns. scale: ().
        target: (n,), the column of each row. counts: (M,), the number of rows, of all processes, per column.
        smoothing: the part of each row's target that is spread evenly over all columns; 0 with ids.
        ids: (n, I), all_ids: (M, I); a column that shares an id with a row is not a negative of that row.
    """

    @staticmethod
    def forward(ctx, left, right, scale, target, counts, smoothing, ids=None, all_ids=None):
        row_lse, own, row_target = left.new_empty(3, len(left))
        column_lse = left.new_full((len(right),), float("-inf"))
        for rows in _list_blocks(len(left), len(right)):
            logits = _Contrast.compare(left[rows], right, scale, target[rows], ids, all_ids, rows)
            own[rows] = logits.gather(1, target[rows].unsqueeze(1)).squeeze(1)
            row_target[rows] = own[rows].lerp(logits.mean(dim=1), smoothing) if smoothing else own[rows]
            row_lse[rows] = logits.logsumexp(dim=1)
            column_lse = torch.logaddexp(column_lse, logits.logsumexp(dim=0))
            del logits  # before the next block is computed
        column_lse = gather(column_lse.unsqueeze(0)).logsumexp(dim=0)
        counts = counts.to(left.dtype)
        has_rows = (counts > 0).to(left.dtype)
        row_weight = 0.5 / counts.sum().clamp(min=1)
        column_weight = 0.5 * has_rows / has_rows.sum().clamp(min=1)
        own_weight = (column_weight / counts.clamp(min=1))[target]  # of each row within its column
        ctx.save_for_backward(left, right, scale, target, ids, all_ids, row_lse, column_lse)
        ctx.weights = row_weight, column_weight, own_weight, smoothing
        of_columns = own_weight * (column_lse[target] - own)
        return (row_weight * (row_lse - row_target) + of_columns).sum()

    @staticmethod
    def compare(left, right, scale, target, ids, all_ids, rows):
        """Compute one block of logits, with minus infinity where a column is not a negative."""
        logits = (left @ right.T).mul_(scale)
        if ids is not None:
            is_equal = torch.zeros_like(logits, dtype=torch.bool)
            for i in range(ids.shape[1]):
                own_ids = ids[rows, i].unsqueeze(1)
                is_equal |= (own_ids == all_ids[:, i]) & (own_ids >= 0)  # two missing ids are not equal
            is_equal.scatter_(1, target.unsqueeze(1), False)
            logits.masked_fill_(is_equal, float("-inf"))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        left, right, scale, target, ids, all_ids, row_lse, column_lse = ctx.saved_tensors
        row_weight, column_weight, own_weight, smoothing = ctx.weights
        grad_left, grad_right = torch.zeros_like(left), torch.zeros_like(right)
        with full_precision(left):
            for rows in _list_blocks(len(left), len(right)):
                logits = _Contrast.compare(left[rows], right, scale, target[rows], ids, all_ids, rows)
                by_column = (logits - column_lse).exp_().mul_(column_weight)
                slope = logits.sub_(row_lse[rows].unsqueeze(1)).exp_().mul_(row_weight).add_(by_column)
                if smoothing:
                    slope.sub_(row_weight * smoothing / len(right))
                at_target = row_weight * (1 - smoothing) + own_weight[rows]
                slope.scatter_add_(1, target[rows].unsqueeze(1), -at_target.unsqueeze(1))
                slope.mul_(grad * scale)
                grad_left[rows] = slope @ right
                grad_right.addmm_(slope.T, left[rows])
                del logits, by_column, slope  # before the next block is computed
        grad_scale = (grad_left * left).sum() / scale
        return grad_left, grad_right, grad_scale, None, None, None, None, None


def full_precision(tensor: torch.Tensor):
    """Return a context in which autocast leaves matrix products in the precision of their inputs."""
    return torch.autocast(tensor.device.type, enabled=False)


def _list_blocks(num_rows: int, num_columns: int) -> list[slice]:
    step = max(1, BLOCK_SIZE // max(num_columns, 1))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


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
        row_size: the numbers that it holds in memory for one row.
        *rows: (n, ...) each.
    """
    blocks = [
        checkpoint(
            compute, *(tensor[block] for tensor in rows), use_reentrant=False, preserve_rng_state=False
        )
        for block in _list_blocks(len(rows[0]), row_size)
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
