"""Views of a region: the whole image, or a square window around the region."""

from collections.abc import Iterable, Iterator, Sequence

from ..model.views_geoalign_clip import find_window
from .windows import cut_window

REGION_SOURCES = ("image", "window", "crop", "both")
# Side of a window in longer sides of its box; for crops that of CLIPSelf, https://arxiv.org/abs/2310.01403.
CONTEXTS = {"image": None, "window": 3.0, "crop": 1.5, "both": 1.5}


def resolve_context(region_source: str, context: float | None) -> float | None:
    """Return the context for a source of regions: the one that is given, or the default of the source.

    Raises:
        ValueError: if the source is unknown, or the context below 1.
    """
    if region_source not in REGION_SOURCES:
        raise ValueError(f"region_source is {region_source!r}; it must be one of {REGION_SOURCES}.")
    if context is not None and context < 1:
        raise ValueError(
            f"context is {context}; it must be at least 1, or windows would cut into their boxes."
        )
    if region_source == "image":
        return None
    return CONTEXTS[region_source] if context is None else context


def resolve_contexts(context: float | None, views: Sequence[float] | None) -> list[float | None]:
    """Make one list of `context` and `views`.

    Raises:
        ValueError: if both are given, or `views` is empty.
    """
    if views is None:
        return [context]
    if context is not None or len(views) == 0:
        raise ValueError(f"context is {context} and views is {views}. Give one of them; views as a list.")
    return list(views)


def list_views(
    rows: Iterable[dict], region_source: str, context: float | None, form: str = "boxes"
) -> Iterator[dict]:
    """Yield what is encoded at once: an image with all its regions, or a window with its one.

    Raises:
        ValueError: if `form` is "quads" and a row lacks quads.
    """
    for row in rows:
        quads = row.get("quads") or [] if form == "quads" else None
        if quads is not None and len(quads) != len(row["boxes"]):
            raise ValueError(
                f"a row has {len(row['boxes'])} boxes, but {len(quads)} quads. Give one for each."
            )
        if region_source == "image" and row["boxes"]:
            view = {"image": row["image"], "boxes": row["boxes"]}
            yield view if quads is None else view | {"quads": quads}
        elif region_source != "image":
            for r, box in enumerate(row["boxes"]):
                region = {"image": row["image"], "boxes": [box], "phrases": [""], "concepts": [""]}
                if quads is not None:
                    region["quads"] = [quads[r]]
                # However little of the box is inside the image, it is this region that is asked for.
                yield cut_window(region, find_window(box, row["image"].size, context), min_visible=0.0)
