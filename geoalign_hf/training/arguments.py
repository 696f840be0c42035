"""Training arguments: those of transformers' Trainer with our defaults, and our additional ones."""

import math
from dataclasses import MISSING, dataclass, fields
from typing import get_args

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..options import option
from .launch import INSTEAD, check_backend_variables
from .teacher import TEACHERS

# The lowest allowed value of each numeric argument, and whether that value itself is allowed.
LOWEST = {
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
    "adam_epsilon": (0, False),
    "data_seed": (0, True),
    "dataloader_num_workers": (0, True),
    "dataloader_prefetch_factor": (1, True),
    "ddp_bucket_cap_mb": (1, True),
    "ddp_timeout": (1, True),
    "ema_decay": (0, True),
    "eval_delay": (0, True),
    "eval_steps": (0, False),
    "gradient_accumulation_steps": (1, True),
    "label_smoothing_factor": (0, True),
    "layer_decay": (0, False),
    "learning_rate": (0, True),
    "logging_steps": (0, False),
    "max_crops": (0, True),
    "max_grad_norm": (0, True),
    "max_negatives": (0, True),
    "max_regions": (1, True),
    "max_steps": (-1, True),
    "max_vocabulary": (0, True),
    "mini_batch_size": (1, True),
    "num_train_epochs": (0, False),
    "per_device_eval_batch_size": (1, True),
    "per_device_train_batch_size": (1, True),
    "save_steps": (0, False),
    "save_total_limit": (1, True),
    "seed": (0, True),
    "teacher_decay": (0, True),
    "torch_empty_cache_steps": (1, True),
    "warmup_steps": (0, True),
    "weight_decay": (0, True),
}
BELOW_ONE = ("adam_beta1", "adam_beta2", "ema_decay", "label_smoothing_factor", "teacher_decay")
# Arguments of Trainer that have no effect here, and what to do instead.
UNSUPPORTED = {
    "auto_find_batch_size": "Set mini_batch_size, which bounds the memory and keeps all negatives",
    "batch_eval_metrics": "Pass evaluators, which compute the metrics",
    "bf16_full_eval": "Evaluators embed with the weights as they are",
    "dataloader_in_order": "Batches always come in their order",
    "dataloader_persistent_workers": "Workers start with every epoch, which decides what they augment",
    "deepspeed": INSTEAD.removesuffix("."),
    "enable_jit_checkpoint": "SIGTERM and SIGINT save a checkpoint without it",
    "eval_accumulation_steps": "Evaluators keep no outputs on the device",
    "fp16_full_eval": "Evaluators embed with the weights as they are",
    "full_determinism": "Training on one CPU process is deterministic without it",
    "hub_always_push": "A checkpoint is pushed unless the one before is still under way",
    "ignore_data_skip": "A resumed run always continues with the next batch",
    "include_for_metrics": "Pass evaluators, which compute the metrics",
    "label_names": "Rows have no labels",
    "parallelism_config": INSTEAD.removesuffix("."),
    "neftune_noise_alpha": "It changes token embeddings of language models",
    "prediction_loss_only": "Pass evaluators, which decide what is computed",
    "save_only_model": "Every checkpoint can be resumed",
    "use_cache": "CLIP has no cache of keys and values",
    "use_liger_kernel": "It has no kernels for CLIP",
}


@dataclass
class GeoAlignTrainingArguments(TrainingArguments):
    """Arguments of `GeoAlignTrainer`: those of `transformers.TrainingArguments`, and a few more.

    Several defaults differ: cosine schedule with warm-up, a checkpoint and an evaluation after every epoch,
    and two checkpoints that are kept.

    Args:
        mini_batch_size: number of rows that are encoded at once. The gradient is that of the whole batch
            (GradCache).
        gradient_accumulation_steps: number of batches whose gradients are averaged before a step. Only rows
            of the same batch are negatives of each other, so this is another objective than one large batch.
            Prefer a larger `per_device_train_batch_size` with `mini_batch_size`, which is exact.
        layer_decay: factor on the learning rate of each block of a tower, per block above it, and of the
            embeddings below the blocks. Projections, scales and everything after the last block have the
            learning rate itself. 1 gives every weight the same rate.
        max_regions: largest number of regions per row and step; they are drawn anew in every epoch.
        max_negatives: largest number of hard negatives per region and step.
        max_crops: largest number of regions per row and step that are also seen as a crop.
        max_vocabulary: largest number of concepts in the rows up to which a region is contrasted with all of
            them. With more concepts it is contrasted with those of the batch; 0 always does so.
        teacher: model that gives the targets of the crops: the model itself (`self`), the moving average of
            its weights (`ema`), or the model before training (`frozen`).
        teacher_decay: decay of the teacher `ema` per step.
        ema_decay: decay of the moving average of the trained weights, which is evaluated and saved. 0
            evaluates and saves the trained weights themselves.
        overwrite_output_dir: removal of the results of an earlier run from `output_dir`.
        resume_from_checkpoint: checkpoint folder to resume from; `last` takes the newest in `output_dir`.

    Raises:
        TypeError: if a number is expected and something else is given.
        ValueError: if a number is out of its range or not finite, or a choice is unknown. Arguments of
            Trainer that have no effect here are also refused.
    """

    _argument_group_name = "training"

    output_dir: str = option(default="outputs/train", help="Folder for checkpoints and the trained model.")
    num_train_epochs: float = option(default=10.0, help="Number of passes over the rows.")
    per_device_train_batch_size: int = option(
        default=32, help="Number of rows per process and step; all of them are negatives of each other."
    )
    mini_batch_size: int | None = option(
        default=None,
        help="Number of rows that are encoded at once, for batches that exceed the memory. By default, the "
        "whole batch.",
    )
    gradient_accumulation_steps: int = option(
        default=1,
        help="Number of batches per step whose gradients are averaged. Rows of different batches are not "
        "negatives of each other. --mini_batch_size saves as much memory and keeps all negatives.",
    )
    learning_rate: float = option(
        default=5e-4, help="Peak learning rate. 5e-4 suits fresh weights, and 1e-5 a trained CLIP."
    )
    layer_decay: float = option(
        default=1.0,
        help="Factor on the learning rate of a tower's block for each block above it. Below 1, lower blocks "
        "change less.",
    )
    lr_scheduler_type: str = option(default="cosine", help="Name of the learning rate schedule.")
    warmup_steps: float = option(
        default=0.05, help="Number of warm-up steps. A number below 1 is a fraction of all steps."
    )
    weight_decay: float = option(
        default=0.05, help="Weight decay of matrices. Vectors and scales do not decay."
    )
    adam_beta2: float = option(default=0.98, help="Decay of AdamW's second moment.")
    ema_decay: float = option(
        default=0.0,
        help="Decay of the moving average of the weights, which is evaluated and saved. 0 turns it off.",
    )
    max_regions: int | None = option(
        default=None, help="Largest number of regions per row and step. By default, all regions."
    )
    max_negatives: int = option(default=10, help="Largest number of hard negatives per region and step.")
    max_crops: int = option(
        default=2, help="Largest number of regions per row and step that are also seen as a crop."
    )
    max_vocabulary: int = option(
        default=200,
        help="Largest number of concepts for which a region is contrasted with all concepts of the rows. If "
        "there are more, it is contrasted with those of its batch.",
    )
    teacher: str = option(
        default="self",
        help="Model that embeds crops as targets: the trained model (self), its moving average (ema), or the "
        "model before training (frozen).",
    )
    teacher_decay: float = option(default=0.999, help="Decay of the moving average of --teacher ema.")
    logging_steps: float = option(default=10, help="Number of steps between log entries.")
    logging_first_step: bool = option(default=True, help="Log entry after the first step.")
    eval_strategy: str = option(default="epoch", help="Time of evaluations: no, steps or epoch.")
    eval_on_start: bool = option(default=True, help="Evaluation before the first step.")
    save_strategy: str = option(default="epoch", help="Time of checkpoints: no, steps, epoch or best.")
    save_total_limit: int | None = option(default=2, help="Number of the newest checkpoints that are kept.")
    dataloader_drop_last: bool = option(
        default=True, help="Removal of the last batch of an epoch if it is smaller."
    )
    seed: int = option(default=0, help="Seed of all random choices.")
    overwrite_output_dir: bool = option(
        default=False, help="Removal of the results of an earlier run from --output_dir."
    )
    resume_from_checkpoint: str | None = option(
        default=None,
        help="Folder of the checkpoint to resume from, or last for the newest one in --output_dir.",
    )

    # Other defaults that the help does not show.
    logging_nan_inf_filter: bool = False  # a loss that is not finite is an error
    restore_callback_states_from_checkpoint: bool = True
    ddp_find_unused_parameters: bool | None = False  # every parameter has a gradient in every step

    def __post_init__(self):
        self._check_numbers()
        check_backend_variables()
        if self.teacher not in TEACHERS:
            raise ValueError(f"teacher is {self.teacher!r}; it must be one of {TEACHERS}.")
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        for name, advice in UNSUPPORTED.items():
            if getattr(self, name) not in (defaults.get(name), None, []):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which GeoAlignTrainer does not support. {advice}."
                )
        if self.hub_strategy not in ("end", "every_save"):
            raise ValueError(
                f"hub_strategy is {self.hub_strategy!r}; it must be 'every_save' or 'end', since the state "
                "of a run stays on its disk."
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}; GeoAlignTrainer draws rows at "
                "random. Leave it at 'random'."
            )
        if self.activation_checkpointing or self.gradient_checkpointing:  # reentrant: frozen towers break
            self.activation_checkpointing_kwargs = {"use_reentrant": False} | dict(
                self.activation_checkpointing_kwargs or {}
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else several processes would not find each other, and bf16 were refused
        # Trainer would set "loss" and a direction by the name. `choose_metric` asks the evaluators instead.
        chosen = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()
        self.metric_for_best_model, self.greater_is_better = chosen

    def _check_numbers(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), {field.type, *get_args(field.type)} & {int, float}
            if value is None or not kinds or field.name in UNSUPPORTED:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{field.name} is {value!r}; it must be a number.")
            if not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}; it must be a finite number.")
            if int in kinds and not isinstance(value, int):
                raise ValueError(f"{field.name} is {value}; it must be a whole number.")
            low, includes_low = LOWEST.get(field.name, (-math.inf, True))
            if value < low or (value == low and not includes_low):
                bound = "at least" if includes_low else "above"
                raise ValueError(f"{field.name} is {value}; it must be {bound} {low}.")
            if field.name in BELOW_ONE and value >= 1:
                raise ValueError(f"{field.name} is {value}; it must be below 1.")
        if self.max_steps == 0:
            raise ValueError("max_steps is 0; it must be at least 1, or -1 to train num_train_epochs epochs.")

    def set_without_evaluation(self) -> None:
        """Switch off the evaluations that are on by default."""
        self.eval_strategy, self.eval_on_start, self.do_eval = IntervalStrategy.NO, False, False

    def describe(self) -> dict:
        """Return the arguments that define a run: those of this class, and others that were changed.

        Paths, trackers and settings of the Hub are removed, so that the result can be published.
        """
        private = {"output_dir", "resume_from_checkpoint", "overwrite_output_dir", "report_to", "run_name"}
        private |= {"use_cpu", "dataloader_pin_memory", "dataloader_num_workers", "accelerator_config"}
        private |= {"debug", "do_eval", "eval_on_start", "ddp_find_unused_parameters"}
        own = GeoAlignTrainingArguments.__annotations__
        values = self.to_dict()
        return {
            field.name: values[field.name]
            for field in fields(self)
            if not field.name.startswith(("hub_", "push_", "logging_", "disable_", "local_", "restore_"))
            and field.name not in private
            and (field.name in own or values[field.name] != _get_default(field))
        }


def _get_default(field):
    default = field.default_factory() if field.default is MISSING else field.default
    return getattr(default, "value", default)
