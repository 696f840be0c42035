r"""Classifies ground-truth boxes with a classical method, as a baseline without pretraining.

The features are histograms of gradients (HOG) and of color, and the classifier is a linear SVM. Its settings
are chosen by 3-fold cross-validation on the training boxes. An image, and a group of images with the same
`overlap_group`, is never split between folds. One row adds seven turned and mirrored copies of every training
box. The row `+ box size` also uses the size of the box, which is not part of its appearance (`--no-box_size`
omits it). Prints micro and macro top-1 and the accuracy of each concept, and writes `metrics.json` with the
settings. It takes 3 to 7 minutes on two cores.

    python examples/benchmarks/classical_baseline.py --train_coco TRAIN.json --test_coco TEST.json \
        --images DIR
"""

import argparse
from itertools import product
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from geoalign_hf.data.loading import from_coco
from geoalign_hf.images import read_image
from geoalign_hf.storage import read_json, write_json

SIDE, CELL, ORIENTATIONS, COLOUR_BINS = 64, 8, 9, 16
CONTEXTS, C_VALUES, SIZE_WEIGHTS = (1.0, 1.25, 1.5), (3e-4, 1e-3, 3e-3), (4.0, 16.0)


class Region(NamedTuple):
    """A box (xyxy), its image and concept, and the group of images that stay in one fold."""

    image: str
    box: list[float]
    concept: str
    group: str


def read_regions(coco: Path, images: Path) -> list[Region]:
    """List the annotations of a COCO file. Images with the same `overlap_group` form a group."""
    rows = from_coco(coco, images).cast_column("image", datasets.Image(decode=False))
    entries = {str(images / entry["file_name"]): entry for entry in read_json(coco)["images"]}
    regions = []
    for row in rows:
        path = row["image"]["path"]
        group = str(entries[path].get("overlap_group") or path)
        pairs = zip(row["boxes"], row["concepts"], strict=True)
        regions += [Region(path, box, concept, group) for box, concept in pairs]
    return regions


def describe_looks(crops: np.ndarray) -> np.ndarray:
    """Compute HOG (8 x 8 cells, 9 orientations, 2 x 2 blocks), and HSV histograms per quarter: (N, 1956)."""
    # Dalal and Triggs, https://doi.org/10.1109/CVPR.2005.177, section 6, but cells do not share votes.
    down, across = np.gradient(np.sqrt(crops.astype(np.float32) / 255), axis=(1, 2))  # (N, 64, 64, 3)
    strongest = np.hypot(down, across).argmax(axis=-1, keepdims=True)  # of the three colors
    down, across = (np.take_along_axis(part, strongest, axis=-1) for part in (down, across))
    position = np.arctan2(down, across) % np.pi / np.pi * ORIENTATIONS - 0.5
    distance = np.abs(position - np.arange(ORIENTATIONS))  # (N, 64, 64, 9), in bins
    votes = np.hypot(down, across) * np.clip(1 - np.minimum(distance, ORIENTATIONS - distance), 0, None)
    cells = votes.reshape(-1, SIDE // CELL, CELL, SIDE // CELL, CELL, ORIENTATIONS).sum(axis=(2, 4))
    rows = np.concatenate([cells[:, :-1], cells[:, 1:]], axis=-1)  # (N, 7, 8, 18)
    blocks = np.concatenate([rows[:, :, :-1], rows[:, :, 1:]], axis=-1)  # (N, 7, 7, 36)
    for most in (0.2, np.inf):  # L2-Hys: to unit length, cut at 0.2, to unit length again
        blocks = np.minimum(blocks / np.sqrt((blocks**2).sum(axis=-1, keepdims=True) + 1e-4), most)
    hsv, half = np.stack([np.asarray(Image.fromarray(crop).convert("HSV")) for crop in crops]), SIDE // 2
    quarters = hsv.reshape(-1, 2, half, 2, half, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, half * half)
    bins = quarters.astype(int) * COLOUR_BINS // 256 + COLOUR_BINS * np.arange(len(quarters))[:, None]
    counts = np.bincount(bins.ravel(), minlength=len(quarters) * COLOUR_BINS).reshape(len(crops), -1)
    return np.hstack([blocks.reshape(len(crops), -1), np.sqrt(counts / half**2)])


def describe_regions(regions: list, context: float, num_copies: int) -> np.ndarray:
    """Compute features of crops `context` times the box and of box sizes, per copy: (copies * N, 1961)."""
    images, crops = {path: read_image(path) for path in {row.image for row in regions}}, []
    sizes, rows = np.log([(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (row.box for row in regions)]), []
    for path, (x0, y0, x1, y1), _, _ in regions:
        image, more_x, more_y = images[path], (x1 - x0) * (context - 1) / 2, (y1 - y0) * (context - 1) / 2
        outer = np.clip([x0 - more_x, y0 - more_y, x1 + more_x, y1 + more_y], 0, image.size * 2)
        crops.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=tuple(outer))))
    for turns, flip in list(product(range(4), (1, -1)))[:num_copies]:
        turned = np.ascontiguousarray(np.rot90(crops, turns, axes=(1, 2))[:, :, ::flip])
        looks = np.vstack([describe_looks(turned[i : i + 256]) for i in range(0, len(turned), 256)])
        wide, high = np.roll(sizes, turns, axis=1).T
        rows.append(np.column_stack([looks, wide, high, wide - high, wide**2, high**2]).astype(np.float32))
    return np.vstack(rows)


def mean_of_both(svm: object, features: np.ndarray, truth: np.ndarray) -> float:
    """Score settings by the mean of micro and macro top-1."""
    macro = recall_score(truth, svm.predict(features), labels=np.unique(truth), average="macro")
    return (svm.score(features, truth) + macro) / 2


def score_baselines(train: list[Region], test: list[Region], with_size: bool = False) -> dict:
    """Choose the settings on the training boxes, and classify the test boxes once.

    Returns:
        The chosen settings, and in `rows` for each method micro and macro top-1, the accuracy per concept,
        and the cross-validated score by which settings are chosen.
    """
    concepts, truth = (np.array([region.concept for region in regions]) for regions in (train, test))
    # 1. A fold holds whole groups of images.
    splitter = GroupKFold(3, shuffle=True, random_state=0)
    folds = list(splitter.split(train, groups=[region.group for region in train]))
    # 2. Choose the context and the weight of rare concepts, without rotated copies.
    parts = [("looks", StandardScaler(), slice(0, -5)), ("sizes", StandardScaler(), slice(-5, None))]
    scaler = ColumnTransformer(parts, transformer_weights={"sizes": 0.0})
    svm = make_pipeline(scaler, LinearSVC(dual=True, tol=0.1, random_state=0))
    grid = {"linearsvc__C": C_VALUES[:2], "linearsvc__class_weight": [None, "balanced"]}
    options, searches = {"scoring": mean_of_both, "n_jobs": 2}, {}
    for context in CONTEXTS:
        features = describe_regions(train, context, 1)
        searches[context] = GridSearchCV(svm, grid, cv=folds, **options).fit(features, concepts)
    context = max(searches, key=lambda context: searches[context].best_score_)
    plain = searches[context]
    # 3. Choose C with rotated and flipped copies. Held-out boxes are not copied.
    copies, repeated = describe_regions(train, context, 8), np.tile(concepts, 8)
    copied_folds = [(np.add.outer(np.arange(8) * len(train), i).ravel(), j) for i, j in folds]
    grid = {key: [value] for key, value in plain.best_params_.items()} | {"linearsvc__C": C_VALUES}
    turned = GridSearchCV(svm, grid, cv=copied_folds, **options).fit(copies, repeated)
    rows = {
        "commonest concept": DummyClassifier().fit(copies, repeated),
        "HOG + colour, linear SVM": plain,
        "... + eight turned copies": turned,
    }
    # 4. Choose the weight of the size of a box relative to its appearance.
    if with_size:
        grid = {"columntransformer__transformer_weights": [{"sizes": weight} for weight in SIZE_WEIGHTS]}
        search = GridSearchCV(turned.best_estimator_, grid, cv=copied_folds, **options)
        rows["... + box size"] = search.fit(copies, repeated)
    # 5. Classify the test boxes.
    others, scores = describe_regions(test, context, 1), {}
    for row, search in rows.items():
        names = search.predict(others)
        each = {str(name): float(np.mean(names[truth == name] == name)) for name in np.unique(truth)}
        micro, macro = float(np.mean(names == truth)), sum(each.values()) / len(each)
        scores[row] = {"micro_top_1": micro, "macro_top_1": macro, "per_concept": each}
        scores[row] |= {key: vars(search).get(key) for key in ("best_params_", "best_score_")}
    return {"num_train_boxes": len(train), "num_boxes": len(test), "context": context, "rows": scores}


def main() -> None:
    """Read both splits, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_coco", type=Path, required=True, help="COCO file of the training boxes.")
    parser.add_argument("--test_coco", type=Path, required=True, help="COCO file of the test boxes.")
    parser.add_argument("--images", type=Path, required=True, help="Folder of the images of both files.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/classical_baseline"), help="Folder of metrics.json."
    )
    parser.add_argument(
        "--box_size",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Row with box sizes as features.",
    )
    args = parser.parse_args()
    train, test = (read_regions(path, args.images) for path in (args.train_coco, args.test_coco))
    metrics = score_baselines(train, test, args.box_size)
    print(f"{'':26}{'micro top-1':>12}{'macro top-1':>12}{'boxes':>8}")
    for row, scores in metrics["rows"].items():
        print(f"{row:26}{scores['micro_top_1']:12.3f}{scores['macro_top_1']:12.3f}{len(test):8}")
    for concept, accuracy in metrics["rows"]["... + eight turned copies"]["per_concept"].items():
        print(f"  {concept:24}{accuracy:12.3f}{sum(region.concept == concept for region in test):20}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.output_dir / "metrics.json", metrics)


if __name__ == "__main__":
    main()
