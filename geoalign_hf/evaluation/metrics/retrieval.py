"""Ranks and recalls of retrieval."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .checks import TIE, check_indices, check_lengths, check_numbers, mean

RECALL_AT = (1, 5, 10)


def rank_own(scores: ArrayLike, own: Sequence[Sequence[int]]) -> np.ndarray:
    """Compute the rank of each query's best own candidate among the candidates that are not its own.

    Args:
        scores: (Q, N), scores of queries and candidates.
        own: for each query the indices of the candidates that belong to it, at least one.

    Returns:
        (Q,), 1 is the first rank. A candidate of another query with the same score ranks before, so ranks do
        not depend on how ties are sorted.

    Raises:
        ValueError: if shapes do not match, a query has no candidate of its own or has one twice, or a score
            is NaN.

    Example:
        >>> rank_own([[0.3, 0.9, 0.3]], [[0]]).tolist()
        [3]
    """
    scores = check_numbers(scores, "scores", 2)
    check_lengths(scores=scores, own=own)
    lengths = np.array([len(candidates) for candidates in own])
    if not lengths.all():
        query = int(lengths.argmin())
        raise ValueError(f"own[{query}] is empty: query {query} has no candidate of its own. Remove it.")
    num_candidates = scores.shape[1]
    flat = [index for candidates in own for index in candidates]
    candidates = check_indices(flat, "own, all queries in one list,", num_candidates, 1)
    queries = np.repeat(np.arange(len(own)), lengths)
    pairs = queries * num_candidates + candidates
    if len(np.unique(pairs)) < len(pairs):
        query = next(i for i, indices in enumerate(own) if len(set(indices)) < len(indices))
        raise ValueError(f"own[{query}] names a candidate more than once: {list(own[query])}.")
    starts = np.cumsum(lengths) - lengths
    own_scores = scores[queries, candidates]
    bounds = np.maximum.reduceat(own_scores, starts) - scores.dtype.type(TIE)
    # Row by row, which stays in the cache, and counts bits instead of adding integers.
    num_above = np.array([np.count_nonzero(row >= bound) for row, bound in zip(scores, bounds, strict=True)])
    num_own_above = np.add.reduceat(own_scores >= bounds[queries], starts, dtype=np.int64)
    return 1 + num_above - num_own_above


def score_ranks(ranks: ArrayLike, recall_at: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Compute recalls: the fraction of queries whose rank is at most k, for each k.

    Args:
        ranks: (Q,), as `rank_own` returns them.
        recall_at: values of k.

    Returns:
        `recall_at_<k>` for each k, and `mean_recall`, the mean over k of 1, 5 and 10.

    Raises:
        ValueError: if there are no queries, or a rank is below 1.

    Example:
        >>> score_ranks([1, 3, 20])["recall_at_5"]
        0.6666666666666666
    """
    ranks = check_numbers(ranks, "ranks", 1)
    if ranks.min() < 1:
        raise ValueError(f"ranks[{int(ranks.argmin())}] is {ranks.min():g}; the first rank is 1.")
    scores = {f"recall_at_{k}": float((ranks <= k).mean()) for k in recall_at}
    return scores | {"mean_recall": mean((ranks <= k).mean() for k in RECALL_AT)}


def score_retrieval(ranks: Mapping[str, ArrayLike], recall_at: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Score several directions of retrieval.

    Args:
        ranks: ranks as `rank_own` returns them, by direction, such as `image_to_text`.
        recall_at: values of k.

    Returns:
        `<direction>_recall_at_<k>` and `<direction>_mean_recall`; and `mean_recall` over all directions.

    Raises:
        ValueError: if there are no directions, or as `score_ranks`.

    Example:
        >>> scores = score_retrieval({"image_to_text": [1], "text_to_image": [7]})
        >>> round(scores["mean_recall"], 4)
        0.6667
    """
    if not ranks:
        raise ValueError("ranks is empty; expected the ranks of at least one direction.")
    scores, means = {}, []
    for direction, of_direction in ranks.items():
        recalls = score_ranks(of_direction, recall_at)
        means.append(recalls["mean_recall"])
        scores |= {f"{direction}_{name}": recall for name, recall in recalls.items()}
    return scores | {"mean_recall": mean(means)}
