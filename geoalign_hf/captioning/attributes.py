"""Facts that boxes and pixels show about an image: places, sizes, colours, groups and neighbours.

Each fact comes in two versions: what clearly holds, which phrases may say, and what may hold in the widest
sense, which hard negatives must not deny.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image

from .grammar import COLOURS, ENDS, PLACES, RELATIONS, SIZES

# Thresholds, chosen by eye on images of NWPU VHR-10.
LARGER = 1.45  # length of a large region, in medians of its concept in the image
SAID_SHARE = 0.25  # smallest fraction of a region's pixels that has a colour which phrases may name
AROUND_SHARE = 0.06  # largest part of the surrounding pixels that may have that colour, too
DENIED_SHARE = 0.02  # largest part of a region's pixels that may have a colour that is denied
# Largest gaps between two regions. NEAR ("next to") and FAR ("to the left of") are in lengths of the shorter
# region. NEARBY, up to which anyone might still say "next to", is in lengths of the longer region.
NEAR, FAR, NEARBY = 0.5, 3.0, 2.0
HUES = {"red": (-15, 15), "yellow": (44, 62), "green": (100, 165), "blue": (205, 258)}  # degrees
MOST_COMPARED = 1000  # with more regions, they are neither compared with each other nor counted in words


@dataclass(frozen=True)
class Facts:
    """The facts of the R regions of one image.

    Args:
        concepts: Concept of each region.
        boxes: Boxes (R, 4), xyxy in fractions of the image's width and height.
        pixels: The same boxes in pixels.
        uncounted: Concepts of which the image shows or may show more than the regions.
        colours: Colour of each region, or None if it is not clear.
        possible_colours: All colours that occur in each region.
        sizes: "small", "large", or None where it is neither or not known.
        possible_sizes: The size of each region, or both where it is not known.
        groups: (R,), number of the cluster of close regions of one concept. A lone region has its own number.
    """

    concepts: list[str]
    boxes: np.ndarray
    pixels: np.ndarray
    uncounted: frozenset[str]
    colours: list[str | None]
    possible_colours: list[frozenset[str]]
    sizes: list[str | None]
    possible_sizes: list[frozenset[str]]
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.concepts)

    @cached_property
    def kinds(self) -> dict[str, list[int]]:
        """The regions of each concept."""
        kinds: dict[str, list[int]] = {}
        for r, concept in enumerate(self.concepts):
            kinds.setdefault(concept, []).append(r)
        return kinds

    def list_group(self, r: int) -> list[int]:
        """List the regions of the cluster that region `r` belongs to."""
        return np.flatnonzero(self.groups == self.groups[r]).tolist()

    def list_nearest(self, r: int, number: int = 5) -> list[int]:
        """List the nearest regions of other concepts, the nearest first; none among very many regions."""
        if len(self) > MOST_COMPARED:
            return []
        low, high = self.pixels[:, :2], self.pixels[:, 2:]
        apart = np.maximum(0, np.maximum(low - high[r], low[r] - high))
        gaps = np.hypot(apart[:, 0], apart[:, 1])
        nearest = np.argsort(gaps, kind="stable").tolist()
        return [s for s in nearest if self.concepts[s] != self.concepts[r]][:number]

    def find_place(self, regions: list[int]) -> str | None:
        """Name the part of the image (one of `PLACES`) that clearly holds all these regions, or None."""
        boxes = [self.shares[r] for r in regions]
        across = _find_side(min(box[0] for box in boxes), max(box[2] for box in boxes))
        down = _find_side(min(box[1] for box in boxes), max(box[3] for box in boxes))
        if across or down:  # clearly left, somewhere between top and bottom: "left"
            across, down = across or 0, down or 0
        offsets = (abs((low + high) / 2 - 0.5) for box in boxes for low, high in (box[::2], box[1::2]))
        if across == down == 0 and max(offsets) >= 0.2:
            return None  # the middle of the group is the center, but not every region lies there
        return None if across is None or down is None else PLACES[across, down]

    def may_lie_at(self, r: int, place: str) -> bool:
        """Return whether region `r` reaches into a part of the image, so that someone might say so."""
        signs = find_signs(place)
        for sign, low, high in zip(signs, self.shares[r][:2], self.shares[r][2:], strict=True):
            # What lies at the upper left lies at the left, too: a place on one axis leaves the other free.
            reaches = {-1: low < 0.5, 0: signs != (0, 0) or (low < 0.7 and high > 0.3), 1: high > 0.5}
            if not reaches[sign]:
                return False
        return True

    @cached_property
    def shares(self) -> list[list[float]]:
        """The boxes in [0, 1] as plain numbers, which are faster to compare one by one."""
        return self.boxes.tolist()

    @cached_property
    def edges(self) -> list[list[float]]:
        """The boxes in pixels as plain numbers, which are faster to compare one by one."""
        return self.pixels.tolist()

    def measure_gap(self, r: int, s: int) -> float:
        """Return the distance of two boxes in pixels, 0 if they touch."""
        a, b = self.edges[r], self.edges[s]
        return math.hypot(max(0, a[0] - b[2], b[0] - a[2]), max(0, a[1] - b[3], b[1] - a[3]))

    def holds(self, r: int, relation: str, s: int) -> bool:
        """Return whether "next to", "to the left of" or "to the right of" clearly holds from `r` to `s`."""
        a, b = self.edges[r], self.edges[s]
        gap, shorter = self.measure_gap(r, s), min(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (a, b))
        if relation == "next to":
            return gap <= NEAR * shorter
        if relation == "to the right of":
            a, b = b, a
        overlap = min(a[3], b[3]) - max(a[1], b[1])
        is_level = overlap >= 0.5 * min(a[3] - a[1], b[3] - b[1])
        return a[2] <= b[0] and is_level and gap <= FAR * shorter

    def may_hold(self, r: int, relation: str, s: int) -> bool:
        """Return whether someone might say that a relation holds from `r` to `s`."""
        a, b = self.edges[r], self.edges[s]
        if relation == "next to":
            longer = max(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (a, b))
            return self.measure_gap(r, s) <= NEARBY * longer
        centers = a[0] + a[2], b[0] + b[2]
        return centers[0] <= centers[1] if relation == "to the left of" else centers[0] >= centers[1]

    @cached_property
    def relations(self) -> list[list[tuple[str, str]]]:
        """The relations of each region to regions of other concepts: ("next to", "harbor"), sorted."""
        return [
            sorted(
                {
                    (relation, self.concepts[s])
                    for s in self.list_nearest(r)
                    for relation in RELATIONS
                    if self.holds(r, relation, s)
                }
            )
            for r in range(len(self))
        ]

    def list_extremes(self, r: int) -> list[str]:
        """List the phrases that single a region out among two or more of its concept, by a clear margin.

        They are like "largest", "farthest to the left" and "nearest to the top".
        """
        kind = self.kinds[self.concepts[r]]
        if len(kind) < 2 or len(self) > MOST_COMPARED or self.concepts[r] in self.uncounted:
            return []
        boxes = self.pixels[kind]
        own = kind.index(r)
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        others = np.arange(len(kind)) != own
        extremes = []
        if sides[own] >= LARGER * sides[others].max():
            extremes.append("largest")
        if sides[own] <= sides[others].min() / LARGER:
            extremes.append("smallest")
        margin = 0.5 * sides.max()
        for axis, (low, high) in enumerate((ENDS[:2], ENDS[2:])):
            if centers[own, axis] + margin <= centers[others, axis].min():
                extremes.append(low)
            if centers[own, axis] - margin >= centers[others, axis].max():
                extremes.append(high)
        return extremes

    def is_in_row(self, regions: list[int]) -> bool:
        """Return whether three or more regions of one size stand in a line at even distances."""
        if len(regions) < 3:
            return False
        boxes = self.pixels[regions]
        centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        centered = centers - centers.mean(axis=0)
        along, across = np.linalg.svd(centered)[2] @ centered.T
        steps = np.diff(np.sort(along))
        is_straight = np.abs(across).max() <= 0.25 * sides.mean()
        return bool(is_straight and steps.max() <= 1.6 * steps.min() and sides.max() <= 1.5 * sides.min())


@cache
def find_signs(place: str) -> tuple[int, int]:
    """Return the signs of x and y of a place.

    Example:
        >>> find_signs("upper left")
        (-1, -1)
    """
    return next(signs for signs, name in PLACES.items() if name == place)


def _find_side(low: float, high: float) -> int | None:
    """Return -1, 0 or 1 for an interval of [0, 1] that clearly lies low, in the middle or high."""
    center = (low + high) / 2
    if high <= 0.5 and center < 0.27:
        return -1
    if low >= 0.5 and center > 0.73:
        return 1
    return 0 if abs(center - 0.5) < 0.1 and high - low <= 0.5 else None


def find_facts(row: dict, natural_colour: bool = True) -> Facts:
    """Measure the regions of a row.

    Args:
        row: A row with a PIL image.
        natural_colour: Whether the image shows colours as the eye sees them. Otherwise, as for images of one
            band, no colour is said or denied.

    Returns:
        The facts of the row.
    """
    has_colour = natural_colour and (row["image"].mode == "P" or len(row["image"].getbands()) >= 3)
    image, concepts = row["image"].convert("RGB"), row["concepts"]
    pixels = np.array(row["boxes"], dtype=float).reshape(-1, 4)
    extent = np.array([image.width, image.height] * 2, dtype=float)
    pixels = pixels.clip(0, extent)
    quads = np.array(row.get("quads") or _to_quads(pixels), dtype=float).reshape(-1, 4, 2)
    sizes, possible_sizes = _compare_sizes(concepts, pixels, quads, extent)
    is_measured = has_colour and len(pixels) <= MOST_COMPARED
    unknown: tuple[dict[str, float], dict[str, float]] = (
        dict.fromkeys(COLOURS, 1.0),
        {},
    )  # no colour is clear, all are possible
    shares = [measure_colours(image, pixels, r) if is_measured else unknown for r in range(len(pixels))]
    return Facts(
        concepts=concepts,
        boxes=pixels / extent,
        pixels=pixels,
        uncounted=frozenset(row.get("unboxed") or []).union(
            concept for concept, number in Counter(concepts).items() if number > MOST_COMPARED
        ),
        colours=[choose_colour(*pair) for pair in shares],
        possible_colours=[
            frozenset(name for name in COLOURS if inside.get(name, 0) > DENIED_SHARE) for inside, _ in shares
        ],
        sizes=sizes,
        possible_sizes=possible_sizes,
        groups=_cluster(concepts, pixels),
    )


def _to_quads(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]]


def _compare_sizes(
    concepts: list[str], pixels: np.ndarray, quads: np.ndarray, extent: np.ndarray
) -> tuple[list[str | None], list[frozenset[str]]]:
    """Compare each region with the median of its concept, without regions that the edge may have cut."""
    sides = np.linalg.norm(quads - np.roll(quads, 1, axis=1), axis=-1).max(axis=1)
    is_whole = ((pixels[:, :2] > 1) & (pixels[:, 2:] < extent[2:] - 1)).all(axis=1)
    sizes: list[str | None] = [None] * len(concepts)
    possible: list[frozenset[str]] = [frozenset(SIZES)] * len(concepts)
    for concept in set(concepts):
        kind = [r for r, name in enumerate(concepts) if name == concept and is_whole[r]]
        if len(kind) < 3:
            continue
        median = np.median(sides[kind])
        for r in kind:
            ratio = sides[r] / median
            size = "large" if ratio >= LARGER else "small" if ratio <= 1 / LARGER else None
            sizes[r], possible[r] = size, frozenset([size] if size else [])
    return sizes, possible


def _cluster(concepts: list[str], pixels: np.ndarray) -> np.ndarray:
    """Join regions of one concept whose distance is at most the shorter of their longer sides."""
    groups = np.arange(len(concepts))
    longer = (pixels[:, 2:] - pixels[:, :2]).max(axis=1, initial=0)
    for concept in sorted(set(concepts)):
        kind = np.array([r for r, name in enumerate(concepts) if name == concept])
        if len(kind) > MOST_COMPARED:
            continue
        low, high = pixels[kind, :2], pixels[kind, 2:]
        apart = np.maximum(0, np.maximum(low[:, None] - high[None], low[None] - high[:, None]))
        is_close = np.hypot(apart[..., 0], apart[..., 1]) <= np.minimum.outer(longer[kind], longer[kind])
        before = np.empty(0)
        while not np.array_equal(before, groups[kind]):  # the least number spreads through each cluster
            before = groups[kind]
            groups[kind] = np.where(is_close, before[None], len(groups)).min(axis=1)
    return groups


def measure_colours(
    image: Image.Image, boxes: np.ndarray, r: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure how much of a box, and of a frame around it without the other boxes, has each colour.

    Args:
        image: RGB image.
        boxes: (R, 4), xyxy pixels, inside the image.
        r: Number of the box.

    Returns:
        Two dictionaries from the names of `grammar.COLOURS` to fractions of the pixels.
    """
    x0, y0, x1, y1 = boxes[r]
    margin = max(3.0, 0.25 * max(x1 - x0, y1 - y0))
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    right, bottom = min(image.width, math.ceil(x1 + margin)), min(image.height, math.ceil(y1 + margin))
    scale = max(1, max(right - left, bottom - top) // 96)  # colours need no more pixels than that
    codes = _code_image(image.crop((left, top, right, bottom)).reduce(scale))
    y = ((np.arange(codes.shape[0]) + 0.5) * scale + top)[:, None]
    x = ((np.arange(codes.shape[1]) + 0.5) * scale + left)[None]
    is_inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    is_around = ~is_inside
    overlaps = ((boxes[:, :2] < (right, bottom)) & (boxes[:, 2:] > (left, top))).all(axis=1)
    for u0, v0, u1, v1 in boxes[overlaps]:
        is_around &= ~((x >= u0) & (x <= u1) & (y >= v0) & (y <= v1))
    return _count_codes(codes[is_inside]), _count_codes(codes[is_around])


def _count_codes(codes: np.ndarray) -> dict[str, float]:
    counts = np.bincount(codes, minlength=len(COLOURS) + 1)[1:]
    return dict(zip(COLOURS, (counts / max(len(codes), 1)).tolist(), strict=True))


def code_colours(pixels: np.ndarray) -> np.ndarray:
    """Classify the colour of each pixel.

    Args:
        pixels: (H, W, 3), uint8 RGB.

    Returns:
        (H, W), uint8: 1 + the index in `grammar.COLOURS`, or 0 for dark, gray and mixed colours.

    Example:
        >>> code_colours(np.uint8([[[250, 250, 245], [200, 30, 40], [90, 92, 95]]])).tolist()
        [[1, 2, 0]]
    """
    return _code_image(Image.fromarray(pixels))


def _code_image(image: Image.Image) -> np.ndarray:
    hue, saturation, brightness = np.moveaxis(np.asarray(image.convert("HSV")), -1, 0)
    is_vivid = (saturation > 0.35 * 255) & (brightness > 0.25 * 255)
    is_white = (saturation < 0.15 * 255) & (brightness > 0.75 * 255)
    return np.where(is_vivid, _HUE_CODES[hue], is_white * np.uint8(1 + COLOURS.index("white")))


def _list_hue_codes() -> np.ndarray:
    """List the code of each of the 256 hues of Pillow's HSV images."""
    hues, codes = np.arange(256) * 360 / 256, np.zeros(256, dtype=np.uint8)
    for name, (low, high) in HUES.items():
        codes[(hues - low) % 360 < high - low] = 1 + COLOURS.index(name)
    return codes


_HUE_CODES = _list_hue_codes()


def choose_colour(inside: dict[str, float], around: dict[str, float]) -> str | None:
    """Choose the colour that a region has and its surroundings do not have; None if it is not clear.

    Example:
        >>> choose_colour({"white": 0.6}, {}), choose_colour({"white": 0.6}, {"white": 0.5})
        ('white', None)
    """
    first, second = sorted(COLOURS, key=lambda name: inside.get(name, 0), reverse=True)[:2]
    is_alone = inside.get(second, 0) <= inside.get(first, 0) / 3
    if is_alone and inside.get(first, 0) >= SAID_SHARE and around.get(first, 0) <= AROUND_SHARE:
        return first
    return None
