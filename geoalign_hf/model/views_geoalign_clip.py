# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Windows around regions, for models that look at each region on its own (`region_view="window"`)."""

import math

import torch
from PIL import Image

from .regions_geoalign_clip import quads_to_xyxy


def cut_box(box: list[float], size: tuple[int, int]) -> list[float]:
    """Cut a box (xyxy pixels) at the edge of an image of this width and height.

    Example:
        >>> cut_box([-5, 2, 10, 90], (300, 80))
        [0, 2, 10, 80]
    """
    return [min(max(number, 0), limit) for number, limit in zip(box, (*size, *size), strict=True)]


def find_window(box: list[float], size: tuple[int, int], context: float) -> tuple[int, int, int, int]:
    """Choose a square around the part of a box in the image, moved or cut so that it lies inside the image.

    Args:
        box: xyxy, pixels of the image as given. What is outside the image is cut first.
        size: (width, height) of the image.
        context: side of the square as a multiple of the longer side of the box.

    Returns:
        xyxy, whole pixels. For a box beside the image it is the nearest place.

    Example:
        >>> find_window([100, 60, 120, 70], (300, 200), 3.0)
        (80, 35, 140, 95)
        >>> find_window([-500, 60, 20, 70], (300, 200), 3.0)
        (0, 35, 60, 95)
    """
    x0, y0, x1, y1 = cut_box(box, size)
    side = context * max(x1 - x0, y1 - y0) or 1.0
    window = []
    for low, high, length in ((x0, x1, size[0]), (y0, y1, size[1])):
        extent = min(side, length)
        start = min(max((low + high - extent) / 2, 0), length - extent)
        window.append((int(start), min(length, math.ceil(start + extent))))
    (left, right), (top, bottom) = window
    return left, top, right, bottom


def cut_windows(image: Image.Image, regions: list, context: float, form: str = "boxes") -> tuple[list, list]:
    """Cut a window around each region of an image.

    Args:
        image: an image of any mode.
        regions: boxes (xyxy), quads (four corners x, y) or masks (height, width), all in pixels of the image.
        context: side of a window as a multiple of the longer side of the region's box.
        form: `boxes`, `quads` or `masks`.

    Returns:
        the windows, and each region in the pixels of its window.

    Example:
        >>> (window,), boxes = cut_windows(Image.new("RGB", (300, 200)), [[100, 60, 120, 70]], 3.0)
        >>> window.size, boxes[0].tolist()
        ((60, 60), [20.0, 25.0, 40.0, 35.0])
    """
    windows, moved = [], []
    for region in regions:
        region = torch.as_tensor(region, dtype=None if form == "masks" else torch.float64)
        left, top, right, bottom = find_window(_find_box(region, form), image.size, context)
        windows.append(image.crop((left, top, right, bottom)))
        if form == "masks":
            moved.append(region[top:bottom, left:right])
        else:
            origin = torch.tensor([left, top], dtype=torch.float64)
            moved.append((region.view(-1, 2) - origin).view_as(region))
    return windows, moved


def _find_box(region: torch.Tensor, form: str) -> list[float]:
    """Return the smallest box around a region, xyxy pixels."""
    if form == "masks":
        rows, columns = region.any(dim=1).nonzero(), region.any(dim=0).nonzero()
        return [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
    return (quads_to_xyxy(region) if form == "quads" else region).tolist()
