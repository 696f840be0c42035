"""Rows from annotations: the checks and the plain wording that all annotation formats share."""

import math
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from inspect import signature
from logging import getLogger
from pathlib import Path
from typing import NamedTuple, ParamSpec

from ..captioning.grammar import add_article, count_concepts, spell_concept
from ..images import read_size
from ..model.region_checks_geoalign_clip import check_box, check_quad
from .skipped import SkipReport

logger = getLogger(__name__)
P = ParamSpec("P")
MAX_COORDINATE = 1e9  # pixels; areas of larger boxes lose their last digits
MIN_SIDE = 1e-3  # pixels that a region must cover in each direction


class Annotation(NamedTuple):
    """One region as a file states it.

    Args:
        place: The file and the place in it, for messages.
        name: Name of the concept as the file spells it.
        numbers: A box (xyxy) or the four corners of a quad (eight numbers), in pixels.
        is_difficult: Whether it is marked as difficult; None if the format has no such flag.
    """

    place: str
    name: str
    numbers: list[float]
    is_difficult: bool | None = None


def make_row(
    image: Path,
    source: str,
    place: str,
    annotations: list[Annotation],
    report: SkipReport,
    size: tuple[float, float] | None = None,
    unboxed: tuple[str, ...] = (),
    concepts: list[str] | None = None,
    drop_difficult: bool = False,
) -> dict | None:
    """Check the annotations of one image and make a row of them.

    The phrase of a region is its concept with an article, and the caption counts the concepts.

    Args:
        image: File of the image.
        source: Name of the image in its data set.
        place: Name of the image in messages.
        annotations: Its regions.
        report: Collector of what is skipped.
        size: Width and height according to the annotations, in pixels, if they state them.
        unboxed: Concepts that are in the image without a region.
        concepts: The concepts that are allowed; None allows all.
        drop_difficult: Removal of regions that are marked as difficult.

    Returns:
        A row for `build_rows`, or None if the image was skipped. Concepts of skipped regions are `unboxed`.

    Raises:
        ValueError: If the image cannot be read or has another size, or an annotation is not a region of it.
    """
    found = try_read_size(image, report)
    if found is None:
        return None
    if size is not None and tuple(size) != found:
        message = (
            f"{place} should have {size[0]:g} x {size[1]:g} pixels, but {image} has {found[0]} x {found[1]}"
        )
        report.refuse("other size", f"{message}, so boxes would be misplaced. Give the image as annotated.")
        return None
    allowed = None if concepts is None else {spell_concept(name) for name in concepts}
    kept, seen, without_box = [], set(), [name for name in map(spell_concept, unboxed) if name]
    for annotation in annotations:
        concept = spell_concept(annotation.name)
        if not is_concept(annotation.name):
            message = f"{annotation.place} has the name {annotation.name!r}, which has no letters or digits."
            report.refuse("unknown concept", f"{message} Name it, or remove the annotation.")
        elif allowed is not None and concept not in allowed:
            message = f"{annotation.place} is a {annotation.name!r}; allowed are {sorted(allowed)}."
            report.refuse("unknown concept", f"{message} Add the name, or remove the annotation.")
        elif drop_difficult and annotation.is_difficult:
            without_box.append(concept)
            report.skip("difficult", f"{annotation.place} is marked as difficult.")
        else:
            kept.append((concept, annotation))
    regions = []
    for concept, annotation in kept:
        key = _identify(concept, annotation.numbers)
        if not _is_region(annotation, found, report):
            without_box.append(concept)
        elif key in seen:
            report.skip("repeated region", f"{annotation.place} repeats a {concept!r} of this image.")
        else:
            seen.add(key)
            regions.append((concept, annotation))
    return _word_row(regions, without_box) | {"image": str(image), "source": source}


def _word_row(regions: list[tuple[str, Annotation]], unboxed: list[str]) -> dict:
    names = [concept for concept, _ in regions]
    numbers = [annotation.numbers for _, annotation in regions]
    flags = [annotation.is_difficult for _, annotation in regions]
    return {
        "captions": [f"an aerial image with {count_concepts(names)}"] if names else [],
        "boxes": [[min(n[::2]), min(n[1::2]), max(n[::2]), max(n[1::2])] for n in numbers],
        "quads": [pair_corners(n) for n in numbers] if any(len(n) == 8 for n in numbers) else [],
        "phrases": [add_article(name) for name in names],
        "concepts": names,
        "difficult": [bool(flag) for flag in flags] if any(flag is not None for flag in flags) else [],
        "unboxed": sorted(set(unboxed)),
    }


@lru_cache(maxsize=10_000)
def is_concept(name: str) -> bool:
    r"""Return whether a name of an annotation file has a letter or digit, and no control characters.

    Example:
        >>> is_concept("storage_tank"), is_concept(" _ "), is_concept("a\x00b")
        (True, False, False)
    """
    kinds = {unicodedata.category(character) for character in spell_concept(name)}
    return any(kind[0] in "LN" for kind in kinds) and not kinds & {"Cc", "Cs"}


def _identify(concept: str, numbers: list[float]) -> tuple:
    """Return a key that is equal for equal regions, whichever corner of a quad comes first."""
    return (concept, frozenset(map(tuple, pair_corners(numbers))))


def _is_region(annotation: Annotation, size: tuple[int, int], report: SkipReport) -> bool:
    """Return whether an annotation is a region of an image of this size; refuse it otherwise."""
    numbers = annotation.numbers
    if fault := _find_fault(numbers, size):
        report.refuse("bad region", f"{annotation.place} = {numbers} {fault}")
        return False
    try:
        if len(numbers) == 4:
            check_box(numbers, *size, annotation.place)
        else:
            check_quad(pair_corners(numbers), *size, annotation.place)
    except ValueError as error:
        report.refuse("bad region", str(error), error)
        return False
    return True


def _find_fault(numbers: list[float], size: tuple[int, int]) -> str | None:
    """Say what makes numbers useless as a region although they may be four or eight numbers in order."""
    if not all(math.isfinite(number) for number in numbers):
        return "is not finite. Give pixels, or remove the annotation."
    if max(map(abs, numbers)) > MAX_COORDINATE:
        return f"has a coordinate beyond {MAX_COORDINATE:g} pixels. Correct it, or remove the annotation."
    if 0 <= min(numbers) <= max(numbers) <= 1 < max(size) and set(numbers) - {0, 1}:
        return "lies within the first pixel. Give pixels, not fractions of the image."
    for axis, length in enumerate(size):
        low, high = min(numbers[axis::2]), max(numbers[axis::2])
        visible = min(high, length) - max(low, 0)
        if 0 < visible < MIN_SIDE:
            return f"covers only {visible:g} pixels along {'xy'[axis]}. Correct it, or remove the annotation."
    return None


def pair_corners(numbers: list[float]) -> list[list[float]]:
    """Write a box (xyxy), or eight numbers, as four corners.

    Example:
        >>> pair_corners([0, 0, 2, 1])
        [[0, 0], [2, 0], [2, 1], [0, 1]]
    """
    if len(numbers) == 4:
        x0, y0, x1, y1 = numbers
        numbers = [x0, y0, x1, y0, x1, y1, x0, y1]
    return [list(corner) for corner in zip(numbers[::2], numbers[1::2], strict=True)]


def turn_box(x: float, y: float, width: float, height: float, angle: float) -> list[float]:
    """Turn a box about its center, clockwise as seen in the image.

    Args:
        x: Center in pixels.
        y: Center in pixels, downward.
        width: Width in pixels before turning.
        height: Height in pixels before turning.
        angle: Angle of the turn in radians.

    Returns:
        Four corners, as eight numbers.
    """
    along = (width / 2 * math.cos(angle), width / 2 * math.sin(angle))
    across = (-height / 2 * math.sin(angle), height / 2 * math.cos(angle))
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    corners = [(x + i * along[0] + j * across[0], y + i * along[1] + j * across[1]) for i, j in signs]
    return [number for corner in corners for number in corner]


def bound_points(numbers: list[float]) -> list[float]:
    """Return the box around points. It is not finite if one of them is not.

    Example:
        >>> bound_points([3, 1, 5, 2, 4, 7])
        [3, 1, 5, 7]
    """
    if not all(map(math.isfinite, numbers)):
        return [math.nan] * 4  # min and max may ignore NaN
    return [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])]


def try_read_size(image: Path, report: SkipReport) -> tuple[int, int] | None:
    """Read an image's width and height; None if it cannot be read and the report skips errors."""
    try:
        return read_size(image)
    except ValueError as error:
        report.refuse("bad image", str(error), error)
        return None


def check_rows(read: Callable[P, Iterator[dict | None]]) -> Callable[P, Iterator[dict]]:
    """Decorate a reader, which yields a row for each image, or None for one that was skipped.

    Only rows are passed on, each image once, and their number is logged at the end. The reader always gets a
    `report`. It raises a ValueError if no row is left.
    """

    @wraps(read)
    def read_checked(*arguments: P.args, **options: P.kwargs) -> Iterator[dict]:
        bound = signature(read).bind(*arguments, **options)
        bound.apply_defaults()
        report = bound.arguments["report"] = bound.arguments["report"] or SkipReport()
        source, num_before = bound.arguments["annotations"], len(report.entries)
        seen, concepts, num_regions = set(), set(), 0
        for row in read(*bound.args, **bound.kwargs):
            if row is None:
                continue
            key = hash(row["image"])  # the paths of a million images would fill the memory
            if key in seen:
                message = f"{source} has the image {row['source']} twice. Give every image one entry."
                report.refuse("repeated image", message)
                continue
            seen.add(key)
            num_regions += len(row["boxes"])
            concepts.update(row["concepts"])
            yield row
        skipped = report.entries[num_before:]
        if not seen:
            message = f"{source} has no images that can be used"
            if skipped:
                message += f"; skipped: {report.count_kinds()}. The first: {skipped[0]['message']}"
            raise ValueError(message if skipped else f"{message}: it lists none. Give a file that does.")
        logger.info(f"{source}: {len(seen)} images, {num_regions} regions of {len(concepts)} concepts")
        if skipped:
            logger.warning(f"{source}: skipped {report.count_kinds()}. The report lists each with its place.")

    return read_checked
