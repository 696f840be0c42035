"""`GeoAlignTrainer`: transformers' Trainer with our objective and evaluators."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..data.augmentation import Augmentation
from ..data.training_dataset import EpochSampler, TrainingDataset
from ..embedding.checkpoints import check_text_length, check_tokens
from ..embedding.embedder import Embedder
from ..evaluation.evaluator import Evaluator
from ..hub.cards import list_numbers
from ..losses.distributed import gather
from ..losses.objective import LossWeights
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES
from ..storage import no_progress_bars
from .arguments import GeoAlignTrainingArguments
from .checkpoints import write_folder
from .identity import checksum_rows, describe_model
from .inputs import check_rows, choose_metric, count_cut_texts, drop_terms_without_data, prepare_data
from .launch import check_batch, check_processes, prepare_model
from .layer_rates import decay_rates
from .resumable import ResumableTrainer
from .scores import check_scores
from .step import compute_gradients
from .teacher import Teacher

logger = logging.get_logger(__name__)
# Settings that decide the weights and which of them are the best: a resumed run must have the same ones.
DECISIVE = (
    "learning_rate", "layer_decay", "lr_scheduler_type", "warmup_steps", "gradient_accumulation_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "max_grad_norm", "seed",
    "data_seed", "ema_decay", "teacher", "teacher_decay", "max_regions", "max_negatives", "max_crops",
    "label_smoothing_factor", "max_vocabulary", "lr_scheduler_kwargs", "optim_args", "bf16", "fp16",
    "dataloader_drop_last", "metric_for_best_model", "greater_is_better",
)  # fmt: skip


class GeoAlignTrainer(ResumableTrainer):
    """Train a GeoAlignCLIP on rows.

    Everything that `transformers.Trainer` does (callbacks, trackers, schedules, several processes) works as
    there. There are three differences. The loss is our objective. Evaluators take the place of an evaluation
    data set. Checkpoints are complete or absent, resume bit for bit on one CPU process, and hold no pickles.

    Args:
        model: a `GeoAlignCLIPModel`, or a `PeftModel` around one. It is changed in place.
        args: training arguments.
        train_dataset: dataset of rows, the same on every process.
        processing_class: processor of the model. It is saved with every checkpoint.
        loss_weights: weights of the terms of the objective.
        evaluators: objects that score an `Embedder`, such as `RegionClassificationEvaluator`. Each number is
            logged as `eval_<name>_<score>`. The best model by `metric_for_best_model` is kept in `best/`; by
            default that is the primary metric of the first evaluator.
        augmentation: changes of the rows. None trains on the rows as they are.
        templates: sentences with one `{}` for a concept.
        card_settings: further settings that `args.json` and the model cards show, see `write_card`.
        callbacks: further callbacks, as for Trainer.
        optimizers: an optimizer and a scheduler, as for Trainer.

    Raises:
        ValueError: if the rows lack columns or are fewer than one batch, or an argument does not fit.
        RuntimeError: if fewer processes started than were launched.

    Example:
        `GeoAlignTrainer(model, args, train_dataset=rows, processing_class=processor).train()`
    """

    train_dataset: TrainingDataset

    def __init__(
        self,
        model: torch.nn.Module,
        args: GeoAlignTrainingArguments | None = None,
        *,
        train_dataset,
        processing_class,
        loss_weights: LossWeights | None = None,
        evaluators: Sequence[Evaluator] = (),
        augmentation: Augmentation | None = None,
        templates: Sequence[str] = CONCEPT_TEMPLATES,
        card_settings: dict | None = None,
        callbacks: list | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        args = GeoAlignTrainingArguments() if args is None else args
        if not isinstance(args, GeoAlignTrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}; expected GeoAlignTrainingArguments.")
        check_rows(train_dataset)
        asked = loss_weights or LossWeights()
        self.loss_weights, dropped = drop_terms_without_data(train_dataset, asked)
        self.evaluators = list(evaluators)
        choose_metric(args, self.evaluators)
        if args.teacher != "self" and not asked.crop_consistency:
            raise ValueError(
                f"teacher is {args.teacher!r}, but the loss weight crop_consistency, the only term with a "
                "teacher, is 0. Raise it, or leave teacher at 'self'."
            )
        if args.n_gpu > 1:
            logger.warning("Using one GPU. Start with `accelerate launch` or `torchrun` to use them all.")
            args._n_gpu = 1
        check_processes(args.world_size)
        check_tokens(processing_class.tokenizer, model)
        check_text_length(processing_class.tokenizer, model)
        cut = count_cut_texts(train_dataset, processing_class.tokenizer, self.loss_weights, templates)
        if args.process_index == 0:
            for term, column in dropped.items():
                logger.warning(f"The rows have nothing in {column!r}, so the term {term!r} is skipped.")
            for column, number in cut.items():
                logger.warning(
                    f"{number} texts in {column!r} are longer than the text tower "
                    f"({processing_class.tokenizer.model_max_length} tokens); their ends are cut. "
                    "Shorten them, or convert the model with --text_length 248."
                )
        dataset, collator = prepare_data(
            train_dataset, processing_class, args, self.loss_weights, augmentation, templates
        )
        self.settings = dict(card_settings or {}) | {
            "training": args.describe(),
            "loss_weights": asdict(self.loss_weights),
            "templates": list(templates),
            "augmentation": None if augmentation is None else asdict(augmentation),
            "num_rows": len(train_dataset),
            "num_cut_texts": cut,
            "num_processes": args.world_size,
        }
        self._rows_checksum = checksum_rows(train_dataset)
        self._row_ids: list[torch.Tensor] = []  # of the micro-batches since the last step
        self._forget_terms()
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=dataset,
            eval_dataset=self.evaluators or None,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    # Data and steps

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of training batches, whose order follows from the seed and the epoch alone."""
        if self.args.dataloader_drop_last:
            check_batch(len(self.train_dataset), self._train_batch_size, self.args.world_size)
        self._sampler = EpochSampler(len(self.train_dataset), self._seed)
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            sampler=self._sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            drop_last=self.args.dataloader_drop_last,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=torch.Generator().manual_seed(self._seed),
        )
        return self.accelerator.prepare(loader)

    @property
    def _seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _run_epoch(self, **kwargs):
        """Set the epoch of the sampler and of the views. Trainer does not do so for resumed loaders."""
        self._sampler.epoch = self.train_dataset.epoch = kwargs["epoch"]
        return super()._run_epoch(**kwargs)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """Also build the teacher, before the model gets its wrapper."""
        prepare_model(self.model, self.accelerator)
        self._model_description = describe_model(self.model)
        kind = self.args.teacher if self.loss_weights.crop_consistency else "self"
        self.teacher = Teacher(kind, self.model, self.args.teacher_decay)
        self.teacher.move_to(self.accelerator.device)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Name the matrices. Vectors and scales do not decay."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with a learning rate of its own for each block if `layer_decay` is set."""
        if self.args.layer_decay == 1:
            return super().create_optimizer(model)
        if self.optimizer is not None:
            raise ValueError(
                f"layer_decay is {self.args.layer_decay}, but an optimizer was passed. Set the learning "
                "rates of its groups, or pass none."
            )
        optimizer = super().create_optimizer(model)
        decay_rates(optimizer, self.model if model is None else model, self.args.layer_decay)
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Compute the gradients of one batch.

        Raises:
            ValueError: if a term of the loss is not finite. The weights are as they were.
        """
        model.train()
        batch = self._prepare_inputs(inputs)
        # `Accelerator.backward` divides by it, so that the gradient is the mean over the micro-batches.
        num_batches = self.accelerator.gradient_accumulation_steps = self.current_gradient_accumulation_steps
        terms = compute_gradients(
            self.accelerator,
            model,
            batch,
            self.loss_weights,
            self.teacher,
            self.args.mini_batch_size,
            self.args.label_smoothing_factor,
        )
        values = torch.stack([term.detach() for term in terms.values()])
        self._check_finite(dict(zip(terms, values.tolist(), strict=True)), batch["row_ids"])
        self._row_ids.append(batch["row_ids"])
        self._term_sums, self._term_names = self._term_sums + values / num_batches, list(terms)
        self._num_steps += 1 / num_batches
        self._num_images += len(batch["row_ids"]) * self.args.world_size
        return terms["loss"].detach() / num_batches

    def _get_grad_norm(self, model, grad_norm=None):
        """Refuse a gradient that is not finite, before the optimizer takes a step."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        scaler = self.accelerator.scaler
        # With fp16 the scaler skips steps whose gradient overflows, and lowers its factor until none does.
        if scaler is None or scaler.get_scale() < 1:
            self._check_finite({"grad_norm": float(grad_norm)}, torch.cat(self._row_ids))
        self._row_ids.clear()
        return grad_norm

    def _check_finite(self, numbers: dict[str, float], row_ids: torch.Tensor) -> None:
        if not all(map(math.isfinite, numbers.values())):
            found = sorted(gather(row_ids).tolist())
            raise ValueError(
                f"the loss is not finite: {numbers}, in the batch of the rows {found}. Look at those rows, "
                "lower learning_rate, or train with bf16. The last checkpoint is as it was."
            )

    def floating_point_ops(self, inputs) -> int:
        """Return 0: Trainer's formula is for language models."""
        return 0

    # Logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log numbers; beside the loss also the mean of each of its terms, and the speed."""
        if "loss" in logs and self._num_steps:
            means = (self._term_sums / self._num_steps).tolist()
            seconds = time.perf_counter() - self._start
            logs = (
                logs
                | dict(zip(self._term_names, means, strict=True))
                | {"images_per_second": self._num_images / seconds}
            )
            self._forget_terms()
        super().log(logs, start_time)

    def _forget_terms(self) -> None:
        self._term_sums, self._term_names, self._num_steps, self._num_images = torch.zeros(()), [], 0, 0
        self._start = time.perf_counter()

    def evaluate(
        self,
        eval_dataset: Sequence[Evaluator] | None = None,
        ignore_keys=None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the model with all evaluators, and log the scores.

        Args:
            eval_dataset: other evaluators; None takes those of the trainer.
            ignore_keys: argument of Trainer, which has no effect here.
            metric_key_prefix: prefix of the names of the numbers.

        Returns:
            The numbers, as `<prefix>_<evaluator>_<score>`.

        Raises:
            ValueError: if a score is not finite, or `metric_for_best_model` is not among them.
        """
        evaluators = self.evaluators if eval_dataset is None else list(eval_dataset)
        start = time.perf_counter()
        embedder = Embedder(
            self._unwrap(), self.processing_class, batch_size=self.args.per_device_eval_batch_size
        )
        metrics, results = {}, {}
        with no_progress_bars(), self._averaged():
            for evaluator in evaluators:
                # All processes use the same scores, or rounding could make them choose different models.
                found = broadcast_object_list([evaluator(embedder)])[0]
                scores = check_scores(evaluator.name, found)
                results[evaluator.name] = scores | {"step": self.state.global_step}
                metrics |= {
                    f"{metric_key_prefix}_{evaluator.name}_{name}": number
                    for name, number in list_numbers(scores).items()
                }
        best = self.args.metric_for_best_model
        if eval_dataset is None and best is not None and f"eval_{best.removeprefix('eval_')}" not in metrics:
            raise ValueError(f"metric_for_best_model is {best!r}, but the evaluators give {sorted(metrics)}.")
        if eval_dataset is None and self.is_in_train:
            self.scores["final"] = results
            self.scores.setdefault("start", results)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._start += time.perf_counter() - start
        return metrics

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict[str, float]:
        """Evaluate, unless a resumed run has done so at its start."""
        if skip_scheduler and self.state.global_step > 0:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _determine_best_metric(self, metrics, trial) -> bool:
        """Keep the best model in `best/`. The result decides whether the save strategy `best` saves."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.scores["best"] = self.scores["final"]
            with write_folder(self.accelerator, Path(self._get_output_dir(trial)) / "best") as folder:
                self._write_model(folder, "best")
        return is_best or self._flow.is_stopping

    def describe_run(self) -> dict:
        """Return what must be equal when the run is resumed: the order of the data, and decisive settings."""
        training = {name: self.settings["training"].get(name) for name in DECISIVE}
        return (
            training
            | self._model_description
            | {
                "max_steps": self.state.max_steps,
                "per_device_train_batch_size": self._train_batch_size,
                "num_processes": self.args.world_size,
                "num_rows": len(self.train_dataset),
                "rows": self._rows_checksum,
                "loss_weights": self.settings["loss_weights"],
                "templates": self.settings["templates"],
                "augmentation": self.settings["augmentation"],
            }
        )
