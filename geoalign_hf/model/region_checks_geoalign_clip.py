# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of single regions, and arithmetic on polygons, in plain Python.

The dataset builder checks millions of regions without importing torch.
"""

import math

SMALLEST_SIDE = 1e-6  # of the image: shorter sides are widened to this, since float32 may round them to 0
LARGEST_QUAD = 100.0  # in sides of the image: corners further away are too inexact in float32


def check_box(box: list[float], width: int, height: int, name: str = "the box", clip_boxes: bool = True):
    """Check a box.

    Args:
        box: xyxy pixels of the image.
        width: width of the image in pixels.
        height: height of the image in pixels.
        name: name of the box in messages.
        clip_boxes: whether to allow a box that is partly outside; False refuses it.

    Raises:
        ValueError: if the box is not finite, empty or completely outside; with `clip_boxes=False` also if
            it is partly outside.
    """
    place = f"{name} = {box}"
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{place} is not finite. Boxes are four numbers, xyxy pixels; remove this one.")
    for low, high, length, axis in ((box[0], box[2], width, "x"), (box[1], box[3], height, "y")):
        if high <= low:
            raise ValueError(
                f"{place} has {axis}1 <= {axis}0. Boxes are xyxy pixels of the image as given; "
                "convert COCO boxes with xywh_to_xyxy first."
            )
        if high <= 0 or low >= length:
            raise ValueError(
                f"{place} is completely outside its image of {width} x {height} pixels (width x height). "
                "Boxes are xyxy pixels of the image as given, before any resizing; remove this one."
            )
    if not clip_boxes and (min(box) < 0 or box[2] > width or box[3] > height):
        raise ValueError(
            f"{place} reaches outside its image of {width} x {height} pixels (width x height). "
            "Cut it, or allow cutting with clip_boxes=True."
        )


def check_quad(
    quad: list[list[float]], width: int, height: int, name: str = "the quad", clip_boxes: bool = True
):
    """Check an oriented box.

    Args:
        quad: four corners in pixels of the image, in order around the quad, in either direction.
        width: width of the image in pixels.
        height: height of the image in pixels.
        name: name of the quad in messages.
        clip_boxes: whether to allow a quad that is partly outside; False refuses it.

    Raises:
        ValueError: if the quad is not finite, has no area or crossing sides, is outside the image, or reaches
            more than 100 image sides beyond it.
    """
    place = f"{name} = {quad}"
    if not all(math.isfinite(number) for corner in quad for number in corner):
        raise ValueError(f"{place} is not finite. Quads are four corners x, y in pixels; remove this one.")
    if any(abs(x) > LARGEST_QUAD * width or abs(y) > LARGEST_QUAD * height for x, y in quad):
        raise ValueError(
            f"{place} reaches beyond {LARGEST_QUAD:g} times the size of its image of {width} x {height} "
            "pixels (width x height). Quads are four corners x, y in pixels; cut it to the image."
        )
    if not _is_simple(quad):
        raise ValueError(
            f"{place} has no area or sides that cross. Quads are four corners x, y in pixels, going round."
        )
    xs, ys = zip(*quad, strict=True)
    box = [min(xs), min(ys), max(xs), max(ys)]
    check_box(box, width, height, f"the box around {name}", clip_boxes)
    is_inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
    if not is_inside and measure_area(clip_polygon(quad, (0, 0, width, height))) <= 0:
        raise ValueError(
            f"{place} is completely outside its image of {width} x {height} pixels (width x height), though "
            "the box around it is not. Remove it."
        )


def _is_simple(quad: list[list[float]]) -> bool:
    """Whether a quad has an area and no two of its sides cross."""

    def turn(a, b, c):
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    def cross(a, b, c, d):
        return turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0

    a, b, c, d = quad
    area = turn(a, b, c) + turn(a, c, d)
    longest = max(max(numbers) - min(numbers) for numbers in zip(*quad, strict=True))
    # A thinner quad is a line up to rounding.
    return abs(area) > SMALLEST_SIDE * longest**2 and not cross(a, b, c, d) and not cross(b, c, d, a)


def clip_polygon(polygon: list, window: tuple[float, float, float, float]) -> list:
    """Clip a polygon by the four sides of a window (xyxy) in turn (Sutherland and Hodgman).

    Example:
        >>> clip_polygon([[0, 0], [4, 0], [4, 4]], (0, 0, 2, 4))
        [[0, 0], [2.0, 0.0], [2.0, 2.0]]
    """
    for axis, limit, sign in ((0, window[0], 1), (1, window[1], 1), (0, window[2], -1), (1, window[3], -1)):
        clipped = []
        for start, stop in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            before, after = sign * (start[axis] - limit), sign * (stop[axis] - limit)
            if before >= 0:
                clipped.append(start)
            if before * after < 0:
                t = before / (before - after)
                clipped.append([start[k] + t * (stop[k] - start[k]) for k in (0, 1)])
        polygon = clipped
    return polygon


def measure_area(polygon: list) -> float:
    """Compute the area of a polygon.

    Example:
        >>> measure_area([[0, 0], [2, 0], [2, 3]])
        3.0
    """
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2
