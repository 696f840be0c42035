"""Reads COCO detection files into rows."""

import math
import os
from collections import Counter
from pathlib import Path

from .base import Annotation, finish_rows, has_words, list_files, make_row, parse_json, read_text
from .skipped import SkipReport


def read_coco(
    annotations: str | Path, images: str | Path | None = None, report: SkipReport | None = None
) -> list[dict]:
    """Read COCO detection files: boxes with categories. Crowds, which are no single region, are left out.

    Args:
        annotations: a JSON file with `images`, `annotations` and `categories`, or a folder of such files.
        images: the folder that `file_name` is relative to, or the one that the files lie in; by default the
            folder of the annotations.
        report: takes up what is left out, and says whether a wrong file, box or image stops the reading.

    Returns:
        One row per image, in the file's order.

    Raises:
        ValueError: if a file is no COCO file, names an image or category that does not exist, or holds a
            box that is none.
    """
    report = report or SkipReport()
    rows = []
    for path in list_files(annotations, ".json"):
        try:
            coco = _read_coco(path)
        except ValueError as error:
            report.refuse("bad file", str(error), error)
            continue
        categories = {}
        for i, category in enumerate(coco["categories"]):
            if has_words(category["name"]):
                categories[category["id"]] = category["name"]
            else:
                message = f"{path}: categories[{i}] has the name {category['name']!r}, which holds no words."
                report.refuse("unknown concept", f"{message} Name it or drop it.")
        regions = {entry["id"]: [] for entry in coco["images"]}
        crowds = {entry["id"]: [] for entry in coco["images"]}
        for annotation in coco["annotations"]:
            place = f"{path}: annotation {annotation['id']}"
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            if image_id not in regions:
                message = f"{place} names the image {image_id}, which is not in the file."
                report.refuse("unknown image", f"{message} Add it or drop the box.")
                continue
            if category_id not in categories:
                message = f"{place} names the category {category_id}; the file has {list(categories)}."
                report.refuse("unknown concept", f"{message} Add it or drop the box.")
                continue
            bbox = annotation["bbox"]
            if annotation.get("iscrowd"):
                crowds[image_id].append(categories[category_id])
                report.skip("crowd", f"{place} is a crowd, which is no single region.")
            elif not (isinstance(bbox, list) and [type(n) in (int, float) for n in bbox] == [True] * 4):
                message = f"{place}: bbox is {bbox!r}; a COCO box is four numbers, x, y, width and height."
                report.refuse("bad region", message)
            else:
                x, y, width, height = map(_to_float, bbox)
                corners = [x, y, x + width, y + height]
                place = f"{place}: bbox {bbox} as xyxy"
                regions[image_id].append(Annotation(place, categories[category_id], corners))
        folder = Path(images or path.parent)
        for entry in coco["images"]:
            place, image = f"{path}: image {entry['id']}", folder / entry["file_name"]
            # os.path, for Path.is_file raises at names that are too long.
            image = image if os.path.isfile(image) else folder / image.name
            if not os.path.isfile(image):
                report.refuse("no image", f"{place} is missing at {image}. Give the folder it lies in.")
                continue
            size = (_to_float(entry["width"]), _to_float(entry["height"]))
            row = make_row(image, place, regions[entry["id"]], report, size, crowds[entry["id"]])
            rows += [row | {"source": entry["file_name"]}] if row else []
    return finish_rows(rows, annotations, report)


def _read_coco(path: Path) -> dict:
    coco = parse_json(path, read_text(path), "a COCO annotation file")
    expected = {
        "images": {"id": (int, str), "file_name": str, "width": (int, float), "height": (int, float)},
        "annotations": {"id": (int, str), "image_id": (int, str), "category_id": (int, str), "bbox": object},
        "categories": {"id": (int, str), "name": str},
    }
    if not isinstance(coco, dict) or expected.keys() - coco.keys():
        found = sorted(coco) if isinstance(coco, dict) else type(coco).__name__
        raise ValueError(
            f"{path} has {found}, but a COCO file has {sorted(expected)}. Give a detection file."
        )
    for key, fields in expected.items():
        if not isinstance(coco[key], list):
            raise ValueError(f"{path}: {key} is {coco[key]!r:.50}, not a list. Give a detection file.")
        for i, entry in enumerate(coco[key]):
            place = f"{path}: {key}[{i}]"
            if not isinstance(entry, dict):
                raise ValueError(f"{place} is {entry!r:.50}; it needs {sorted(fields)}. Mend the file.")
            if missing := sorted(fields.keys() - entry.keys()):
                raise ValueError(f"{place} lacks {missing}; it has {sorted(entry)}.")
            for field, kind in fields.items():
                # To Python True is a number, too.
                if not isinstance(entry[field], kind) or (
                    kind is not object and isinstance(entry[field], bool)
                ):
                    found = f"{place}: {field} is {entry[field]!r:.50}, a {type(entry[field]).__name__}."
                    raise ValueError(f"{found} Ids are numbers or strings, sizes numbers, names strings.")
        ids = Counter(entry["id"] for entry in coco[key])
        if repeated := [key_id for key_id, count in ids.items() if count > 1]:
            raise ValueError(
                f"{path}: {key} repeats the ids {repeated[:5]}. Give every entry an id of its own."
            )
    return coco


def _to_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
