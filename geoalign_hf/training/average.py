"""The exponential moving average of the weights that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .launch import reshard


class WeightAverage:
    """An exponential moving average of the trained weights of a model.

    Early in a run the decay is lower, (1 + n) / (10 + n) after n updates, so that the first weights are soon
    forgotten.

    Args:
        model: model in training. Under FSDP each process averages its own shards.
        decay: decay per step, in (0, 1).
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model, self.decay, self.num_updates = model, decay, 0
        self.weights = {name: weight.detach().clone() for name, weight in self._list_weights().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights, after an optimizer step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for name, weight in self._list_weights().items():
            self.weights[name].lerp_(weight, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and restore its own weights afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._list_weights().items():
            trained = weight.detach().clone()
            weight.copy_(self.weights[name])
            self.weights[name] = trained

    def _list_weights(self) -> dict[str, torch.nn.Parameter]:
        reshard(self.model)
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
