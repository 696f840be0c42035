"""Reads the GeoJSON file of xView into rows."""

from array import array
from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows, make_row
from .files import ImageFinder, parse_numbers
from .json_stream import iterate_entries
from .skipped import SkipReport


@check_rows
def read_xview(
    annotations: str | Path, images: str | Path, classes: dict[str, str], report: SkipReport | None = None
) -> Iterator[dict | None]:
    """Read `xView_train.geojson`: features with `image_id`, `type_id` and `bounds_imcoords` (xyxy pixels).

    Args:
        annotations: The file.
        images: Folder of the images.
        classes: Name of each class number.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Yields:
        One row per image, in the order of the file.

    Raises:
        ValueError: If the file is not a GeoJSON file with features.
    """
    report = report or SkipReport()
    names = list(classes)
    # Six numbers per box: those of the feature and the class, and the box. xView has 600,000.
    grouped: dict[str, array[float]] = {}
    is_geojson = False
    for key, i, feature in iterate_entries(annotations, "the GeoJSON file of xView"):
        is_geojson |= key == "features" and i == -1
        if key != "features" or i is None or i < 0:
            continue
        place = f"{annotations}: features[{i}]"
        fields = feature.get("properties") if isinstance(feature, dict) else None
        fields = fields if isinstance(fields, dict) else {}
        numbers = parse_numbers(str(fields.get("bounds_imcoords", "")).split(","))
        kind, name = str(fields.get("type_id")), fields.get("image_id")
        if numbers is None or len(numbers) != 4 or not isinstance(name, str):
            message = f"{place} has {fields}; it needs an image_id, and bounds_imcoords of four numbers."
            report.refuse("bad region", f"{message} Correct or remove it.")
        elif kind not in classes:
            message = f"{place} has the type {kind}, which has no name."
            report.refuse("unknown concept", f"{message} Name it in the recipe, or remove the feature.")
        else:
            grouped.setdefault(name, array("d")).extend([i, names.index(kind), *numbers])
    if not is_geojson:
        raise ValueError(f"{annotations} has no list of `features`. Give the GeoJSON file of xView.")
    finder = ImageFinder(images, grouped.keys)
    for name, numbers in grouped.items():
        regions = [
            Annotation(f"{annotations}: features[{int(i)}]: box", classes[names[int(kind)]], box)
            for i, kind, *box in zip(*[iter(numbers)] * 6, strict=True)
        ]
        place = f"{annotations}: image {name}"
        if image := finder.find(name, place, report):
            yield make_row(image, image.relative_to(images).as_posix(), place, regions, report)
