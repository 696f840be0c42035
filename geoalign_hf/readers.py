"""Boxes of four formats to plain rows: COCO json, DOTA text, Pascal VOC xml, YOLO text.

What enters are annotations and the folder of their images; what leaves is a list of dictionaries that
`rows.build_rows` takes: the image's path, regions with concepts, and the plainest words for them.
"""

import math
import os
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import yaml

from .report import Report
from .sources import (
    Annotation,
    find_image,
    finish_rows,
    has_words,
    index_images,
    list_files,
    list_lines,
    make_row,
    parse_json,
    parse_numbers,
    read_size,
    read_text,
)

DOTA_HEADER = re.compile(r"^\s*(imagesource|gsd)\s*:", re.IGNORECASE)
VOC_BOXES = (  # where the numbers of an object stand: Pascal VOC, DIOR-R, roLabelImg
    ("bndbox", ("xmin", "ymin", "xmax", "ymax")),
    (
        "robndbox",
        tuple(
            f"{axis}_{corner}"
            for corner in ("left_top", "right_top", "right_bottom", "left_bottom")
            for axis in "xy"
        ),
    ),
    ("robndbox", ("cx", "cy", "w", "h", "angle")),
)  # fmt: skip


def read_coco(
    annotations: str | Path, images: str | Path | None = None, report: Report | None = None
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
    report = report or Report()
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
                report.leave_out("crowd", f"{place} is a crowd, which is no single region.")
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


def read_dota(
    annotations: str | Path,
    images: str | Path,
    drop_difficult: bool = False,
    concepts: list[str] | None = None,
    report: Report | None = None,
) -> list[dict]:
    """Read DOTA text files: oriented boxes, each with a flag for difficult ones.

    A line is `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`; a missing flag means 0. The lines `imagesource:` and
    `gsd:` are passed over. The image of `P0001.txt` is `P0001` with any suffix of an image.

    Args:
        annotations: a file, or a folder of files.
        images: the folder of the images.
        drop_difficult: leave out what is flagged.
        concepts: the names that are allowed, as they stand there; None allows all.
        report: takes up what is left out, and says whether a wrong line or image stops the reading.

    Returns:
        One row per file, by name, with `quads`, the boxes round them, and `difficult`.

    Raises:
        ValueError: if a line is none of this form, or an image is missing.
    """
    report = report or Report()
    rows, index = [], index_images(images)
    for path in list_files(annotations, ".txt"):
        lines, regions = list_lines(path, report), []
        if lines is None:
            continue
        for place, line in lines:
            fields = line.split()
            numbers = parse_numbers(fields[:8])
            if DOTA_HEADER.match(line):
                continue
            if numbers is None or len(fields) not in (9, 10) or fields[9:] not in ([], ["0"], ["1"], ["2"]):
                report.refuse(
                    "bad line",
                    f"{place} is {line!r}, not `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`. Mend or drop it.",
                )
            else:
                is_difficult = fields[9:] in (["1"], ["2"])
                regions.append(Annotation(f"{place}: quad", fields[8], numbers, is_difficult))
        if image := find_image(index, path.stem, path, report):
            rows.append(make_row(image, str(path), regions, report, None, (), concepts, drop_difficult))
    return finish_rows(rows, annotations, report)


def read_voc(
    annotations: str | Path,
    images: str | Path,
    drop_difficult: bool = False,
    concepts: list[str] | None = None,
    counts_from_one: bool = False,
    report: Report | None = None,
) -> list[dict]:
    """Read Pascal VOC xml files: `bndbox`, and the oriented `robndbox` of DIOR-R and of roLabelImg.

    Args:
        annotations: a file, or a folder of files.
        images: the folder of the images; the one of `a.xml` is `a` with any suffix of an image.
        drop_difficult: leave out what is flagged.
        concepts: the names that are allowed, as they stand there; None allows all.
        counts_from_one: a `bndbox` counts pixels from 1 to the last, as Pascal VOC itself does, so that its
            first pixel is xmin = xmax = 1; else its numbers are edges.
        report: takes up what is left out, and says whether a wrong object or image stops the reading.

    Returns:
        One row per file, by name; with `quads` if any of its objects is oriented.

    Raises:
        ValueError: if a file is no whole xml, an object has no name and box, or an image is missing.
    """
    report = report or Report()
    rows, index = [], index_images(images)
    for path in list_files(annotations, ".xml"):
        try:
            root = ElementTree.fromstring(path.read_bytes())
        except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
            message = f"{path} cannot be read as xml ({error}). Give whole Pascal VOC files."
            report.refuse("bad file", message, error)
            continue
        regions = []
        for i, node in enumerate(root.findall("object"), start=1):
            place, name = f"{path}: object {i}", (node.findtext("name") or "").strip()
            numbers = _parse_voc_box(node, counts_from_one)
            if name and numbers:
                is_difficult = (node.findtext("difficult") or "0").strip() == "1"
                kind = "box" if len(numbers) == 4 else "quad"
                regions.append(Annotation(f"{place}: {kind}", name, numbers, is_difficult))
            else:
                found = [child.tag for child in node]
                message = f"{place} has {found}; it needs a name, and a bndbox or robndbox made of numbers."
                report.refuse("bad region", f"{message} Mend or drop it.")
        size = parse_numbers([root.findtext(f"size/{name}") or "0" for name in ("width", "height")])
        size = size if size and all(size) else None  # some tools write 0 for what they do not know
        if image := find_image(index, path.stem, path, report):
            rows.append(make_row(image, str(path), regions, report, size, (), concepts, drop_difficult))
    return finish_rows(rows, annotations, report)


def read_yolo(
    annotations: str | Path,
    images: str | Path,
    concepts: list[str] | str | Path,
    report: Report | None = None,
) -> list[dict]:
    """Read YOLO text files: `class x y width height`, or `class x1 y1 ... x4 y4`, in shares of the image.

    Args:
        annotations: a file, or a folder of files.
        images: the folder of the images; one without a file in the folder of annotations has no regions.
        concepts: the names by number, or the file that holds them: `data.yaml`, or text, one name a line.
        report: takes up what is left out, and says whether a wrong line or image stops the reading.

    Returns:
        One row per image, by name; with `quads` if any of its lines is oriented.

    Raises:
        ValueError: if a line is none of these forms or its class has no name, or an image is missing.
    """
    report = report or Report()
    names = concepts if isinstance(concepts, list) else read_names(Path(concepts))
    rows, index = [], index_images(images)
    files = {path.stem: path for path in list_files(annotations, ".txt") if path.name != "classes.txt"}
    for stem in sorted(files.keys() | index.keys() if Path(annotations).is_dir() else files):
        path = files.get(stem, Path(annotations))
        image = find_image(index, stem, path, report)
        size = image and read_size(image, report)
        if not size:
            continue
        lines, regions = list_lines(path, report) if stem in files else [], []
        if lines is None:
            continue
        for place, line in lines:
            fields = line.split()
            numbers = parse_numbers(fields[1:])
            if numbers is None or len(fields) not in (5, 9) or not fields[0].isdecimal():
                message = f"{place} is {line!r}, not `class x y width height` or `class x1 y1 ... x4 y4`."
                report.refuse("bad line", f"{message} Mend or drop it.")
            elif int(fields[0]) >= len(names):
                message = f"{place} names the class {fields[0]}; there are {len(names)} names, from 0."
                report.refuse("unknown concept", f"{message} Add it or drop the line.")
            else:
                if len(numbers) == 4:
                    x, y, width, height = numbers
                    numbers = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                pixels = [number * size[i % 2] for i, number in enumerate(numbers)]
                kind = "box" if len(numbers) == 4 else "quad"
                regions.append(Annotation(f"{place}: {kind}", names[int(fields[0])], pixels))
        rows.append(make_row(image, str(path), regions, report))
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


def _parse_voc_box(node: ElementTree.Element, counts_from_one: bool) -> list[float] | None:
    for tag, names in VOC_BOXES:
        numbers = parse_numbers([node.findtext(f"{tag}/{name}") or "" for name in names])
        if numbers is None:
            continue
        if tag == "bndbox" and counts_from_one:
            return [numbers[0] - 1, numbers[1] - 1, *numbers[2:]]
        if len(numbers) == 5:
            x, y, width, height, angle = numbers
            along = (width / 2 * math.cos(angle), width / 2 * math.sin(angle))
            across = (-height / 2 * math.sin(angle), height / 2 * math.cos(angle))
            signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            corners = [(x + i * along[0] + j * across[0], y + i * along[1] + j * across[1]) for i, j in signs]
            return [number for corner in corners for number in corner]
        return numbers
    return None


def read_names(path: Path) -> list[str]:
    """Read concept names from the `data.yaml` of a YOLO set, or from a text of one name a line.

    Raises:
        ValueError: if the file holds none, or one that has no words.
    """
    text = read_text(path)
    if path.suffix not in (".yaml", ".yml"):
        return _check_names(path, [line.strip() for line in text.splitlines() if line.strip()])
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read as YAML ({error}). Give the data.yaml of a YOLO set."
        ) from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(
            f"{path} has the names {names!r}; they are a list, or numbered from 0. Mend the file."
        )
    return _check_names(path, names)


def _check_names(path: Path, names: list) -> list[str]:
    for i, name in enumerate(names):
        if type(name) not in (str, int) or not has_words(str(name)):
            message = f"{path}: names[{i}] is {name!r}; a name is words or a whole number."
            raise ValueError(f"{message} Mend it; in YAML put words such as no and null in quotes.")
    return [str(name) for name in names]
