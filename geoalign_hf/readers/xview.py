"""Reads the GeoJSON file of xView into rows."""

from pathlib import Path

from .base import Annotation, finish_rows, make_row
from .files import ImageFinder, parse_json, parse_numbers, read_text
from .skipped import SkipReport


def read_xview(
    annotations: str | Path, images: str | Path, classes: dict[str, str], report: SkipReport | None = None
) -> list[dict]:
    """Read `xView_train.geojson`: features with `image_id`, `type_id` and `bounds_imcoords` (xyxy pixels).

    Args:
        annotations: The file.
        images: Folder of the images.
        classes: Name of each class number.
        report: Collects what is skipped, and decides whether an error stops the reading.

    Returns:
        One row per image, in the order of the file.

    Raises:
        ValueError: If the file is not a GeoJSON file with features.
    """
    report = report or SkipReport()
    content = parse_json(annotations, read_text(annotations), "the GeoJSON file of xView")
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list):
        raise ValueError(f"{annotations} has no list of `features`. Give the GeoJSON file of xView.")
    grouped: dict[str, list[Annotation]] = {}
    for i, feature in enumerate(features):
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
            grouped.setdefault(name, []).append(Annotation(f"{place}: box", classes[kind], numbers))
    rows: list[dict | None] = []
    finder = ImageFinder(images, grouped)
    for name, regions in grouped.items():
        place = f"{annotations}: image {name}"
        if image := finder.find(name, place, report):
            source = image.relative_to(images).as_posix()
            rows.append(make_row(image, source, place, regions, report))
    return finish_rows(rows, annotations, report)
