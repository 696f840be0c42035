"""Short training runs for tests."""

from pathlib import Path

from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.trainer import GeoAlignTrainer

SHORT = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "disable_tqdm": True}
NOT_ARGUMENTS = ("loss_weights", "evaluators", "augmentation", "callbacks", "card_settings")


def build_trainer(model, processor, rows, output_dir: Path, **options) -> GeoAlignTrainer:
    """Build a trainer; options are those of the training arguments and of the trainer."""
    others = {name: options.pop(name) for name in NOT_ARGUMENTS if name in options}
    args = GeoAlignTrainingArguments(output_dir=str(output_dir), **SHORT | options)
    return GeoAlignTrainer(model, args, train_dataset=rows, processing_class=processor, **others)


def list_losses(trainer: GeoAlignTrainer) -> list[float]:
    """List the losses that a run has logged."""
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]
