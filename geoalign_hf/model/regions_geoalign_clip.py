# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Arithmetic on regions: conversion between forms, checks, weights of patches, pooling.

A region is an axis-aligned box, an oriented box (four corners) or a mask. In every form it becomes one row of
non-negative weights over the h x w patches, which sum to 1. Its features are that row times the patch
features: one matrix product for all regions of all images.

Frames: `boxes` and `quads` are pixels of the image as given. `region_boxes`, `region_quads` and
`region_coverage` are fractions of `pixel_values`. The origin is at the top left, and y points down.
"""

import numpy as np
import torch
from PIL import Image

from .masks_geoalign_clip import as_float, normalize_weights, weigh_masks
from .region_checks_geoalign_clip import LARGEST_QUAD, SMALLEST_SIDE, check_box, check_quad


def xywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """Convert COCO's x, y, width, height into two corners.

    Args:
        boxes: (..., 4).

    Returns:
        (..., 4), xyxy.

    Example:
        >>> xywh_to_xyxy(torch.tensor([10.0, 20.0, 30.0, 5.0]))
        tensor([10., 20., 40., 25.])
    """
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_quads(boxes: torch.Tensor) -> torch.Tensor:
    """Convert boxes into their four corners, clockwise from the top left.

    Args:
        boxes: (..., 4), xyxy.

    Returns:
        (..., 4, 2), each corner x, y.

    Example:
        >>> xyxy_to_quads(torch.tensor([0, 0, 2, 1])).tolist()
        [[0, 0], [2, 0], [2, 1], [0, 1]]
    """
    return boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2))


def quads_to_xyxy(quads: torch.Tensor) -> torch.Tensor:
    """Compute the smallest axis-aligned box around four corners.

    Args:
        quads: (..., 4, 2).

    Returns:
        (..., 4), xyxy.

    Example:
        >>> quads_to_xyxy(torch.tensor([[1, 0], [2, 1], [1, 2], [0, 1]])).tolist()
        [0, 0, 2, 2]
    """
    return torch.cat([quads.amin(dim=-2), quads.amax(dim=-2)], dim=-1)


def check_boxes(
    boxes: torch.Tensor, width: int, height: int, name: str = "boxes", clip_boxes: bool = True
) -> torch.Tensor:
    """Check boxes, and cut them at the edge of their image.

    Args:
        boxes: (R, 4), xyxy pixels of the image.
        width: width of the image in pixels.
        height: height of the image in pixels.
        name: name of the boxes in messages.
        clip_boxes: whether to cut a box that is partly outside; False refuses it.

    Returns:
        (R, 4), float64, inside the image.

    Raises:
        ValueError: if a box is not finite, empty or completely outside; with `clip_boxes=False` also if
            it is partly outside.

    Example:
        >>> check_boxes(torch.tensor([[-5.0, 0.0, 10.0, 10.0]]), width=20, height=20).tolist()
        [[0.0, 0.0, 10.0, 10.0]]
    """
    boxes = boxes.double()
    for r, box in enumerate(boxes.tolist()):
        check_box(box, width, height, f"{name}[{r}]", clip_boxes)
    limit = torch.tensor([width, height, width, height], dtype=torch.float64)
    return torch.minimum(boxes.clamp(min=0), limit)


def check_quads(
    quads: torch.Tensor, width: int, height: int, name: str = "quads", clip_boxes: bool = True
) -> torch.Tensor:
    """Check oriented boxes. A quad that is partly outside stays as it is: only its part inside gets weights.

    Args:
        quads: (R, 4, 2), pixels of the image, four corners in order around the quad, in either direction.
        width: width of the image in pixels.
        height: height of the image in pixels.
        name: name of the quads in messages.
        clip_boxes: whether to allow a quad that is partly outside; False refuses it.

    Returns:
        (R, 4, 2), float64.

    Raises:
        ValueError: if a quad is not finite, has no area or crossing sides, is outside the image, or reaches
            more than 100 image sides beyond it.

    Example:
        >>> square = torch.tensor([[[0, 0], [4, 0], [4, 4], [0, 4]]])
        >>> check_quads(square, width=8, height=8).shape
        torch.Size([1, 4, 2])
    """
    quads = quads.double()
    for r, quad in enumerate(quads.tolist()):
        check_quad(quad, width, height, f"{name}[{r}]", clip_boxes)
    return quads


def stack_regions(regions, shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Return the regions of one image as one tensor.

    Args:
        regions: a list, an array or a tensor.
        shape: shape of one region.
        name: name of the regions in messages.

    Returns:
        (R, *shape), on the CPU.

    Raises:
        ValueError: with the name, if they have another shape, or are not numbers.
    """
    if np.ma.is_masked(regions):
        raise ValueError(f"{name} holds masked numbers. Fill or remove them.")
    if getattr(regions, "is_nested", False):
        raise ValueError(f"{name} is a nested tensor. Give a list of tensors.")
    if len(regions) == 0:
        return torch.zeros(0, *shape)
    if not isinstance(regions, torch.Tensor):
        dtype = torch.float64 if len(shape) == 1 or shape == (4, 2) else None
        try:
            parts = [np.asarray(region) if isinstance(region, Image.Image) else region for region in regions]
            regions = torch.stack([torch.as_tensor(part, dtype=dtype) for part in parts])
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} holds regions that are not numbers, or not of the same shape; each must be "
                f"{list(shape)}."
            ) from error
    try:
        regions = regions.detach().cpu().resolve_neg()
        (regions.float() if regions.dtype == torch.bfloat16 else regions.resolve_conj()).numpy()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} cannot become an array ({error}). Give an ordinary tensor.") from error
    if tuple(regions.shape[1:]) != shape:
        raise ValueError(
            f"{name} has the shape {list(regions.shape)}; expected [R, {', '.join(map(str, shape))}]. "
            "Give a list per image, and in it one entry per region."
        )
    if regions.is_complex():
        raise ValueError(f"{name} holds complex numbers. Give real numbers.")
    return regions


def weigh_boxes(region_boxes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Compute the weights whose product with the patch features is their mean over each box.

    The patch features define a bilinear surface through the centres of the patches, constant from the
    outermost centres to the edge. The weights average it over the box exactly, which is the limit of RoIAlign
    with one bin for many samples. The integral is separable: weights in y times weights in x. A box smaller
    than a patch therefore still gets features of its own.

    Args:
        region_boxes: (..., 4), xyxy in [0, 1]. Padding rows may hold any valid box.
        grid: (h, w), the number of patches down and across.

    Returns:
        (..., h * w), float32 or float64, non-negative, each row sums to 1.

    Source:
        RoIAlign, https://arxiv.org/abs/1703.06870, section 3, in the limit of many samples.

    Example:
        >>> weigh_boxes(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), grid=(1, 2))
        tensor([[0.8750, 0.1250]])
    """
    x0, y0, x1, y1 = as_float(region_boxes).unbind(-1)
    down = _weigh_intervals(y0, y1, grid[0])  # (..., h)
    across = _weigh_intervals(x0, x1, grid[1])  # (..., w)
    return (down.unsqueeze(-1) * across.unsqueeze(-2)).flatten(-2)


def _weigh_intervals(start: torch.Tensor, stop: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Integrate the hat function of each patch over [start, stop], divided by the length."""
    middle, half = (start + stop) / 2, ((stop - start) / 2).clamp(min=SMALLEST_SIDE / 2)
    start, stop = (middle - half) * num_patches, (middle + half) * num_patches
    start, stop = start.unsqueeze(-1), stop.unsqueeze(-1)  # (..., 1)
    # One more patch on each side; its weight is added to the outermost real patch below.
    centers = torch.arange(-1, num_patches + 1, dtype=start.dtype, device=start.device) + 0.5
    weights = 0
    for low, high in ((centers - 1, centers), (centers, centers + 1)):  # its rising and its falling half
        left, right = torch.maximum(start, low), torch.minimum(stop, high)
        # A linear function's integral is its value in the middle times the length: no cancellation.
        weights = weights + (right - left).clamp(min=0) * (1 - ((left + right) / 2 - centers).abs())
    weights = weights / (stop - start)
    inner = weights[..., 1:-1].clone()
    inner[..., 0] += weights[..., 0]
    inner[..., -1] += weights[..., -1]
    return inner


def weigh_quads(region_quads: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Compute which fraction of an oriented box lies in each patch, in closed form.

    The four corners may go around in either direction, and may lie outside of the image.

    Args:
        region_quads: (..., 4, 2), corners x, y in [0, 1].
        grid: (h, w), the number of patches down and across.

    Returns:
        (..., h * w), float32 or float64, non-negative, each row sums to 1.

    Source:
        Green's theorem: the area of a polygon below Y is the signed sum over its edges of the
        integral of min(y, Y) over x.

    Example:
        >>> diamond = torch.tensor([[[0.5, 0.0], [1.0, 0.5], [0.5, 1.0], [0.0, 0.5]]])
        >>> weigh_quads(diamond, grid=(2, 2))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    quads = as_float(region_quads)
    cover = _cover_by_quads(quads, grid)
    # If float32 rounding leaves no area inside the image, the box around the quad is used instead.
    is_closed = cover.sum(dim=-1, keepdim=True) <= SMALLEST_SIDE**2
    around = weigh_boxes(quads_to_xyxy(quads).clamp(0, 1), grid)
    return torch.where(is_closed, around, normalize_weights(cover))


def _cover_by_quads(region_quads: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return the area of every grid cell inside each quad, in cells: (..., h * w)."""
    h, w = grid
    corners = region_quads * torch.tensor([w, h], dtype=region_quads.dtype, device=region_quads.device)
    column = torch.arange(w, dtype=corners.dtype, device=corners.device)
    row = torch.arange(h, dtype=corners.dtype, device=corners.device).unsqueeze(-1)  # (h, 1)
    signed = 0
    for k in range(4):  # one edge at a time: a single tensor for all takes twice as long
        x0, y0 = corners[..., k, :, None].unbind(-2)  # (..., 1)
        x1, y1 = corners[..., (k + 1) % 4, :, None].unbind(-2)
        left, right = x0.clamp(column, column + 1), x1.clamp(column, column + 1)  # (..., w)
        # An edge that is as good as vertical adds nothing, and its slope could be infinite.
        slope = (y1 - y0) / torch.where((x1 - x0).abs() < 1e-12, 1, x1 - x0)
        y_left, y_right = y0 + (left - x0) * slope, y0 + (right - x0) * slope
        low = torch.minimum(y_left, y_right).unsqueeze(-2) - row  # (..., h, w), from the top of each row
        high = torch.maximum(y_left, y_right).unsqueeze(-2) - row
        # How far this piece of the edge lies below the top of the row on average, between 0 and 1.
        signed = signed + _mean_clamped(low, high) * (right - left).unsqueeze(-2)
    return signed.sum(dim=(-2, -1), keepdim=True).sign().mul(signed).clamp(min=0).flatten(-2)


def _mean_clamped(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return the mean of clamp(y, 0, 1) for y uniform over [low, high]."""
    span = (high - low).clamp(min=torch.finfo(low.dtype).tiny)
    inner_low, inner_high = low.clamp(0, 1), high.clamp(0, 1)
    # Where the span is 0, the piece is horizontal and all of it lies at `low`.
    inside = (inner_high - inner_low) / span
    above = (high - 1).clamp(min=0).minimum(span) / span
    level = high - low < 1e-12
    return torch.where(level, inner_low, inside * (inner_low + inner_high) / 2 + above)


def weigh_regions(
    num_images: int,
    grid: tuple[int, int],
    region_boxes: torch.Tensor | None = None,
    region_quads: torch.Tensor | None = None,
    region_coverage: torch.Tensor | None = None,
    region_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the weights of regions in one of three forms: (B, R, h * w), zeros for padding.

    Raises:
        ValueError: if regions are given in no form or several, for another number of images, or are not in
            the frame of `pixel_values`.
    """
    forms = {
        "region_boxes": (region_boxes, weigh_boxes),
        "region_quads": (region_quads, weigh_quads),
        "region_coverage": (region_coverage, weigh_masks),
    }
    given = [name for name, (regions, _) in forms.items() if regions is not None]
    if not given:
        raise ValueError("no regions are given. Give region_boxes, region_quads or region_coverage.")
    if len(given) > 1:
        raise ValueError(f"regions are given as {' and '.join(given)}. Give one form in a call.")
    regions, weigh = forms[given[0]]
    if regions.shape[0] != num_images:  # `len` would make it a constant of an exported model
        raise ValueError(
            f"{given[0]} is for {len(regions)} images, but there are {num_images} images. "
            "Give one list of regions per image, an empty one where there are none."
        )
    if not torch.compiler.is_compiling() and regions.device.type != "meta":
        _check_frame(given[0], regions)
    weights = weigh(regions, grid)
    return weights if region_mask is None else weights * region_mask.unsqueeze(-1)


def _check_frame(name: str, regions: torch.Tensor):
    """Refuse regions in pixels: they would silently get the weights of a corner of the image."""
    low, high = (-LARGEST_QUAD, LARGEST_QUAD) if name == "region_quads" else (-1e-3, 1 + 1e-3)
    is_inside = (regions >= low) & (regions <= high)  # False for NaN
    if name == "region_quads":  # at least a part of each quad is inside the image
        is_inside &= (regions.amin(dim=-2, keepdim=True) <= 1) & (regions.amax(dim=-2, keepdim=True) >= 0)
    elif name == "region_boxes":
        is_inside &= (regions[..., 2:] >= regions[..., :2]).all(dim=-1, keepdim=True)
    if not is_inside.all():
        place = (~is_inside).nonzero()[0, :2].tolist()
        raise ValueError(
            f"{name}[{place[0]}, {place[1]}] = {regions[tuple(place)].tolist()!s:.200} is not in the frame "
            "of pixel_values: from 0 to 1, with x0 <= x1 and y0 <= y1. Pass pixels of the image to the "
            "processor as boxes, quads or masks; it converts them."
        )


def pool_regions(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Average patch features inside each region.

    Args:
        features: (B, h * w, D), one vector per patch, row by row.
        weights: (B, R, h * w), from `weigh_boxes`, `weigh_quads` or `weigh_masks`.

    Returns:
        (B, R, D), in the type of `features`, not normalised.

    Raises:
        ValueError: if the two differ in the number of images or patches.

    Example:
        >>> left_dark = torch.tensor([[[0.0], [1.0]]])  # one image, 1 x 2 patches, D = 1
        >>> halves = weigh_boxes(torch.tensor([[[0.0, 0.0, 0.25, 1.0], [0.75, 0.0, 1.0, 1.0]]]), grid=(1, 2))
        >>> pool_regions(left_dark, halves)
        tensor([[[0.],
                 [1.]]])
    """
    if features.shape[0] != weights.shape[0] or features.shape[1] != weights.shape[-1]:
        raise ValueError(
            f"features of {features.shape[0]} images with {features.shape[1]} patches do not fit weights for "
            f"{weights.shape[0]} images with {weights.shape[-1]} patches. Make the weights for this grid."
        )
    return weights.to(features.dtype) @ features
