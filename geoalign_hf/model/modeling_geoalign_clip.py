# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Tensors to embeddings: a CLIP that also embeds regions and concepts.

In come pixel values, regions in the frame of `pixel_values`, and token ids; out come unit vectors and
scaled cosines. The training objective is not here: `forward(return_loss=True)` is CLIP's own loss.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import CLIPModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPOutput, image_text_contrastive_loss
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .adapters_geoalign_clip import StrictAdapterMixin
from .configuration_geoalign_clip import DENSE_MODES, GeoAlignCLIPConfig
from .packing_geoalign_clip import locate_texts
from .regions_geoalign_clip import pool_regions, weigh_regions
from .scales_geoalign_clip import RegionScale, SceneScale, fold_scene_scale
from .stem_geoalign_clip import ConvolutionalStem


@dataclass
class GeoAlignCLIPOutput(CLIPOutput):
    """CLIP's output with regions added. What was not asked for is None.

    Args:
        loss: (), CLIP's own scene loss of this process, if `return_loss`.
        logits_per_image: (B, N), cosines of images and texts times `logit_scale`.
        logits_per_text: (N, B), its transpose.
        text_embeds: (N, D), unit vectors.
        image_embeds: (B, D), unit vectors.
        text_model_output: what the text tower gave.
        vision_model_output: what the vision tower gave.
        logits_per_region: (B, R, N), cosines of regions and texts times `region_logit_scale`; 0 for padding.
        region_embeds: (B, R, D), unit vectors; zeros for padding.
        logit_scale: (), the factor on scene cosines, already exponentiated and capped at 100; in calls with
            both images and texts.
        region_logit_scale: (), likewise for regions; also in calls with regions alone.
        pooler_output: (B, D), the image features before they get unit length, in calls without text.
    """

    logits_per_region: torch.FloatTensor | None = None
    region_embeds: torch.FloatTensor | None = None
    logit_scale: torch.FloatTensor | None = None
    region_logit_scale: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None


class GeoAlignCLIPModel(StrictAdapterMixin, CLIPModel):
    """CLIP for overhead images that aligns whole images, regions and concepts with language.

    Every parameter of CLIP keeps its name, so any CLIP checkpoint loads, and its embeddings of images and
    texts stay what they were. The only new weight is the region scale, which starts from CLIP's; the offset
    in `scene_scale` is for adapters alone.

    Source:
        GeoAlignCLIP, https://arxiv.org/abs/2603.09566: a reconstruction, since only its abstract is public.
    """

    config_class = GeoAlignCLIPConfig
    _auto_class = "AutoModel"
    # Otherwise Trainer takes the keyword arguments of `forward` as a sign that the loss is already scaled.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_missing = [r"scene_scale\.offset"]

    def __init__(self, config: GeoAlignCLIPConfig):
        super().__init__(config)
        self.region_scale, self.scene_scale = RegionScale(), SceneScale()
        if config.stem == "convolution":
            vision = config.vision_config
            self.vision_model.embeddings.patch_embedding = ConvolutionalStem(
                vision.hidden_size, vision.patch_size
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, RegionScale):
            if getattr(self.logit_scale, "_is_hf_initialized", False):  # it came with a checkpoint
                init.copy_(module.logit_scale, self.logit_scale.reshape(1))
            else:
                init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        elif isinstance(module, SceneScale):
            init.zeros_(module.offset)
            module.offset.requires_grad_(False)  # which loading has forgotten
        elif isinstance(module, ConvolutionalStem):
            for convolution in module[::3]:
                init.normal_(convolution.weight, std=convolution.weight[0].numel() ** -0.5)
        elif module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Say no: transformers otherwise skips the initial values of the parts missing from a checkpoint."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding, as tools for text models expect."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the token embedding."""
        self.text_model.set_input_embeddings(value)

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs):
        """Save as every transformers model does, and name the classes that ship beside the weights.

        The offset of the scene scale is added to `logit_scale`, where every CLIP has it, and is saved as 0.
        """
        # This import also tells transformers to copy the pipeline's file.
        from .pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline

        here = __name__.split(".")[-1]
        auto_map = dict(getattr(self.config, "auto_map", None) or {})
        auto_map["AutoModelForZeroShotImageClassification"] = f"{here}.{type(self).__name__}"
        self.config.auto_map = auto_map
        pipeline = ZeroShotRegionClassificationPipeline
        impl = f"{pipeline.__module__.split('.')[-1]}.{pipeline.__name__}"
        self.config.custom_pipelines = {
            pipeline.task_name: {"impl": impl, "pt": ["AutoModel"], "type": "multimodal"}
        }
        if not getattr(self, "_hf_peft_config_loaded", False):  # else transformers saves the adapter alone
            state_dict = fold_scene_scale(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs
        )

    def get_patch_features(
        self,
        pixel_values: torch.Tensor,
        dense_mode: str | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """Map every patch into the joint space: the dense map.

        Args:
            pixel_values: (B, 3, H, W).
            dense_mode: `last` or `value`, see `GeoAlignCLIPConfig`; None takes the configured one.
            interpolate_pos_encoding: allow another size than the one trained at.

        Returns:
            (B, D, h, w), not of unit length.

        Raises:
            ValueError: if `dense_mode` is unknown.
        """
        _, features = self._encode_pixels(pixel_values, dense_mode, interpolate_pos_encoding)
        return self.visual_projection(features).transpose(1, 2).unflatten(-1, self._grid(pixel_values))

    def _encode_pixels(self, pixel_values, dense_mode=None, interpolate_pos_encoding=False, **kwargs):
        """Run the vision tower once: its output, and the patch features (B, h * w, hidden)."""
        dense_mode = dense_mode or self.config.dense_mode
        if dense_mode not in DENSE_MODES:
            raise ValueError(f"dense_mode is {dense_mode!r}; it must be one of {DENSE_MODES}.")
        wants_hidden_states = kwargs.get(
            "output_hidden_states", self.config.vision_config.output_hidden_states
        )
        if dense_mode == "value":
            kwargs["output_hidden_states"] = True
        output = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        if dense_mode == "last":
            hidden = output.last_hidden_state[:, 1:]
        else:
            hidden = self._encode_by_value(output.hidden_states[-2][:, 1:])
            if not wants_hidden_states:
                output.hidden_states = None
        return output, self.vision_model.post_layernorm(hidden)

    def _encode_by_value(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the last block on every patch as a sequence of its own: softmax over one token is 1."""
        alone = hidden.flatten(0, 1).unsqueeze(1)  # (B * h * w, 1, hidden)
        return self.vision_model.encoder.layers[-1](alone, attention_mask=None).view_as(hidden)

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        patch = self.config.vision_config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(
                f"pixel_values of {height} x {width} do not divide into patches of {patch} pixels, so "
                f"regions would be pooled from shifted ground. Resize to a multiple of {patch}."
            )
        return height // patch, width // patch

    def embed_images(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """Embed whole images.

        Args:
            pixel_values: (B, 3, H, W).
            interpolate_pos_encoding: allow another size than the one trained at.

        Returns:
            (B, D), unit vectors.
        """
        features = self.get_image_features(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        return nn.functional.normalize(features.pooler_output, dim=-1)

    def embed_regions(
        self,
        pixel_values: torch.Tensor,
        region_boxes: torch.Tensor | None = None,
        region_quads: torch.Tensor | None = None,
        region_coverage: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        dense_mode: str | None = None,
    ) -> torch.Tensor:
        """Embed regions of images, all images in one call, regions in one of three forms.

        Args:
            pixel_values: (B, 3, H, W).
            region_boxes: (B, R, 4), xyxy in [0, 1] of `pixel_values`.
            region_quads: (B, R, 4, 2), corners in the same frame.
            region_coverage: (B, R, H, W), share of each pixel that the region covers.
            region_mask: (B, R), True for real regions; None means that all are.
            interpolate_pos_encoding: allow another size than the one trained at.
            dense_mode: `last` or `value`; None takes the configured one.

        Returns:
            (B, R, D), unit vectors; zeros for padding.

        Raises:
            ValueError: if no form or several are given, or the number of images differs.
        """
        regions = (region_boxes, region_quads, region_coverage, region_mask)
        weights = weigh_regions(pixel_values.shape[0], self._grid(pixel_values), *regions)
        _, features = self._encode_pixels(pixel_values, dense_mode, interpolate_pos_encoding)
        return self._embed_weighted(features, weights)

    def _embed_weighted(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        # The projection is linear, so projecting R pooled vectors equals pooling h * w projected ones.
        return nn.functional.normalize(self.visual_projection(pool_regions(features, weights)), dim=-1)

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed texts.

        Args:
            input_ids: (N, L).
            attention_mask: (N, L), 1 for real tokens.

        Returns:
            (N, D), unit vectors.
        """
        features = self.get_text_features(input_ids, attention_mask=attention_mask)
        return nn.functional.normalize(features.pooler_output, dim=-1)

    def _encode_packed(self, input_ids: torch.Tensor, text_ids: torch.Tensor, **kwargs):
        """Run the text tower on texts that share rows; `pooler_output` is (N, D), a row per text."""
        position_ids, attention_mask, ends = locate_texts(text_ids)
        attention = self.text_model.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(
                f"packed texts need the attention sdpa or eager, but the text tower has {attention!r}. "
                'Load the model with attn_implementation={"text_config": "sdpa"}.'
            )
        if attention == "eager":  # which adds its mask
            dtype = self.text_model.dtype
            attention_mask = (~attention_mask).to(dtype) * torch.finfo(dtype).min
        output = self.text_model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        output.pooler_output = self.text_projection(output.last_hidden_state.flatten(0, 1)[ends])
        return output

    def embed_concepts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embed concepts, each worded by several templates: the mean of their unit vectors, at unit length.

        Args:
            input_ids: (C, T, L), as `GeoAlignCLIPProcessor.tokenize_concepts` gives them.
            attention_mask: (C, T, L), 1 for real tokens.

        Returns:
            (C, D), unit vectors.
        """
        flat_mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        text_embeds = self.embed_text(input_ids.flatten(0, 1), flat_mask)
        return nn.functional.normalize(text_embeds.unflatten(0, input_ids.shape[:2]).mean(dim=1), dim=-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        region_boxes: torch.FloatTensor | None = None,
        region_quads: torch.FloatTensor | None = None,
        region_coverage: torch.FloatTensor | None = None,
        region_mask: torch.BoolTensor | None = None,
        text_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        return_logits: bool = True,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GeoAlignCLIPOutput:
        """Embed images, their regions and texts, and compare them. Either modality may be left out.

        Args:
            input_ids: (N, L), texts.
            pixel_values: (B, 3, H, W).
            attention_mask: (N, L), 1 for real tokens.
            position_ids: (N, L), positions of the tokens.
            region_boxes: (B, R, 4), xyxy in [0, 1] of `pixel_values`.
            region_quads: (B, R, 4, 2), corners in the same frame, in place of boxes.
            region_coverage: (B, R, H, W), share of each pixel covered, in place of boxes.
            region_mask: (B, R), True for real regions.
            text_ids: (M, L), for N texts packed by `pack_texts`: which text each of `input_ids` belongs to.
            return_loss: also give CLIP's loss, for which B and N must be equal.
            return_logits: also compare everything with all texts; training has no use for that.
            interpolate_pos_encoding: allow another size than the one trained at.
            **kwargs: for both towers, such as `output_hidden_states`.

        Returns:
            `GeoAlignCLIPOutput`, or a tuple of its fields with `return_dict=False`.

        Raises:
            ValueError: if neither images nor texts are given, or regions without images.
        """
        if kwargs.pop("inputs_embeds", None) is not None:  # PEFT passes it to every model, as None
            raise ValueError("inputs_embeds is given, but CLIP's text tower takes token ids. Pass input_ids.")
        if input_ids is None and pixel_values is None:
            raise ValueError("neither input_ids nor pixel_values is given. Pass texts, images or both.")
        if return_loss and (input_ids is None or pixel_values is None):
            raise ValueError("return_loss compares images with texts. Pass both input_ids and pixel_values.")
        regions = (region_boxes, region_quads, region_coverage)
        has_regions = any(form is not None for form in regions)
        if has_regions and pixel_values is None:
            raise ValueError("regions are given without pixel_values. Pass the images that they lie in.")

        has_both = input_ids is not None and pixel_values is not None
        # Not in calls with one modality: pipelines split every tensor of the output by image or text.
        logit_scale = self.scene_scale(self.logit_scale) if has_both else None
        region_logit_scale = self.region_scale() if has_both or has_regions else None
        vision_output = text_output = image_embeds = region_embeds = text_embeds = None
        logits_per_image = logits_per_text = logits_per_region = pooler_output = loss = None
        if has_regions:
            weights = weigh_regions(pixel_values.shape[0], self._grid(pixel_values), *regions, region_mask)
            vision_output, patch_features = self._encode_pixels(
                pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
            vision_output.pooler_output = self.visual_projection(vision_output.pooler_output)
            region_embeds = self._embed_weighted(patch_features, weights)
        elif pixel_values is not None:
            vision_output = self.get_image_features(
                pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
            )
        if pixel_values is not None:
            image_embeds = nn.functional.normalize(vision_output.pooler_output, dim=-1)
        if input_ids is not None:
            if text_ids is not None:
                text_output = self._encode_packed(input_ids, text_ids, **kwargs)
            else:
                text_output = self.get_text_features(
                    input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    return_dict=True,
                    **kwargs,
                )
            text_embeds = nn.functional.normalize(text_output.pooler_output, dim=-1)
        else:
            pooler_output = vision_output.pooler_output
        if has_both and (return_logits or return_loss):
            logits_per_text = text_embeds @ image_embeds.T * logit_scale
            logits_per_image = logits_per_text.T
            if has_regions:
                logits_per_region = region_embeds @ text_embeds.T * region_logit_scale
            if return_loss:
                # Every parameter takes part, as DistributedDataParallel expects.
                loss = image_text_contrastive_loss(logits_per_text) + 0.0 * region_logit_scale

        return GeoAlignCLIPOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_output,
            vision_model_output=vision_output,
            logits_per_region=logits_per_region,
            region_embeds=region_embeds,
            logit_scale=logit_scale,
            region_logit_scale=region_logit_scale,
            pooler_output=pooler_output,
        )
