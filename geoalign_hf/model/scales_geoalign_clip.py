# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The learned factors on cosines, of scenes and of regions, as modules that PEFT can train and save.

What is in them has the shape (1,), so that FSDP can shard it.
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
        """Give the factor as a number, (), capped at 100."""
        return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE).squeeze(0)


class SceneScale(nn.Module):
    """What an adapter adds to CLIP's `logit_scale`, which is a bare parameter that PEFT passes over.

    Without an adapter it is 0 and takes no gradient; in a saved model it is part of `logit_scale`.
    """

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, logit_scale: torch.Tensor) -> torch.Tensor:
        """Give the factor on scene cosines as a number, (), capped at 100."""
        return (logit_scale + self.offset).exp().clamp(max=MAX_LOGIT_SCALE).squeeze()
