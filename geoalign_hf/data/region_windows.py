"""Windows around single regions: turned, shifted and stretched squares, at the size of the model's input.

The pixels of a window come from one affine resampling. Its source is the image, or a smaller copy of it if
the window is larger than the model's input. Boxes become quads, since a turned box is not upright any more.
"""

import math

import numpy as np
import torch
from PIL import Image

from ..model.views_geoalign_clip import cut_box
from .augmentation import Augmentation, change_light, erase_rectangle
from .schema import REGION_COLUMNS
from .windows import drop_context, measure_visible

MAX_OFFSET = (
    0.25  # distance of the centres of a turned window and its region, as a share of the window's side
)


class ImagePyramid:
    """An image with copies of a half, a quarter, ... of its size, each made when it is first needed.

    Args:
        image: a PIL image.
    """

    def __init__(self, image: Image.Image):
        self.levels = [image.convert("RGB")]

    @property
    def num_bytes(self) -> int:
        """Bytes that the pixels of all levels take at most."""
        width, height = self.levels[0].size
        return 4 * width * height

    def get_level(self, scale: float) -> Image.Image:
        """Return the copy whose resolution fits best.

        Args:
            scale: pixels of the image per pixel of the result that is to be drawn.
        """
        level = max(0, round(math.log2(max(scale, 1))))
        while len(self.levels) <= level and min(self.levels[-1].size) > 1:
            self.levels.append(self.levels[-1].reduce(2))
        return self.levels[min(level, len(self.levels) - 1)]


def view_region(
    row: dict, r: int, size: int, augment: Augmentation, generator: torch.Generator, pyramid: ImagePyramid
) -> dict:
    """Draw a random window around one region of a row.

    Args:
        row: a row; its captions and description are dropped, since a window shows only a part of the scene.
        r: the region.
        size: side of the window in pixels of the result.
        augment: options of the window.
        generator: source of everything random here.
        pyramid: the row's image.

    Returns:
        The row of the window, with an RGB image of `size` x `size` pixels, and with boxes and quads in its
        pixels. Region `r` comes first; other regions follow if at least `min_visible` of them is in the
        window, and are listed in `unboxed` if less is.
    """
    words = drop_context(row, has_lost_regions=True)  # no direction is named any more
    matrix, center = _draw_frame(row, r, size, augment, generator)
    quads = np.array(row.get("quads") or [list_corners(box) for box in row["boxes"]], dtype=float)
    quads = (quads - center) @ np.linalg.inv(matrix).T + size / 2  # (R, 4, 2), pixels of the window
    moved = {
        "boxes": np.concatenate([quads.min(axis=1), quads.max(axis=1)], axis=1).tolist(),
        "quads": quads.tolist(),
    }
    shares = measure_visible(moved, (0, 0, size, size))
    others = [s for s, share in enumerate(shares) if s != r and share > 0 and share >= augment.min_visible]
    kept = [r, *others]
    result = words | moved
    for name in REGION_COLUMNS:
        if result.get(name):
            result[name] = [result[name][s] for s in kept]
    result["boxes"] = np.clip(result["boxes"], 0, size).tolist()
    hidden = {row["concepts"][s] for s, share in enumerate(shares) if share > 0 and s not in kept}
    result["unboxed"] = sorted(hidden.union(row.get("unboxed") or []))
    image = change_light(_resample(pyramid, matrix, center, size), augment.light, generator)
    result["image"] = erase_rectangle(image, augment.erase, generator)
    return result


def list_corners(box: list[float]) -> list[list[float]]:
    """List the four corners of an xyxy box."""
    x0, y0, x1, y1 = box
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def _draw_frame(row, r, size, augment, generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the matrix (2, 2) from pixels of the window to pixels of the image, and the centre (2,)."""
    context, angle, mirror, x, y, stretch = torch.rand(6, generator=generator).tolist()
    x0, y0, x1, y1 = cut_box(row["boxes"][r], row["image"].size)
    side = (
        max(x1 - x0, y1 - y0) * augment.min_context * (augment.max_context / augment.min_context) ** context
    )
    stretch = (1 + augment.stretch_sides) ** (2 * stretch - 1)
    sides = np.array([side * stretch, side / stretch])
    center = np.array([x0 + x1, y0 + y1]) / 2 + augment.shift * side * (2 * np.array([x, y]) - 1)
    limits = np.array(row["image"].size)
    # A window lies inside the image where it fits, as windows at inference do.
    center = np.where(sides < limits, np.clip(center, sides / 2, limits - sides / 2), limits / 2)
    # Yet a turned window must not lose a region at the border: its centre stays near that of the region.
    middle = np.array([x0 + x1, y0 + y1]) / 2
    distance = np.linalg.norm(center - middle)
    if augment.turn and distance > MAX_OFFSET * side:
        center = middle + (center - middle) * MAX_OFFSET * side / distance
    matrix = np.diag(sides / size)
    if augment.turn:
        sine, cosine = math.sin(2 * math.pi * angle), math.cos(2 * math.pi * angle)
        matrix = (
            np.array([[cosine, -sine], [sine, cosine]]) @ matrix @ np.diag([1 if mirror < 0.5 else -1, 1])
        )
    return matrix, center


def _resample(pyramid: ImagePyramid, matrix: np.ndarray, center: np.ndarray, size: int) -> Image.Image:
    scale = math.sqrt(abs(np.linalg.det(matrix)))
    level = pyramid.get_level(scale)
    shrink = np.array(level.size) / np.array(pyramid.levels[0].size)
    matrix = np.diag(shrink) @ matrix
    offset = shrink * center - matrix @ np.full(2, size / 2)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    return level.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
