"""Ablation of the objective: what each term brings, with all boxes and with the boxes of few images.

    python examples/benchmarks/ablation.py --root data/nwpu_vhr10 \
        --images "NWPU VHR-10 dataset/positive image set" --output_dir outputs/ablation

`--root` holds `train.json`, `validation.json` and `test.json`, as `examples/prepare_nwpu_vhr10.py` writes
them. Texts and hard negatives come from `geoalign_hf.dataset_builder`. Every cell of the table is one run
from fresh weights: an objective, an arm and a seed. All cells have the same number of steps and of views. In
the arm `all` every box is labelled; in the arm `tenth` only a tenth of the images have boxes, and all have
captions. Cells of one seed start from the same weights and have the same images with boxes.

Regions can be embedded from the whole image, a window or a crop; each score uses the source that is best on
the validation images. A cell is one file, and is not run again. The default takes three to four minutes per
cell on one core; `--device cuda` trains a larger model, and `--quick` tries the script out. Writes
`table.md`, `table.png` and `cells/*.json`.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ablation_table import COLUMNS, make_tables
from datasets import Dataset
from transformers import AutoModel, HfArgumentParser
from transformers.hf_argparser import HfArg

from geoalign_hf import Augmentation, Embedder, GeoAlignTrainer, GeoAlignTrainingArguments, LossWeights
from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.loading import load_rows
from geoalign_hf.data.schema import REGION_COLUMNS, list_concepts
from geoalign_hf.dataset_builder.build import BuildConfig, build
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.evaluation.hard_negatives import HardNegativeEvaluator
from geoalign_hf.evaluation.retrieval import CaptionRetrievalEvaluator, PhraseRetrievalEvaluator
from geoalign_hf.losses.objective import PRESETS
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.storage import read_json, write_json, write_text

ARMS = {"all": 1.0, "tenth": 0.1}  # the share of the training images that have boxes
SOURCES = ("image", "window", "crop")
ON_REGIONS = ("region", "concept", "crop_concept", "hard_negative")
CONSISTENCY = ("crop_consistency", "image_consistency", "text_consistency")
SETTINGS = {
    "cpu": {"image_size": 96, "patch_size": 16, "width": 128, "depth": 4, "max_steps": 300, "batch_size": 64},
    "cuda": {
        "image_size": 224,
        "patch_size": 16,
        "width": 384,
        "depth": 8,
        "max_steps": 6000,
        "batch_size": 256,
    },
    "quick": {"image_size": 32, "patch_size": 8, "width": 64, "depth": 1, "max_steps": 2, "batch_size": 4},
}


def list_objectives() -> dict[str, LossWeights]:
    """Return the loss weights of each row of the table."""
    off, full = dict.fromkeys(asdict(LossWeights()), 0.0), LossWeights()
    alone = {name: LossWeights(**off | {name: 1.0}) for name in ("scene", "region", "concept")}
    rows = alone | {
        f"scene + {name}": LossWeights(**off | {"scene": full.scene, name: 1.0})
        for name in ("region", "concept")
    }
    rows |= {"full": full, "full - hard negatives": replace(full, hard_negative=0.0)}
    for weight in (0.1, 1.0):
        rows[f"full + consistency {weight}"] = replace(full, **dict.fromkeys(CONSISTENCY, weight))
    total = sum(getattr(full, name) for name in ON_REGIONS)
    for name in ("fg_clip", "far_slip"):  # with the same total weight on regions
        preset = PRESETS[name]
        factor = total / sum(getattr(preset, term) for term in ON_REGIONS)
        rows[f"preset {name}"] = replace(
            preset, **{term: factor * getattr(preset, term) for term in ON_REGIONS}
        )
    return rows


class RememberingEmbedder(Embedder):
    """An embedder that embeds the regions of the same rows from the same source only once."""

    def embed_regions(self, rows, region_source=None, context=None, views=None):
        """Embed every box, see `Embedder`."""
        known, key = self.__dict__.setdefault("known", {}), (id(rows), region_source)
        if key not in known:
            known[key] = super().embed_regions(rows, region_source, context, views)
        return known[key]


@dataclass
class Options:
    """Options of the command line."""

    root: Path = HfArg(help="Folder of train.json, validation.json and test.json.")
    images: Path | None = HfArg(default=None, help="Folder that the file names start from. Default: --root.")
    output_dir: Path = HfArg(default=Path("outputs/ablation"), help="Folder of rows, cells and tables.")
    rows: list[str] = HfArg(
        default_factory=lambda: list(list_objectives()), help="Objectives, rows of the table."
    )
    arms: list[str] = HfArg(default_factory=lambda: list(ARMS), help="Arms: all boxes, or a tenth.")
    seeds: list[int] = HfArg(default_factory=lambda: [0, 1, 2, 3], help="Seeds, each a training of its own.")
    device: str = HfArg(default="cpu", help="Device: cpu, or cuda with a larger model and more steps.")
    max_steps: int | None = HfArg(default=None, help="Number of training steps, if not that of the device.")
    quick: bool = HfArg(default=False, help="Two steps of a tiny model, to try the script out.")


def make_rows(options: Options, split: str) -> Dataset:
    """Build the rows of one split, unless they are there."""
    folder = options.output_dir / f"rows_{split}"
    if not (folder / "README.md").exists():
        images = str(options.images or options.root)
        build(BuildConfig(str(folder), coco=str(options.root / f"{split}.json"), images=images, split=split))
    return load_rows(folder, split)


def keep_boxes(rows: Dataset, share: float, seed: int) -> Dataset:
    """Remove the regions of all but a share of the images, drawn by the seed. Captions stay."""
    order = np.random.default_rng(seed).permutation(len(rows))
    kept = set(order[: max(1, round(share * len(rows)))].tolist())

    def strip(row: dict, i: int) -> dict:
        return row if i in kept else row | {name: [] for name in REGION_COLUMNS if name in row}

    return rows.map(strip, with_indices=True, features=rows.features)


def choose_whole_share(weights: LossWeights) -> float:
    """Choose the share of whole images: all without terms on regions, and none without terms on images."""
    on_regions = sum(getattr(weights, name) for name in ON_REGIONS)
    if not on_regions:
        return 1.0
    return 0.0 if weights.scene + weights.description == 0 else 0.15


def train(weights: LossWeights, rows: Dataset, seed: int, settings: dict, folder: Path) -> Embedder:
    """Train one model from fresh weights."""
    words = rows.remove_columns("image")
    texts = [text for row in words for text in [*row["captions"], *row["phrases"], row["description"] or ""]]
    texts += [template.format(name) for name in list_concepts(words) for template in CONCEPT_TEMPLATES]
    torch.manual_seed(seed)
    sizes = [settings[name] for name in ("image_size", "patch_size", "width", "depth")]
    model, processor = build_model(texts, *sizes, stem="convolution")
    args = GeoAlignTrainingArguments(
        output_dir=str(folder), overwrite_output_dir=True, max_steps=settings["max_steps"],
        per_device_train_batch_size=settings["batch_size"], learning_rate=1e-3, ema_decay=0.99, max_regions=4,
        max_negatives=2, max_crops=1, eval_strategy="no", save_strategy="no", seed=seed, report_to=[],
        use_cpu=settings["device"] == "cpu", bf16=settings["device"] == "cuda", dataloader_num_workers=1,
    )  # fmt: skip
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=weights,
        augmentation=Augmentation(whole_share=choose_whole_share(weights), views_per_row=50),
    )
    trainer.train()
    return RememberingEmbedder(AutoModel.from_pretrained(folder / "final"), processor)


def score(embedder: Embedder, rows: Dataset, sources: dict[str, str], folder: Path) -> dict:
    """Score regions, phrases, hard negatives and captions, each with the given source of regions."""
    source = sources["regions"]
    path = folder / "regions.npz"
    regions = RegionClassificationEvaluator(rows, region_source=source, arrays_path=path)(embedder)
    with np.load(path) as arrays:
        answers = (arrays["regions"] @ arrays["concepts"].T).argmax(axis=1)
        hits = (answers == arrays["references"]).tolist()
    phrases = PhraseRetrievalEvaluator(rows, region_source=sources["phrases"])(embedder)
    negatives = HardNegativeEvaluator(rows, region_source=sources["negatives"])(embedder)
    captions = CaptionRetrievalEvaluator(rows)(embedder)
    values = (
        regions["top1_micro"], regions["top1_macro"], phrases["phrase_to_region_in_image"],
        negatives.get("pair_accuracy", negatives["accuracy"]), captions["mean_recall"],
    )  # fmt: skip
    pictures = [i for i, boxes in enumerate(rows["boxes"]) for _ in boxes]
    return {"scores": dict(zip(COLUMNS, values, strict=True)), "hits": hits, "pictures": pictures}


def run_cell(row: str, arm: str, seed: int, options: Options, settings: dict) -> dict:
    """Train and score one cell, unless its result is there."""
    name = f"{row}, {arm}, {seed}".replace(" ", "_")
    path, folder = options.output_dir / "cells" / f"{name}.json", options.output_dir / "models" / name
    weights = list_objectives()[row]
    cell = {"row": row, "arm": arm, "seed": seed, "weights": asdict(weights), "settings": settings}
    if path.exists():
        result = read_json(path)
        if {key: result[key] for key in cell} != cell:
            raise ValueError(f"{path} was made with other settings. Give another --output_dir.")
        return result
    print(f"training {row}, {arm}, seed {seed}", flush=True)
    rows = {split: make_rows(options, split) for split in ("train", "validation", "test")}
    embedder = train(weights, keep_boxes(rows["train"], ARMS[arm], seed), seed, settings, folder)
    trials = {}
    for source in SOURCES:
        trials[source] = score(
            embedder, rows["validation"], dict.fromkeys(("regions", "phrases", "negatives"), source), folder
        )["scores"]
    columns = {"regions": COLUMNS[1], "phrases": COLUMNS[2], "negatives": COLUMNS[3]}
    sources = {
        task: max(SOURCES, key=lambda source: trials[source][column]) for task, column in columns.items()
    }
    cell |= {"sources": sources, "validation": trials} | score(embedder, rows["test"], sources, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, cell)
    return cell


def main() -> None:
    """Run the cells that are missing, and write the tables."""
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses()
    settings = SETTINGS["quick" if options.quick else options.device] | {"device": options.device}
    if options.max_steps:
        settings["max_steps"] = options.max_steps
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # one core trains, the other prepares windows
    # Seed by seed, so that an interrupted run leaves whole tables of fewer seeds.
    cells = [
        run_cell(row, arm, seed, options, settings)
        for seed in options.seeds
        for row in options.rows
        for arm in options.arms
    ]
    table = make_tables(cells, options.output_dir / "table.png")
    write_text(options.output_dir / "table.md", table + "\n")
    print(table)


if __name__ == "__main__":
    main()
