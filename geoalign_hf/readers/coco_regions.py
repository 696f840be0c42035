"""Reads the region of one COCO annotation, with the fields by which tools change what its box means."""

import math
from typing import Any

from .base import bound_points, turn_box
from .files import parse_flag, parse_numbers, spell_flag

# Of detectron2: how the numbers of `bbox` are meant. Modes with _REL are fractions of the image.
BBOX_MODES = {0: "XYXY_ABS", 1: "XYWH_ABS", 2: "XYXY_REL", 3: "XYWH_REL"}
MODE_FIELDS = ("bbox_mode", "box_mode", "bbox_format", "box_format", "bbox_type")
MODE_ALIASES = {"XYWH": "XYWH_ABS", "COCO": "XYWH_ABS", "XYXY": "XYXY_ABS", "PASCAL_VOC": "XYXY_ABS"}
# Flags as `spell_flag` spells them. Those of a group mark annotations that are not one region: the concept is
# in the image, but the box is not usable.
GROUP_FLAGS = ("iscrowd", "crowd", "isgroup", "isgroupof", "ignore", "ignored", "isignored")
DIFFICULT_FLAGS = ("difficult", "isdifficult", "occluded", "isoccluded")
ANGLES = ("rotation", "angle", "theta", "rotation_angle")


def find_flag(annotation: dict, names: tuple[str, ...]) -> str | None:
    """Return the first of these flags that an annotation sets, however spelled, also in its `attributes`.

    Raises:
        ValueError: If a flag is neither true nor false.

    Example:
        >>> find_flag({"iscrowd": "0", "attributes": {"occluded": True}}, ("iscrowd", "occluded"))
        'occluded'
    """
    for key, value in _list_fields(annotation):
        if spell_flag(key) in names and value is not None:
            flag = parse_flag(value)
            if flag is None:
                raise ValueError(f"has {key} {value!r:.50}; a flag is 0, 1, true or false.")
            if flag:
                return key
    return None


def _list_fields(annotation: dict) -> list[tuple[str, Any]]:
    attributes = annotation.get("attributes")
    return [*annotation.items(), *(attributes.items() if isinstance(attributes, dict) else ())]


def parse_region(annotation: dict, size: tuple[float, float]) -> list[float]:
    """Return the box (xyxy) or the quad (eight numbers) of an annotation, in pixels.

    Without `bbox`, the box around its `segmentation` is returned. A `rotation` among the `attributes` (CVAT:
    degrees, clockwise about the center) makes a quad. `bbox_mode` is that of detectron2.

    Args:
        annotation: An entry of `annotations`.
        size: Width and height of its image, in pixels.

    Raises:
        ValueError: If it has no region, or a field that changes the meaning of its box in an unknown way.
    """
    bbox = annotation.get("bbox")
    if bbox is None or bbox == []:
        if not annotation.get("segmentation"):
            raise ValueError(
                f"has the bbox {bbox!r} and no segmentation; a COCO box is x, y, width and height."
            )
        return _bound_segmentation(annotation["segmentation"], size)
    if not isinstance(bbox, list) or [type(n) in (int, float) for n in bbox] != [True] * 4:
        raise ValueError(f"has the bbox {bbox!r:.200}; a COCO box is four numbers, x, y, width and height.")
    name = _find_mode(annotation)
    x, y, right, bottom = map(to_float, bbox)
    if name.startswith("XYWH"):
        right, bottom = x + right, y + bottom
    if name.endswith("_REL"):
        x, right, y, bottom = x * size[0], right * size[0], y * size[1], bottom * size[1]
    angle = _find_angle(annotation)
    if angle and all(map(math.isfinite, (x, y, right, bottom))) and right > x and bottom > y:
        return turn_box((x + right) / 2, (y + bottom) / 2, right - x, bottom - y, math.radians(angle))
    return [x, y, right, bottom]


def _find_mode(annotation: dict) -> str:
    """Return how the numbers of `bbox` are meant, one of the names of `BBOX_MODES`."""
    found = {field: annotation[field] for field in MODE_FIELDS if field in annotation}
    names = set()
    for field, mode in found.items():
        name = BBOX_MODES.get(mode, "") if type(mode) is int else str(mode).rpartition(".")[2].upper()
        name = MODE_ALIASES.get(name, name)
        if name not in BBOX_MODES.values():
            raise ValueError(f"has the {field} {mode!r:.50}; known are {BBOX_MODES}.")
        names.add(name)
    if len(names) > 1:
        raise ValueError(f"has {found}, which contradict each other. Correct them.")
    return names.pop() if names else "XYWH_ABS"


def _find_angle(annotation: dict) -> float:
    """Return the rotation that CVAT states, in degrees; 0 without a rotation."""
    for key, value in _list_fields(annotation):
        if (
            key.lower() not in ANGLES
            or value is None
            or (isinstance(value, str) and not any(map(str.isdigit, value)))
        ):
            continue  # also a text such as "frontal"
        number = parse_numbers([str(value)])
        if number is None:
            raise ValueError(f"has the {key} {value!r:.50}, which is not a number. Correct or remove it.")
        if number[0] == 0:
            continue
        is_cvat = key == "rotation" and key not in annotation
        if not is_cvat or abs(number[0]) > 360:
            raise ValueError(
                f"has the {key} {value!r:.50}, which turns its box in an unknown way; known is "
                "attributes.rotation (CVAT, in degrees). Export upright boxes or polygons."
            )
        return number[0]
    return 0.0


def _bound_segmentation(segmentation: object, size: tuple[float, float]) -> list[float]:
    """Return the box around polygons, or around a mask in run-length encoding."""
    if isinstance(segmentation, dict):
        return _bound_runs(segmentation, size)
    polygons = segmentation if isinstance(segmentation, list) else []
    points = [number for polygon in polygons if isinstance(polygon, list) for number in polygon]
    are_polygons = all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons)
    if not are_polygons or len(points) < 6 or any(type(number) not in (int, float) for number in points):
        raise ValueError(
            f"has the segmentation {segmentation!r:.100}; expected polygons [[x1, y1, x2, ...]]."
        )
    return bound_points(list(map(to_float, points)))


def _bound_runs(mask: dict, size: tuple[float, float]) -> list[float]:
    """Return the box around a mask whose runs of 0 and 1 go down its columns."""
    shape, counts = mask.get("size"), mask.get("counts", [])
    if shape != [size[1], size[0]]:
        expected = [size[1], size[0]]
        raise ValueError(f"has a mask of size {shape!r:.50}; its image has {expected} (height, width).")
    counts = _unpack_counts(counts) if isinstance(counts, str) else counts
    is_list = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    height, width = int(size[1]), int(size[0])
    if not is_list or sum(counts) != height * width:
        raise ValueError(f"has mask counts that do not add up to {height} x {width} pixels.")
    position, box = 0, [math.inf, math.inf, 0.0, 0.0]
    for i, count in enumerate(counts):
        if i % 2 and count:
            first, last = position, position + count - 1
            (left, top), (right, bottom) = divmod(first, height), divmod(last, height)
            if right > left:  # the run reaches the bottom of one column and goes on at the top of the next
                top, bottom = 0, height - 1
            box = [min(box[0], left), min(box[1], top), max(box[2], right + 1), max(box[3], bottom + 1)]
        position += count
    if box[2] == 0:
        raise ValueError("has an empty mask.")
    return [float(number) for number in box]


def _unpack_counts(text: str) -> list[int]:
    """Unpack the run lengths that pycocotools packs into a string.

    Source: `rleFrString` of https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"has mask counts {text[:50]!r} that are not packed run lengths.")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)  # the highest bit is the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError(f"has mask counts {text[:50]!r} that end too early.")
    return counts


def to_float(number: int | float) -> float:
    """Convert a number of JSON to a float; an integer of hundreds of digits becomes infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
