"""Augmentation: change how a row looks while its regions and its words stay true.

A whole image is mirrored, turned by quarter turns and seen in other light. Windows around single regions are
in `region_windows.py`. Texts that may be untrue of a part of an image are dropped when it is cut.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance

from ..options import option

DIRECTIONS = re.compile(
    r"\b(left|right|top|bottom|upper|lower|above|below|north\w*|south\w*|east\w*|west\w*)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Augmentation:
    """Options of how training sees the rows: whole images, and windows around single regions.

    A window is a square around one region, drawn from all regions of the data set. It is turned by any angle,
    since overhead images have no upright direction. Calling the object changes a whole image.

    Args:
        whole_share: fraction of the views that are whole images; the others are windows.
        min_context: smallest side of a window, as a multiple of the longer side of its region.
        max_context: largest side, as the same multiple. The logarithm of the side is uniform between the two.
        turn: mirroring and turning. Whole images are turned by multiples of 90 degrees. A row whose words
            name directions ("left", "north") is never turned.
        shift: largest distance between the centres of window and region, as a fraction of the window's side.
        stretch_sides: largest change of a window's width and height, as a fraction.
        light: largest change of brightness, contrast and saturation, as a fraction.
        erase: share of the windows in which one rectangle is painted over with one colour, both drawn at
            random. Its sides are 0.15 to 0.45 of the window's (random erasing,
            https://arxiv.org/abs/1708.04896).
        balance: exponent b of the balance of concepts. A region whose concept has n regions is drawn with a
            probability proportional to n ** -b. 0 draws all regions equally often.
        min_visible: smallest fraction of another region's area inside the window with which that region is
            kept.
        min_region_side: smallest longer side with which a region is kept in a view, as a fraction of the
            view's side. A smaller region covers too few patches to be learned there, and has windows of its
            own. Without windows (`whole_share` 1) all regions are kept. A window always keeps its own region.
        views_per_row: number of views of an epoch, divided by the number of rows.

    Raises:
        ValueError: if a share is outside [0, 1], or the contexts are not in order.
    """

    _argument_group_name = "augmentation"

    whole_share: float = option(
        default=0.15, help="Fraction of the training views that are whole images, not windows."
    )
    min_context: float = option(
        default=1.2, help="Smallest side of a window, as a multiple of the longer side of its region."
    )
    max_context: float = option(
        default=2.5, help="Largest side of a window, as a multiple of the longer side of its region."
    )
    turn: bool = option(default=True, help="Mirroring and turning. Windows are turned by any angle.")
    shift: float = option(default=0.08, help="Largest shift of a window, as a fraction of its side.")
    stretch_sides: float = option(
        default=0.15, help="Largest change of a window's width and height, as a fraction."
    )
    light: float = option(
        default=0.3, help="Largest change of brightness, contrast and saturation, as a fraction."
    )
    erase: float = option(
        default=0.0, help="Share of the windows in which a random rectangle is painted over."
    )
    balance: float = option(
        default=0.5,
        help="Exponent by which regions of rare concepts are drawn more often. 0 draws all alike.",
    )
    min_visible: float = option(
        default=0.5, help="Smallest fraction of a region's area with which a window keeps the region."
    )
    min_region_side: float = option(
        default=0.3, help="Smallest longer side of a region that is kept, as a fraction of its view's side."
    )
    views_per_row: int = option(default=1, help="Number of views per row and epoch.")

    def __post_init__(self):
        shares = ("whole_share", "shift", "stretch_sides", "light", "erase", "min_visible", "min_region_side")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        if not 1 <= self.min_context <= self.max_context:
            raise ValueError(
                f"min_context is {self.min_context} and max_context {self.max_context}; expected "
                "1 <= min_context <= max_context, or windows would cut into their regions."
            )
        if self.views_per_row < 1:
            raise ValueError(f"views_per_row is {self.views_per_row}; it must be at least 1.")

    def __call__(self, row: dict, generator: torch.Generator) -> dict:
        """Mirror, turn and light a whole image.

        Args:
            row: a row with a PIL image. Its boxes and quads are changed with the image.
            generator: source of everything random here.

        Returns:
            The row as it would have been annotated in the changed image.
        """
        if self.turn and not names_directions(row):
            row = _turn(row, int(torch.randint(8, (1,), generator=generator)))
        return row | {"image": change_light(row["image"], self.light, generator)}


def change_light(image: Image.Image, light: float, generator: torch.Generator) -> Image.Image:
    """Change brightness, contrast and saturation by up to `light`, and convert the image to RGB."""
    image = image.convert("RGB")
    if not light:
        return image
    factors = 1 + light * (2 * torch.rand(3, generator=generator) - 1)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, factor in zip(enhancers, factors.tolist(), strict=True):
        image = enhancer(image).enhance(factor)
    return image


def erase_rectangle(image: Image.Image, share: float, generator: torch.Generator) -> Image.Image:
    """Paint a random rectangle over an RGB image, in the given share of the calls; see `Augmentation`."""
    if not share:
        return image
    numbers = torch.rand(8, generator=generator).numpy()
    if numbers[0] >= share:
        return image
    sides = np.round(image.size * (0.15 + 0.3 * numbers[1:3])).astype(int)
    corner = ((image.size - sides) * numbers[3:5]).astype(int)
    image = image.copy()
    image.paste(
        tuple((256 * numbers[5:]).astype(int).tolist()), (*corner.tolist(), *(corner + sides).tolist())
    )
    return image


def names_directions(row: dict) -> bool:
    """Return whether some text of a row names a direction, so that turning the image would make it untrue."""
    negatives = [phrase for phrases in row.get("hard_negatives") or [] for phrase in phrases]
    texts = [*(row.get("captions") or []), row.get("description") or "", *row["phrases"], *negatives]
    return DIRECTIONS.search(" ".join(texts)) is not None


def _turn(row: dict, number: int) -> dict:
    """Apply one of the eight symmetries of a square: a mirroring (odd numbers), then quarter turns."""
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
