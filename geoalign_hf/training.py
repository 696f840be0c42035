"""The Accelerate loop: step, log, evaluate, save, resume. One way to train, on one process or many.

What enters are a model, its processor and rows; what leaves is a folder of checkpoints, each of which
can be loaded by `from_pretrained`, resumed from, and pushed to the Hub as it is.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.utils import logging

from .collator import LOSS_KEYS, RowCollator
from .losses import LossWeights, compute_losses
from .model.processing_geoalign_clip import CONCEPT_TEMPLATES
from .rows import check_columns

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Args:
        output_dir: where checkpoints and the final model go.
        num_epochs: passes over the rows.
        batch_size: rows per process and step.
        learning_rate: at its highest.
        weight_decay: of matrices; vectors and scales have none.
        warmup_share: of all steps, over which the learning rate rises; a cosine to 0 follows.
        max_grad_norm: gradients are cut to it.
        max_regions: regions per row and step; of a row with more as many are drawn anew each time. None: all.
        mixed_precision: no, bf16 or fp16.
        num_workers: processes that prepare rows.
        save_every: steps between checkpoints; 0 saves only the final model.
        keep_checkpoints: how many of the newest to keep.
        resume: go on from the newest checkpoint in `output_dir`, if there is one.
        report_to: a tracker of Accelerate's, such as tensorboard.
        seed: of everything random.
    """

    output_dir: str = "outputs/train"
    num_epochs: int = field(default=10, metadata={"help": "passes over the rows"})
    batch_size: int = field(default=32, metadata={"help": "rows per process and step"})
    learning_rate: float = field(default=5e-4, metadata={"help": "at its highest"})
    weight_decay: float = field(default=0.05, metadata={"help": "of matrices"})
    warmup_share: float = field(default=0.05, metadata={"help": "of all steps"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are cut to it"})
    max_regions: int | None = field(default=None, metadata={"help": "regions per row and step; default: all"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    num_workers: int = field(default=0, metadata={"help": "processes that prepare rows"})
    save_every: int = field(default=0, metadata={"help": "steps between checkpoints; 0: none"})
    keep_checkpoints: int = field(default=2, metadata={"help": "how many of the newest to keep"})
    resume: bool = field(default=False, metadata={"help": "go on from the newest checkpoint"})
    report_to: str | None = field(default=None, metadata={"help": "a tracker, such as tensorboard"})
    seed: int = field(default=0, metadata={"help": "of everything random"})


class TrainingRows(Dataset):
    """Rows as training sees them: augmented, with one of their captions and at most R regions.

    What is random depends on the seed, the epoch and the row's index alone, so a resumed run, whatever its
    number of workers, sees what an unbroken one would have seen.

    Args:
        rows: a dataset of rows.
        augment: changes a row, given a generator; None leaves it.
        max_regions: R.
        seed: of the run.
    """

    def __init__(self, rows, augment: Callable | None, max_regions: int, seed: int):
        self.rows, self.augment, self.max_regions, self.seed = rows, augment, max_regions, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, index)) % 2**63)
        row = dict(self.rows[index])
        if self.augment is not None:
            row = self.augment(row, generator)
        if row.get("captions"):
            row["captions"] = [
                row["captions"][int(torch.randint(len(row["captions"]), (1,), generator=generator))]
            ]
        if len(row["boxes"]) > self.max_regions:
            chosen = (
                torch.randperm(len(row["boxes"]), generator=generator)[: self.max_regions]
                .sort()
                .values.tolist()
            )
            for name in ("boxes", "quads", "phrases", "concepts", "hard_negatives"):
                if row.get(name):
                    row[name] = [row[name][r] for r in chosen]
        return row


class EpochSampler(Sampler):
    """Shuffles by the seed and the epoch alone."""

    def __init__(self, num_rows: int, seed: int):
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self):
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        return iter(torch.randperm(self.num_rows, generator=generator).tolist())


class Progress:
    """Where the run stands; saved and restored with each checkpoint."""

    def __init__(self):
        self.step = 0

    def state_dict(self) -> dict:
        """Give what a checkpoint keeps."""
        return {"step": self.step}

    def load_state_dict(self, state: dict):
        """Take up what a checkpoint kept."""
        self.step = state["step"]


def train(
    model,
    processor,
    rows,
    weights: LossWeights | None = None,
    config: TrainingConfig | None = None,
    augment: Callable | None = None,
    templates: tuple[str, ...] = CONCEPT_TEMPLATES,
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

    Returns:
        The folder of the trained model.

    Raises:
        ValueError: if the rows lack columns or are fewer than one batch, or the loss is not finite.
        RuntimeError: if fewer processes came up than were launched.
    """
    weights, config = weights or LossWeights(), config or TrainingConfig()
    check_columns(rows)
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.report_to, project_dir=config.output_dir
    )
    check_processes(accelerator.num_processes)

    # 1. Data: the order and the augmentation follow from seed, epoch and index alone.
    largest = max(map(len, rows["boxes"]))
    max_regions = max(1, min(config.max_regions or largest, largest))
    training_rows = TrainingRows(rows, augment, max_regions, config.seed)
    sampler = EpochSampler(len(rows), config.seed)
    loader = DataLoader(
        training_rows,
        batch_size=config.batch_size,
        sampler=sampler,
        collate_fn=RowCollator(processor, max_regions, templates),
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
    optimizer = torch.optim.AdamW(
        group_parameters(model, config.weight_decay), config.learning_rate, betas=(0.9, 0.98)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, num_steps, config)
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    progress = Progress()
    accelerator.register_for_checkpointing(progress, scheduler)
    if config.resume and (newest := find_newest_checkpoint(output_dir)):
        accelerator.load_state(newest / "state")
        logger.warning(f"resuming from {newest}")
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        arguments = {
            "training": asdict(config),
            "loss_weights": asdict(weights),
            "templates": list(templates),
        }
        arguments |= {
            "augment": asdict(augment) if hasattr(augment, "__dataclass_fields__") else repr(augment)
        }
        arguments |= {
            "num_rows": len(rows),
            "num_steps": num_steps,
            "num_processes": accelerator.num_processes,
        }
        (output_dir / "args.json").write_text(json.dumps(arguments, indent=2))
    if config.report_to:
        accelerator.init_trackers("geoalign_clip", config={**asdict(weights), **asdict(config)})

    # 3. Steps.
    model.train()
    bar = logging.tqdm(
        total=num_steps, initial=progress.step, desc="training", disable=not accelerator.is_main_process
    )
    for epoch in range(progress.step // steps_per_epoch, config.num_epochs):
        training_rows.epoch = sampler.epoch = epoch
        num_done = progress.step - epoch * steps_per_epoch
        for batch in accelerator.skip_first_batches(loader, num_done) if num_done else loader:
            terms = take_step(accelerator, model, optimizer, scheduler, batch, weights, config)
            progress.step += 1
            bar.update()
            bar.set_postfix({name: f"{term:.3f}" for name, term in terms.items()}, refresh=False)
            if config.report_to:
                accelerator.log({f"train/{name}": term for name, term in terms.items()}, step=progress.step)
            if config.save_every and progress.step % config.save_every == 0 and progress.step < num_steps:
                save_checkpoint(
                    accelerator, model, processor, output_dir, progress.step, config.keep_checkpoints
                )
    bar.close()
    accelerator.end_training()

    # 4. The trained model.
    final = output_dir / "final"
    if accelerator.is_main_process:
        save_folder(accelerator.unwrap_model(model), processor, final)
    accelerator.wait_for_everyone()
    return final


def take_step(accelerator, model, optimizer, scheduler, batch, weights, config) -> dict[str, float]:
    """Do one step of training: forward once, loss over all processes, backward, update."""
    inputs = {key: tensor for key, tensor in batch.items() if key not in LOSS_KEYS}
    with accelerator.autocast():
        output = model(**inputs)
    terms = compute_losses(output, batch, weights)
    if not torch.isfinite(terms["loss"]):
        found = {name: term.item() for name, term in terms.items()}
        raise ValueError(
            f"the loss is not finite: {found}. Lower learning_rate, or train with mixed_precision bf16."
        )
    accelerator.backward(terms["loss"])
    accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return {name: term.item() for name, term in terms.items()}


def check_processes(num_processes: int) -> None:
    """Refuse to train alone where several processes were launched.

    Raises:
        RuntimeError: if Accelerate came up with another number of processes than WORLD_SIZE.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != num_processes:
        raise RuntimeError(
            f"WORLD_SIZE is {launched} but Accelerate started {num_processes} process, so each would train "
            "alone on a part of the negatives. On CPUs start with: "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} examples/train.py ..."
        )


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


def save_folder(model, processor, folder: Path) -> None:
    """Save weights, code and processor together: a folder that can be loaded and published as it is."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_checkpoint(accelerator, model, processor, output_dir: Path, step: int, keep: int) -> None:
    """Write a checkpoint under a temporary name and rename it when it is whole, then drop the oldest."""
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f"partial-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(partial / "state")
    if accelerator.is_main_process:
        save_folder(accelerator.unwrap_model(model), processor, partial)
        partial.rename(final)
        for old in _list_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def find_newest_checkpoint(output_dir: Path) -> Path | None:
    """Find the whole checkpoint with the most steps."""
    return next(reversed(_list_checkpoints(output_dir)), None)


def _list_checkpoints(output_dir: Path) -> list[Path]:
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))
