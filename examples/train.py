"""Train a GeoAlignCLIP on images with boxes, on one process or many.

    python examples/train.py --dataset outputs/rows --eval_dataset test.json --images images/ \
        --output_dir outputs/train --num_epochs 100 --mixed_precision bf16
    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/train.py ...
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/train.py ...
    python examples/train.py ... --push_to_hub --hub_model_id you/geoalign-clip --hub_private_repo

Starts from `--model` (a GeoAlignCLIP, or made of a CLIP by `geoalign-hf convert`), or from a small
model with fresh weights. `--preset` chooses the weights of the loss terms, and each can be given by its name.
Prints the region accuracy before and after, and leaves in the output folder `final/` and `best/` (weights,
code, processor, card), checkpoints, `args.json`, `metrics.json`, `history.jsonl` and `curves.png`.
`--lora vision,text` trains adapters alone, `--freeze vision` all but a tower; see train_lora.py.
`--exclude_concepts ship bridge` trains a base without these concepts, for adapt.py.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor, HfArgumentParser

from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.loading import read_rows, remove_concepts
from geoalign_hf.data.schema import list_concepts
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.hub.cards import describe_dataset
from geoalign_hf.hub.push import BackgroundPush, HubConfig
from geoalign_hf.losses.objective import PRESETS, LossWeights
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.training.arguments import TrainingConfig
from geoalign_hf.training.lora import AdapterConfig, adapt_model, describe_trained
from geoalign_hf.training.trainer import train


@dataclass
class ScriptArguments:
    """What to train on, and from what."""

    dataset: str = field(
        metadata={
            "help": "to train on: a folder of geoalign_hf.build, a Hub repository, or a COCO .json file"
        }
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "likewise, to evaluate on; of a folder or repository the split test"}
    )
    images: str | None = field(default=None, metadata={"help": "folder of the images of a COCO file"})
    exclude_concepts: list[str] = field(
        default_factory=list,
        metadata={"help": "concepts that the model is not told of: their boxes and all words with them go"},
    )
    preset: str = field(
        default="geoalign", metadata={"help": "objective to start from", "choices": list(PRESETS)}
    )
    model: str | None = field(default=None, metadata={"help": "checkpoint to start from; default: fresh"})
    image_size: int = field(default=192, metadata={"help": "fresh model: side of pixel_values"})
    patch_size: int = field(default=16, metadata={"help": "fresh model: side of a patch"})
    width: int = field(default=192, metadata={"help": "fresh model: of the vision tower"})
    depth: int = field(default=4, metadata={"help": "fresh model: blocks of the vision tower"})
    license: str | None = field(default=None, metadata={"help": "of the weights, as the Hub spells it"})


def main() -> None:
    """Read, train, evaluate, write."""
    parser = HfArgumentParser(
        (ScriptArguments, LossWeights, TrainingConfig, Augmentation, AdapterConfig, HubConfig)
    )
    parser.set_defaults(**asdict(PRESETS[parser.parse_known_args()[0].preset]))
    arguments, weights, config, augment, adapters, hub = parser.parse_args_into_dataclasses()
    if adapters.lora and not arguments.model:
        parser.error("--lora adapts a model that is there: give it as --model")
    if adapters.lora and hub.push_to_hub and Path(arguments.model).exists():
        parser.error("--push_to_hub of an adapter needs its base on the Hub: push that, and give its name")

    # 1. Rows.
    rows, eval_rows = read_rows(arguments.dataset, arguments.images, "train"), None
    if arguments.eval_dataset:
        eval_rows = read_rows(arguments.eval_dataset, arguments.images, "test")
    if arguments.exclude_concepts:
        rows = remove_concepts(rows, arguments.exclude_concepts)
        if eval_rows:
            there = set(list_concepts(eval_rows)) & set(arguments.exclude_concepts)
            eval_rows = remove_concepts(eval_rows, sorted(there)) if there else eval_rows

    # 2. The model: a checkpoint, or fresh weights and a tokenizer learnt from the words of the rows.
    if arguments.model:
        model = AutoModel.from_pretrained(arguments.model)
        processor = AutoProcessor.from_pretrained(arguments.model)
    else:
        words = rows.remove_columns("image")
        texts = [text for row in words for text in [*row["captions"], *row["phrases"]]]
        texts += [row["description"] for row in words if row["description"]]
        texts += [template.format(name) for template in CONCEPT_TEMPLATES for name in list_concepts(rows)]
        torch.manual_seed(config.seed)
        model, processor = build_model(
            texts, arguments.image_size, arguments.patch_size, arguments.width, arguments.depth
        )

    # 3. What of it is trained.
    model = adapt_model(model, adapters)
    is_first = os.environ.get("RANK", "0") == "0"  # Accelerate is not up yet
    if is_first:
        print(describe_trained(model))

    # 4. Training, with evaluation before, on the way and after.
    output_dir, background = Path(config.output_dir), None
    if hub.push_to_hub and is_first:
        background = BackgroundPush(hub.hub_model_id or output_dir.resolve().name, hub)
    about = {"script": asdict(arguments), "adapters": asdict(adapters), "license": arguments.license}
    folder = train(
        model,
        processor,
        rows,
        weights,
        config,
        augment,
        evaluate=partial(RegionClassificationEvaluator(eval_rows), processor=processor)
        if eval_rows
        else None,
        publish=background.start if background else None,
        about=about | {"base_model": arguments.model, "data": describe_dataset(arguments.dataset)},
    )

    # 5. What came of it.
    state = PartialState()
    if state.is_main_process and eval_rows:
        for name, scores in json.loads((output_dir / "metrics.json").read_text()).items():
            print(
                f"{name:>5}: region top-1 micro {scores['top1_micro']:.4f}, macro {scores['top1_macro']:.4f} "
                f"on {scores['num_regions']} boxes of {len(eval_rows)} images"
            )
    if background:
        print(background.finish(folder).commit_url)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
