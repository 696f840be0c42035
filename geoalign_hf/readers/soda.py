"""Reads the JSON files of SODA-A into rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import Annotation, bound_points, check_rows, make_row
from .files import list_files, pair_images, parse_json, read_text
from .skipped import SkipReport


@check_rows
def read_soda(
    annotations: str | Path,
    images: str | Path,
    classes: dict[str, str],
    only: set[str] | None = None,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read one JSON file per image, with `annotations` that have a polygon `poly` and a `category_id`.

    Args:
        annotations: Folder of JSON files.
        images: Folder of the images.
        classes: Name of each class number.
        only: Names without suffix of the files to read; None reads all.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Yields:
        One row per file, sorted by path. Polygons of four points become `quads`, others the box around them.
    """
    report = report or SkipReport()
    pairs, _ = pair_images(list_files(annotations, [".json"], only), annotations, images, report)
    for path, image in pairs.items():
        try:
            content = parse_json(path, read_text(path), "a JSON file of SODA-A")
            entries = content["annotations"] if isinstance(content, dict) else None
            if not isinstance(entries, list):
                raise ValueError(f"{path} has no list of `annotations`. Give a JSON file of SODA-A.")
        except (KeyError, ValueError) as error:
            report.refuse("bad file", f"{path} cannot be read ({error}).", error)
            continue
        regions = []
        for i, entry in enumerate(entries):
            place = f"{path}: annotations[{i}]"
            fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
            numbers, kind = fields.get("poly", []), str(fields.get("category_id"))
            is_polygon = isinstance(numbers, list) and len(numbers) >= 6 and len(numbers) % 2 == 0
            if not is_polygon or not all(type(number) in (int, float) for number in numbers):
                message = f"{place} has the poly {numbers!r:.80}; expected x and y of three or more points."
                report.refuse("bad region", f"{message} Correct or remove it.")
            elif kind not in classes:
                message = f"{place} has the category {kind}, which has no name."
                report.refuse("unknown concept", f"{message} Name it in the recipe, or remove it.")
            else:
                numbers = numbers if len(numbers) == 8 else bound_points(numbers)
                form = "quad" if len(numbers) == 8 else "box"
                regions.append(Annotation(f"{place}: {form}", classes[kind], list(map(float, numbers))))
        source = image.relative_to(images).as_posix()
        yield make_row(image, source, str(path), regions, report)
