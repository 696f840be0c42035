# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""What the model is: CLIP's configuration and the few choices GeoAlignCLIP adds to it."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig

DENSE_MODES = ("last", "value")


@strict
class GeoAlignCLIPConfig(CLIPConfig):
    """Everything that `GeoAlignCLIPModel` needs to be built: CLIP's fields and these.

    Args:
        dense_mode: which patch features regions are pooled from. `last`: the last block as it is.
            `value`: the last block with every patch attending to itself alone (its value path,
            residual and MLP kept), as in FG-CLIP; some pretrained backbones localise better so.
        initializer_range: standard deviation for layers that have no rule of their own.

    Raises:
        StrictDataclassError: of huggingface_hub, if a field has a wrong type or value.

    Source:
        `value`: FG-CLIP, https://arxiv.org/abs/2505.05071; the idea is MaskCLIP's,
        https://arxiv.org/abs/2112.01071.

    Example:
        >>> GeoAlignCLIPConfig(dense_mode="value").dense_mode
        'value'
    """

    model_type = "geoalign_clip"
    _auto_class = "AutoConfig"

    dense_mode: str = "last"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        # The key makes transformers fetch the pipeline's code from the repository. Where this very class
        # is installed that code is at hand and registered, so no trust in remote code may be asked for.
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def validate_dense_mode(self):
        """Refuse a mode that the model does not have."""
        if self.dense_mode not in DENSE_MODES:
            raise ValueError(f"dense_mode is {self.dense_mode!r}; it must be one of {DENSE_MODES}.")
