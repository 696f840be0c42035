"""Reads Pascal VOC XML files into rows."""

import math
from pathlib import Path
from xml.etree import ElementTree

from .base import Annotation, find_image, finish_rows, index_images, list_files, make_row, parse_numbers
from .skipped import SkipReport

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


def read_voc(
    annotations: str | Path,
    images: str | Path,
    drop_difficult: bool = False,
    concepts: list[str] | None = None,
    counts_from_one: bool = False,
    report: SkipReport | None = None,
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
    report = report or SkipReport()
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
