"""Turn NWPU VHR-10 as its authors distribute it into COCO files with a grouped split.

    pip install opencv-python-headless
    python examples/prepare_nwpu_vhr10.py --source "NWPU VHR-10 dataset" --output data/nwpu_vhr10

The source holds `positive image set/001.jpg` and `ground truth/001.txt`, one `(x1,y1),(x2,y2),class` per
line. The set has many near-duplicates: overlapping crops, turned copies, copies with ships painted in or out.
A random split puts copies of training images into the test set. Here, two images are joined if 10 of their
SIFT features match under one similarity transform, and joined images stay in one split. The output holds
`train.json`, `validation.json` and `test.json`; their file names are relative to `positive image set`. The
data set is for research only; cite Cheng et al. 2014 and 2016.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

CONCEPTS = (
    "airplane", "ship", "storage tank", "baseball diamond", "tennis court", "basketball court",
    "ground track field", "harbor", "bridge", "vehicle",
)  # fmt: skip
NUM_FEATURES, CLOSE, NUM_INLIERS = 400, 0.87, 10  # SIFT features per image; cosine; matches of a joined pair
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@dataclass
class Arguments:
    """Options of the command line."""

    source: Path = HfArg(help="folder of the data set, as distributed", default=Path("NWPU VHR-10 dataset"))
    output: Path = HfArg(help="folder for the three COCO files", default=Path("data/nwpu_vhr10"))
    seed: int = HfArg(help="seed of the split", default=0)


def read_boxes(path: Path) -> list[tuple[int, list[int]]]:
    """Read the class number, from 1, and the xyxy pixels of every box in a ground-truth file."""
    boxes = []
    for number, line in enumerate(path.read_text().split("\n"), start=1):
        plain = "".join(line.split())
        fields = re.fullmatch(r"\((\d+),(\d+)\),\((\d+),(\d+)\),(\d+)", plain)
        if fields and 1 <= int(fields[5]) <= len(CONCEPTS):
            *corners, concept = map(int, fields.groups())
            boxes.append((concept, corners))
        elif plain:
            raise ValueError(
                f"{path} line {number} is {line!r}; expected (x1,y1),(x2,y2),class from 1 to 10."
            )
    return boxes


def extract_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Compute the strongest SIFT features of an image: positions (F, 2) and unit descriptors (F, 128)."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    shrink = 480 / max(image.shape)
    image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    points, descriptors = cv2.SIFT_create(nfeatures=NUM_FEATURES).detectAndCompute(image, None)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    roots = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))  # RootSIFT
    return np.float32([point.pt for point in points]), roots


def group_images(paths: list[Path]) -> list[list[Path]]:
    """Group images that show the same ground; chains of such pairs are one group."""
    positions, descriptors = zip(*map(extract_features, paths), strict=True)
    owners = np.repeat(np.arange(len(paths)), [len(points) for points in positions])
    places, everything = np.concatenate(positions), np.concatenate(descriptors)
    group = np.arange(len(paths))
    for first, (points, features) in enumerate(zip(positions, descriptors, strict=True)):
        later = owners > first
        if not len(features) or not later.any():
            continue
        cosines = features @ everything[later].T
        best = cosines.argmax(axis=1)
        found, matched = owners[later][best], places[later][best]
        close = cosines[np.arange(len(best)), best] > CLOSE
        for second, number in Counter(found[close].tolist()).items():
            if number >= NUM_INLIERS:
                chosen = close & (found == second)
                _, inliers = cv2.estimateAffinePartial2D(points[chosen], matched[chosen])
                if inliers is not None and inliers.sum() >= NUM_INLIERS:
                    group[group == group[second]] = group[first]
    return [[paths[i] for i in np.flatnonzero(group == number)] for number in np.unique(group)]


def split_groups(groups: list[list[Path]], boxes: dict[Path, list], seed: int) -> dict[str, list[Path]]:
    """Give every group to the split that lacks most of its concepts; groups with many boxes come first."""
    groups = sorted(groups)
    random.Random(seed).shuffle(groups)
    groups.sort(key=lambda group: -sum(len(boxes[path]) for path in group))
    totals = Counter(concept for entries in boxes.values() for concept, _ in entries)
    splits, counts = {name: [] for name in SHARES}, {name: Counter() for name in SHARES}
    for group in groups:
        found = Counter(concept for path in group for concept, _ in boxes[path])

        def measure_need(name: str, found=found) -> float:
            filled = sum(n * counts[name][concept] / totals[concept] for concept, n in found.items())
            images = len(splits[name]) / len(boxes)
            return (filled / max(1, found.total()) + 0.1 * images) / SHARES[name]

        name = min(SHARES, key=measure_need)
        splits[name] += group
        counts[name] += found
    return {name: sorted(paths) for name, paths in splits.items()}


def write_coco(paths: list[Path], boxes: dict[Path, list], output: Path, groups: list[list[Path]]) -> None:
    """Write one COCO detection file. File names are relative to the images, and groups count from 1."""
    numbers = {path: number for number, group in enumerate(groups, start=1) for path in group}
    images, annotations = [], []
    for path in paths:
        height, width = cv2.imread(str(path)).shape[:2]
        image = {"id": len(images) + 1, "file_name": path.name, "width": width, "height": height}
        images.append(image | {"overlap_group": numbers[path]})
        for concept, (x1, y1, x2, y2) in boxes[path]:
            corner, size = [x1, y1], [x2 - x1, y2 - y1]
            entry = {"id": len(annotations) + 1, "image_id": len(images), "category_id": concept}
            annotations.append(entry | {"bbox": corner + size, "area": size[0] * size[1], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(CONCEPTS, start=1)]
    output.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def main() -> None:
    """Read, group, split and write."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    folder = arguments.source / "positive image set"
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise SystemExit(f"{folder} holds no .jpg images. Give the folder of the data set as --source.")
    boxes = {path: read_boxes(arguments.source / "ground truth" / f"{path.stem}.txt") for path in paths}
    groups = group_images(paths)
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"{len(paths)} images in {len(groups)} groups that share no ground")
    for name, chosen in split_groups(groups, boxes, arguments.seed).items():
        write_coco(chosen, boxes, arguments.output / f"{name}.json", groups)
        print(f"{name}.json: {len(chosen)} images, {sum(len(boxes[path]) for path in chosen)} boxes")


if __name__ == "__main__":
    main()
