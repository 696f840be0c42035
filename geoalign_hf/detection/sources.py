"""The images of a detection run, and its results in COCO's format."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..readers.files import ImageFinder, list_images, parse_json, read_text
from ..readers.skipped import SkipReport
from ..storage import write_text
from .detector import Detections


def list_sources(images: str | Path, coco: str | Path | None = None) -> dict[int | str, Path]:
    """List the images of a run by their ids.

    Args:
        images: one image, or a folder of images; with `coco` the folder that its file names start from.
        coco: a COCO file, whose images are taken. None takes all images of the folder.

    Returns:
        Paths by the ids of the COCO file, or by the names of the files, relative to the folder.

    Raises:
        ValueError: if there is no image, the COCO file lists none, one of its images is missing, or two of
            them have the same id.
    """
    folder = Path(images)
    if not folder.exists():
        raise ValueError(f"{folder} does not exist. Give an image or a folder of images.")
    if coco is None:
        base = folder if folder.is_dir() else folder.parent
        return {path.relative_to(base).as_posix(): path for path in list_images(folder)}
    content = parse_json(coco, read_text(coco), "a COCO file with images")
    entries = content.get("images") if isinstance(content, dict) else None
    if not entries or not all(
        isinstance(entry, dict) and {"id", "file_name"} <= entry.keys() for entry in entries
    ):
        raise ValueError(f"{coco} has no list of images with id and file_name. Give a COCO file.")
    finder, report = ImageFinder(folder, [entry["file_name"] for entry in entries]), SkipReport()
    found = {}
    for entry in entries:
        path = finder.find(entry["file_name"], f"{coco}: image {entry['id']!r}", report)
        assert path is not None  # the report stops at the first missing image
        if entry["id"] in found:
            names = f"{found[entry['id']].name!r} and to {path.name!r}"
            raise ValueError(f"{coco} gives the id {entry['id']!r} to {names}. Give every image its own id.")
        found[entry["id"]] = path
    return found


def number_labels(labels: Sequence[str], coco: str | Path | None = None) -> list[int]:
    """Give each label the id of the category of its name in a COCO file, or else the next free number."""
    categories = {}
    if coco is not None:
        content = parse_json(coco, read_text(coco), "a COCO file")
        categories = {entry["name"]: entry["id"] for entry in content.get("categories", [])}
    free = max([number for number in categories.values() if isinstance(number, int)], default=0)
    numbers = []
    for label in labels:
        if label not in categories:
            free += 1
        numbers.append(categories.get(label, free))
    return numbers


def list_results(
    image_id: int | str, detections: Detections, labels: Sequence[str], category_ids: Sequence[int]
) -> list[dict]:
    """List the detections of one image as results of COCO, with `label` and, if oriented, `segmentation`."""
    results = []
    for n, (number, score) in enumerate(
        zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ):
        x0, y0, x1, y1 = (round(value, 2) for value in detections.boxes[n].tolist())
        result = {
            "image_id": image_id,
            "category_id": category_ids[number],
            "label": labels[number],
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "score": round(score, 6),
        }
        if detections.quads is not None:
            result["segmentation"] = [[round(value, 2) for value in detections.quads[n].flatten().tolist()]]
        results.append(result)
    return results


def write_results(path: str | Path, results: Iterable[dict]) -> None:
    """Write results as a JSON list, one per line; the folder is created."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path, "[\n" + ",\n".join(json.dumps(result, ensure_ascii=False) for result in results) + "\n]\n"
    )
