"""The teacher whose embeddings of region crops are training targets."""

import copy

import torch
from torch.distributed.tensor import DTensor

TEACHERS = ("self", "ema", "frozen")


class Teacher:
    """The model that embeds the crops of regions; its embeddings are the targets of `crop_consistency`.

    Args:
        kind: `self` for the model in training, `ema` for the moving average of its weights, `frozen` for the
            model as it was before training.
        model: the model in training, which is copied for the last two kinds.
        decay: decay of the moving average per step.
    """

    def __init__(self, kind: str, model: torch.nn.Module, decay: float):
        self.kind, self.decay = kind, decay
        self.copy = None if kind == "self" else copy.deepcopy(model).requires_grad_(False).eval()

    def move_to(self, device: torch.device) -> None:
        """Move the copy, if there is one, to the device of the model."""
        if self.copy is not None:
            self.copy.to(device)

    @torch.no_grad()
    def embed_crops(self, student: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embed the region of each crop, pooled from the crop's own patches, without dropout.

        Args:
            student: the model in training, without wrapper.
            batch: batch with `crop_values` (Q, 3, S, S), and with `crop_boxes` (Q, 1, 4) or `crop_quads`
                (Q, 1, 4, 2).

        Returns:
            (Q, D), unit vectors, without gradient.
        """
        model = self.copy or student
        inputs = {"pixel_values": batch["crop_values"]} | get_crop_regions(batch)
        Q = len(batch["crop_values"])
        if Q == 0:  # this process still takes part in the pass, as FSDP expects
            inputs = {name: tensor.new_zeros(1, *tensor.shape[1:]) for name, tensor in inputs.items()}
        was_training = model.training
        model.eval()
        output = model(**inputs)
        model.train(was_training)
        torch.clear_autocast_cache()  # weights cast here have no gradient, and older torch would reuse them
        return output.region_embeds[:Q, 0]

    @torch.no_grad()
    def follow(self, student: torch.nn.Module) -> None:
        """Move the moving average towards the model, after an optimizer step."""
        if self.kind != "ema" or self.copy is None:
            return
        for mean, parameter in zip(self.copy.parameters(), student.parameters(), strict=True):
            if not parameter.requires_grad:
                continue
            # FSDP holds a shard of it here and must gather the others.
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            mean.lerp_(whole.view_as(mean).to(mean.dtype), 1 - self.decay)

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps."""
        return {} if self.copy is None else self.copy.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore what a checkpoint kept."""
        if self.copy is not None:
            self.copy.load_state_dict(state)


def get_crop_regions(batch) -> dict[str, torch.Tensor]:
    """Return the regions of the crops of a batch, under the names of the arguments of `forward`."""
    return {f"region_{form}": batch[f"crop_{form}"] for form in ("boxes", "quads") if f"crop_{form}" in batch}
