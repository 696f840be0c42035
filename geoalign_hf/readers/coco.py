"""Reads COCO detection files into rows."""

from collections import Counter
from pathlib import Path
from typing import Any

from .base import Annotation, finish_rows, is_concept, make_row, try_read_size
from .coco_regions import DIFFICULT_FLAGS, GROUP_FLAGS, find_flag, parse_region, to_float
from .files import ImageFinder, list_files, parse_json, read_text
from .skipped import SkipReport

# The fields that an entry must have, and their types.
FIELDS = {
    "images": {"id": (int, str), "file_name": (str,)},
    "annotations": {"image_id": (int, str), "category_id": (int, str)},
    "categories": {"id": (int, str), "name": (str,)},
}
OPTIONAL_FIELDS = {
    "images": {"width": (int, float, type(None)), "height": (int, float, type(None))},
    "annotations": {"id": (int, str)},
    "categories": {},
}
Entries = list[tuple[str, dict[str, Any]]]  # each with its place


def read_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    drop_difficult: bool = False,
    report: SkipReport | None = None,
) -> list[dict]:
    """Read COCO detection files: boxes with categories.

    Crowds, groups and ignored annotations are not single regions; their concepts become `unboxed`. See
    `coco_regions.parse_region` for boxes that are turned, relative or given by a segmentation.

    Args:
        annotations: A JSON file with `images`, `annotations` and `categories`, or a folder of such files.
        images: Folder that `file_name` is relative to; by default the folder of the annotation file.
        drop_difficult: Skip annotations that are marked as difficult or occluded.
        report: Collects what is skipped, and decides whether an error stops the reading.

    Returns:
        One row per image, in the order of the file.

    Raises:
        ValueError: If a file is not a COCO file, names an unknown image or category, or has a wrong box.
    """
    report = report or SkipReport()
    rows: list[dict | None] = []
    for path in list_files(annotations, [".json", ".json.gz"]):
        try:
            coco = _read_file(path)
        except ValueError as error:
            report.refuse("bad file", str(error), error)
            continue
        of_file = {key: _check_entries(path, key, coco[key], report) for key in FIELDS}
        categories = _list_categories(of_file["categories"], report)
        grouped = _group_by_image(of_file, categories, report)
        folder = Path(images or path.parent)
        finder = ImageFinder(folder, [entry["file_name"] for _, entry in of_file["images"]])
        for place, entry in of_file["images"]:
            place = f"{path}: image {entry['id']!r}"
            image = finder.find(entry["file_name"], place, report)
            size = try_read_size(image, report) if image else None
            if image is None or size is None:
                continue
            regions, unboxed = _list_regions(grouped[entry["id"]], categories, size, report)
            unboxed += [
                categories[category_id]
                for category_id in _list_ids(entry.get("not_exhaustive_category_ids"))  # LVIS
                if category_id in categories
            ]
            source = image.relative_to(folder).as_posix()
            rows.append(
                make_row(
                    image,
                    source,
                    place,
                    regions,
                    report,
                    _state_size(entry),
                    tuple(unboxed),
                    drop_difficult=drop_difficult,
                )
            )
    return finish_rows(rows, annotations, report)


def _read_file(path: Path) -> dict[str, list]:
    """Read the three lists of a COCO file.

    Raises:
        ValueError: If it has other contents.
    """
    coco = parse_json(path, read_text(path), "a COCO annotation file")
    if not isinstance(coco, dict) or FIELDS.keys() - coco.keys():
        found = sorted(coco) if isinstance(coco, dict) else type(coco).__name__
        raise ValueError(f"{path} has {found}; a COCO file has {sorted(FIELDS)}. Give a detection file.")
    for key in FIELDS:
        if not isinstance(coco[key], list):
            raise ValueError(f"{path}: {key} is {coco[key]!r:.50}, not a list. Give a detection file.")
    return coco


def _check_entries(path: Path, key: str, entries: list, report: SkipReport) -> Entries:
    """Return the valid entries of one list, each with its place."""
    valid: Entries = []
    for i, entry in enumerate(entries):
        place = f"{path}: {key}[{i}]"
        if fault := _find_fault(key, entry):
            report.refuse("bad entry", f"{place} {fault} Correct or remove it.")
        else:
            valid.append((place, entry))
    ids = Counter(entry["id"] for _, entry in valid if "id" in entry)
    for place, entry in valid:
        if ids[entry.get("id")] > 1:
            message = f"{place} has the id {entry['id']!r}, as {ids[entry['id']] - 1} other {key} have."
            report.refuse("repeated id", f"{message} Give every entry its own id.")
    return [(place, entry) for place, entry in valid if ids[entry.get("id")] <= 1]


def _find_fault(key: str, entry: object) -> str | None:
    if not isinstance(entry, dict):
        return f"is {entry!r:.50}; it needs {sorted(FIELDS[key])}."
    if missing := sorted(FIELDS[key].keys() - entry.keys()):
        return f"lacks {missing}; it has {sorted(entry)}."
    for field, kinds in (FIELDS[key] | OPTIONAL_FIELDS[key]).items():
        if field not in entry:
            continue
        value = entry[field]
        if not isinstance(value, kinds) or isinstance(value, bool):  # Python takes True for a number
            found = f"has the {field} {value!r:.50}, a {type(value).__name__}."
            return f"{found} Ids are numbers or strings, sizes numbers, names strings."
    return None


def _list_categories(entries: Entries, report: SkipReport) -> dict[int | str, str]:
    categories = {}
    for place, category in entries:
        if is_concept(category["name"]):
            categories[category["id"]] = category["name"]
        else:
            message = f"{place} has the name {category['name']!r}, which has no letters or digits."
            report.refuse("unknown concept", f"{message} Name it or remove it.")
    return categories


def _group_by_image(
    of_file: dict[str, Entries], categories: dict[int | str, str], report: SkipReport
) -> dict[int | str, Entries]:
    """Collect the annotations of each image; refuse those of unknown images and categories."""
    grouped: dict[int | str, Entries] = {entry["id"]: [] for _, entry in of_file["images"]}
    for place, annotation in of_file["annotations"]:
        if "id" in annotation:
            place = f"{place.rpartition(': ')[0]}: annotation {annotation['id']!r}"
        if annotation["image_id"] not in grouped:
            message = f"{place} names the image {annotation['image_id']!r}, which is not in the file."
            report.refuse("unknown image", f"{message} Add it, or remove the annotation.")
        elif annotation["category_id"] not in categories:
            message = (
                f"{place} names the category {annotation['category_id']!r}; the file has {list(categories)}."
            )
            report.refuse("unknown concept", f"{message} Add it, or remove the annotation.")
        else:
            grouped[annotation["image_id"]].append((place, annotation))
    return grouped


def _list_regions(
    entries: Entries, categories: dict[int | str, str], size: tuple[int, int], report: SkipReport
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
