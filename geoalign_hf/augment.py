"""A row seen differently: another window of the image, turned, mirrored, in other light.

Regions go along, and so do the words, as far as they stay true: what is said of the whole scene is
dropped where a region was lost, and a row whose words speak of directions is neither turned nor mirrored.
"""

import math
import re
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance

from .rows import REGION_COLUMNS

DIRECTIONS = re.compile(
    r"\b(left|right|top|bottom|upper|lower|above|below|north\w*|south\w*|east\w*|west\w*)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Augmentation:
    """How far a row may be changed.

    Args:
        whole_share: how often the whole image is kept; else a window round one of its regions is cut out.
        min_context: the shortest side of that window, as a multiple of the region's longer side.
        max_context: the longest. Every octave between is as likely.
        min_visible: a region of which less than this share of its area is in the window is left out.
        turn: also mirror and turn by multiples of 90 degrees.
        light: how far brightness, contrast and saturation may change, as a share.
    """

    whole_share: float = 0.3
    min_context: float = 1.5
    max_context: float = 8.0
    min_visible: float = 0.5
    turn: bool = True
    light: float = 0.3

    def __call__(self, row: dict, generator: torch.Generator) -> dict:
        """Change one row.

        Args:
            row: with a PIL image; its quads follow where there are any.
            generator: draws everything that is random here.

        Returns:
            The row as it would have been annotated in the changed image.
        """
        row = self._choose_window(row, generator)
        if self.turn and not DIRECTIONS.search(" ".join(_list_words(row))):
            row = _turn(row, int(torch.randint(8, (1,), generator=generator)))
        factors = 1 + self.light * (2 * torch.rand(3, generator=generator) - 1)
        image = row["image"].convert("RGB")
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color),
            factors.tolist(),
            strict=True,
        ):
            image = enhance(image).enhance(factor)
        return row | {"image": image}

    def _choose_window(self, row: dict, generator: torch.Generator) -> dict:
        if not row["boxes"] or torch.rand((), generator=generator) < self.whole_share:
            return row
        r = int(torch.randint(len(row["boxes"]), (1,), generator=generator))
        x0, y0, x1, y1 = row["boxes"][r]
        octave, stretch, x, y = torch.rand(4, generator=generator).tolist()
        side = max(x1 - x0, y1 - y0) * self.min_context * (self.max_context / self.min_context) ** octave
        stretch = 1.25 ** (stretch - 0.5)
        window = []
        for low, high, extent, length, share in (
            (x0, x1, side * stretch, row["image"].width, x),
            (y0, y1, side / stretch, row["image"].height, y),
        ):
            low, high = max(math.floor(low), 0), min(math.ceil(high), length)  # windows are whole pixels
            extent = min(math.ceil(max(extent, high - low)), length)
            # The region lies anywhere in the window, whole; the window lies inside the image.
            start = high - extent + share * (extent - (high - low))
            start = min(max(math.floor(start), 0), length - extent)
            window.append((start, start + extent))
        (left, right), (top, bottom) = window
        return cut_window(row, (left, top, right, bottom), self.min_visible)


def cut_window(row: dict, window: tuple[int, int, int, int], min_visible: float = 0.5) -> dict:
    """Cut a row to a window of its image.

    Args:
        row: with a PIL image.
        window: xyxy whole pixels, inside the image.
        min_visible: a region of which less than this share of its box is in the window is left out.

    Returns:
        The row of the window. Boxes are cut at its edge, quads are kept whole. Captions and description
        are dropped if a region was left out, since they may speak of it.
    """
    left, top, right, bottom = window
    kept, boxes = [], []
    for r, (x0, y0, x1, y1) in enumerate(row["boxes"]):
        cut = [max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)]
        visible = max(0.0, cut[2] - cut[0]) * max(0.0, cut[3] - cut[1])
        if visible > 0 and visible >= min_visible * (x1 - x0) * (y1 - y0):
            kept.append(r)
            boxes.append([cut[0] - left, cut[1] - top, cut[2] - left, cut[3] - top])
    result = row | {"image": row["image"].crop(window)}
    for name in REGION_COLUMNS:
        if row.get(name):
            result[name] = [row[name][r] for r in kept]
    result["boxes"] = boxes
    if row.get("quads"):
        result["quads"] = [[[x - left, y - top] for x, y in quad] for quad in result["quads"]]
    if len(kept) < len(row["boxes"]):
        result |= {"captions": [], "description": None}
    return result


def _turn(row: dict, number: int) -> dict:
    """Apply one of the eight symmetries of a square: mirror (number odd), then quarter turns."""
    width, height = row["image"].size
    image = row["image"]
    corners = torch.tensor(row["boxes"], dtype=torch.float64).view(-1, 2, 2)  # (R, 2, 2)
    quads = torch.tensor(row.get("quads") or [], dtype=torch.float64).view(-1, 4, 2)

    def move(points):
        if number % 2:
            points = torch.stack([width - points[..., 0], points[..., 1]], dim=-1)
        turned_width, turned_height = width, height
        for _ in range(number // 2):  # counterclockwise, as PIL turns
            points = torch.stack([points[..., 1], turned_width - points[..., 0]], dim=-1)
            turned_width, turned_height = turned_height, turned_width
        return points

    if number % 2:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for _ in range(number // 2):
        image = image.transpose(Image.Transpose.ROTATE_90)
    corners = move(corners)
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=-1)
    return row | {"image": image, "boxes": boxes.tolist(), "quads": move(quads).tolist()}


def _list_words(row: dict) -> list[str]:
    negatives = [phrase for phrases in row.get("hard_negatives") or [] for phrase in phrases]
    return [*(row.get("captions") or []), row.get("description") or "", *row["phrases"], *negatives]
