"""`geoalign-hf train`."""

import os
from argparse import Namespace
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset

from ..convert.from_scratch import build_model
from ..data.augmentation import Augmentation
from ..data.duplicates import split_validation
from ..data.loading import remove_concepts
from ..data.schema import list_concepts
from ..evaluation.classification import RegionClassificationEvaluator
from ..hub.cards import describe_dataset
from ..images import ImageOptions
from ..losses.objective import PRESETS, LossWeights
from ..model.modeling_geoalign_clip import GeoAlignCLIPModel
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES
from ..options import option
from ..training.arguments import GeoAlignTrainingArguments
from ..training.lora import AdapterConfig, adapt_model, describe_trained
from ..training.start import FINE_TUNING, load_start
from ..training.trainer import GeoAlignTrainer
from .inputs import ROWS, VALIDATION_ROWS, ViewOptions, load_rows

FRESH = ("image_size", "patch_size", "width", "depth")  # options of a new model


@dataclass
class TrainOptions:
    """The rows and the model."""

    _argument_group_name = "data and model"
    # Options of transformers' Trainer that the help shows beside our own, with their help texts.
    _also_shown = {
        "max_steps": "Number of training steps, in place of --num_train_epochs; -1 for none.",
        "per_device_eval_batch_size": "Number of images per process and forward pass of an evaluation.",
        "bf16": "Mixed precision in bfloat16.",
        "fp16": "Mixed precision in float16. Prefer --bf16 on hardware that has it.",
        "activation_checkpointing": "Recomputation of activations in the backward pass, to save memory.",
        "report_to": "Names of trackers that receive the logs, such as tensorboard or wandb; all or none.",
        "eval_steps": "Number of steps between evaluations, with --eval_strategy steps. A number below 1 is "
        "a fraction of all steps.",
        "save_steps": "Number of steps between checkpoints, with --save_strategy steps. A number below 1 is "
        "a fraction of all steps.",
        "metric_for_best_model": "Name of the score that chooses the best model. By default, "
        "eval_regions_top1_macro.",
        "dataloader_num_workers": "Number of processes that prepare batches; 0 uses the main process.",
        "push_to_hub": "Upload of every checkpoint and of the final model to the Hub.",
        "hub_model_id": "Name of the Hub repository. By default, the name of --output_dir.",
        "hub_private_repo": "Privacy of a new Hub repository: true or false.",
    }

    dataset: str = option(
        default=ROWS,
        help="Folder or Hub repository of rows to train on, or a COCO .json file (with --images).",
    )
    eval_dataset: str | None = option(
        default=None,
        help="Rows to evaluate on during training. By default, outputs/rows_validation if it exists and "
        "--dataset is not given.",
    )
    validation_share: float = option(
        default=0.0,
        help="Fraction of --dataset to evaluate on instead of training on it. Near-duplicates stay on "
        "one side.",
    )
    eval_split: str | None = option(
        default=None, help="Split of --eval_dataset. By default, validation or the only split."
    )
    images: str | None = option(default=None, help="Folder of the images of COCO files.")
    exclude_concepts: list[str] = option(
        default_factory=list,
        help="Concepts to remove from the rows, with their boxes and all texts that name them.",
    )
    preset: str = option(
        default="geoalign",
        help="Objective whose loss weights are the defaults of the options below.",
        choices=PRESETS,
    )
    model: str | None = option(
        default=None,
        help="Model to start from: a GeoAlignCLIP, or any CLIP that convert reads. By default, a new model "
        "is built.",
    )
    image_size: int = option(default=192, help="Side of the images of a new model, in pixels.")
    patch_size: int = option(default=16, help="Side of the patches of a new model, in pixels.")
    width: int = option(default=192, help="Width of the vision tower of a new model.")
    depth: int = option(default=4, help="Number of blocks of the vision tower of a new model.")
    license: str | None = option(
        default=None, help="Licence of the weights as the Hub names it, such as mit."
    )

    @staticmethod
    def _defaults(namespace: Namespace) -> dict:
        learning = FINE_TUNING if namespace.model and not namespace.lora else {}
        return asdict(PRESETS[namespace.preset]) | learning


def train(
    options: TrainOptions,
    view: ViewOptions,
    loss_weights: LossWeights,
    arguments: GeoAlignTrainingArguments,
    augmentation: Augmentation,
    adapters: AdapterConfig,
    image_options: ImageOptions,
) -> Path | None:
    """Train a GeoAlignCLIP on rows.

    Start it with `accelerate launch -m geoalign_hf train ...` to use several GPUs. Ctrl-C saves a checkpoint,
    and `--resume_from_checkpoint last` continues from it.
    """
    if adapters.lora and not options.model:
        raise ValueError("--lora needs a trained model to adapt. Give it as --model.")
    if adapters.lora and arguments.push_to_hub and Path(str(options.model)).exists():
        raise ValueError(
            f"--push_to_hub of an adapter needs its base on the Hub, but --model is the folder "
            f"{options.model}. Push that first, and give the name of its repository."
        )
    data = describe_dataset(options.dataset)
    start = load_given_model(options) if options.model else None
    if adapters.lora and start:
        check_base(str(options.model), start[0], view)
    rule = data["image_rule"] or (start[1].image_rule if start else None)
    image_options = image_options.with_fallback(rule)
    rows, eval_rows = load_training_rows(options, image_options, arguments.seed)
    model, processor = start or build_new_model(options, rows, arguments.seed)
    view.apply(model.config)
    processor.image_rule = image_options.make_rule()
    model = adapt_model(model, adapters)
    if os.environ.get("RANK", "0") == "0":
        print(describe_trained(model))
    trainer = GeoAlignTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=loss_weights,
        evaluators=[RegionClassificationEvaluator(eval_rows)] if eval_rows else [],
        augmentation=augmentation,
        card_settings={
            "script": asdict(options) | asdict(view),
            "adapters": asdict(adapters),
            "license": options.license,
            "base_model": options.model,
            "data": data,
            "evaluation_data": describe_evaluation(options, data) if eval_rows else None,
        },
    )
    trainer.train()
    is_main = trainer.is_world_process_zero()
    if is_main:
        for moment in ("start", "best", "final"):
            for scores in trainer.scores.get(moment, {}).values():
                micro, macro = scores["top1_micro"], scores["top1_macro"]
                print(
                    f"{moment:>5}: region top-1 micro {micro:.4f}, macro {macro:.4f} "
                    f"on {scores['num_regions']} boxes of {len(eval_rows or ())} images"
                )
    if arguments.push_to_hub and (commit := trainer.push_to_hub()):
        print(f"pushed {commit.commit_url}")
    PartialState().destroy_process_group()
    return Path(str(arguments.output_dir), "final") if is_main else None


def find_evaluation_rows(options: TrainOptions) -> str | None:
    """Return the source of the rows to evaluate on, if they are not a part of the training rows."""
    is_built = options.dataset == ROWS and Path(VALIDATION_ROWS).exists()
    use_built = is_built and not options.validation_share
    return options.eval_dataset or (VALIDATION_ROWS if use_built else None)


def describe_evaluation(options: TrainOptions, data: dict) -> dict:
    """Describe the rows to evaluate on for the card."""
    if source := find_evaluation_rows(options):
        return describe_dataset(source)
    return data | {"name": f"a part of {data['name']} that was not trained on"}


def load_training_rows(
    options: TrainOptions, image_options: ImageOptions, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Load the rows to train and to evaluate on, without the concepts that are excluded.

    Raises:
        ValueError: If the rows to evaluate on are given in two ways.
    """
    if options.validation_share and options.eval_dataset:
        raise ValueError("--validation_share and --eval_dataset both give rows to evaluate on. Give one.")
    rows = load_rows(options.dataset, options.images, None, "train", image_options)
    source = find_evaluation_rows(options)
    eval_rows = None
    if source:
        eval_rows = load_rows(source, options.images, options.eval_split, "validation", image_options)
    if options.validation_share:
        rows, eval_rows = split_validation(rows, options.validation_share, seed)
    if options.exclude_concepts:
        rows = remove_concepts(rows, options.exclude_concepts)
        if eval_rows:
            occurring = set(list_concepts(eval_rows)) & set(options.exclude_concepts)
            eval_rows = remove_concepts(eval_rows, sorted(occurring)) if occurring else eval_rows
    return rows, eval_rows


def load_given_model(options: TrainOptions) -> tuple:
    """Load the model to start from.

    Raises:
        ValueError: If options of a new model are given beside a model.
    """
    defaults = {option.name: option.default for option in fields(options)}
    if given := [f"--{name}" for name in FRESH if getattr(options, name) != defaults[name]]:
        raise ValueError(f"{given} are for a new model, but --model is {options.model}. Omit them.")
    return load_start(str(options.model))


def check_base(source: str, model: GeoAlignCLIPModel, view: ViewOptions) -> None:
    """Check that an adapter of a model can be loaded again: its base is loaded from where it is stored.

    Raises:
        ValueError: If the base differs from what is stored.
    """
    if not model.name_or_path:
        raise ValueError(
            f"--lora stores an adapter beside its base, but --model {source} is another CLIP, which is "
            f"converted only in memory. Run `geoalign-hf convert {source} FOLDER`, and give --model FOLDER."
        )
    if given := view.list_given():
        raise ValueError(
            f"{given} belong to the config of the base, which --lora does not store. Omit them, and set "
            f"region_view and region_context in the config.json of {source}."
        )


def build_new_model(options: TrainOptions, rows: Dataset, seed: int) -> tuple:
    """Build a model with fresh weights, whose tokenizer is learned from the rows."""
    texts = [text for column in ("captions", "phrases") for of_row in rows[column] for text in of_row]
    texts += [text for text in rows["description"] if text]
    texts += [template.format(name) for template in CONCEPT_TEMPLATES for name in list_concepts(rows)]
    torch.manual_seed(seed)
    return build_model(texts, options.image_size, options.patch_size, options.width, options.depth)
