"""What makes a resumed run the same run: its rows and its model."""

import zlib
from typing import Any

import torch
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
