"""The arithmetic of contrast: rows of this process against the columns of all, in blocks of rows.

Every function gives this process's *share* of a term: the sum over its own rows, divided by a count over all
processes. Shares add up to the term, and W times the gradient of a share, averaged over the W processes as
DistributedDataParallel does, is the gradient of one process with all the rows.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from .distributed import gather, get_rank, sum_over_processes

# Logits held at once, 16 MiB in float32; a larger matrix is worked off in blocks of rows.
BLOCK_SIZE = 2**22


def contrast_pairs(
    left: torch.Tensor, right: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Contrast each left with its right against all others of all processes, both ways: symmetric InfoNCE.

    A pair that shares an id with another is no negative of it: equal words cannot be told apart.

    Args:
        left: (N, D), unit vectors.
        right: (N, D), unit vectors; row i belongs to row i of `left`.
        ids: (N, I), I ids of each pair; a pair with a first id of -100 is left out.
        scale: (), the factor on cosines.

    Returns:
        (), this process's share of the mean over pairs and both ways; 0 without pairs.

    Source:
        InfoNCE, https://arxiv.org/abs/1807.03748, made symmetric as in CLIP, https://arxiv.org/abs/2103.00020.

    Example:
        >>> same = torch.ones(4, 2) / 2**0.5  # four pairs that all look alike: the loss is log(4)
        >>> contrast_pairs(same, same, torch.arange(4).unsqueeze(-1), torch.tensor(10.0))
        tensor(1.3863)
    """
    all_ids = gather(ids)
    is_real, is_own = all_ids[:, 0] >= 0, ids[:, 0] >= 0
    column = (is_real.cumsum(0) - 1)[_own_rows(len(left))]  # where each pair stands among the real ones
    column_ids = all_ids[is_real]
    return _Contrast.apply(
        _take(left, is_own),
        _take(gather(right), is_real),
        scale,
        column[is_own],
        torch.ones(len(column_ids), device=left.device),
        ids[is_own],
        column_ids,
    )


def contrast_concepts(
    region_embeds: torch.Tensor, concept_embeds: torch.Tensor, concept_ids: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Contrast regions with the unique concepts of all processes, both ways, every right answer right.

    A region has one concept; a concept has all its regions as positives, each with the same share.

    Args:
        region_embeds: (N, D), unit vectors.
        concept_embeds: (N, D), unit vectors, of each region's own concept.
        concept_ids: (N,), equal for equal concepts; -100 leaves a region out.
        scale: (), the factor on cosines.

    Returns:
        (), this process's share of the mean of both ways; 0 without regions.

    Source:
        Supervised contrastive learning, https://arxiv.org/abs/2004.11362, equation 2; for regions FarSLIP,
        https://arxiv.org/abs/2511.14901.

    Example:
        >>> same = torch.ones(4, 2) / 2**0.5  # log(2) over two concepts, log(4) over four regions, halved
        >>> contrast_concepts(same, same, torch.tensor([7, 7, 9, 9]), torch.tensor(10.0))
        tensor(1.0397)
    """
    all_ids = gather(concept_ids)
    is_real, is_own = all_ids >= 0, concept_ids >= 0
    unique_ids, column_of_real, counts = all_ids[is_real].unique(return_inverse=True, return_counts=True)
    positions = is_real.nonzero().squeeze(1)
    first = positions.new_full((len(unique_ids),), len(all_ids))
    first = first.scatter_reduce(0, column_of_real, positions, "amin")
    column = torch.full_like(all_ids, -1)
    column[is_real] = column_of_real
    return _Contrast.apply(
        _take(region_embeds, is_own),
        gather(concept_embeds)[first],
        scale,
        column[_own_rows(len(concept_ids))][is_own],
        counts,
    )


def _take(tensor: torch.Tensor, is_taken: torch.Tensor) -> torch.Tensor:
    """Give the rows that are taken, without a copy where all are."""
    return tensor if is_taken.all() else tensor[is_taken]


def _own_rows(num: int) -> slice:
    """Where this process's `num` rows lie among the gathered ones."""
    return slice(get_rank() * num, (get_rank() + 1) * num)


class _Contrast(torch.autograd.Function):
    """Symmetric cross-entropy of own rows against all columns, several rows to a column allowed.

    The term is half the mean over rows of `logsumexp(row) - own logit` plus half the mean over columns of
    the mean over their rows of `logsumexp(column) - own logit`. Logits are made block by block, in the
    forward pass for the log-sum-exps (of columns a running one) and again in the backward pass: memory
    holds one block, whatever the number of rows.

    Args of forward:
        left: (n, D), own rows. right: (M, D), all columns. scale: ().
        target: (n,), the column of each row. counts: (M,), how many rows, of all processes, each column has.
        ids: (n, I), all_ids: (M, I); a column that shares an id with a row and is not its own is no negative.
    """

    @staticmethod
    def forward(ctx, left, right, scale, target, counts, ids=None, all_ids=None):
        row_lse, own = left.new_empty(2, len(left))
        column_lse = left.new_full((len(right),), float("-inf"))
        for rows in _list_blocks(len(left), len(right)):
            logits = _Contrast.compare(left[rows], right, scale, target[rows], ids, all_ids, rows)
            own[rows] = logits.gather(1, target[rows].unsqueeze(1)).squeeze(1)
            row_lse[rows] = logits.logsumexp(dim=1)
            column_lse = torch.logaddexp(column_lse, logits.logsumexp(dim=0))
            del logits  # before the next block is made
        column_lse = gather(column_lse.unsqueeze(0)).logsumexp(dim=0)
        counts = counts.to(left.dtype)
        row_weight = 0.5 / counts.sum().clamp(min=1)
        column_weight = 0.5 / (len(right) * counts)  # of each row of a column
        ctx.save_for_backward(left, right, scale, target, ids, all_ids, row_lse, column_lse)
        ctx.weights = row_weight, column_weight
        of_columns = column_weight[target] * (column_lse[target] - own)
        return (row_weight * (row_lse - own) + of_columns).sum()

    @staticmethod
    def compare(left, right, scale, target, ids, all_ids, rows):
        """Give one block of logits, minus infinity where a column is no negative."""
        logits = (left @ right.T).mul_(scale)
        if ids is not None:
            is_alike = torch.zeros_like(logits, dtype=torch.bool)
            for i in range(ids.shape[1]):
                own_ids = ids[rows, i].unsqueeze(1)
                is_alike |= (own_ids == all_ids[:, i]) & (own_ids >= 0)  # two that have none are not alike
            is_alike.scatter_(1, target.unsqueeze(1), False)
            logits.masked_fill_(is_alike, float("-inf"))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        left, right, scale, target, ids, all_ids, row_lse, column_lse = ctx.saved_tensors
        row_weight, column_weight = ctx.weights
        grad_left, grad_right = torch.zeros_like(left), torch.zeros_like(right)
        with full_precision(left):
            for rows in _list_blocks(len(left), len(right)):
                logits = _Contrast.compare(left[rows], right, scale, target[rows], ids, all_ids, rows)
                by_column = (logits - column_lse).exp_().mul_(0.5 / len(right))
                slope = logits.sub_(row_lse[rows].unsqueeze(1)).exp_().mul_(row_weight).add_(by_column)
                own_weight = row_weight + column_weight[target[rows]]
                slope.scatter_add_(1, target[rows].unsqueeze(1), -own_weight.unsqueeze(1))
                slope.mul_(grad * scale)
                grad_left[rows] = slope @ right
                grad_right.addmm_(slope.T, left[rows])
                del logits, by_column, slope  # before the next block is made
        grad_scale = (grad_left * left).sum() / scale
        return grad_left, grad_right, grad_scale, None, None, None, None


def full_precision(tensor: torch.Tensor):
    """Give a context in which autocast makes no half precision of a matrix product."""
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
    """Tell each region's phrase from that phrase's own hard negatives.

    Args:
        region_embeds: (B, R, D), unit vectors.
        text_embeds: (N, D), unit vectors.
        phrase_index: (B, R), rows of `text_embeds`.
        negative_index: (B, R, K), rows of `text_embeds`, -100 for padding. K may differ between processes.
        scale: (), the factor on cosines.

    Returns:
        (), this process's share of the mean over all regions that have a hard negative; 0 without any.

    Source:
        FG-CLIP, https://arxiv.org/abs/2505.05071, section 3.2, there with ten negatives for every region.

    Example:
        >>> regions, texts = torch.ones(1, 1, 2) / 2**0.5, torch.ones(3, 2) / 2**0.5
        >>> phrase, negatives = torch.tensor([[0]]), torch.tensor([[[1, 2, -100]]])
        >>> contrast_negatives(regions, texts, phrase, negatives, torch.tensor(10.0))  # one of three alike
        tensor(1.0986)
    """
    # A negative with the phrase's own words is none.
    is_real = (negative_index >= 0) & (negative_index != phrase_index.unsqueeze(-1))
    has_any = is_real.any(dim=-1)
    is_real = torch.nn.functional.pad(is_real[has_any], (1, 0), value=True)
    index = torch.cat([phrase_index[has_any].unsqueeze(-1), negative_index[has_any].clamp(min=0)], dim=-1)

    def tell(regions, index, is_real):
        logits = scale * (text_embeds[index] @ regions.unsqueeze(-1)).squeeze(-1)  # (n, 1 + K)
        return -log_softmax(logits.masked_fill(~is_real, float("-inf")), dim=-1)[:, 0]

    num_choices = index.shape[1] * region_embeds.shape[-1]
    return local_mean(_compute_in_blocks(tell, num_choices, region_embeds[has_any], index, is_real))


def align_distributions(
    whole: torch.Tensor,
    parts: torch.Tensor,
    ids: torch.Tensor,
    is_real: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Let a whole and the mean of its parts agree in what they are near to, not in where they are.

    Both are compared with the wholes of all other rows; the two distributions over those are drawn together
    by the symmetric Kullback-Leibler divergence. So a part need not become the whole: a ship is no harbour,
    but harbours are nearer to it than deserts are. What is compared with, and the scale, take no gradient:
    else a scale of 0 would make everything agree.

    Args:
        whole: (B, D), unit vectors.
        parts: (B, D), unit vectors, the mean of each row's parts.
        ids: (B,), equal for equal wholes, -100 for none; a row is not compared with wholes of its own id.
        is_real: (B,), False leaves a row out.
        scale: (), the factor on cosines.

    Returns:
        (), this process's share of the mean over all real rows; 0 without any.

    Source:
        Ours: "intra-modal consistency" is all that GeoAlignCLIP's abstract says. The form follows CyCLIP,
        https://arxiv.org/abs/2205.14459, section 3, with distributions for differences.

    Example:
        >>> whole, turned = torch.eye(3), torch.eye(3)[[0, 2, 1]]
        >>> ids, every = torch.arange(3), torch.ones(3, dtype=torch.bool)
        >>> align_distributions(whole, whole, ids, every, torch.tensor(10.0))
        tensor(0.)
        >>> align_distributions(whole, turned, ids, every, torch.tensor(10.0)) > 1
        tensor(True)
    """
    anchors, anchor_ids = gather(whole.detach()), gather(ids)
    is_other = anchor_ids >= 0
    anchors, anchor_ids, scale = anchors[is_other], anchor_ids[is_other], scale.detach()

    def diverge(whole, parts, ids):
        is_own = ids.unsqueeze(1) == anchor_ids
        of_whole, of_parts = (
            log_softmax((scale * side @ anchors.T).masked_fill(is_own, -1e9), dim=-1)
            for side in (whole, parts)
        )
        return ((of_whole.exp() - of_parts.exp()) * (of_whole - of_parts)).sum(dim=-1) / 2

    return local_mean(_compute_in_blocks(diverge, len(anchors), whole[is_real], parts[is_real], ids[is_real]))


def _compute_in_blocks(compute, size: int, *rows: torch.Tensor) -> torch.Tensor:
    """Compute one number a row, (n,), a block at a time and again in the backward pass.

    Args:
        compute: takes a block of each of `rows`.
        size: numbers that it holds for one row.
        *rows: (n, ...) each.
    """
    blocks = [
        checkpoint(
            compute, *(tensor[block] for tensor in rows), use_reentrant=False, preserve_rng_state=False
        )
        for block in _list_blocks(len(rows[0]), size)
    ]
    return torch.cat(blocks) if blocks else compute(*rows)


def local_mean(row_losses: torch.Tensor) -> torch.Tensor:
    """Give this process's share of the mean over the rows of all processes.

    Args:
        row_losses: (n,), n different on every process, also 0.

    Returns:
        (), which add up over processes to the mean; 0 without rows.
    """
    num = sum_over_processes(torch.tensor(float(len(row_losses)), device=row_losses.device))
    return row_losses.sum() / num.clamp(min=1)
