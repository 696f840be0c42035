"""The Accelerate loop: step, log, evaluate, save, resume. One way to train, on one process or many.

What enters are a model, its processor and rows; what leaves is a folder: `final/` and `best/`, models that
load by `from_pretrained` and can be pushed as they are; checkpoints that a run goes on from; what happened:
`args.json`, `history.jsonl`, `metrics.json`, `curves.png`.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..data.collator import RowCollator
from ..data.schema import check_columns
from ..data.training_dataset import EpochSampler, TrainingDataset
from ..hub.cards import has_protocol, write_card
from ..losses.distributed import gather
from ..losses.objective import LossWeights
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES
from ..storage import no_progress_bars, write_json
from .arguments import TrainingConfig
from .checkpoints import find_newest_checkpoint, save_checkpoint, save_model, write_whole
from .history import History, draw_curves, read_records
from .launch import check_processes, group_parameters, prepare_model, prepare_output, warmup_cosine
from .step import compute_gradients
from .teacher import Teacher

logger = logging.get_logger(__name__)
EMBEDDING_METHODS = ("embed_images", "embed_regions", "embed_text", "embed_concepts", "get_patch_features")


class Progress:
    """Where the run stands, and how good it has been; saved and restored with each checkpoint."""

    def __init__(self, shape: dict[str, int]):
        self.shape = shape  # what may not change when a run goes on
        self.step = 0
        self.scores = {}  # of the model at the start, at the end, and at its best

    def state_dict(self) -> dict:
        """Give what a checkpoint keeps."""
        return {"step": self.step, "scores": self.scores, "shape": self.shape}

    def load_state_dict(self, state: dict):
        """Take up what a checkpoint kept.

        Raises:
            ValueError: if it is of a run of another shape.
        """
        if state["shape"] != self.shape:
            raise ValueError(
                f"the checkpoint is of a run with {state['shape']}, but this one has {self.shape}, so its "
                "data would come in another order. Resume with the same settings, or start from its weights."
            )
        self.step, self.scores = state["step"], state["scores"]

    def list_results(self, *names: str) -> dict[str, dict]:
        """Give those scores that a card can show: their protocol names their task."""
        return {name: self.scores[name] for name in names if has_protocol(self.scores.get(name))}


def train(
    model,
    processor,
    rows,
    weights: LossWeights | None = None,
    config: TrainingConfig | None = None,
    augment: Callable | None = None,
    templates: tuple[str, ...] = CONCEPT_TEMPLATES,
    evaluate: Callable[[torch.nn.Module], dict] | None = None,
    publish: Callable[[Path], None] | None = None,
    about: dict | None = None,
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
        evaluate: gives the scores of a model, as an `Evaluator` does, before the first step, after
            the last and every `eval_every` steps; its numbers are logged, and the model with the highest
            `best_metric` is kept in `best/`. Every process calls it.
        publish: is given the folder of each checkpoint, on the main process; see `BackgroundPush`.
        about: what else `args.json` and the cards are to say; see `write_card`.

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
        prepare_output(output_dir, config.resume)

    # 1. Data: the order and the augmentation follow from seed, epoch and index alone.
    largest = max(map(len, rows["boxes"]))
    max_regions = max(1, min(config.max_regions or largest, largest))
    max_crops = config.max_crops if weights.reads_crops else None
    training_rows = TrainingDataset(
        rows,
        augment,
        max_regions,
        config.seed,
        config.max_negatives,
        max_crops,
        processor.image_processor.size["height"],
    )
    sampler = EpochSampler(len(training_rows), config.seed)
    loader = DataLoader(
        training_rows,
        batch_size=config.batch_size,
        sampler=sampler,
        collate_fn=RowCollator(processor, max_regions, templates, weights.text_kinds),
        num_workers=config.num_workers,
        generator=torch.Generator().manual_seed(config.seed),
        drop_last=True,
        pin_memory=accelerator.device.type == "cuda",
    )
    global_batch = config.batch_size * accelerator.num_processes
    steps_per_epoch = len(training_rows) // global_batch
    if steps_per_epoch == 0:
        raise ValueError(
            f"there are {len(training_rows)} rows, fewer than one batch of {global_batch} "
            f"({config.batch_size} on each of {accelerator.num_processes} processes). Lower batch_size."
        )
    num_steps = steps_per_epoch * config.num_epochs

    # 2. Model and optimiser.
    prepare_model(model, config.gradient_checkpointing, accelerator)
    teacher = Teacher(config.teacher if weights.crop_consistency else "self", model, config.teacher_decay)
    optimizer = torch.optim.AdamW(
        group_parameters(model, config.weight_decay), config.learning_rate, betas=(0.9, 0.98)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, num_steps, config.warmup_share)
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if isinstance(model, FSDPModule):  # so that these, too, collect the sharded weights
        for name in EMBEDDING_METHODS:
            register_fsdp_forward_method(model, name)
    teacher.move_to(accelerator.device)
    shape = {"num_steps": num_steps, "batch": global_batch, "num_processes": accelerator.num_processes}
    progress = Progress(shape)
    accelerator.register_for_checkpointing(progress, scheduler, teacher)
    newest = broadcast_from_main(find_newest_checkpoint(output_dir) if config.resume else None)
    if newest:
        accelerator.load_state(newest / "state")
        if accelerator.is_main_process:
            logger.warning(f"resuming from {newest}")
    settings = (about or {}) | {
        "training": asdict(config),
        "loss_weights": asdict(weights),
        "templates": list(templates),
        "augment": asdict(augment) if hasattr(augment, "__dataclass_fields__") else repr(augment),
        "num_rows": len(rows),
        "num_steps": num_steps,
        "num_processes": accelerator.num_processes,
    }
    if accelerator.is_main_process:
        write_json(output_dir / "args.json", settings)
    resumed_step = progress.step if newest else None
    history = History(output_dir / "history.jsonl", resumed_step, accelerator.is_main_process)
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
        record(evaluate_step(accelerator, model, processor, evaluate, config, progress, settings, "start"))
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
            numbers |= {"learning_rate": scheduler.get_last_lr()[0]}
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            teacher.follow(accelerator.unwrap_model(model))
            progress.step += 1
            bar.update(global_batch)
            bar.set_postfix({name: f"{numbers[name]:.3f}" for name in terms}, refresh=False)
            numbers |= {"images_per_second": global_batch / (time.perf_counter() - start)}
            record(numbers)
            if (
                evaluate
                and config.eval_every
                and progress.step % config.eval_every == 0 < num_steps - progress.step
            ):
                record(evaluate_step(accelerator, model, processor, evaluate, config, progress, settings))
            if config.save_every and progress.step % config.save_every == 0 and progress.step < num_steps:
                keep = config.keep_checkpoints
                folder = save_checkpoint(
                    accelerator, model, processor, output_dir, settings, progress.step, keep
                )
                if publish and accelerator.is_main_process:
                    publish(folder)
            start = time.perf_counter()
    bar.close()

    # 4. The trained model, and what is to be said of it.
    with write_whole(accelerator, output_dir / "final") as folder:
        save_model(accelerator, model, processor, folder, settings)
    if evaluate:
        record(evaluate_step(accelerator, model, processor, evaluate, config, progress, settings))
    if accelerator.is_main_process:
        if evaluate:
            write_json(output_dir / "metrics.json", progress.scores)
        draw_curves(read_records(history.path), output_dir / "curves.png")
        shutil.copy(output_dir / "curves.png", output_dir / "final")
        write_card(output_dir / "final", progress.list_results("start", "final"), settings)
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    return output_dir / "final"


def evaluate_step(
    accelerator, model, processor, evaluate, config, progress, settings, name: str = "final"
) -> dict:
    """Evaluate the model of this step, keep it if it is the best so far, and give the numbers to log."""
    with no_progress_bars():
        # What differs in the last digit between processes must not make them part ways below.
        scores = broadcast_from_main(evaluate(accelerator.unwrap_model(model))) | {"step": progress.step}
    model.train()
    numbers = {name: score for name, score in scores.items() if isinstance(score, float)}
    if lost := [name for name, number in numbers.items() if not math.isfinite(number)]:
        logger.warning(f"the evaluation of step {progress.step} gives no number for {lost}")
        scores |= dict.fromkeys(lost)
        numbers = {name: number for name, number in numbers.items() if name not in lost}
    if config.best_metric not in numbers:
        raise ValueError(
            f"best_metric is {config.best_metric!r}, but the evaluation gives {sorted(numbers)}."
        )
    progress.scores[name] = scores
    best = progress.scores.get("best")
    if best is None or scores[config.best_metric] > best[config.best_metric]:
        progress.scores["best"] = scores
        with write_whole(accelerator, Path(config.output_dir) / "best") as folder:
            save_model(accelerator, model, processor, folder, settings, progress.list_results("best"))
    return {f"eval_{name}": number for name, number in numbers.items()}


def broadcast_from_main(thing):
    """Give the main process's thing to every process."""
    return broadcast_object_list([thing])[0]


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
