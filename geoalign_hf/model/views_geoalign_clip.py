# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Windows around regions, for models that look at each region on its own (`region_view="window"`)."""

import math

from PIL import Image
from transformers.image_transforms import to_pil_image


def find_window(box: list[float], size: tuple[int, int], context: float) -> tuple[int, int, int, int]:
    """Choose a square around a box, moved or cut so that it lies inside the image.

    Args:
        box: xyxy, pixels of the image as given.
        size: (width, height) of the image.
        context: side of the square as a multiple of the longer side of the box.

    Returns:
        xyxy, whole pixels.

    Example:
        >>> find_window([100, 60, 120, 70], (300, 200), 3.0)
        (80, 35, 140, 95)
    """
    x0, y0, x1, y1 = box
    side = context * max(x1 - x0, y1 - y0)
    window = []
    for low, high, length in ((x0, x1, size[0]), (y0, y1, size[1])):
        extent = min(side, length)
        start = min(max((low + high - extent) / 2, 0), length - extent)
        window.append((int(start), min(length, math.ceil(start + extent))))
    (left, right), (top, bottom) = window
    return left, top, right, bottom


def cut_windows(image, boxes: list, context: float) -> tuple[list[Image.Image], list[list[float]]]:
    """Cut a window around each box of an image.

    Args:
        image: a PIL image, an array or a tensor.
        boxes: xyxy, pixels of the image.
        context: side of a window as a multiple of the longer side of its box.

    Returns:
        the windows, and each box in the pixels of its window.

    Example:
        >>> (window,), boxes = cut_windows(Image.new("RGB", (300, 200)), [[100, 60, 120, 70]], 3.0)
        >>> window.size, boxes
        ((60, 60), [[20, 25, 40, 35]])
    """
    image = image if isinstance(image, Image.Image) else to_pil_image(image)
    places = [find_window(box, image.size, context) for box in boxes]
    moved = [
        [x0 - left, y0 - top, x1 - left, y1 - top]
        for (x0, y0, x1, y1), (left, top, _, _) in zip(boxes, places, strict=True)
    ]
    return [image.crop(place) for place in places], moved
