# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The configuration of the model: CLIP's, and the few choices that GeoAlignCLIP adds to it."""

from .requirements_geoalign_clip import REQUIRED_TRANSFORMERS  # noqa: F401  # before what older ones lack

# isort: split
import math
from typing import TYPE_CHECKING

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

DENSE_MODES = ("last", "value")
REGION_VIEWS = ("image", "window")
STEMS = ("patch", "convolution")
LARGEST = {"num_hidden_layers": 1000, "hidden_size": 65_536, "num_attention_heads": 65_536}
DEFAULT_TASK = "zero-shot-region-classification"

if TYPE_CHECKING:

    class SquareVisionConfig(CLIPVisionConfig):
        """The configuration of CLIP's vision tower, whose images and patches are squares."""

        image_size: int = 224
        patch_size: int = 32


@strict
class GeoAlignCLIPConfig(CLIPConfig):
    """The fields of CLIP's configuration, and those of GeoAlignCLIP.

    Args:
        dense_mode: patch features that regions are pooled from. `last`: the output of the last block.
            `value`: the last block with every patch attending to itself alone (its value path,
            residual and MLP kept), as in FG-CLIP; some pretrained backbones localise better this way.
        region_view: picture in which the model looks at a region. `image`: the whole image, for all of its
            regions at once. `window`: a square window around each region. A model should be used with the
            view that it was trained on; the region pipeline and `Embedder` take it from here.
        region_context: side of a window as a multiple of the longer side of the region's box.
        stem: first layer of the vision tower. `patch`: CLIP's linear patch embedding, which every CLIP
            checkpoint needs. `convolution`: a small convolutional network, for models with fresh weights.
        initializer_range: standard deviation of the initial weights of layers without a rule of their own.

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
    region_view: str = "image"
    region_context: float = 1.6
    stem: str = "patch"
    initializer_range: float = 0.02

    if TYPE_CHECKING:  # CLIPConfig also allows dictionaries and None, and replaces them by configurations
        text_config: CLIPTextConfig = CLIPTextConfig()
        vision_config: SquareVisionConfig = SquareVisionConfig()
        logit_scale_init_value: float = 2.6592

    def __post_init__(self, **kwargs):
        if (pipelines := kwargs.get("custom_pipelines")) is not None:
            is_remote = __name__.startswith("transformers_modules.")
            kwargs["custom_pipelines"] = (Pipelines if is_remote else InstalledPipelines)(pipelines)
        super().__post_init__(**kwargs)

    def validate_dense_mode(self):
        """Refuse a mode that the model does not have."""
        _check_choice("dense_mode", self.dense_mode, DENSE_MODES)

    def validate_region_view(self):
        """Refuse an unknown view, and windows that would cut into their boxes."""
        _check_choice("region_view", self.region_view, REGION_VIEWS)
        if not 1 <= self.region_context < math.inf:
            raise ValueError(f"region_context is {self.region_context}; it must be a number and at least 1.")

    def validate_size(self):
        """Refuse towers of impossible size, which would fill the memory before anything is loaded."""
        for config in (self.text_config, self.vision_config):
            for name, most in LARGEST.items():
                value = getattr(config, name, None)
                if value is not None and not 1 <= value <= most:
                    raise ValueError(f"{name} of {type(config).__name__} is {value}; expected 1 to {most}.")

    def validate_stem(self):
        """Refuse an unknown stem, and a convolutional one whose layers would not divide evenly."""
        _check_choice("stem", self.stem, STEMS)
        if self.stem == "convolution" and isinstance(self.vision_config, PreTrainedConfig):
            for name, factor in (("patch_size", 8), ("hidden_size", 32)):
                value = getattr(self.vision_config, name)
                if value % factor:
                    raise ValueError(f"{name} is {value}; stem='convolution' needs a multiple of {factor}.")


class Pipelines(dict):
    """The pipelines of a repository. The first one is the task of a model for which no task is given.

    transformers infers the task from the first key, but only if the dictionary has the length 1. It sorts
    the keys when it saves them.
    """

    def __init__(self, pipelines: dict):
        super().__init__(sorted(pipelines.items(), key=lambda item: item[0] != DEFAULT_TASK))

    def __len__(self) -> int:
        return min(super().__len__(), 1)


class InstalledPipelines(Pipelines):
    """The pipelines of a repository whose code is installed and registered with transformers.

    For a task that is `in` the dictionary transformers runs the code of the repository, and asks for
    `trust_remote_code=True`. Here it must run the installed code.
    """

    def __contains__(self, task) -> bool:
        return False


def _check_choice(name: str, value: str, choices: tuple[str, ...]):
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {choices}.")
