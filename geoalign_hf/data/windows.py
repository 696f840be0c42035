"""Cutting a row to a part of its image: what becomes of its regions and of its texts."""

from ..captioning.grammar import CONTEXT, add_article
from ..model.region_checks_geoalign_clip import clip_polygon, measure_area
from .schema import REGION_COLUMNS


def cut_window(row: dict, window: tuple[int, int, int, int], min_visible: float = 0.5) -> dict:
    """Cut a row to a window of its image.

    Texts that may be untrue of the window are replaced or dropped, see `drop_context`.

    Args:
        row: a row with a PIL image.
        window: xyxy whole pixels, inside the image.
        min_visible: smallest fraction of a region's area inside the window with which the region is kept. The
            area of a region with a quad is that of the quad.

    Returns:
        The row of the window. Boxes are cut at its edge, quads are kept whole. `unboxed` gains the concepts
        of regions that are visible in part but not kept.
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
    return result if window == (0, 0, *row["image"].size) else drop_context(result, len(kept) < len(shares))


def measure_visible(row: dict, window: tuple[int, int, int, int]) -> list[float]:
    """Compute the share of each region's area (of its quad, or else of its box) that lies in a window.

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
        shares.append(measure_area(clip_polygon(quad, window)) / measure_area(quad) if is_seen else 0.0)
    return shares


def drop_context(row: dict, has_lost_regions: bool) -> dict:
    """Drop the texts that may be untrue of a part of the image.

    Captions and description are dropped if regions were lost or the texts count things or name places. A
    phrase that does so becomes its concept with an article, and its hard negatives are dropped.
    """
    row = dict(row)
    scene = [*(row.get("captions") or []), row.get("description") or ""]
    if has_lost_regions or CONTEXT.search(" ".join(scene)):
        row |= {"captions": [], "description": None}
    negatives = row.get("hard_negatives") or [[] for _ in row["phrases"]]
    outdated = {
        r
        for r, (phrase, others) in enumerate(zip(row["phrases"], negatives, strict=True))
        if CONTEXT.search(" ".join([phrase, *others]))
    }
    if row.get("ambiguous"):
        row["ambiguous"] = [flag or r in outdated for r, flag in enumerate(row["ambiguous"])]
    row["phrases"] = [
        add_article(row["concepts"][r]) if r in outdated else phrase
        for r, phrase in enumerate(row["phrases"])
    ]
    for name in ("hard_negatives", "negative_kinds"):
        if row.get(name):
            row[name] = [[] if r in outdated else entries for r, entries in enumerate(row[name])]
    return row
