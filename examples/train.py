"""Train a GeoAlignCLIP on images with boxes, on one process or many.

    python examples/train.py --dataset outputs/rows --eval_dataset test.json --images images/ \
        --output_dir outputs/train --num_train_epochs 100 --bf16
    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/train.py ...
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/train.py ...
    python examples/train.py ... --push_to_hub --hub_model_id you/geoalign-clip --hub_private_repo

Starts from `--model`, a GeoAlignCLIP or any CLIP that `convert_clip` reads, or from a small model with fresh
weights. `--preset` chooses the weights of the loss terms; each can also be set by its name. All arguments of
transformers' Trainer work, see `--help`.

Prints the region accuracy before and after training. The output folder holds `final/` and `best/` (weights,
code, processor, card), checkpoints, `args.json`, `metrics.json`, `trainer_state.json` and `curves.png`.
Ctrl-C saves a checkpoint, from which `--resume_from_checkpoint last` continues.

`--lora vision,text` trains only adapters, `--freeze vision` everything but one tower, see train_lora.py.
`--exclude_concepts ship bridge` trains a base without these concepts, for adapt.py.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.duplicates import split_validation
from geoalign_hf.data.loading import read_rows, remove_concepts
from geoalign_hf.data.schema import list_concepts
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.hub.cards import describe_dataset
from geoalign_hf.losses.objective import PRESETS, LossWeights
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.lora import AdapterConfig, adapt_model, describe_trained
from geoalign_hf.training.start import FINE_TUNING, load_start
from geoalign_hf.training.trainer import GeoAlignTrainer

FRESH = ("image_size", "patch_size", "width", "depth")  # options of a model with fresh weights


@dataclass
class ScriptArguments:
    """What to train on, and from what."""

    dataset: str = HfArg(help="rows to train on: a folder, a Hub repository, or a COCO .json file")
    eval_dataset: str | None = HfArg(default=None, help="rows to evaluate on; of a folder the split test")
    validation_share: float = HfArg(
        default=0.0, help="fraction of the rows to evaluate on instead; near-duplicates stay on one side"
    )
    images: str | None = HfArg(default=None, help="folder of the images of a COCO file")
    exclude_concepts: list[str] = HfArg(
        default_factory=list, help="concepts to leave out, with all boxes and texts that mention them"
    )
    preset: Literal[tuple(PRESETS)] = HfArg(default="geoalign", help="objective to start from")
    model: str | None = HfArg(default=None, help="GeoAlignCLIP or other CLIP to start from; default: fresh")
    image_size: int = HfArg(default=192, help="side of pixel_values of a fresh model")
    patch_size: int = HfArg(default=16, help="side of a patch of a fresh model")
    width: int = HfArg(default=192, help="width of the vision tower of a fresh model")
    depth: int = HfArg(default=4, help="number of blocks of the vision tower of a fresh model")
    license: str | None = HfArg(default=None, help="license of the weights, as the Hub spells it")


def main() -> None:
    """Read, train, evaluate, write."""
    parser = HfArgumentParser(
        (ScriptArguments, LossWeights, GeoAlignTrainingArguments, Augmentation, AdapterConfig)
    )
    known = parser.parse_known_args()[0]
    parser.set_defaults(**asdict(PRESETS[known.preset]))
    if known.model and not known.lora:
        parser.set_defaults(**FINE_TUNING)
    arguments, weights, args, augmentation, adapters = parser.parse_args_into_dataclasses()
    if adapters.lora and not arguments.model:
        parser.error("--lora adapts a model that is there: give it as --model")
    if adapters.lora and args.push_to_hub and Path(arguments.model).exists():
        parser.error("--push_to_hub of an adapter needs its base on the Hub: push that, and give its name")

    # 1. Rows.
    rows, eval_rows = read_rows(arguments.dataset, arguments.images, "train"), None
    if arguments.eval_dataset:
        eval_rows = read_rows(arguments.eval_dataset, arguments.images, "test")
    if arguments.validation_share:
        if eval_rows:
            parser.error("--validation_share and --eval_dataset both give rows to evaluate on: give one")
        rows, eval_rows = split_validation(rows, arguments.validation_share, args.seed)
    if arguments.exclude_concepts:
        rows = remove_concepts(rows, arguments.exclude_concepts)
        if eval_rows:
            there = set(list_concepts(eval_rows)) & set(arguments.exclude_concepts)
            eval_rows = remove_concepts(eval_rows, sorted(there)) if there else eval_rows

    # 2. The model: a checkpoint, or fresh weights and a tokenizer learnt from the words of the rows.
    if arguments.model:
        if ignored := [name for name in FRESH if getattr(arguments, name) != parser.get_default(name)]:
            parser.error(f"--{ignored[0]} is for fresh weights; the model of --model has its own")
        model, processor = load_start(arguments.model)
    else:
        words = rows.remove_columns("image")
        texts = [text for row in words for text in [*row["captions"], *row["phrases"]]]
        texts += [row["description"] for row in words if row["description"]]
        texts += [template.format(name) for template in CONCEPT_TEMPLATES for name in list_concepts(rows)]
        torch.manual_seed(args.seed)
        model, processor = build_model(
            texts, arguments.image_size, arguments.patch_size, arguments.width, arguments.depth
        )

    # 3. The part of it that is trained.
    model = adapt_model(model, adapters)
    if os.environ.get("RANK", "0") == "0":
        print(describe_trained(model))

    # 4. Training, with evaluation before, after every epoch and at the end.
    card = {"script": asdict(arguments), "adapters": asdict(adapters), "license": arguments.license}
    card |= {"base_model": arguments.model, "data": describe_dataset(arguments.dataset)}
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=weights,
        evaluators=[RegionClassificationEvaluator(eval_rows)] if eval_rows else [],
        augmentation=augmentation,
        card_settings=card,
    )
    trainer.train()

    # 5. The results.
    if trainer.is_world_process_zero():
        for moment, results in trainer.scores.items():
            scores = results["regions"]
            micro, macro = scores["top1_micro"], scores["top1_macro"]
            print(
                f"{moment:>5}: region top-1 micro {micro:.4f}, macro {macro:.4f} "
                f"on {scores['num_regions']} boxes of {len(eval_rows)} images"
            )
    if args.push_to_hub and (commit := trainer.push_to_hub()):
        print(commit.commit_url)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
