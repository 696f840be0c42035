# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The output of the model's `forward`, and the checks of its arguments."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import TransformersKwargs


@dataclass
class GeoAlignCLIPOutput(CLIPOutput):
    """CLIP's output and the fields for regions. A field that a call does not compute is None.

    Args:
        loss: (), CLIP's loss over the scenes and texts of this process, if `return_loss`.
        logits_per_image: (B, N), cosines of images and texts times `logit_scale`.
        logits_per_text: (N, B), the transpose of `logits_per_image`.
        text_embeds: (N, D), unit vectors.
        image_embeds: (B, D), unit vectors.
        text_model_output: output of the text tower.
        vision_model_output: output of the vision tower.
        logits_per_region: (B, R, N), cosines of regions and texts times `region_logit_scale`; 0 for padding.
        region_embeds: (B, R, D), unit vectors; zeros for padding.
        logit_scale: (), the factor on scene cosines, exponentiated and capped at 100; in calls with images
            and texts.
        region_logit_scale: (), the same factor for regions; also in calls with regions and no text.
        pooler_output: (B, D), image features before normalisation, in calls without text.
    """

    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    logits_per_region: torch.Tensor | None = None
    region_embeds: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    region_logit_scale: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


def is_unit(embeds: torch.Tensor) -> torch.Tensor:
    """Return whether each vector of `embeds` (..., D) has a length of about 1; False for NaN."""
    return (embeds.detach().float().norm(dim=-1) - 1).abs() < 0.05


def normalize_features(output: Any, mask: torch.Tensor | None = None, check: bool = False) -> torch.Tensor:
    """Return the pooled features of an output of a tower as unit vectors.

    Args:
        output: output of a tower.
        mask: True for real features, as in `region_mask`; others may be zero. None means that all are real.
        check: whether to refuse features without a direction. Compiled and exported models do not.

    Raises:
        ValueError: if such features are zero, NaN or infinite.
    """
    embeds = nn.functional.normalize(output.pooler_output, dim=-1)
    if not check or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return embeds
    is_wrong = ~is_unit(embeds)
    if mask is not None:
        is_wrong &= mask.to(is_wrong.device).bool()
    if is_wrong.any():
        raise ValueError(
            f"the features at {is_wrong.nonzero()[0].tolist()} are zero, NaN or infinite, so they have no "
            "direction. Look for zeros and NaN in the weights of the model, and for NaN in this input."
        )
    return embeds


def check_names(unnamed) -> None:
    """Refuse arguments that no tower knows, which it would ignore."""
    unknown = sorted(name for name in unnamed if name not in TransformersKwargs.__annotations__)
    if unknown:
        raise ValueError(
            f"the model does not know the arguments {unknown}. Prepare images, texts and "
            "regions with GeoAlignCLIPProcessor; regions are region_boxes, region_quads or region_coverage."
        )


def check_arguments(unnamed, inputs_embeds, input_ids, pixel_values, has_regions, return_loss) -> None:
    """Refuse arguments of `forward` that it does not know, or that do not fit together."""
    check_names(unnamed)
    if inputs_embeds is not None:
        raise ValueError("inputs_embeds is given, but CLIP's text tower takes token ids. Pass input_ids.")
    if input_ids is None and pixel_values is None:
        raise ValueError("neither input_ids nor pixel_values is given. Pass texts, images or both.")
    if has_regions and pixel_values is None:
        raise ValueError("regions are given without pixel_values. Pass the images that they lie in.")
    if return_loss and (input_ids is None or pixel_values is None):
        raise ValueError("return_loss compares images with texts. Pass both input_ids and pixel_values.")
    if return_loss and has_regions:
        raise ValueError(
            "return_loss is CLIP's loss on whole images, in which regions take no part. "
            "Leave the regions out, or train them with geoalign_hf.compute_losses."
        )
