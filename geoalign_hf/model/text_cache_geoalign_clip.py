# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The output of the text tower for the last texts, kept for further calls with the same texts."""

from collections.abc import Callable

import torch


class TextCache:
    """Calls the text tower only if its inputs differ from those of the call before.

    The stock pipelines of transformers pass the same texts with every image. Only one output is kept, so that
    a service with ever new texts does not grow. Calls with gradients are not kept.

    Args:
        encode: `get_text_features` of the model.
    """

    def __init__(self, encode: Callable):
        self.encode = encode
        self.inputs, self.options, self.output = None, None, None

    def __call__(self, input_ids: torch.Tensor, attention_mask=None, position_ids=None, **options):
        """Return what `encode` returns for these inputs."""
        inputs = (input_ids, attention_mask, position_ids)
        if torch.is_grad_enabled():
            self.inputs = self.output = None  # the weights may be in training
            return self.encode(*inputs, **options)
        is_known = self.inputs is not None and options == self.options
        if not (is_known and all(map(_are_equal, inputs, self.inputs))):
            self.output = self.encode(*inputs, **options)
            self.inputs, self.options = inputs, options
        return self.output


def _are_equal(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.device == right.device and torch.equal(left, right)
