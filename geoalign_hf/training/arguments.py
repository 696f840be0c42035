"""Training settings."""

from dataclasses import dataclass, field

from .teacher import TEACHERS


def _option(default, what: str):
    return field(default=default, metadata={"help": what})


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Every field says in its help what it is.

    Raises:
        ValueError: if `teacher` is unknown or a count is too low.
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
    teacher: str = _option("self", "who gives the target of crops: self, or a whole copy: ema, frozen")
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
        lowest = dict.fromkeys(("chunk_size", "max_crops", "max_negatives", "save_every", "eval_every"), 0)
        lowest |= dict.fromkeys(("num_epochs", "batch_size", "max_regions", "keep_checkpoints"), 1)
        for name, low in lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
