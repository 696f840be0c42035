"""Contrastive losses over the regions and texts of all processes, computed in blocks of rows.

Every function returns the *local part* of a loss: the sum over the rows of this process, divided by a count
over all processes. The local parts of all processes add up to the loss. Let W be the number of processes.
DistributedDataParallel averages gradients, so W times the local part gives the gradient of one process that
has all the rows.
"""

import torch
from torch.autograd.function import once_differentiable

from .distributed import gather, get_rank, sum_over_processes

# Logits held at once, 16 MiB in float32. A larger matrix is computed in blocks of rows.
BLOCK_SIZE = 2**22


def contrast_pairs(
    left: torch.Tensor,
    right: torch.Tensor,
    ids: torch.Tensor,
    scale: torch.Tensor,
    broader: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrast each left row with its right row against the rows of all processes (symmetric InfoNCE).

    Two pairs that share an id are not negatives of each other, because equal words cannot be distinguished.
    Neither are two pairs of which one has a broader concept than the other: "vehicle" is broader than "bus".

    Args:
        left: (N, D), unit vectors.
        right: (N, D), unit vectors; row i belongs to row i of `left`.
        ids: (N, I), I ids of each pair, compared column by column; a pair whose first id is -100 is ignored.
        scale: (), the factor on cosines.
        broader: (N, K), the ids of the concepts that are broader than the last id of each pair, -100 for
            padding. K must be equal on all processes.

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
        None if broader is None else broader[is_local],
        None if broader is None else gather(broader)[is_real],
    )


def contrast_concepts(
    region_embeds: torch.Tensor,
    concept_embeds: torch.Tensor,
    concept_ids: torch.Tensor,
    scale: torch.Tensor,
    label_smoothing: float = 0.0,
    broader: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrast regions with the unique concepts of the regions of all processes, in both directions.

    Args:
        region_embeds: (N, D), unit vectors.
        concept_embeds: (N, D), unit vectors, the concept of each region.
        concept_ids: (N,), equal for equal concepts; -100 ignores a region.
        scale: (), the factor on cosines.
        label_smoothing: spread part of a target, in [0, 1], see `contrast_vocabulary`.
        broader: (N, K), the ids of the concepts that are broader than that of each region, -100 for padding.

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
    unique_broader = None if broader is None else gather(broader)[first]
    return contrast_vocabulary(
        region_embeds,
        vocabulary_embeds,
        unique_ids,
        concept_ids,
        scale,
        label_smoothing,
        broader,
        unique_broader,
    )


def contrast_vocabulary(
    region_embeds: torch.Tensor,
    vocabulary_embeds: torch.Tensor,
    vocabulary_ids: torch.Tensor,
    concept_ids: torch.Tensor,
    scale: torch.Tensor,
    label_smoothing: float = 0.0,
    broader: torch.Tensor | None = None,
    vocabulary_broader: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrast regions with every concept of a vocabulary, in both directions.

    A region has one concept and is compared with all C. A concept has all its regions as positives, each with
    equal weight, and is compared with the regions of all processes. A concept without regions is a negative
    of every region, and takes no part in the second direction. A concept that is broader or narrower than
    that of a region is not a negative of this region.

    Args:
        region_embeds: (N, D), unit vectors.
        vocabulary_embeds: (C, D), unit vectors, the same concepts in the same order on all processes.
        vocabulary_ids: (C,), the unique ids of the concepts.
        concept_ids: (N,), the id of each region's concept, one of `vocabulary_ids`; -100 ignores a region.
        scale: (), the factor on cosines.
        label_smoothing: the part of a region's target that is spread evenly over its own concept and its
            negatives, in [0, 1].
        broader: (N, K), the ids of the concepts that are broader than that of each region, -100 for padding.
        vocabulary_broader: (C, K), the same for each concept of the vocabulary.

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
    masks = ()
    if broader is not None:
        ids = concept_ids[is_local].unsqueeze(-1), vocabulary_ids.unsqueeze(-1)
        masks = *ids, broader[is_local], vocabulary_broader
    return _Contrast.apply(
        _select(region_embeds, is_local), vocabulary_embeds, scale, column, counts, label_smoothing, *masks
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
    Logits are computed block by block, so that memory holds one block, whatever the number of rows. They are
    computed once in the forward pass, for the log-sum-exps (a running one for the columns), and once more in
    the backward pass.

    Args of forward:
        left: (n, D), local rows. right: (M, D), all columns. scale: ().
        target: (n,), the column of each row. counts: (M,), the number of rows, of all processes, per column.
        smoothing: the part of each row's target that is spread evenly over its own column and its negatives.
        ids: (n, I), all_ids: (M, I); a column that shares an id with a row is not a negative of that row.
        broader: (n, K), all_broader: (M, K), ids of broader concepts than the last id of a row or column; a
            column that is broader or narrower than a row is not a negative of that row.
    """

    @staticmethod
    def forward(
        ctx,
        left,
        right,
        scale,
        target,
        counts,
        smoothing,
        ids=None,
        all_ids=None,
        broader=None,
        all_broader=None,
    ):
        masks = ids, all_ids, broader, all_broader
        row_lse, own, row_target = left.new_empty(3, len(left))
        column_lse = left.new_full((len(right),), float("-inf"))
        for rows in list_blocks(len(left), len(right)):
            logits = _Contrast.compare(left[rows], right, scale, target[rows], masks, rows)
            own[rows] = row_target[rows] = logits.gather(1, target[rows].unsqueeze(1)).squeeze(1)
            if smoothing:
                is_compared = logits > float("-inf")
                sums = logits.where(is_compared, 0.0).sum(dim=1)
                row_target[rows] = own[rows].lerp(sums / is_compared.sum(dim=1), smoothing)
            row_lse[rows] = logits.logsumexp(dim=1)
            column_lse = torch.logaddexp(column_lse, logits.logsumexp(dim=0))
            del logits  # before the next block is computed
        column_lse = gather(column_lse.unsqueeze(0)).logsumexp(dim=0)
        # A column that no row is compared with has weight 0, and must not give NaN.
        column_lse = column_lse.masked_fill(column_lse == float("-inf"), 0.0)
        counts = counts.to(left.dtype)
        has_rows = (counts > 0).to(left.dtype)
        row_weight = 0.5 / counts.sum().clamp(min=1)
        column_weight = 0.5 * has_rows / has_rows.sum().clamp(min=1)
        own_weight = (column_weight / counts.clamp(min=1))[target]  # of each row within its column
        ctx.save_for_backward(left, right, scale, target, row_lse, column_lse, *masks)
        ctx.weights = row_weight, column_weight, own_weight, smoothing
        of_columns = own_weight * (column_lse[target] - own)
        return (row_weight * (row_lse - row_target) + of_columns).sum()

    @staticmethod
    def compare(left, right, scale, target, masks, rows):
        """Compute one block of logits, with minus infinity where a column is not a negative."""
        ids, all_ids, broader, all_broader = masks
        logits = (left @ right.T).mul_(scale)
        if ids is not None:
            is_equal = torch.zeros_like(logits, dtype=torch.bool)
            for i in range(ids.shape[1]):
                own_ids = ids[rows, i].unsqueeze(1)
                is_equal |= (own_ids == all_ids[:, i]) & (own_ids >= 0)  # two missing ids are not equal
            if broader is not None:
                own_ids, column_ids = ids[rows, -1:], all_ids[:, -1]
                for k in range(broader.shape[1]):
                    is_equal |= (broader[rows, k : k + 1] == column_ids) & (column_ids >= 0)
                    is_equal |= (own_ids == all_broader[:, k]) & (own_ids >= 0)
            is_equal.scatter_(1, target.unsqueeze(1), False)
            logits.masked_fill_(is_equal, float("-inf"))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        left, right, scale, target, row_lse, column_lse, *masks = ctx.saved_tensors
        row_weight, column_weight, own_weight, smoothing = ctx.weights
        grad_left, grad_right = torch.zeros_like(left), torch.zeros_like(right)
        with full_precision(left):
            for rows in list_blocks(len(left), len(right)):
                logits = _Contrast.compare(left[rows], right, scale, target[rows], masks, rows)
                if smoothing:
                    spread = (logits > float("-inf")).to(logits.dtype)
                    spread.mul_(row_weight * smoothing / spread.sum(dim=1, keepdim=True))
                by_column = (logits - column_lse).exp_().mul_(column_weight)
                slope = logits.sub_(row_lse[rows].unsqueeze(1)).exp_().mul_(row_weight).add_(by_column)
                if smoothing:
                    slope.sub_(spread)
                at_target = row_weight * (1 - smoothing) + own_weight[rows]
                slope.scatter_add_(1, target[rows].unsqueeze(1), -at_target.unsqueeze(1))
                slope.mul_(grad * scale)
                grad_left[rows] = slope @ right
                grad_right.addmm_(slope.T, left[rows])
                del logits, by_column, slope  # before the next block is computed
        grad_scale = (grad_left * left).sum() / scale
        return grad_left, grad_right, grad_scale, *[None] * 7


def full_precision(tensor: torch.Tensor):
    """Return a context in which autocast leaves matrix products in the precision of their inputs."""
    return torch.autocast(tensor.device.type, enabled=False)


def list_blocks(num_rows: int, num_columns: int) -> list[slice]:
    """Divide the rows of a matrix into blocks of at most `BLOCK_SIZE` numbers."""
    step = max(1, BLOCK_SIZE // max(num_columns, 1))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
