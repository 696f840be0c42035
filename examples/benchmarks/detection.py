"""Detects the objects of a COCO file from two kinds of proposals, and scores the detections.

    python examples/benchmarks/detection.py --train train.json --test test.json --images images

A small model is trained from fresh weights on windows around the training boxes, and around background: boxes
that overlap no object much. `--model` takes a model instead. The proposals are first the true boxes of the
test images with noise, among twice as many distractors; then a grid of windows and the peaks of the dense
map, for which nothing is known of the objects. Scores are calibrated on training images. Prints mAP, AP50,
AP75 and AR of each kind of proposals, and writes `detection.json` and the model.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModel, AutoProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

from geoalign_hf import (
    Augmentation,
    DetectionEvaluator,
    Embedder,
    GeoAlignTrainer,
    GeoAlignTrainingArguments,
    LossWeights,
    build_rows,
    from_coco,
)
from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.schema import list_concepts
from geoalign_hf.detection.detector import DetectionOptions
from geoalign_hf.detection.proposals import Proposals
from geoalign_hf.model.detection_geoalign_clip import measure_box_ious
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.storage import write_json

CONCEPT_ALONE = dict.fromkeys(asdict(LossWeights()), 0.0) | {"concept": 1.0}
NAMES = ("mAP", "AP50", "AP75", "AR")


@dataclass
class Options:
    """Options of the command line."""

    test: Path = HfArg(help="COCO file that is scored.")
    images: Path = HfArg(help="Folder that the file names start from.")
    train: Path = HfArg(help="COCO file to train on; the calibration is fitted on a part of it.")
    model: Path | None = HfArg(default=None, help="Folder of a model, instead of training one.")
    output_dir: Path = HfArg(default=Path("outputs/detection"), help="Folder of the model and the results.")
    max_steps: int = HfArg(default=300, help="Number of training steps.")
    batch_size: int = HfArg(default=48, help="Number of windows of a step.")
    num_calibration: int = HfArg(default=20, help="Number of training images that calibrate the scores.")
    proposals: list[str] = HfArg(
        default_factory=lambda: ["noisy boxes", "grid", "peaks"], help="Kinds of proposals, each scored."
    )
    seed: int = HfArg(default=0, help="Seed of weights, background and proposals.")


def draw_boxes(boxes: np.ndarray, size: tuple[int, int], count: int, max_iou: float, rng) -> np.ndarray:
    """Draw boxes that overlap the given ones by at most `max_iou`: half near one of them, half anywhere."""
    found = []
    for trial in range(30 * count):
        if len(found) == count:
            break
        x0, y0, x1, y1 = boxes[rng.integers(len(boxes))]
        sides = np.array([x1 - x0, y1 - y0]) * 2 ** rng.uniform(-1.5, 1.5)
        center = rng.uniform((x0, y0), (x1, y1)) if trial % 2 else rng.uniform((0, 0), size)
        box = np.concatenate([np.maximum(center - sides / 2, 0), np.minimum(center + sides / 2, size)])
        is_large = (box[2:] - box[:2]).min() >= 8
        if is_large and measure_box_ious(*map(torch.from_numpy, (box[None], boxes))).max() <= max_iou:
            found.append(box)
    return np.array(found).reshape(-1, 4)


def add_background(rows: Dataset, rng) -> Dataset:
    """Give every row three boxes of the concept "background" for each of its boxes."""
    result = []
    for row in rows:
        boxes = np.array(row["boxes"])
        others = draw_boxes(boxes, row["image"].size, 3 * len(boxes), 0.3, rng)
        concepts = row["concepts"] + ["background"] * len(others)
        boxes = [*row["boxes"], *others.tolist()]
        result.append({"image": row["image"], "boxes": boxes, "concepts": concepts, "phrases": concepts})
    return build_rows(result)


def train(rows: Dataset, options: Options) -> Path:
    """Train a model from fresh weights, or continue its training, and return its folder."""
    texts = [template.format(name) for name in list_concepts(rows) for template in CONCEPT_TEMPLATES]
    torch.manual_seed(options.seed)
    model, processor = build_model(texts, image_size=64, patch_size=8, width=128, depth=3, stem="convolution")
    args = GeoAlignTrainingArguments(
        output_dir=str(options.output_dir),
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=1e-3,
        ema_decay=0.99,
        max_regions=1,
        save_steps=50,
        save_total_limit=1,
        resume_from_checkpoint="last",
        use_cpu=True,
        dataloader_num_workers=1,
        seed=options.seed,
    )
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=LossWeights(**CONCEPT_ALONE),
        augmentation=Augmentation(
            whole_share=0, max_context=2.0, shift=0.03, stretch_sides=0.1, views_per_row=100
        ),
    )
    trainer.train()
    return options.output_dir / "final"


def propose(rows: Dataset, rng) -> list[Proposals]:
    """Make proposals of the true boxes with noise, and twice as many distractors."""
    proposals = []
    for row in rows:
        boxes = np.array(row["boxes"])
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        noisy = boxes + rng.normal(0, 0.08, boxes.shape) * sides
        noisy = np.clip(noisy, 0, [*row["image"].size] * 2)
        others = draw_boxes(boxes, row["image"].size, 2 * len(boxes), 0.3, rng)
        proposals.append(Proposals(np.concatenate([noisy, others])))
    return proposals


def main(options: Options) -> None:
    """Train, calibrate, detect and score."""
    rng = np.random.default_rng(options.seed)
    rows, test_rows = (from_coco(path, options.images) for path in (options.train, options.test))
    folder = options.model or train(add_background(rows, rng), options)
    model, processor = (auto.from_pretrained(folder) for auto in (AutoModel, AutoProcessor))
    embedder = Embedder(model, processor, batch_size=128)
    known = rows.shuffle(seed=options.seed).select(range(min(options.num_calibration, len(rows))))
    base = DetectionOptions(threshold=0.01, background_labels=["background"], max_iou=0.4)
    results = {}
    for name in options.proposals:
        kind = replace(base, proposer="grid" if name == "noisy boxes" else name)
        given = [propose(part, rng) if name == "noisy boxes" else None for part in (known, test_rows)]
        fitted = DetectionEvaluator(known, given[0], options=kind).calibrate(embedder)
        kind = replace(kind, **fitted)
        scores = DetectionEvaluator(test_rows, given[1], options=kind, proposal_name=name)(embedder)
        results[name] = scores
        numbers = "  ".join(f"{metric} {100 * scores[metric]:5.1f}" for metric in NAMES)
        print(f"{name:12} {scores['num_proposals'] / len(test_rows):6.0f} proposals per image  {numbers}")
    write_json(options.output_dir / "detection.json", results)
    print(f"See {options.output_dir / 'detection.json'}.")


if __name__ == "__main__":
    main(*HfArgumentParser(Options).parse_args_into_dataclasses())
