# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""A convolutional stem, an option for models that are trained from fresh weights."""

import torch
from torch import nn


class ConvolutionalStem(nn.Sequential):
    """Three strided 3x3 convolutions with group normalisation, then a projection to patches.

    It takes the place of CLIP's patch embedding, and gives a patch grid of the same size.

    Args:
        width: number of channels of a patch, a multiple of 32.
        patch_size: side of a patch in pixels, a multiple of 8.

    Source:
        Early convolutions help transformers see better, https://arxiv.org/abs/2106.14881.
    """

    def __init__(self, width: int, patch_size: int):
        channels = (3, width // 4, width // 2, width)
        layers: list[nn.Module] = []
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
            layers += [nn.GroupNorm(8, after), nn.GELU()]
        rest = patch_size // 8
        super().__init__(*layers, nn.Conv2d(width, width, rest, stride=rest, bias=False))

    @property
    def weight(self) -> torch.Tensor:
        """The last layer's weight, from which CLIP reads the data type and which it initialises."""
        return self[-1].weight
