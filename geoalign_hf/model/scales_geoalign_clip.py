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
