"""Ablation of the objective: each row of the table adds terms to the row above it.

    python examples/benchmarks/ablation.py --data ../shared/data --output_dir outputs/ablation

`--data` is a folder with `nwpu_vhr10` (COCO files `train.json` and `test.json`) and, for scenes, `whu_rs19`
and `rsscn7` (`train/` and `test/`, with one folder per class). The texts and hard negatives of boxes come
from `geoalign_hf.dataset_builder`; the caption of a scene is its class. Every row is trained from fresh
weights, with every seed, on the same training data and for the same number of steps. It is scored on the
test data: concepts of ground-truth boxes, phrases against their hard negatives (and the score of the texts
alone), retrieval of captions, and classes of scenes. Completed runs are not repeated, so an interrupted
ablation can be continued. It runs two processes and takes about half an hour on two cores. Prints the mean
and the spread over seeds, and writes `table.md`, `table.png` and `runs/*.json`.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch
from matplotlib.figure import Figure
from transformers import AutoModel, AutoProcessor

from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.loading import load_rows
from geoalign_hf.data.schema import build_rows, list_concepts
from geoalign_hf.dataset_builder.build import BuildConfig, build
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator, SceneClassificationEvaluator
from geoalign_hf.evaluation.hard_negatives import HardNegativeEvaluator
from geoalign_hf.evaluation.retrieval import CaptionRetrievalEvaluator
from geoalign_hf.images import read_image
from geoalign_hf.losses.objective import PRESETS, LossWeights
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.storage import write_text
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.trainer import GeoAlignTrainer

SCENES = ("whu_rs19", "rsscn7")
# The rows of the table, and the terms that each adds to the row above it.
ADDED = {
    "scene only": ("scene", "description"),
    "+ region": ("region",),
    "+ concept": ("concept",),
    "+ hard negatives": ("hard_negative",),
    "+ visual consistency": ("crop_consistency", "image_consistency"),
    "+ text consistency": ("text_consistency",),
}
COLUMNS = ("region micro", "region macro", "hard negatives", "words alone", "mean recall", "scenes")


def list_objectives(full: LossWeights) -> dict[str, LossWeights | None]:
    """Return the loss weights of each row; None for the untrained model."""
    objectives, weights = {"untrained": None}, dict.fromkeys(asdict(full), 0.0)
    for name, terms in ADDED.items():
        weights |= {term: getattr(full, term) for term in terms}
        objectives[name] = LossWeights(**weights)
    return objectives | {f"preset {name}": PRESETS[name] for name in ("fg_clip", "far_slip")}


def shrink(row: dict, side: int) -> dict:
    """Reduce the image of a row, and scale its regions, so that it can be read faster."""
    image = row["image"].convert("RGB")
    factor = min(1.0, side / max(image.size))
    image = image.resize([max(1, round(length * factor)) for length in image.size])
    boxes = [[number * factor for number in box] for box in row["boxes"]]
    quads = [[[x * factor, y * factor] for x, y in quad] for quad in row["quads"]]
    return row | {"image": image, "boxes": boxes, "quads": quads, "window": []}


def make_rows(data: Path, folder: Path, side: int) -> Path:
    """Build the rows of both splits with small images, and the scenes as rows without regions."""
    small = folder / "rows" / "data"
    if small.exists():
        return small.parent
    parts = {"train": [], "test": []}
    for split in parts:
        build(
            BuildConfig(
                str(folder / "built" / split), coco=str(data / f"nwpu_vhr10/{split}.json"), split=split
            )
        )
        parts[split] = [shrink(row, side) for row in load_rows(folder / "built" / split, split)]
    for name in SCENES:
        for split in ("train", "test"):
            for path in sorted((data / name / split).glob("*/*")):
                scene = path.parent.name
                captions = [template.format(scene) for template in CONCEPT_TEMPLATES]
                row = {"image": read_image(path), "boxes": [], "quads": [], "phrases": [], "concepts": []}
                row = shrink(row | {"captions": captions, "source": scene}, side)
                parts.setdefault("train" if split == "train" else name, []).append(row)
    partial = folder / "rows" / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        build_rows(rows).to_parquet(partial / f"{split}-00000-of-00001.parquet")
    partial.rename(small)
    return small.parent


def run(
    name: str, weights: LossWeights | None, seed: int, rows_folder: Path, output: Path, options: dict
) -> None:
    """Train and score one row of the table with one seed."""
    torch.set_num_threads(1)
    rows = {split: load_rows(rows_folder, split) for split in ("train", "test", *SCENES)}
    words = rows["train"].remove_columns("image")
    texts = [text for row in words for text in [*row["captions"], *row["phrases"], row["description"] or ""]]
    texts += [template.format(concept) for concept in list_concepts(words) for template in CONCEPT_TEMPLATES]
    torch.manual_seed(seed)
    model, processor = build_model(texts, options["image_size"], 16, options["width"], options["depth"])
    if weights is not None:
        args = GeoAlignTrainingArguments(
            output_dir=str(output.with_suffix("")), num_train_epochs=options["num_epochs"],
            per_device_train_batch_size=16, learning_rate=1e-3, max_regions=12, max_crops=1, seed=seed,
            resume_from_checkpoint="last",
        )  # fmt: skip
        folder = Path(args.output_dir) / "final"
        if not folder.exists():
            GeoAlignTrainer(
                model,
                args,
                train_dataset=rows["train"],
                processing_class=processor,
                loss_weights=weights,
                augmentation=Augmentation(whole_share=0.5, light=0.2),
            ).train()
        model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    embedder = Embedder(model, processor)
    regions = RegionClassificationEvaluator(rows["test"])(embedder)
    scenes = {
        split: SceneClassificationEvaluator(rows[split]["image"], rows[split]["source"])(embedder)
        for split in SCENES
    }
    negatives = HardNegativeEvaluator(rows["test"])(embedder)
    captions = CaptionRetrievalEvaluator(rows["test"])(embedder)
    numbers = (
        regions["top1_micro"], regions["top1_macro"], negatives["accuracy"], negatives["blind_accuracy"],
        captions["mean_recall"], mean(scores["top1_micro"] for scores in scenes.values()),
    )  # fmt: skip
    result = {"row": name, "seed": seed, "weights": weights and asdict(weights), "options": options}
    result |= {"numbers": dict(zip(COLUMNS, numbers, strict=True)), "regions": regions, "scenes": scenes}
    write_text(output, json.dumps(result | {"negatives": negatives, "captions": captions}, indent=2))


def write_table(results: dict[str, list[dict]], folder: Path) -> str:
    """Write the mean and standard deviation of every column as Markdown and as a bar chart."""
    lines = ["| objective | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    means = {}
    for name, runs in results.items():
        values = {column: [100 * run["numbers"][column] for run in runs] for column in COLUMNS}
        cells = [f"{mean(values[column]):.1f} ± {stdev(values[column]):.1f}" for column in COLUMNS]
        means[name] = values
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for axes, column in zip(panels, COLUMNS, strict=True):
        heights = [mean(means[name][column]) for name in means]
        axes.barh(list(means), heights, xerr=[stdev(means[name][column]) for name in means], color="#4878a8")
        axes.set_title(column, fontsize=10)
    panels[0].invert_yaxis()  # which all panels share
    figure.savefig(folder / "table.png", dpi=100)
    table = "\n".join(lines)
    (folder / "table.md").write_text(table + "\n")
    return table


def main() -> None:
    """Build the rows, run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/ablation"), help="Folder of results."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the runs.")
    parser.add_argument("--rows", nargs="+", help="Names of the rows to run. The default is all.")
    parser.add_argument("--num_epochs", type=int, default=10, help="Number of training epochs.")
    parser.add_argument("--image_size", type=int, default=128, help="Side of the input images.")
    parser.add_argument("--width", type=int, default=128, help="Width of the vision tower.")
    parser.add_argument("--depth", type=int, default=4, help="Number of blocks of the vision tower.")
    parser.add_argument("--picture_size", type=int, default=320, help="Longer side of the stored images.")
    parser.add_argument("--num_processes", type=int, default=2, help="Number of runs at the same time.")
    parser.add_argument("--weights", type=json.loads, default={}, help="JSON object of other loss weights.")
    arguments = parser.parse_args()
    folder = arguments.output_dir
    options = {name: getattr(arguments, name) for name in ("num_epochs", "image_size", "width", "depth")}
    full = replace(LossWeights(text_consistency=0.02), **arguments.weights)  # shown, though off by default
    settings = options | {"picture_size": arguments.picture_size, "weights": asdict(full)}
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "settings.json"
    if known.exists() and json.loads(known.read_text()) != settings:
        raise ValueError(f"{folder} holds runs with other settings, see {known}. Give another --output_dir.")
    write_text(known, json.dumps(settings, indent=2))
    rows_folder = make_rows(arguments.data, folder, arguments.picture_size)
    objectives = list_objectives(full)
    names = arguments.rows or list(objectives)
    paths = {
        (name, seed): folder / "runs" / f"{name.replace(' ', '_')}-{seed}.json"
        for seed in arguments.seeds
        for name in names
    }
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.num_processes, get_context("spawn")) as pool:
        waiting = [
            pool.submit(run, name, objectives[name], seed, rows_folder, path, options)
            for (name, seed), path in paths.items()
            if not path.exists()
        ]
        try:
            for done in as_completed(waiting):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    results = {
        name: [json.loads(paths[name, seed].read_text()) for seed in arguments.seeds] for name in names
    }
    print(write_table(results, folder))


if __name__ == "__main__":
    main()
