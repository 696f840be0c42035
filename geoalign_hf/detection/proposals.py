"""Proposals: regions that may be objects, from a file, or from a grid of windows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..model.detection_geoalign_clip import list_windows
from ..model.regions_geoalign_clip import quads_to_xyxy, xywh_to_xyxy
from ..readers.files import parse_json, read_text

EXPECTED = "a list of results with image_id, bbox and score, or a COCO file with annotations"


@dataclass
class Proposals:
    """Regions of one image that may be objects.

    Args:
        boxes: (R, 4), xyxy pixels of the image as given.
        objectness: (R,), probabilities that a region is an object. None makes them 1.
        quads: (R, 4, 2), oriented boxes. If given, they are what is named and suppressed, and `boxes` are the
            upright boxes around them.

    Raises:
        ValueError: if the numbers of regions differ, or an objectness is not in [0, 1].
    """

    boxes: torch.Tensor
    objectness: torch.Tensor | None = None
    quads: torch.Tensor | None = None

    def __post_init__(self):
        self.boxes = torch.as_tensor(self.boxes, dtype=torch.float64).reshape(-1, 4)
        if self.quads is not None:
            self.quads = torch.as_tensor(self.quads, dtype=torch.float64).reshape(-1, 4, 2)
        if self.objectness is None:
            self.objectness = torch.ones(len(self.boxes))
        self.objectness = torch.as_tensor(self.objectness, dtype=torch.float32)
        counts = [len(part) for part in (self.boxes, self.objectness, self.quads) if part is not None]
        if len(set(counts)) > 1:
            raise ValueError(f"Expected one objectness and one quad per box; found {counts} entries.")
        if not ((self.objectness >= 0) & (self.objectness <= 1)).all():
            raise ValueError("An objectness is not a number from 0 to 1. Give probabilities.")

    def __len__(self) -> int:
        return len(self.boxes)


def propose_grid(
    size: tuple[int, int], sides: Iterable[float] | None = None, overlap: float = 0.5
) -> Proposals:
    """Propose the windows of `list_windows`, all with the objectness 1."""
    return Proposals(list_windows(size, None if sides is None else list(sides), overlap))


def join_proposals(first: Proposals, second: Proposals) -> Proposals:
    """Join two sets of upright proposals of one image."""
    boxes = torch.cat([first.boxes, second.boxes])
    return Proposals(boxes, torch.cat([first.objectness, second.objectness]))


def read_proposals(
    path: str | Path, image_ids: Iterable[int | str], oriented: bool = False
) -> dict[int | str, Proposals]:
    """Read proposals in COCO's format of results, as detectors and SAM write them.

    Args:
        path: file of a JSON list of objects with `image_id`, `bbox` (x, y, width, height) and `score`, the
            objectness, 1 if it is missing; or a COCO file, whose annotations are taken.
        image_ids: ids of the images that may occur.
        oriented: whether to take oriented boxes from `segmentation`, one polygon of four corners each.

    Returns:
        The proposals of every image, in the order of the file; none for an image that the file does not name.

    Raises:
        ValueError: with the place, if an entry has another form, names an unknown image or has a score
            outside [0, 1].
    """
    content = parse_json(path, read_text(path), EXPECTED)
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds something else; expected {EXPECTED}.")
    found: dict[int | str, list] = {image_id: [] for image_id in image_ids}
    for i, entry in enumerate(entries):
        place = f"{path}: entry {i}"
        if not isinstance(entry, dict) or not {"image_id", "bbox"} <= entry.keys():
            raise ValueError(f"{place} is {entry!r:.80}; expected {EXPECTED}.")
        image_id, score = entry["image_id"], entry.get("score", 1.0)
        if not isinstance(image_id, (int, str)) or image_id not in found:
            known = ", ".join(map(repr, list(found)[:3]))
            raise ValueError(f"{place} names the image {image_id!r:.60}, which is not among {known}, ...")
        if type(score) not in (int, float) or not 0 <= score <= 1:
            raise ValueError(f"{place} has the score {score!r:.60}; expected an objectness from 0 to 1.")
        box = _check_numbers(entry["bbox"], 4, f"{place} has the bbox", "x, y, width and height")
        corners = None
        if oriented:
            polygons = entry.get("segmentation")
            polygon = polygons[0] if isinstance(polygons, list) and len(polygons) == 1 else polygons
            corners = _check_numbers(polygon, 8, f"{place} has the segmentation", "four corners x, y")
        found[image_id].append((box, score, corners))
    return {image_id: _build(entries, oriented) for image_id, entries in found.items()}


def _check_numbers(values: object, count: int, place: str, expected: str) -> list[float]:
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"{place} {values!r:.80}; expected {count} numbers: {expected}.")
    return values


def _build(entries: list[tuple], oriented: bool) -> Proposals:
    boxes = xywh_to_xyxy(torch.tensor([box for box, _, _ in entries], dtype=torch.float64).view(-1, 4))
    quads = None
    if oriented:
        quads = torch.tensor([corners for _, _, corners in entries], dtype=torch.float64).view(-1, 4, 2)
        boxes = quads_to_xyxy(quads)
    return Proposals(boxes, torch.tensor([score for _, score, _ in entries]), quads)
