"""Short training runs for tests."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.trainer import GeoAlignTrainer

SHORT = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "disable_tqdm": True}
NOT_ARGUMENTS = ("loss_weights", "evaluators", "augmentation", "callbacks", "card_settings", "optimizers")
# An objective that reads every column, with crops and a teacher.
EVERY_COLUMN = LossWeights(
    scene=1.0,
    description=1.0,
    region=0.1,
    concept=0.5,
    hard_negative=0.5,
    crop_consistency=0.1,
    image_consistency=0.02,
)


def build_trainer(model, processor, rows, output_dir: Path, **options) -> GeoAlignTrainer:
    """Build a trainer; options are those of the training arguments and of the trainer."""
    options = {"loss_weights": EVERY_COLUMN} | options
    others = {name: options.pop(name) for name in NOT_ARGUMENTS if name in options}
    args = GeoAlignTrainingArguments(output_dir=str(output_dir), **SHORT | options)
    return GeoAlignTrainer(model, args, train_dataset=rows, processing_class=processor, **others)


def list_losses(trainer: GeoAlignTrainer) -> list[float]:
    """List the losses that a run has logged."""
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def check_equal_weights(first, second) -> None:
    left, right = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


class ServedScores:
    """An evaluator whose scores are given beforehand."""

    name, primary_metric, greater_is_better = "served", "score", True

    def __init__(self, *scores, greater_is_better=True):
        self.scores, self.greater_is_better, self.seen = iter(scores), greater_is_better, []

    def __call__(self, embedder):
        self.seen.append(embedder.model.visual_projection.weight.detach().clone())
        score = next(self.scores)
        return (score if isinstance(score, dict) else {"score": score}) | {"protocol": {"split": "all"}}
