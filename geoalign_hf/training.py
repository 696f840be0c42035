"""The Accelerate loop: step, log, evaluate, save, resume. One way to train, on one process or many.

What enters are a model, its processor and rows; what leaves is a folder: `final/` and `best/`, models that
load by `from_pretrained` and can be pushed as they are; checkpoints that a run goes on from; what happened:
`args.json`, `history.jsonl`, `metrics.json`, `curves.png`.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.data import DataLoader
from transformers.utils import logging

from .checkpoints import (
    find_newest_checkpoint,
    no_progress_bars,
    remove_partial_folders,
    save_checkpoint,
    save_model,
    write_whole,
)
from .collator import RowCollator
from .distributed import gather
from .history import History, draw_curves, read_records
from .losses import LossWeights
from .model.processing_geoalign_clip import CONCEPT_TEMPLATES
from .rows import check_columns
from .sampling import EpochSampler, TrainingRows
from .steps import TEACHERS, Teacher, compute_gradients

logger = logging.get_logger(__name__)

EMBEDDING_METHODS = ("embed_images", "embed_regions", "embed_text", "embed_concepts", "get_patch_features")


def _option(default, what: str):
    return field(default=default, metadata={"help": what})


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Every field says in its help what it is.

    Raises:
        ValueError: if `teacher` is unknown, or `chunk_size` or `max_crops` is below 0.
    """

    output_dir: str = _option("outputs/train", "where checkpoints and the final model go")
    num_epochs: int = _option(10, "passes over the rows")
    batch_size: int = _option(32, "rows per process and step; all of them are negatives of each other")
    chunk_size: int = _option(0, "rows encoded at once, for batches beyond the memory; 0: all of the batch")
    learning_rate: float = _option(5e-4, "at its highest")
    weight_decay: float = _option(0.05, "of matrices; vectors and scales have none")
    warmup_share: float = _option(0.05, "of all steps; the learning rate rises, then falls as a cosine")
    max_grad_norm: float = _option(1.0, "gradients are cut to it")
    max_regions: int | None = _option(None, "regions per row and step, drawn anew each time; default: all")
    max_negatives: int = _option(10, "hard negatives per region and step, drawn anew each time")
    max_crops: int = _option(2, "regions per row and step that are also seen in a crop of their own")
    teacher: str = _option("self", "who gives the target of crops: self, ema or frozen")
    teacher_decay: float = _option(0.999, "of the teacher ema, per step")
    mixed_precision: str | None = _option(
        None, "no, bf16 or fp16, default: as accelerate config says; weights and losses stay float32"
    )
    gradient_checkpointing: bool = _option(False, "compute activations twice instead of keeping them")
    num_workers: int = _option(0, "processes that prepare rows")
    save_every: int = _option(0, "steps between checkpoints; 0: none")
    keep_checkpoints: int = _option(2, "how many of the newest to keep")
    eval_every: int = _option(0, "steps between evaluations; 0: only at the end")
    best_metric: str = _option("top1_macro", "number of the evaluation whose best model is kept")
    resume: bool = _option(False, "go on from the newest whole checkpoint")
    report_to: str | None = _option(None, "a tracker of Accelerate's, such as tensorboard")
    seed: int = _option(0, "of everything random")

    def __post_init__(self):
        if self.teacher not in TEACHERS:
            raise ValueError(f"teacher is {self.teacher!r}; it must be one of {TEACHERS}.")
        for name in ("chunk_size", "max_crops", "max_negatives"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")


class Progress:
    """Where the run stands, and how good it has been; saved and restored with each checkpoint."""

    def __init__(self):
        self.step = 0
        self.scores = {}  # of the model at the start, at the end, and at its best

    def state_dict(self) -> dict:
        """Give what a checkpoint keeps."""
        return {"step": self.step, "scores": self.scores}

    def load_state_dict(self, state: dict):
        """Take up what a checkpoint kept."""
        self.step, self.scores = state["step"], state["scores"]


def train(
    model,
    processor,
    rows,
    weights: LossWeights | None = None,
    config: TrainingConfig | None = None,
    augment: Callable | None = None,
    templates: tuple[str, ...] = CONCEPT_TEMPLATES,
    evaluate: Callable[[torch.nn.Module], dict] | None = None,
) -> Path:
    """Train a model on rows.

    Args:
        model: a `GeoAlignCLIPModel`, changed in place.
        processor: of that model; saved beside every checkpoint.
        rows: a dataset of rows, the same on every process.
        weights: of the loss terms.
        config: how to train.
        augment: changes a row, given a generator; see `Augmentation`.
        templates: sentences that word a concept.
        evaluate: gives the scores of a model, as `classify_regions` does, before the first step, after
            the last and every `eval_every` steps; its numbers are logged, and the model with the highest
            `best_metric` is kept in `best/`. Every process calls it.

    Returns:
        The folder of the trained model.

    Raises:
        ValueError: if the rows lack columns or are fewer than one batch, the loss is not finite, or the
            scores have no `best_metric`.
        RuntimeError: if fewer processes came up than were launched, or the output cannot be written.
    """
    weights, config = weights or LossWeights(), config or TrainingConfig()
    check_columns(rows)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.report_to, project_dir=config.output_dir
    )
    check_processes(accelerator.num_processes)
    output_dir = Path(config.output_dir)
    if accelerator.is_main_process:
        prepare_output(output_dir)

    # 1. Data: the order and the augmentation follow from seed, epoch and index alone.
    largest = max(map(len, rows["boxes"]))
    max_regions = max(1, min(config.max_regions or largest, largest))
    max_crops = config.max_crops if weights.reads_crops else None
    training_rows = TrainingRows(rows, augment, max_regions, config.seed, config.max_negatives, max_crops)
    sampler = EpochSampler(len(rows), config.seed)
    loader = DataLoader(
        training_rows,
        batch_size=config.batch_size,
        sampler=sampler,
        collate_fn=RowCollator(processor, max_regions, templates, weights.text_kinds),
        num_workers=config.num_workers,
        generator=torch.Generator().manual_seed(config.seed),
        drop_last=True,
    )
    global_batch = config.batch_size * accelerator.num_processes
    steps_per_epoch = len(rows) // global_batch
    if steps_per_epoch == 0:
        raise ValueError(
            f"there are {len(rows)} rows, fewer than one batch of {global_batch} "
            f"({config.batch_size} on each of {accelerator.num_processes} processes). Lower batch_size."
        )
    num_steps = steps_per_epoch * config.num_epochs

    # 2. Model and optimiser.
    prepare_model(model, config, accelerator)
    teacher = Teacher(config.teacher if weights.crop_consistency else "self", model, config.teacher_decay)
    optimizer = torch.optim.AdamW(
        group_parameters(model, config.weight_decay), config.learning_rate, betas=(0.9, 0.98)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, num_steps, config)
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if isinstance(model, FSDPModule):  # so that these, too, collect the sharded weights
        for name in EMBEDDING_METHODS:
            register_fsdp_forward_method(model, name)
    teacher.move_to(accelerator.device)
    progress = Progress()
    accelerator.register_for_checkpointing(progress, scheduler, teacher)
    if config.resume and (newest := find_newest_checkpoint(output_dir)):
        accelerator.load_state(newest / "state")
        logger.warning(f"resuming from {newest}")
    arguments = {
        "training": asdict(config),
        "loss_weights": asdict(weights),
        "templates": list(templates),
        "augment": asdict(augment) if hasattr(augment, "__dataclass_fields__") else repr(augment),
        "num_rows": len(rows),
        "num_steps": num_steps,
        "num_processes": accelerator.num_processes,
    }
    if accelerator.is_main_process:
        (output_dir / "args.json").write_text(json.dumps(arguments, indent=2))
    history = History(output_dir / "history.jsonl", progress.step, accelerator.is_main_process)
    if config.report_to:
        flat = {**asdict(weights), **asdict(config)}
        accelerator.init_trackers(
            "geoalign_clip", {name: flat[name] for name in flat if flat[name] is not None}
        )

    def record(numbers: dict[str, float]):
        history.add(progress.step, numbers)
        if config.report_to:
            accelerator.log(numbers, step=progress.step)

    # 3. Steps.
    if evaluate and "start" not in progress.scores:
        record(evaluate_step(accelerator, model, processor, evaluate, config, progress, "start"))
    model.train()
    num_chunks = -(-config.batch_size // config.chunk_size) if config.chunk_size else 1
    bar = logging.tqdm(
        total=num_steps * global_batch,
        initial=progress.step * global_batch,
        desc="training",
        unit=" images",
        disable=not accelerator.is_main_process,
    )
    start = time.perf_counter()
    for epoch in range(progress.step // steps_per_epoch, config.num_epochs):
        training_rows.epoch = sampler.epoch = epoch
        num_done = progress.step - epoch * steps_per_epoch
        for batch in accelerator.skip_first_batches(loader, num_done) if num_done else loader:
            terms = compute_gradients(accelerator, model, batch, weights, teacher, num_chunks)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            numbers = read_numbers(terms | {"grad_norm": norm})
            check_finite(numbers, batch, accelerator)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            teacher.follow(accelerator.unwrap_model(model))
            progress.step += 1
            bar.update(global_batch)
            bar.set_postfix({name: f"{numbers[name]:.3f}" for name in terms}, refresh=False)
            numbers |= {"learning_rate": scheduler.get_last_lr()[0]}
            numbers |= {"images_per_second": global_batch / (time.perf_counter() - start)}
            record(numbers)
            if (
                evaluate
                and config.eval_every
                and progress.step % config.eval_every == 0 < num_steps - progress.step
            ):
                record(evaluate_step(accelerator, model, processor, evaluate, config, progress))
            if config.save_every and progress.step % config.save_every == 0 and progress.step < num_steps:
                save_checkpoint(
                    accelerator, model, processor, output_dir, progress.step, config.keep_checkpoints
                )
            start = time.perf_counter()
    bar.close()

    # 4. The trained model, and what is to be said of it.
    if evaluate:
        record(evaluate_step(accelerator, model, processor, evaluate, config, progress))
        if accelerator.is_main_process:
            (output_dir / "metrics.json").write_text(json.dumps(progress.scores, indent=2))
    with write_whole(accelerator, output_dir / "final") as folder:
        save_model(accelerator, model, processor, folder)
    if accelerator.is_main_process:
        draw_curves(read_records(history.path), output_dir / "curves.png")
    accelerator.end_training()
    return output_dir / "final"


def evaluate_step(accelerator, model, processor, evaluate, config, progress, name: str = "final") -> dict:
    """Evaluate the model of this step, keep it if it is the best so far, and give the numbers to log."""
    with no_progress_bars():
        scores = evaluate(accelerator.unwrap_model(model)) | {"step": progress.step}
    model.train()
    numbers = {name: score for name, score in scores.items() if isinstance(score, float)}
    if config.best_metric not in numbers:
        raise ValueError(
            f"best_metric is {config.best_metric!r}, but the evaluation gives {sorted(numbers)}."
        )
    progress.scores[name] = scores
    best = progress.scores.get("best")
    if best is None or scores[config.best_metric] > best[config.best_metric]:
        progress.scores["best"] = scores
        with write_whole(accelerator, Path(config.output_dir) / "best") as folder:
            save_model(accelerator, model, processor, folder)
    return {f"eval_{name}": number for name, number in numbers.items()}


def read_numbers(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Bring scalars from the device to numbers, all at once."""
    values = [
        tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for tensor in tensors.values()
    ]
    return dict(zip(tensors, torch.stack([value.detach().float() for value in values]).tolist(), strict=True))


def check_finite(numbers: dict[str, float], batch: dict, accelerator: Accelerator) -> None:
    """Stop a run before a step that would spoil its weights.

    Raises:
        ValueError: if the loss is not finite, or the gradient where no scaler looks after it.
    """
    checked = dict(numbers)
    if accelerator.scaler is not None:  # fp16: it leaves out a step whose gradient overflows
        del checked["grad_norm"]
    if not all(map(math.isfinite, checked.values())):
        row_ids = sorted(gather(batch["row_ids"]).tolist())
        raise ValueError(
            f"the loss is not finite: {checked}, in the batch of the rows {row_ids}. Look at those rows, "
            "lower learning_rate, or train with mixed_precision bf16. The last checkpoint is as it was."
        )


def check_processes(num_processes: int) -> None:
    """Refuse to train alone where several processes were launched.

    Raises:
        RuntimeError: if Accelerate came up with another number of processes than were asked for.
    """
    launched = os.environ.get("WORLD_SIZE")
    if launched is not None and int(launched) != num_processes:
        raise RuntimeError(
            f"WORLD_SIZE is {launched} but Accelerate started {num_processes} process, so each would train "
            "alone on a part of the negatives. On CPUs start with: "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} examples/train.py ..."
        )
    # What `accelerate launch --cpu --num_processes N` leaves behind for N > 1, before it starts one process.
    if launched is None and num_processes == 1 and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys():
        raise RuntimeError(
            "accelerate launch was asked for several processes on CPUs and started one. Start them with: "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N examples/train.py ..."
        )


def prepare_output(output_dir: Path) -> None:
    """Make the folder, see that it can be written, and clear away what killed runs left unfinished.

    Raises:
        RuntimeError: if it cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "args.json").touch()
        remove_partial_folders(output_dir)
    except OSError as error:
        raise RuntimeError(
            f"output_dir {output_dir} cannot be written ({error}). Give a folder that can."
        ) from error


def prepare_model(model: torch.nn.Module, config: TrainingConfig, accelerator: Accelerator) -> None:
    """Give the model float32 weights to train, and the forms that its wrappers ask for."""
    for parameter in model.parameters():
        if parameter.requires_grad:  # a checkpoint may have come in half precision
            parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        # its name before transformers 5.23
        old = getattr(model, "gradient_checkpointing_enable", None)
        getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    if accelerator.distributed_type == DistributedType.FSDP:
        prepare_for_fsdp(model)


def prepare_for_fsdp(model: torch.nn.Module) -> None:
    """Give CLIP's scale an axis, since FSDP shards no scalars; it is saved without."""
    model.logit_scale = torch.nn.Parameter(model.logit_scale.detach().reshape(1))


def group_parameters(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Split parameters into matrices, which decay, and vectors and scales, which do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in parameters if parameter.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, num_steps: int, config: TrainingConfig) -> float:
    """Give the factor on the learning rate: a line up, then half a cosine down to 0."""
    num_warmup = max(1, round(config.warmup_share * num_steps))
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))
