# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Options by which images of more than 8 bits or of many bands become RGB, and errors that ask for them."""

import numpy as np
from PIL import Image

from .image_files_geoalign_clip import Header

READER_REMEDY = (
    "Read it with geoalign_hf.images.read_image and rasterio installed, or convert it to 8-bit RGB."
)


class OptionNeeded(ValueError):
    """An image that cannot be read without `stretch`, `limits` or `bands`."""


class ReaderNeeded(ValueError):
    """An image file that PIL cannot read as it is meant; `header` describes it."""

    def __init__(self, name: str, header: Header):
        super().__init__(f"{name} {header.problem}. {header.remedy or READER_REMEDY}")
        self.header = header


def read_by_rule(read, rule: tuple, fallback: dict | None) -> Image.Image:
    """Read an image by the options that are given and, where it needs others, by the fallback.

    The fallback's scale holds for all images of more than 8 bits, as in training. There is one exception:
    where its limits go beyond 1, floats from 0 to 1 have another unit, and are multiplied by 255. The
    fallback's bands hold for images that cannot be read without a choice.

    Args:
        read: function of `stretch`, `limits` and `bands`, which raises `OptionNeeded` or `ReaderNeeded`.
        rule: the options that are given, or None in the place of each.
        fallback: rule for an image that cannot be read without one, see `read_image`.

    Raises:
        ValueError: in place of both.
    """
    (stretch, limits, bands), fallback = rule, fallback or {}
    is_same_unit = max(fallback.get("limits") or (0,)) <= 1
    scale = {name: fallback.get(name) for name in ("stretch", "limits")} if is_same_unit else {}
    try:
        try:
            return read(*merge_options(stretch, limits, bands, scale))
        except OptionNeeded:
            if not fallback:
                raise
        return read(*merge_options(stretch, limits, bands, fallback))
    except (OptionNeeded, ReaderNeeded) as error:
        raise ValueError(str(error)) from error


def merge_options(stretch, limits, bands, fallback: dict) -> tuple:
    """Complete options by others. `stretch` and `limits` replace each other."""
    if stretch is None and limits is None:
        stretch, limits = fallback.get("stretch"), fallback.get("limits")
    merged = (stretch, limits, bands or fallback.get("bands"))
    return tuple(None if value is None else tuple(value) for value in merged)


def check_options(stretch, limits, bands):
    """Refuse options that cannot be used.

    Raises:
        ValueError: with the option.
    """
    if stretch is not None and limits is not None:
        raise ValueError("stretch and limits are both given. Give one of them.")
    for option, pair, low, high in (("stretch", stretch, 0, 100), ("limits", limits, -np.inf, np.inf)):
        if pair is not None:
            if not _are_numbers(pair) or len(pair) != 2 or not low <= pair[0] < pair[1] <= high:
                kind = "percentiles from 0 to 100" if option == "stretch" else "finite values"
                raise ValueError(f"{option} is {pair!r}; it must be two {kind}, the lower first.")
    if bands is not None:
        are_bands = _are_numbers(bands) and len(bands) in (1, 3) and all(b >= 1 and b % 1 == 0 for b in bands)
        if not are_bands:
            raise ValueError(f"bands is {bands!r}; it must be one or three band numbers, counted from 1.")


def _are_numbers(values) -> bool:
    kinds = (int, float, np.number)
    return isinstance(values, (list, tuple)) and all(
        isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e300 for value in values
    )


def check_rule(rule: dict | None) -> dict | None:
    """Refuse a saved rule that cannot be used.

    Raises:
        ValueError: with the option.
    """
    if rule and (unknown := sorted(rule.keys() - {"stretch", "limits", "bands"})):
        raise ValueError(f"image_rule has {unknown}. It may have stretch, limits and bands.")
    check_options(*((rule or {}).get(name) for name in ("stretch", "limits", "bands")))
    return rule or None
