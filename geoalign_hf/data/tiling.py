"""Large pictures to training tiles: windows that overlap, each a row of its own.

What enters is a row whose image is too large to train on; what leaves are rows of windows of it, with the
regions that are seen there, and with a note of what was cut away.
"""

from collections.abc import Iterator

from ..readers.skipped import SkipReport
from .augmentation import cut_window, measure_visible


def list_windows(width: int, height: int, side: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Cover a picture with square windows.

    Neighbours share at least `overlap` pixels; the last window of a line ends at the edge. A picture
    narrower than `side` has windows as narrow.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        side: of a window, in pixels.
        overlap: less than `side`.

    Returns:
        Windows, xyxy, line by line.

    Raises:
        ValueError: if windows would not move on.

    Example:
        >>> list_windows(25, 8, side=10, overlap=2)
        [(0, 0, 10, 8), (8, 0, 18, 8), (15, 0, 25, 8)]
    """
    if not 0 <= overlap < side:
        raise ValueError(
            f"overlap is {overlap}, but tiles have {side} pixels a side. Choose 0 <= overlap < side."
        )
    starts = [
        sorted(
            {
                min(start, max(length - side, 0))
                for start in range(0, max(length - overlap, 1), side - overlap)
            }
        )
        for length in (width, height)
    ]
    return [(x, y, min(x + side, width), min(y + side, height)) for y in starts[1] for x in starts[0]]


def cut_tiles(row: dict, side: int, overlap: int, min_visible: float, report: SkipReport) -> Iterator[dict]:
    """Cut a row into tiles; a row that is no larger than one tile comes back as it is.

    Args:
        row: with a PIL image and `source`.
        side: of a tile, in pixels.
        overlap: of neighbours, in pixels.
        min_visible: a region of which less than this share is in a tile is left out of it, and its
            concept is named in `unboxed`. The report lists the regions that no tile has kept.
        report: takes up what is left out.

    Yields:
        Rows with `window`, the tile's place in the picture. Captions that speak of the whole picture are
        gone.
    """
    width, height = row["image"].size
    windows = list_windows(width, height, side, overlap)
    if len(windows) == 1:
        yield row
        return
    is_kept = [False] * len(row["boxes"])
    for window in windows:
        yield cut_window(row, window, min_visible) | {
            "captions": [],
            "description": None,
            "window": list(window),
        }
        for r, share in enumerate(measure_visible(row, window)):
            is_kept[r] |= share > 0 and share >= min_visible
    for r in [r for r, kept in enumerate(is_kept) if not kept]:
        place = f"{row['source']}: region {r}, {row['concepts'][r]} at {row['boxes'][r]},"
        report.skip("cut region", f"{place} is in no tile with a share of {min_visible} or more.")


def list_tiles(size: tuple[int, int], side: int) -> list[tuple[int, int, int, int]]:
    """List square tiles that overlap by half and cover a picture.

    The last ones of a row or column are moved inside; a picture smaller than a tile is cut to fit it.

    Args:
        size: (width, height) of the picture.
        side: of a tile, in pixels.

    Returns:
        xyxy, whole pixels, row by row.

    Example:
        >>> list_tiles((50, 30), 20)[:4]
        [(0, 0, 20, 20), (10, 0, 30, 20), (20, 0, 40, 20), (30, 0, 50, 20)]
    """
    starts = []
    for length in size:
        last = max(length - side, 0)
        starts.append([*range(0, last, max(side // 2, 1)), last])
    return [(x, y, min(x + side, size[0]), min(y + side, size[1])) for y in starts[1] for x in starts[0]]
