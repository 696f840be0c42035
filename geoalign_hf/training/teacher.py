"""The teacher whose embeddings of region crops are training targets."""

import copy

import torch

TEACHERS = ("self", "ema", "frozen")


class Teacher:
    """Who says what a region's own crop looks like: the target of `crop_consistency`.

    Args:
        kind: `self`, the model as it is; `ema`, the running mean of its weights; `frozen`, what it was.
        model: to copy.
        decay: of the running mean, per step.
    """

    def __init__(self, kind: str, model: torch.nn.Module, decay: float):
        self.kind, self.decay = kind, decay
        self.copy = None if kind == "self" else copy.deepcopy(model).requires_grad_(False).eval()

    def move_to(self, device: torch.device) -> None:
        """Put the copy, if there is one, where the model is."""
        if self.copy is not None:
            self.copy.to(device)

    @torch.no_grad()
    def embed_crops(self, student: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embed the region of each crop, pooled from the crop's own patches, without dropout.

        Args:
            student: the model in training, not wrapped.
            batch: with `crop_values` and `crop_boxes` or `crop_quads`.

        Returns:
            (Q, D), unit vectors, without gradient.
        """
        model = self.copy or student
        inputs = {"pixel_values": batch["crop_values"]} | get_crop_regions(batch)
        Q = len(batch["crop_values"])
        if Q == 0:  # all the same this process takes part in the pass, as FSDP expects
            inputs = {name: tensor.new_zeros(1, *tensor.shape[1:]) for name, tensor in inputs.items()}
        was_training = model.training
        model.eval()
        output = model(**inputs)
        model.train(was_training)
        torch.clear_autocast_cache()  # weights cast here have no gradient; older torch would use them again
        return output.region_embeds[:Q, 0]

    @torch.no_grad()
    def follow(self, student: torch.nn.Module) -> None:
        """Move the running mean a little towards the model, after each of its steps."""
        if self.kind != "ema":
            return
        for mean, parameter in zip(self.copy.parameters(), student.parameters(), strict=True):
            if not parameter.requires_grad:
                continue
            # FSDP has a share of it here and must collect the rest.
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            mean.lerp_(whole.view_as(mean).to(mean.dtype), 1 - self.decay)

    def state_dict(self) -> dict:
        """Give what a checkpoint keeps."""
        return {} if self.copy is None else self.copy.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take up what a checkpoint kept."""
        if self.copy is not None:
            self.copy.load_state_dict(state)


def get_crop_regions(batch) -> dict[str, torch.Tensor]:
    """Take the regions of the crops from a batch, under the names that the model's forward has for them."""
    return {f"region_{form}": batch[f"crop_{form}"] for form in ("boxes", "quads") if f"crop_{form}" in batch}
