"""Learning rates that fall from the last block of a tower to its embeddings."""

import re
from collections import defaultdict

import torch

BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.")
ENTRANCE = re.compile(r"(vision|text)_model\.(embeddings|pre_layrnorm)\.")


def count_blocks_above(names: list[str]) -> dict[str, int]:
    """Count, for each weight, the blocks of its tower that stand between it and the output.

    Args:
        names: names of all weights of a CLIP, with or without adapters.

    Returns:
        The number of blocks above each weight; 0 for the last block, and for everything outside the towers.

    Example:
        >>> layers = [f"text_model.encoder.layers.{i}.mlp.fc1.weight" for i in range(2)]
        >>> list(count_blocks_above(["text_model.embeddings.x", *layers, "text_projection.weight"]).values())
        [2, 1, 0, 0]
    """
    depths: dict[str, int] = defaultdict(int)
    for name in names:
        if match := BLOCK.search(name):
            depths[match[1]] = max(depths[match[1]], int(match[2]) + 1)
    counts = {}
    for name in names:
        if match := BLOCK.search(name):
            counts[name] = depths[match[1]] - 1 - int(match[2])
        elif match := ENTRANCE.search(name):
            counts[name] = depths[match[1]]
        else:
            counts[name] = 0
    return counts


def decay_rates(optimizer: torch.optim.Optimizer, model: torch.nn.Module, layer_decay: float) -> None:
    """Split the groups of a new optimizer, so that each block of a tower has its own learning rate.

    Args:
        optimizer: an optimizer of the weights of `model`, before its first step, without a schedule.
        model: a CLIP, with or without adapters.
        layer_decay: factor on the learning rate for each block above a weight.
    """
    parameters = dict(model.named_parameters())
    counts = {parameters[name]: count for name, count in count_blocks_above(list(parameters)).items()}
    groups = []
    for group in optimizer.param_groups:
        by_count = defaultdict(list)
        for parameter in group["params"]:
            by_count[counts[parameter]].append(parameter)
        # The highest rate comes first, since Trainer logs the rate of the first group.
        for count in sorted(by_count):
            groups.append(group | {"params": by_count[count], "lr": group["lr"] * layer_decay**count})
    optimizer.param_groups[:] = groups
