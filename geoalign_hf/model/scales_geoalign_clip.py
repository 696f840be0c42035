# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The learned factors on the cosines of scenes and of regions, as modules that PEFT can train and save.

Their parameters have the shape (1,), so that FSDP can shard them.
"""

import torch
from torch import nn

MAX_LOGIT_SCALE = 100.0  # CLIP, https://arxiv.org/abs/2103.00020, section 2.5


class RegionScale(nn.Module):
    """The learned factor on region cosines."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.empty(1))

    def forward(self) -> torch.Tensor:
        """Return the factor, a tensor of shape (), at most 100."""
        return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE).squeeze(0)


class SceneScale(nn.Module):
    """An offset that an adapter adds to CLIP's `logit_scale`.

    PEFT cannot train `logit_scale` itself, because it is a parameter outside of any module. Without an
    adapter the offset is 0 and gets no gradient. Saving a model adds it to `logit_scale` and writes 0.
    """

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, logit_scale: torch.Tensor) -> torch.Tensor:
        """Return the factor on scene cosines, a tensor of shape (), at most 100."""
        return (logit_scale + self.offset).exp().clamp(max=MAX_LOGIT_SCALE).squeeze()


def fold_scene_scale(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a copy of a state dict in which the offset is added to `logit_scale` and then set to 0.

    So a model with merged adapters is saved with its scale where every CLIP has it. Offloaded parameters have
    no value here (they are on the meta device); they are not changed.

    Example:
        >>> state_dict = {"logit_scale": torch.tensor(2.0), "scene_scale.offset": torch.tensor([0.5])}
        >>> fold_scene_scale(state_dict)
        {'logit_scale': tensor(2.5000), 'scene_scale.offset': tensor([0.])}
    """
    state_dict = dict(state_dict)
    scale, offset = state_dict.get("logit_scale"), state_dict.get("scene_scale.offset")
    if scale is not None and offset is not None and not (scale.is_meta or offset.is_meta):
        state_dict["logit_scale"] = scale + offset.squeeze()
        state_dict["scene_scale.offset"] = torch.zeros_like(offset)
    return state_dict
