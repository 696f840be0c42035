"""A row seen differently: another window of the image, turned, mirrored, in other light.

Regions go along, and so do the words, as far as they stay true: what is said of the whole scene is
dropped where a region was lost, and a row whose words speak of directions is neither turned nor mirrored.
"""

import math
import re
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance

from ..captioning.grammar import CONTEXT, add_article
from .schema import REGION_COLUMNS

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

    Words that tell of the whole image do not outlive the cut: a phrase becomes its concept with an article,
    its hard negatives go, captions and description are dropped, also where a region was left out.

    Args:
        row: with a PIL image.
        window: xyxy whole pixels, inside the image.
        min_visible: a region of which less than this share of its area is in the window is left out. The area
            of a region with a quad is that of the quad.

    Returns:
        The row of the window. Boxes are cut at its edge, quads are kept whole. `unboxed` gains the concepts
        of regions that are left out and yet in sight.
    """
    left, top, right, bottom = window
    shares = measure_visible(row, window)
    kept = [r for r, share in enumerate(shares) if share > 0 and share >= min_visible]
    result = row | {"image": row["image"].crop(window)}
    for name in REGION_COLUMNS:
        if row.get(name):
            result[name] = [row[name][r] for r in kept]
    result["boxes"] = [
        [max(x0, left) - left, max(y0, top) - top, min(x1, right) - left, min(y1, bottom) - top]
        for x0, y0, x1, y1 in result["boxes"]
    ]
    if row.get("quads"):
        result["quads"] = [[[x - left, y - top] for x, y in quad] for quad in result["quads"]]
    hidden = {row["concepts"][r] for r, share in enumerate(shares) if share > 0 and r not in kept}
    if hidden or row.get("unboxed"):
        result["unboxed"] = sorted(hidden.union(row.get("unboxed") or []))
    return result if window == (0, 0, *row["image"].size) else _drop_context(result, len(kept) < len(shares))


def measure_visible(row: dict, window: tuple[int, int, int, int]) -> list[float]:
    """Give the share of each region's area that lies in a window: of its quad, or of its box.

    Example:
        >>> measure_visible({"boxes": [[0, 0, 4, 4]]}, (0, 0, 3, 2))
        [0.375]
        >>> diamond = [[2, 0], [4, 2], [2, 4], [0, 2]]
        >>> measure_visible({"boxes": [[0, 0, 4, 4]], "quads": [diamond]}, (0, 0, 1, 4))
        [0.125]
    """
    quads = row.get("quads") or [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in row["boxes"]]
    shares = []
    for quad, (x0, y0, x1, y1) in zip(quads, row["boxes"], strict=True):
        is_seen = min(x1, window[2]) > max(x0, window[0]) and min(y1, window[3]) > max(y0, window[1])
        shares.append(_measure_area(_clip_polygon(quad, window)) / _measure_area(quad) if is_seen else 0.0)
    return shares


def _clip_polygon(polygon: list, window: tuple[int, int, int, int]) -> list:
    """Cut a convex polygon with the four sides of a window, one after the other (Sutherland and Hodgman)."""
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


def _measure_area(polygon: list) -> float:
    return (
        abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True)))
        / 2
    )


def _drop_context(row: dict, has_lost_regions: bool) -> dict:
    """Take back the words that may be untrue of a part of the image."""
    row = dict(row)
    scene = [*(row.get("captions") or []), row.get("description") or ""]
    if has_lost_regions or CONTEXT.search(" ".join(scene)):
        row |= {"captions": [], "description": None}
    negatives = row.get("hard_negatives") or [[] for _ in row["phrases"]]
    told = {
        r
        for r, (phrase, others) in enumerate(zip(row["phrases"], negatives, strict=True))
        if CONTEXT.search(" ".join([phrase, *others]))
    }
    row["phrases"] = [
        add_article(row["concepts"][r]) if r in told else phrase for r, phrase in enumerate(row["phrases"])
    ]
    for name in ("hard_negatives", "negative_kinds"):
        if row.get(name):
            row[name] = [[] if r in told else entries for r, entries in enumerate(row[name])]
    return row


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
