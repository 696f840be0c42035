"""Train a GeoAlignCLIP on images with boxes, on one process or many.

    python examples/train.py --coco train.json --images images/ --eval_coco test.json \
        --output_dir outputs/train --num_epochs 100 --mixed_precision bf16
    accelerate launch examples/train.py ...              # on GPUs, as `accelerate config` says
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/train.py ...

Starts from `--model` (a GeoAlignCLIP, or made of a CLIP by `python -m geoalign_hf.convert`), or from a small
model with fresh weights. Prints the region accuracy before and after, and leaves in the output folder
`final/` (weights, code, processor, card), `args.json` and `metrics.json`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor, HfArgumentParser

from geoalign_hf.augment import Augmentation
from geoalign_hf.evaluation import classify_regions
from geoalign_hf.hub import write_card
from geoalign_hf.losses import LossWeights
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.rows import from_coco, list_concepts
from geoalign_hf.scratch import build_model
from geoalign_hf.training import TrainingConfig, train


@dataclass
class ScriptArguments:
    """What to train on, and from what."""

    coco: str = field(metadata={"help": "COCO annotation file to train on"})
    images: str = field(metadata={"help": "folder of the images"})
    eval_coco: str | None = field(default=None, metadata={"help": "COCO annotation file to evaluate on"})
    model: str | None = field(default=None, metadata={"help": "checkpoint to start from; default: fresh"})
    image_size: int = field(default=192, metadata={"help": "fresh model: side of pixel_values"})
    patch_size: int = field(default=16, metadata={"help": "fresh model: side of a patch"})
    width: int = field(default=192, metadata={"help": "fresh model: of the vision tower"})
    depth: int = field(default=4, metadata={"help": "fresh model: blocks of the vision tower"})


def main() -> None:
    """Read, train, evaluate, write."""
    parser = HfArgumentParser((ScriptArguments, LossWeights, TrainingConfig, Augmentation))
    arguments, weights, config, augment = parser.parse_args_into_dataclasses()
    state = PartialState()

    # 1. Rows.
    rows = from_coco(arguments.coco, arguments.images)
    eval_rows = from_coco(arguments.eval_coco, arguments.images) if arguments.eval_coco else None

    # 2. The model: a checkpoint, or fresh weights and a tokenizer learnt from the words of the rows.
    if arguments.model:
        model = AutoModel.from_pretrained(arguments.model)
        processor = AutoProcessor.from_pretrained(arguments.model)
    else:
        words = rows.remove_columns("image")
        texts = [text for row in words for text in row["captions"] + row["phrases"]]
        texts += [template.format(name) for template in CONCEPT_TEMPLATES for name in list_concepts(rows)]
        torch.manual_seed(config.seed)
        model, processor = build_model(
            texts, arguments.image_size, arguments.patch_size, arguments.width, arguments.depth
        )
    metrics = {}
    if eval_rows is not None and state.is_main_process:
        metrics["before"] = classify_regions(model.to(state.device), processor, eval_rows)

    # 3. Training.
    folder = train(model, processor, rows, weights, config, augment)

    # 4. Evaluation, each number with its protocol.
    if not state.is_main_process:
        return
    if eval_rows is not None:
        model = AutoModel.from_pretrained(folder).to(state.device)
        metrics["image"] = classify_regions(model, processor, eval_rows)
        metrics["window"] = classify_regions(model, processor, eval_rows, region_source="window")
        for name, scores in metrics.items():
            print(
                f"{name:>8}: region top-1 micro {scores['top1_micro']:.4f}, macro {scores['top1_macro']:.4f} "
                f"on {scores['num_regions']} boxes of {scores['protocol']['num_images']} images"
            )
    output_dir = Path(config.output_dir)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2))
    settings = {"script": asdict(arguments)} | json.loads((output_dir / "args.json").read_text())
    (output_dir / "args.json").write_text(json.dumps(settings, indent=2))
    write_card(folder, metrics, settings)


if __name__ == "__main__":
    main()
