"""What makes a resumed run the same run: its rows, its model and its settings."""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset

from ..data.schema import FEATURES
from .lora import describe_trained

# Fields of the config that decide results and that the size of the model does not show.
CHOICES = ("dense_mode", "region_view", "region_context", "stem")


def checksum_rows(rows: Dataset) -> int:
    """Compute a checksum of the boxes and texts of all rows, in their order. Images are not read."""
    checksum = 0
    for name in sorted(FEATURES.keys() & set(rows.column_names) - {"image"}):
        for cell in rows[name]:
            checksum = zlib.crc32(repr((name, cell)).encode(), checksum)
    return checksum


def describe_model(model: Any) -> dict:
    """Describe a model before its training: its size, its choices, and a checksum of its frozen weights.

    A checkpoint need not hold frozen weights, such as those of the base of an adapter.
    """
    checksum = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            checksum = zlib.crc32(values.numpy(), zlib.crc32(name.encode(), checksum))
    choices = {name: getattr(model.config, name) for name in CHOICES}
    return {"parameters": describe_trained(model), "frozen_weights": checksum} | choices


def describe_loop(accelerator: Accelerator, model: Any, rows: Dataset) -> dict:
    """Describe a run of a loop of your own, without its options: its processes, its model and its rows."""
    processes = {name: getattr(accelerator, name) for name in ("num_processes", "mixed_precision")}
    return processes | describe_model(model) | {"rows": checksum_rows(rows)}


def check_same_run(checkpoint: Path, there: dict, here: dict) -> None:
    """Check that a checkpoint is of a run with the same settings.

    Args:
        checkpoint: folder of the checkpoint, for the message.
        there: the settings that were saved with it, as JSON holds them.
        here: the settings of this run.

    Raises:
        ValueError: if one of them differs. The message names each with both values.
    """
    here = json.loads(json.dumps(here))
    if changed := {name: (there.get(name), here[name]) for name in here if there.get(name) != here[name]}:
        listed = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changed.items())
        raise ValueError(
            f"{checkpoint} is a checkpoint of a run with other settings: {listed}. Resume with the same "
            "settings, or start a new run from its weights."
        )
