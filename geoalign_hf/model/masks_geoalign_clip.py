# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Masks as regions: checking them, resampling them, and the weights of patches that follow from them."""

import math

import numpy as np
import torch


def check_masks(masks: torch.Tensor, name: str = "masks") -> torch.Tensor:
    """Refuse masks that do not say clearly which pixels they cover.

    Args:
        masks: (R, H, W), boolean, or numbers that are 0 outside and 1 or 255 inside.
        name: name of the masks in messages.

    Returns:
        (R, H, W), bool.

    Raises:
        ValueError: with the mask's place, if it covers no pixel or holds other numbers, such as
            probabilities.

    Example:
        >>> check_masks(torch.tensor([[[0, 255]]], dtype=torch.uint8)).tolist()
        [[[False, True]]]
    """
    # numpy looks at all pixels several times faster than torch does.
    array = (masks.float() if masks.dtype == torch.bfloat16 else masks).numpy()
    if array.dtype != bool and array.size:
        top = np.where(array.max(axis=(1, 2), keepdims=True) > 1, 255, 1)
        is_binary = (array == 0) | (array == top.astype(array.dtype))
        if not is_binary.all():
            r, *_ = place = tuple(np.argwhere(~is_binary)[0])
            raise ValueError(
                f"{name}[{r}] holds {array[place]}. A mask is boolean, or 0 outside and 1 or 255 inside. "
                "Threshold it first, for example mask > 0.5."
            )
        array = array.astype(bool)
    if not (covers := array.any(axis=(1, 2))).all():
        raise ValueError(f"{name}[{covers.argmin()}] covers no pixel. Leave this region out.")
    return torch.from_numpy(array)


def weigh_masks(region_coverage: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Compute the weights of the patches from how much of each patch a mask covers.

    Args:
        region_coverage: (..., H, W), fraction of each cell that the region covers, 0 to 1. H and W are
            multiples of the grid: the cells may be pixels or patches.
        grid: (h, w), the number of patches down and across.

    Returns:
        (..., h * w), float32 or float64, each row sums to 1; an empty mask (padding) gives zeros.

    Raises:
        ValueError: if H and W are not multiples of the grid.

    Example:
        >>> weigh_masks(torch.tensor([[1.0, 1.0, 0.0, 1.0]]), grid=(1, 2))
        tensor([0.6667, 0.3333])
    """
    h, w = grid
    H, W = region_coverage.shape[-2:]
    if H % h or W % w:
        raise ValueError(
            f"region_coverage has {H} x {W} cells, which are not multiples of the {h} x {w} patches. "
            "Prepare the masks with the processor and the size of pixel_values."
        )
    coverage = as_float(region_coverage)
    patches = coverage.unflatten(-1, (w, -1)).unflatten(-3, (h, -1))  # (..., h, p, w, p)
    return normalize_weights(patches.sum(dim=(-3, -1)).flatten(-2))


def masks_to_coverage(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resample masks to another size by area: which fraction of each new cell is covered.

    Args:
        masks: (R, H, W), bool, pixels of the image.
        size: (height, width) of the result, smaller or larger than the mask.

    Returns:
        (R, height, width), float32 in [0, 1].

    Example:
        >>> masks_to_coverage(torch.tensor([[[True, False, True]]]), size=(1, 2))
        tensor([[[0.6667, 0.6667]]])
    """
    H, W = masks.shape[-2:]
    array, coverage = masks.numpy(), np.zeros((len(masks), *size), np.float32)
    down, across = _overlap_pixels(H, size[0]).numpy(), _overlap_pixels(W, size[1]).numpy()  # (height, H)
    has_rows, has_columns = array.any(axis=2), array.any(axis=1)
    for mask, rows, columns, result in zip(array, has_rows, has_columns, coverage, strict=True):
        # Only the mask's box takes part in the products.
        (top, bottom), (left, right) = find_extent(rows), find_extent(columns)
        y, x = _scale_extent(top, bottom, H, size[0]), _scale_extent(left, right, W, size[1])
        inside = mask[top:bottom, left:right].astype(np.float32)
        result[y, x] = down[y, top:bottom] @ inside @ across[x, left:right].T
    return torch.from_numpy(coverage.clip(max=1))  # rounding may exceed 1


def find_extent(is_covered: np.ndarray) -> tuple[int, int]:
    """Return the first index and one past the last index where a vector is True; (0, 0) if nowhere."""
    places = np.flatnonzero(is_covered)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _scale_extent(start: int, stop: int, num_old: int, num_new: int) -> slice:
    """Return the new cells that the old pixels from `start` to `stop` touch."""
    return slice(start * num_new // num_old, math.ceil(stop * num_new / num_old))


def _overlap_pixels(num_old: int, num_new: int) -> torch.Tensor:
    """Return the fraction of each new cell that each old pixel fills: (num_new, num_old), rows sum to 1."""
    old = torch.arange(num_old, dtype=torch.float64)
    start = torch.arange(num_new, dtype=torch.float64).unsqueeze(-1) * num_old / num_new
    stop = start + num_old / num_new
    overlap = (torch.minimum(stop, old + 1) - torch.maximum(start, old)).clamp(min=0)
    return (overlap / overlap.sum(dim=-1, keepdim=True)).float()


def normalize_weights(weights: torch.Tensor) -> torch.Tensor:
    """Divide weights by their sum over the last axis; zeros stay zeros."""
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def as_float(tensor: torch.Tensor) -> torch.Tensor:
    """Convert to float32, but keep float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
