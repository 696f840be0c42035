"""Reads xml files into rows: Pascal VOC, DIOR-R, roLabelImg, LabelMe, HRSC2016 and FAIR1M."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from .base import Annotation, bound_points, check_rows, make_row, turn_box
from .coco_regions import GROUP_FLAGS
from .files import list_files, pair_images, parse_flag, parse_numbers, read_bytes, spell_flag
from .skipped import SkipReport

EDGES = ("xmin", "ymin", "xmax", "ymax")
TURNED = ("cx", "cy", "w", "h", "angle")
CORNERS = tuple(
    f"{axis}_{corner}" for corner in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy"
)
POINT = re.compile(r"[xy]\d+")  # of a polygon: x1, y1, x2, ...
HRSC_EDGES = tuple(f"box_{name}" for name in EDGES)
HRSC_TURNED = ("mbox_cx", "mbox_cy", "mbox_w", "mbox_h", "mbox_ang")
# Elements of the root that may have content in a file without objects.
ROOT_FIELDS = {"source", "owner", "size", "object", "objects", "research", "annotator", "imagesize"}
SHAPES = ("robndbox", "bndbox", "points", "polygon")  # an oriented box is preferred to the box around it
OTHER_SHAPE = re.compile(r".*(box|obb|rect|quad|polygon|points|corner|contour|mask|segment|ellipse).*")


@check_rows
def read_voc(
    annotations: str | Path,
    images: str | Path,
    drop_difficult: bool = False,
    concepts: list[str] | None = None,
    counts_from_one: bool = False,
    only: set[str] | None = None,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read xml files with the root `annotation` (Pascal VOC and relatives) or `HRSC_Image` (HRSC2016).

    An object has a name and one shape: `bndbox`, `robndbox` (DIOR-R: corners; roLabelImg: center, size and
    angle in radians), `points` (FAIR1M) or `polygon` (LabelMe, Roboflow). Where a `robndbox` stands beside a
    `bndbox`, the oriented one is taken. Objects of HRSC2016 are ships. Namespaces and upper case are ignored.

    Args:
        annotations: A file, or a folder of files.
        images: Folder of the images; see `files.pair_images` for which image belongs to a file.
        drop_difficult: Removal of objects that are marked as difficult.
        concepts: Names that are allowed; None allows all.
        counts_from_one: Whether a `bndbox` counts pixels from 1 to the last, as Pascal VOC does, so that its
            first pixel is xmin = xmax = 1. Otherwise its numbers are edges.
        only: Names without suffix of the files to read; None reads all.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Yields:
        One row per file, sorted by path; with `quads` if any of its objects is oriented.

    Raises:
        ValueError: If a file has another form, an object has no name and shape, or an image is missing.
    """
    report = report or SkipReport()
    pairs, _ = pair_images(list_files(annotations, [".xml"], only), annotations, images, report)
    for path, image in pairs.items():
        try:
            root = _parse_xml(path)
            nodes, parse_object = _list_objects(root, counts_from_one)
            size = _parse_size(root)
            is_annotated = _find_flag(root, "annotated") is not False
        except ValueError as error:
            report.refuse("bad file", f"{path} {error}", error)
            continue
        if not is_annotated:  # HRSC2016 has such images
            report.skip("not annotated", f"{path} says that its image was not annotated.")
            continue
        regions, unboxed = [], []
        for i, node in enumerate(nodes, start=1):
            place = f"{path}: object {i}"
            try:
                if _find_flag(node, "deleted"):
                    report.skip("deleted", f"{place} is marked as deleted.")
                    continue
                name, numbers = parse_object(node)
                if flag := _find_any_flag(node, GROUP_FLAGS):
                    report.skip("ignored", f"{place} has the flag {flag}, so it is no single region.")
                    unboxed.append(name)
                else:
                    for kind, found in _list_unread(node):
                        report.skip(kind, f"{place} has the {kind} {found!r}, which is not read.")
                    kind = "box" if len(numbers) == 4 else "quad"
                    flag = bool(_find_any_flag(node, ("difficult", "isdifficult")))
                    regions.append(Annotation(f"{place}: {kind}", name, numbers, flag))
            except ValueError as error:
                report.refuse("bad region", f"{place} {error} Correct or remove it.", error)
        source = image.relative_to(images).as_posix()
        yield make_row(
            image, source, str(path), regions, report, size, tuple(unboxed), concepts, drop_difficult
        )


def _parse_xml(path: Path) -> ElementTree.Element:
    """Parse a file, with tags in lower case and without namespaces.

    Raises:
        ValueError: If the file is not XML, or declares entities, which can multiply without end.
    """
    content = read_bytes(path)
    try:
        if b"<!ENTITY" in content.replace(b"\0", b""):  # also in UTF-16
            raise ValueError("it declares entities")
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"cannot be read as xml ({error}). Give complete Pascal VOC files.") from error
    for node in root.iter():
        node.tag = str(node.tag).rpartition("}")[2].lower()
    return root


def _list_objects(root: ElementTree.Element, counts_from_one: bool) -> tuple[list, Callable]:
    """Return the objects of a file, and the function that reads one.

    Raises:
        ValueError: If the file has another root, or objects where they are not expected.
    """
    if root.tag == "hrsc_image":
        return _collect(root, "hrsc_object", ("hrsc_objects",)), _parse_hrsc_object
    if root.tag != "annotation":
        raise ValueError(
            f"has the root <{root.tag}>; expected <annotation> (Pascal VOC, FAIR1M) or <HRSC_Image>. "
            "Convert or remove the file."
        )
    nodes = _collect(root, "object", (".", "objects"))
    # A list of objects under another name would be read as an image without any.
    strange = [child.tag for child in root if len(child) and child.tag not in ROOT_FIELDS]
    if not nodes and strange:
        raise ValueError(f"has no <object>, but <{strange[0]}> with content. Convert the file to Pascal VOC.")
    return nodes, lambda node: _parse_object(node, counts_from_one)


def _collect(root: ElementTree.Element, tag: str, parents: tuple[str, ...]) -> list[ElementTree.Element]:
    found = [node for parent in parents for node in root.findall(f"{parent}/{tag}")]
    if (total := sum(1 for _ in root.iter(tag))) != len(found):
        raise ValueError(
            f"has {total} elements <{tag}>, of which {total - len(found)} lie at an unknown place."
        )
    return found


def _find_text(node: ElementTree.Element, path: str) -> str | None:
    """Return the text at a path, or None if the path does not occur.

    Raises:
        ValueError: If there are several.
    """
    found = node.findall(path)
    if len(found) > 1:
        raise ValueError(f"has {len(found)} elements <{path}>; expected one.")
    return (found[0].text or "").strip() if found else None


def _find_flag(node: ElementTree.Element, name: str) -> bool | None:
    text = _find_text(node, name)
    if not text:
        return None
    flag = parse_flag(text)
    if flag is None:
        raise ValueError(f"has <{name}> {text!r}; a flag is 0, 1, true or false.")
    return flag


def _find_any_flag(node: ElementTree.Element, names: tuple[str, ...]) -> str | None:
    """Return the first of these flags that a node sets, however it is spelled."""
    tags = (child.tag for child in node if spell_flag(child.tag) in names)
    return next((tag for tag in tags if _find_flag(node, tag)), None)


def _list_unread(node: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """List the parts of an object, and what seems to be a shape that is not known, each with its kind."""
    for child in node if node.tag == "object" else ():
        if child.tag == "part":
            yield "part", (child.findtext("name") or "").strip()
        elif (
            child.tag not in SHAPES and OTHER_SHAPE.fullmatch(child.tag) and "".join(child.itertext()).strip()
        ):
            yield "other shape", child.tag


def _parse_size(root: ElementTree.Element) -> tuple[float, float] | None:
    """Return the stated width and height; None if they are missing or 0, as some tools write them."""
    for names in (
        ("size/width", "size/height"),
        ("imagesize/ncols", "imagesize/nrows"),
        ("img_sizewidth", "img_sizeheight"),
    ):
        texts = [_find_text(root, name) or "0" for name in names]
        numbers = parse_numbers(texts)
        if numbers is None or min(numbers) < 0:
            raise ValueError(f"states the size {texts}; expected two numbers of pixels. Correct it.")
        if all(numbers):
            return numbers[0], numbers[1]
    return None


def _parse_object(node: ElementTree.Element, counts_from_one: bool) -> tuple[str, list[float]]:
    """Return the name and the numbers (four or eight) of an object.

    Raises:
        ValueError: If it has no name, several, no shape, or one that cannot be read.
    """
    names = [_find_text(node, path) for path in ("name", "possibleresult/name")]
    names = [name for name in names if name]
    shapes = {tag: node.findall(tag) for tag in SHAPES}
    if len(names) != 1 or not any(shapes.values()):
        found = [child.tag for child in node]
        raise ValueError(f"has {found}; it needs one name, and one of {list(SHAPES)}.")
    unit = _find_text(node, "coordinate")  # FAIR1M
    if unit not in (None, "", "pixel"):
        raise ValueError(f"has coordinates of the kind {unit!r}; expected 'pixel'.")
    tag = next(tag for tag in SHAPES if shapes[tag])
    if len(shapes[tag]) > 1:
        raise ValueError(f"has {len(shapes[tag])} elements <{tag}>; expected one.")
    numbers = _parse_shape(shapes[tag][0])
    angle = _find_text(node, "angle") or "0"
    if tag == "bndbox" and parse_numbers([angle]) != [0.0]:
        raise ValueError(f"has the angle {angle!r} beside an upright <bndbox>; expected a robndbox.")
    if tag == "bndbox" and len(numbers) == 4 and (degrees := _find_rotation(node)):
        x0, y0, x1, y1 = numbers
        numbers = turn_box((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, math.radians(degrees))
    if counts_from_one and tag == "bndbox" and len(numbers) == 4:
        if any(0 <= number < 1 for number in numbers[:2]):
            raise ValueError(f"begins at {numbers[:2]}, so pixels count from 0. Omit --counts_from_one.")
        numbers = [numbers[0] - 1, numbers[1] - 1, *numbers[2:]]
    return names[0], numbers


def _find_rotation(node: ElementTree.Element) -> float:
    """Return the attribute `rotation` that CVAT writes beside a box, in degrees; 0 without it."""
    for attribute in node.findall("attributes/attribute"):
        if (_find_text(attribute, "name") or "").lower() == "rotation":
            text = _find_text(attribute, "value") or "0"
            numbers = parse_numbers([text])
            if numbers is None or abs(numbers[0]) > 360:
                raise ValueError(f"has the rotation {text!r}; expected degrees, from 0 to 360.")
            return numbers[0]
    return 0.0


def _parse_shape(shape: ElementTree.Element) -> list[float]:
    """Return four or eight numbers of a `bndbox`, `robndbox`, `points` or `polygon`, whatever its fields are.

    Raises:
        ValueError: If its fields are not those of a box, a turned box or a polygon, or are not numbers.
    """
    children = [child for child in shape if child.tag != "username"]  # LabelMe: who drew it
    if any(child.tag in ("point", "pt") for child in children):
        points = [_list_coordinates(child) for child in children]
        if any(len(point) != 2 for point in points):
            raise ValueError(f"has a <{shape.tag}> of {points}; expected points x, y.")
        return _simplify(_to_numbers(shape.tag, [text for point in points for text in point]))
    fields = {child.tag: (child.text or "").strip() for child in children}
    if len(fields) != len(children):
        raise ValueError(f"has a <{shape.tag}> with repeated fields: {[child.tag for child in children]}.")
    if fields.keys() == set(EDGES):
        return _to_numbers(shape.tag, [fields[name] for name in EDGES])
    if fields.keys() == set(CORNERS):
        return _to_numbers(shape.tag, [fields[name] for name in CORNERS])
    if fields.keys() == set(TURNED):
        return _turn(_to_numbers(shape.tag, [fields[name] for name in TURNED]))
    if all(map(POINT.fullmatch, fields)):
        order = sorted(fields, key=lambda name: (int(name[1:]), name[0]))
        if [name[0] for name in order] == ["x", "y"] * (len(order) // 2) and len(order) >= 6:
            return _simplify(_to_numbers(shape.tag, [fields[name] for name in order]))
    raise ValueError(
        f"has a <{shape.tag}> of {sorted(fields)}; expected {list(EDGES)}, corners or {list(TURNED)}."
    )


def _list_coordinates(point: ElementTree.Element) -> list[str]:
    if len(point):
        return [(child.text or "").strip() for tag in ("x", "y") for child in point.findall(tag)]
    return [text.strip() for text in (point.text or "").split(",")]


def _to_numbers(tag: str, texts: list[str]) -> list[float]:
    numbers = parse_numbers(texts)
    if numbers is None:
        raise ValueError(f"has a <{tag}> with {texts}; expected numbers.")
    return numbers


def _turn(numbers: list[float]) -> list[float]:
    _, _, width, height, angle = numbers
    if width <= 0 or height <= 0:
        raise ValueError(f"has a turned box of {width:g} x {height:g} pixels; expected more than 0.")
    if abs(angle) > 2 * math.pi:
        raise ValueError(f"has the angle {angle:g}; expected radians, from 0 to 6.28.")
    return turn_box(*numbers)


def _simplify(numbers: list[float]) -> list[float]:
    """Return four points as a quad, others as the box around them. A repeated first point is dropped."""
    if len(numbers) > 8 and numbers[:2] == numbers[-2:]:
        numbers = numbers[:-2]
    if len(numbers) < 6:
        raise ValueError(f"has a shape of {len(numbers) // 2} points; expected three or more.")
    return numbers if len(numbers) == 8 else bound_points(numbers)


def _parse_hrsc_object(node: ElementTree.Element) -> tuple[str, list[float]]:
    texts = {name: _find_text(node, name) for name in (*HRSC_EDGES, *HRSC_TURNED)}
    for names in (HRSC_TURNED, HRSC_EDGES):
        if any(texts[name] is not None for name in names):
            numbers = _to_numbers("hrsc_object", [texts[name] or "" for name in names])
            return "ship", _turn(numbers) if names == HRSC_TURNED else numbers
    raise ValueError(
        f"has {[child.tag for child in node]}; it needs {list(HRSC_TURNED)} or {list(HRSC_EDGES)}."
    )
