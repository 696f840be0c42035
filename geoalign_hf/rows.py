"""The row: one image with its hierarchy of words, and the ways into it from source data.

What enters are annotations in some format; what leaves is a `datasets.Dataset` with the columns of
`FEATURES`, after which nobody asks where a row came from.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, List, Value
from transformers.utils import logging

from .model.regions_geoalign_clip import check_boxes, xywh_to_xyxy

logger = logging.get_logger(__name__)

FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),  # short ones, of the whole image
        "description": Value("string"),  # a long one, or None
        "boxes": List(List(Value("float64"), length=4)),  # xyxy pixels; from here on one entry per region
        "quads": List(
            List(List(Value("float64"), length=2), length=4)
        ),  # four corners; [] where boxes are all
        "phrases": List(Value("string")),
        "concepts": List(Value("string")),
        "hard_negatives": List(List(Value("string"))),  # phrases that are nearly right and wrong
    }
)

REQUIRED_COLUMNS = ("image", "boxes", "phrases", "concepts")
REGION_COLUMNS = ("boxes", "quads", "phrases", "concepts", "hard_negatives")


def build_rows(rows: Iterable[dict]) -> Dataset:
    """Check rows and make a dataset of them.

    Args:
        rows: dictionaries with the columns of `FEATURES`; all but `REQUIRED_COLUMNS` may be missing. `image`
            is a PIL image or a path, which is read when the row is.

    Returns:
        A dataset with exactly the columns of `FEATURES`.

    Raises:
        ValueError: if a row lacks a column, or its lists differ in length.
    """
    empty = {"captions": [], "description": None, "quads": [], "hard_negatives": []}
    checked = []
    for i, row in enumerate(rows):
        row = {name: value for name, value in row.items() if value is not None}
        if missing := [name for name in REQUIRED_COLUMNS if name not in row]:
            raise ValueError(
                f"row {i} lacks {missing}; it has {sorted(row)}. Give every row an image and its regions."
            )
        if unknown := sorted(row.keys() - FEATURES.keys()):
            raise ValueError(f"row {i} has the unknown columns {unknown}; a row has {list(FEATURES)}.")
        row = empty | row
        for name in REGION_COLUMNS:
            if name in ("quads", "hard_negatives") and not row[name]:
                continue
            if len(row[name]) != len(row["boxes"]):
                raise ValueError(
                    f"row {i} has {len(row['boxes'])} boxes, but {len(row[name])} {name}. "
                    "Give one entry per region, in the same order."
                )
        row["image"] = str(row["image"]) if isinstance(row["image"], Path) else row["image"]
        checked.append(row)
    if not checked:
        raise ValueError("there are no rows. Give at least one.")
    return Dataset.from_list(checked, features=FEATURES)


def check_columns(dataset: Dataset) -> None:
    """Refuse a dataset that does not hold rows.

    Raises:
        ValueError: if a required column is missing.
    """
    if missing := [name for name in REQUIRED_COLUMNS if name not in dataset.column_names]:
        raise ValueError(
            f"the dataset lacks the columns {missing}; it has {sorted(dataset.column_names)}. "
            "Rename them, or build rows with geoalign_hf.rows.from_coco or build_rows."
        )


def list_concepts(dataset: Dataset) -> list[str]:
    """List the concepts that occur, in alphabetical order.

    Example:
        >>> list_concepts({"concepts": [["ship"], [], ["ship", "airplane"]]})
        ['airplane', 'ship']
    """
    return sorted({concept for concepts in dataset["concepts"] for concept in concepts})


def from_coco(annotations: str | Path, images: str | Path) -> Dataset:
    """Read a COCO detection file: boxes and categories become regions, phrases and captions by template.

    A phrase is the category with an article, a caption counts what the boxes show; an image without boxes has
    neither. Crowd annotations, which are no single region, are left out, and their number is logged.

    Args:
        annotations: the JSON file, with `images`, `annotations` and `categories`.
        images: the folder that `file_name` is relative to, or the one that the files lie in.

    Returns:
        One row per image, in the file's order; images are read when a row is.

    Raises:
        ValueError: if the file is no COCO file, names an image or category that does not exist, or holds a
            box that is none.
    """
    annotations, images = Path(annotations), Path(images)
    coco = _read_coco(annotations)
    categories = {category["id"]: category["name"] for category in coco["categories"]}
    rows = {}
    for entry in coco["images"]:
        path = images / entry["file_name"]
        if not path.is_file():
            path = images / Path(entry["file_name"]).name
        if not path.is_file():
            raise ValueError(
                f"{annotations}: image {entry['id']} is missing at {path}. Give the folder it lies in."
            )
        rows[entry["id"]] = {"image": str(path), "boxes": [], "concepts": []}
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in coco["images"]}
    num_crowds = 0
    for annotation in coco["annotations"]:
        place = f"{annotations}: annotation {annotation['id']}"
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in rows:
            raise ValueError(
                f"{place} names the image {image_id}, which is not in the file. Add it or drop the box."
            )
        if category_id not in categories:
            raise ValueError(f"{place} names the category {category_id}; the file has {sorted(categories)}.")
        if annotation.get("iscrowd"):
            num_crowds += 1
            continue
        bbox = annotation["bbox"]
        if not (isinstance(bbox, list) and [type(number) in (int, float) for number in bbox] == [True] * 4):
            raise ValueError(
                f"{place}: bbox is {bbox!r}; a COCO box is four numbers, x, y, width and height."
            )
        boxes = xywh_to_xyxy(torch.tensor([bbox], dtype=torch.float64))
        check_boxes(boxes, *sizes[image_id], name=f"{place}: bbox {bbox} as xyxy")
        rows[image_id]["boxes"].append(boxes[0].tolist())
        rows[image_id]["concepts"].append(categories[category_id])
    if num_crowds:
        logger.warning(f"{annotations}: left out {num_crowds} crowd annotations, which are no single region.")
    for row in rows.values():
        row["phrases"] = [add_article(concept) for concept in row["concepts"]]
        row["captions"] = (
            [f"an aerial image with {count_concepts(row['concepts'])}"] if row["concepts"] else []
        )
    return build_rows(rows.values())


def _read_coco(path: Path) -> dict:
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Give a COCO annotation file.") from error
    expected = {
        "images": {"id", "file_name", "width", "height"},
        "annotations": {"id", "image_id", "category_id", "bbox"},
        "categories": {"id", "name"},
    }
    if not isinstance(coco, dict) or (missing := expected.keys() - coco.keys()):
        found = sorted(coco) if isinstance(coco, dict) else type(coco).__name__
        raise ValueError(
            f"{path} has {found}, but a COCO file has {sorted(expected)}. Give a detection file."
        )
    for key, fields in expected.items():
        for i, entry in enumerate(coco[key]):
            if missing := sorted(fields - entry.keys()):
                raise ValueError(f"{path}: {key}[{i}] lacks {missing}; it has {sorted(entry)}.")
        ids = Counter(entry["id"] for entry in coco[key])
        if repeated := sorted(key_id for key_id, count in ids.items() if count > 1):
            raise ValueError(
                f"{path}: {key} repeats the ids {repeated[:5]}. Give every entry an id of its own."
            )
    return coco


def add_article(concept: str) -> str:
    """Write a concept as a phrase.

    Example:
        >>> add_article("airplane")
        'an airplane'
    """
    return f"{'an' if concept[0].lower() in 'aeiou' else 'a'} {concept}"


def count_concepts(concepts: list[str]) -> str:
    """Write how many of each concept there are, the commonest first.

    Example:
        >>> count_concepts(["ship", "bridge", "ship"])
        '2 ships and a bridge'
    """
    words = [
        add_article(concept) if count == 1 else f"{count} {_pluralize(concept)}"
        for concept, count in sorted(Counter(concepts).items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _pluralize(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
