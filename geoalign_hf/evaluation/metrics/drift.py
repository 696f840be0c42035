"""Coherence of the dense map, and drift of embeddings: what training may break while other scores rise."""

import numpy as np
from numpy.typing import ArrayLike

from .checks import check_numbers


def measure_coherence(patch_embeds: ArrayLike) -> dict[str, float]:
    """Measure how much more similar neighbouring patches are than any two patches of an image.

    Training on regions can break the dense map. Patches then differ from their neighbours as from any other
    patch (`coherence` near 0), or all patches become the same (`any_cosine` near 1).

    Args:
        patch_embeds: (B, D, h, w), unit vectors; h and w are 2 or more.

    Returns:
        `neighbour_cosine`, the mean over pairs of patches side by side or one above the other; `any_cosine`,
        the mean over all pairs of different patches of an image; `coherence`, the first minus the second.

    Raises:
        ValueError: if the shape does not fit, the grid has one row or column, or a value is NaN.

    Example:
        >>> halves = [[[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]]  # (1, 2, 2, 2)
        >>> measure_coherence(halves)["neighbour_cosine"]
        0.5
    """
    patches = check_numbers(patch_embeds, "patch_embeds", 4).astype(np.float64)
    h, w = patches.shape[2:]
    if min(h, w) < 2:
        raise ValueError(
            f"The dense map has {h} x {w} patches; at least 2 x 2 are needed. Give larger images."
        )
    across = (patches[..., :, 1:] * patches[..., :, :-1]).sum(axis=1)  # (B, h, w - 1)
    down = (patches[..., 1:, :] * patches[..., :-1, :]).sum(axis=1)  # (B, h - 1, w)
    neighbour = float(np.concatenate([across.ravel(), down.ravel()]).mean())
    # The squared length of the sum of all vectors is the sum of all cosines, including each patch with
    # itself.
    total = (patches.sum(axis=(2, 3)) ** 2).sum(axis=1)
    with_itself = (patches**2).sum(axis=(1, 2, 3))
    anywhere = float(((total - with_itself) / (h * w * (h * w - 1))).mean())
    return {"neighbour_cosine": neighbour, "any_cosine": anywhere, "coherence": neighbour - anywhere}


def measure_drift(embeds: ArrayLike, start_embeds: ArrayLike) -> dict[str, float]:
    """Measure how far embeddings have moved from those of the model that training started from.

    Args:
        embeds: (N, D), unit vectors.
        start_embeds: (N, D), unit vectors of the same inputs.

    Returns:
        `cosine_to_start`, the mean over N, and `lowest_cosine_to_start`.

    Raises:
        ValueError: if shapes differ, there are no embeddings, or a value is NaN.

    Example:
        >>> measure_drift([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])
        {'cosine_to_start': 0.5, 'lowest_cosine_to_start': 0.0}
    """
    embeds = check_numbers(embeds, "embeds", 2).astype(np.float64)
    start_embeds = check_numbers(start_embeds, "start_embeds", 2).astype(np.float64)
    if embeds.shape != start_embeds.shape:
        raise ValueError(
            f"embeds has the shape {embeds.shape}, but start_embeds {start_embeds.shape}. "
            "Give the same inputs in the same order, and models of one width."
        )
    cosines = (embeds * start_embeds).sum(axis=1)
    return {"cosine_to_start": float(cosines.mean()), "lowest_cosine_to_start": float(cosines.min())}
