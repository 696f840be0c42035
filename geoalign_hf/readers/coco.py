"""Reads COCO detection files into rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import Annotation, check_rows, make_row, try_read_size
from .coco_entries import CocoEntries, Entry
from .coco_regions import DIFFICULT_FLAGS, GROUP_FLAGS, find_flag, parse_region, to_float
from .files import ImageFinder, list_files
from .skipped import SkipReport


@check_rows
def read_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    drop_difficult: bool = False,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read COCO detection files: boxes with categories.

    Crowds, groups and ignored annotations are not single regions; their concepts become `unboxed`. See
    `coco_regions.parse_region` for boxes that are turned, relative or given by a segmentation.

    Args:
        annotations: A JSON file with `images`, `annotations` and `categories`, or a folder of such files.
        images: Folder that `file_name` is relative to; by default the folder of the annotation file.
        drop_difficult: Removal of annotations that are marked as difficult or occluded.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Yields:
        One row per image, in the order of the file.

    Raises:
        ValueError: If a file is not a COCO file, names an unknown image or category, or has a wrong box.
    """
    report = report or SkipReport()
    for path in list_files(annotations, [".json", ".json.gz"]):
        try:
            entries = CocoEntries(path, report)
        except ValueError as error:
            report.refuse("bad file", str(error), error)
            continue
        folder = Path(images or path.parent)
        finder = ImageFinder(folder, entries.list_names)
        for entry, of_image in entries.iterate_images():
            place = f"{path}: image {entry['id']!r}"
            image = finder.find(entry["file_name"], place, report)
            size = try_read_size(image, report) if image else None
            if image is None or size is None:
                continue
            regions, unboxed = _list_regions(of_image, entries.categories, size, report)
            unboxed += [
                entries.categories[category_id]
                for category_id in _list_ids(entry.get("not_exhaustive_category_ids"))  # LVIS
                if category_id in entries.categories
            ]
            source = image.relative_to(folder).as_posix()
            yield make_row(
                image,
                source,
                place,
                regions,
                report,
                _state_size(entry),
                tuple(unboxed),
                drop_difficult=drop_difficult,
            )


def _list_regions(
    entries: list[Entry], categories: dict[int | str, str], size: tuple[int, int], report: SkipReport
) -> tuple[list[Annotation], list[str]]:
    """Return the regions of one image, and the concepts that it shows without a region."""
    regions, unboxed = [], []
    for place, annotation in entries:
        name = categories[annotation["category_id"]]
        try:
            group = find_flag(annotation, GROUP_FLAGS)
            if group:
                kind = "ignored" if group.lower() == "ignore" else "crowd"
                report.skip(kind, f"{place} has the flag {group}, so it is no single region.")
                unboxed.append(name)
                continue
            is_difficult = bool(find_flag(annotation, DIFFICULT_FLAGS)) or None
            numbers = parse_region(annotation, size)
        except ValueError as error:
            report.refuse("bad region", f"{place} {error}", error)
            unboxed.append(name)
            continue
        bbox = f"bbox {annotation['bbox']}" if annotation.get("bbox") else "segmentation"
        form = "xyxy" if len(numbers) == 4 else "quad"
        regions.append(Annotation(f"{place}: {bbox} as {form}", name, numbers, is_difficult))
    return regions, unboxed


def _state_size(entry: dict[str, Any]) -> tuple[float, float] | None:
    """Return the stated width and height; None if one of them is missing or 0."""
    width, height = (to_float(entry.get(name) or 0) for name in ("width", "height"))
    return (width, height) if width and height else None


def _list_ids(value: object) -> list:
    return [item for item in value if isinstance(item, (int, str))] if isinstance(value, list) else []
