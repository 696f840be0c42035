"""Trains a small model on the boxes of NWPU VHR-10 from fresh weights, and scores it on the test boxes.

    python examples/benchmarks/nwpu_vhr10.py --root data/nwpu_vhr10 \
        --images "NWPU VHR-10 dataset/positive image set" --output_dir outputs/nwpu_vhr10 --seeds 0 1 2

`--root` holds `train.json`, `test.json` and perhaps `validation.json`, as `examples/prepare_nwpu_vhr10.py`
writes them. The model is trained on everything but the test images. Settings are chosen with `--split
validation`, which trains on `train.json` alone and scores `validation.json`. Beside the model it scores
histograms of gradients and colour with a linear SVM (`classical_baseline.py`) on the same boxes.

Training uses all terms of the objective with their default weights. Texts and hard negatives come from
`geoalign_hf.dataset_builder`. `--objective concept` uses the concept term alone. Models of both kinds are
also scored on hard negatives (accuracy in balanced pairs, chance 50 %) and on retrieval (mean recall).

Prints micro and macro top-1 as mean and standard deviation over the seeds, and writes `seed_*.json`,
`baseline.json`, `table.md`, and one model folder per seed. Seeds that are complete are not trained again, and
an interrupted one continues. A seed takes 5 to 15 minutes on two cores, the baseline 3 to 7.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import torch
from ablation import make_rows
from classical_baseline import read_regions, score_baselines
from datasets import Dataset, concatenate_datasets
from transformers import AutoModel, AutoProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

from geoalign_hf import (
    Augmentation,
    CaptionRetrievalEvaluator,
    GeoAlignTrainer,
    GeoAlignTrainingArguments,
    HardNegativeEvaluator,
    LossWeights,
    RegionClassificationEvaluator,
)
from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.schema import list_concepts
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.storage import read_json, write_json, write_text

OBJECTIVES = {
    "concept": LossWeights(**dict.fromkeys(asdict(LossWeights()), 0.0) | {"concept": 1.0}),
    "full": LossWeights(),
}
# Options that no result of a seed depends on, and paths.
UNDECISIVE = ("root", "images", "output_dir", "seeds", "baseline")


@dataclass
class Options:
    """Options of the command line."""

    root: Path = HfArg(help="Folder of train.json, test.json and perhaps validation.json.")
    images: Path | None = HfArg(default=None, help="Folder that the file names start from. Default: --root.")
    output_dir: Path = HfArg(default=Path("outputs/nwpu_vhr10"), help="Folder of models and results.")
    seeds: list[int] = HfArg(default_factory=lambda: [0, 1, 2], help="Seeds, each a training of its own.")
    split: Literal["test", "validation"] = HfArg(default="test", help="Split that is scored.")
    objective: Literal["concept", "full"] = HfArg(
        default="full", help="Terms of the objective: all with default weights, or the concept term alone."
    )
    baseline: bool = HfArg(default=True, help="Score of the classical baseline beside the model's.")
    max_steps: int = HfArg(default=900, help="Number of training steps.")
    batch_size: int = HfArg(default=96, help="Number of windows of a step.")
    image_size: int = HfArg(default=96, help="Side of a window in pixels.")
    patch_size: int = HfArg(default=16, help="Side of a patch in pixels.")
    width: int = HfArg(default=128, help="Width of the vision tower.")
    depth: int = HfArg(default=4, help="Number of blocks of the vision tower.")
    learning_rate: float = HfArg(default=1e-3, help="Peak learning rate.")
    label_smoothing: float = HfArg(default=0.1, help="Label smoothing of the concept term.")
    min_context: float = HfArg(default=1.1, help="Smallest side of a training window in sides of its region.")
    max_context: float = HfArg(default=2.0, help="Largest side of a training window.")
    erase: float = HfArg(default=0.0, help="Share of the training windows that lose a random rectangle.")
    views: list[float] = HfArg(
        default_factory=lambda: [1.25, 1.6, 2.0], help="Sides of the windows whose embeddings are averaged."
    )


def read_splits(options: Options) -> tuple[list[Path], Path]:
    """Return the files to train on, and the file to score."""
    names = ["train", "validation"] if options.split == "test" else ["train"]
    files = [options.root / f"{name}.json" for name in names]
    return [path for path in files if path.exists()], options.root / f"{options.split}.json"


def read_rows(options: Options) -> Dataset:
    """Read the rows to train on; with the whole objective they have texts and hard negatives."""
    files, images = read_splits(options)[0], options.images or options.root
    if options.objective == "full":
        return concatenate_datasets([make_rows(options, file.stem) for file in files])
    return concatenate_datasets([from_coco(file, images) for file in files])


def train(rows: Dataset, seed: int, folder: Path, options: Options) -> None:
    """Train a model from fresh weights into `folder/final`, or continue its training."""
    words = rows.remove_columns("image")
    texts = [template.format(concept) for concept in list_concepts(words) for template in CONCEPT_TEMPLATES]
    texts += [text for row in words for text in [*row["captions"], *row["phrases"]]]
    torch.manual_seed(seed)
    model, processor = build_model(
        texts, options.image_size, options.patch_size, options.width, options.depth, stem="convolution"
    )
    args = GeoAlignTrainingArguments(
        output_dir=str(folder),
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        label_smoothing_factor=options.label_smoothing,
        ema_decay=0.995,
        max_regions=1,
        max_negatives=2,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=min(200, options.max_steps),
        save_total_limit=1,
        resume_from_checkpoint="last",
        use_cpu=True,
        dataloader_num_workers=1,
        seed=seed,
    )
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=OBJECTIVES[options.objective],
        augmentation=Augmentation(
            whole_share=0 if options.objective == "concept" else 0.15,
            min_context=options.min_context,
            max_context=options.max_context,
            erase=options.erase,
            views_per_row=50,
        ),
    )
    trainer.train()


def run_seed(seed: int, options: Options) -> dict:
    """Train and score one seed, unless its result is there."""
    path, folder = options.output_dir / f"seed_{seed}.json", options.output_dir / f"seed_{seed}"
    settings = {name: value for name, value in asdict(options).items() if name not in UNDECISIVE}
    settings = json.loads(json.dumps(settings))  # as it is read back
    if path.exists():
        result = read_json(path)
        if result["settings"] != settings:
            raise ValueError(f"{path} was made with {result['settings']}. Give another --output_dir.")
        return result
    rows, start = read_rows(options), time.perf_counter()
    train(rows, seed, folder, options)
    minutes = (time.perf_counter() - start) / 60
    model = AutoModel.from_pretrained(folder / "final")
    processor = AutoProcessor.from_pretrained(folder / "final")
    test_rows = from_coco(read_splits(options)[1], options.images or options.root)
    scores = {
        name: RegionClassificationEvaluator(test_rows, views=views)(model, processor)
        for name, views in (("one view", None), ("averaged views", options.views))
    }
    worded_rows = make_rows(options, options.split)
    scores["hard negatives"] = HardNegativeEvaluator(worded_rows)(model, processor)
    scores["retrieval"] = CaptionRetrievalEvaluator(worded_rows)(model, processor)
    result = {"seed": seed, "num_images": len(rows), "minutes": minutes, "settings": settings}
    write_json(path, result | {"scores": scores})
    return result | {"scores": scores}


def run_baseline(options: Options) -> dict:
    """Score the classical baseline on the same boxes, unless its result is there."""
    path = options.output_dir / "baseline.json"
    if not path.exists():
        images, (files, scored) = options.images or options.root, read_splits(options)
        training = [region for file in files for region in read_regions(file, images)]
        write_json(path, score_baselines(training, read_regions(scored, images)))
    return read_json(path)


def make_table(runs: list[dict], baseline: dict) -> str:
    """Make a Markdown table of mean and standard deviation over the seeds, in percent."""
    lines = ["| method | micro top-1 | macro top-1 |", "| --- | --- | --- |"]
    for method, scores in baseline.get("rows", {}).items():
        lines.append(f"| {method} | {100 * scores['micro_top_1']:.1f} | {100 * scores['macro_top_1']:.1f} |")
    for view in ("one view", "averaged views"):
        cells = [average(runs, view, f"top1_{kind}") for kind in ("micro", "macro")]
        lines.append(f"| GeoAlignCLIP, {view} | {' | '.join(cells)} |")
    negatives, retrieval = (
        average(runs, "hard negatives", "pair_accuracy"), average(runs, "retrieval", "mean_recall")
    )  # fmt: skip
    return "\n".join(lines) + f"\n\nHard negatives {negatives}, retrieval {retrieval}"


def average(runs: list[dict], task: str, name: str) -> str:
    """Write the mean and the standard deviation of a score over the seeds, in percent."""
    values = [100 * run["scores"][task][name] for run in runs]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Run what is missing, and write the table."""
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # one core trains, the other prepares windows
    baseline = run_baseline(options) if options.baseline else {}
    table = make_table([run_seed(seed, options) for seed in options.seeds], baseline)
    write_text(options.output_dir / "table.md", table + "\n")
    print(table)


if __name__ == "__main__":
    main()
