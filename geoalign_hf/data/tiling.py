"""Cutting large images into square tiles, and rows into the rows of their tiles."""

from collections.abc import Iterator

from ..readers.skipped import SkipReport
from .windows import cut_window, measure_visible


def list_tiles(
    size: tuple[int, int], side: int, overlap: int | None = None
) -> list[tuple[int, int, int, int]]:
    """List square tiles that cover an image.

    Neighbours share at least `overlap` pixels. The last tile of a row or column is moved inside the image.
    An image that is smaller than a tile has one tile of its own size.

    Args:
        size: (width, height) of the image, in pixels.
        side: Side of a tile, in pixels.
        overlap: Number of pixels that neighbouring tiles share, less than `side`. By default, half a tile.

    Returns:
        Tiles in whole pixels, xyxy, row by row.

    Raises:
        ValueError: If the overlap is negative, or not smaller than a tile.

    Example:
        >>> list_tiles((25, 8), side=10, overlap=2)
        [(0, 0, 10, 8), (8, 0, 18, 8), (15, 0, 25, 8)]
        >>> list_tiles((50, 30), side=20)[:4]
        [(0, 0, 20, 20), (10, 0, 30, 20), (20, 0, 40, 20), (30, 0, 50, 20)]
    """
    overlap = side // 2 if overlap is None else overlap
    if not 0 <= overlap < side:
        raise ValueError(
            f"overlap is {overlap}, but tiles have {side} pixels a side. Choose 0 <= overlap < side."
        )
    starts = []
    for length in size:
        last = max(length - side, 0)
        starts.append([*range(0, last, side - overlap), last])
    return [(x, y, min(x + side, size[0]), min(y + side, size[1])) for y in starts[1] for x in starts[0]]


def cut_tiles(row: dict, side: int, overlap: int, min_visible: float, report: SkipReport) -> Iterator[dict]:
    """Cut a row into tiles. A row that is no larger than one tile is returned unchanged.

    Args:
        row: A row with a PIL image and `source`.
        side: Side of a tile, in pixels.
        overlap: Number of pixels that neighbouring tiles share.
        min_visible: Smallest visible fraction of a region's area, 0 to 1. A region that is less visible in a
            tile is dropped from that tile, and its concept is listed in `unboxed`.
        report: Report of the regions that no tile has kept.

    Yields:
        Rows with `window`, the position of the tile in the image. Captions and descriptions are dropped,
        because they describe the whole image.
    """
    tiles = list_tiles(row["image"].size, side, overlap)
    if len(tiles) == 1:
        yield row
        return
    is_kept = [False] * len(row["boxes"])
    for tile in tiles:
        cut = cut_window(row, tile, min_visible)
        yield cut | {"captions": [], "description": None, "window": list(tile)}
        for r, visible in enumerate(measure_visible(row, tile)):
            is_kept[r] |= visible > 0 and visible >= min_visible
    for r in [r for r, kept in enumerate(is_kept) if not kept]:
        place = f"{row['source']}: region {r}, {row['concepts'][r]} at {row['boxes'][r]},"
        report.skip("cut region", f"{place} is visible by {min_visible} or more in no tile.")
