# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The model: a CLIP that also embeds regions and concepts.

It takes pixel values, regions in the frame of `pixel_values`, and token ids. It returns unit vectors and
scaled cosines. The training objective is elsewhere: `forward(return_loss=True)` is CLIP's own loss.
"""

from typing import Any

import torch
from torch import nn
from transformers import CLIPModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import image_text_contrastive_loss
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .adapters_geoalign_clip import StrictAdapterMixin
from .configuration_geoalign_clip import DENSE_MODES, GeoAlignCLIPConfig, Pipelines
from .interface_geoalign_clip import GeoAlignCLIPOutput, check_arguments, check_names, normalize_features
from .packing_geoalign_clip import convert_mask, locate_texts
from .regions_geoalign_clip import pool_regions, weigh_regions
from .scales_geoalign_clip import RegionScale, SceneScale, fold_scene_scale
from .stem_geoalign_clip import ConvolutionalStem
from .text_cache_geoalign_clip import TextCache


class GeoAlignCLIPModel(StrictAdapterMixin, CLIPModel):
    """CLIP for overhead images that aligns whole images, regions and concepts with language.

    Every parameter of CLIP keeps its name. So every CLIP checkpoint loads, and its embeddings of images and
    texts do not change. The only new weight is the region scale, which starts at the value of CLIP's scale.
    The offset in `scene_scale` is used by adapters only.

    Source:
        GeoAlignCLIP, https://arxiv.org/abs/2603.09566. This is a reconstruction: only the abstract is public.
    """

    config: GeoAlignCLIPConfig  # transformers takes the class of the config from this line
    _auto_class = "AutoModel"
    # Trainer would otherwise conclude from **kwargs of `forward` that the loss is scaled already.
    accepts_loss_kwargs = False
    # A CLIP checkpoint does not have this key.
    _keys_to_ignore_on_load_missing = [r"scene_scale\.offset"]

    def __init__(self, config: GeoAlignCLIPConfig):
        super().__init__(config)
        self.region_scale, self.scene_scale = RegionScale(), SceneScale()
        self.text_cache: TextCache | None = None
        if config.stem == "convolution":
            vision = config.vision_config
            stem = ConvolutionalStem(vision.hidden_size, vision.patch_size)
            self.vision_model.embeddings.add_module("patch_embedding", stem)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, RegionScale):
            if getattr(self.logit_scale, "_is_hf_initialized", False):  # it was loaded from a checkpoint
                init.copy_(module.logit_scale, self.logit_scale.reshape(1))
            else:
                init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        elif isinstance(module, SceneScale):
            init.zeros_(module.offset)
            module.offset.requires_grad_(False)  # loading on the meta device loses this flag
        elif isinstance(module, ConvolutionalStem):
            for layer in module:
                if isinstance(layer, nn.Conv2d):
                    init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        elif module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False, so that transformers initialises every weight that a checkpoint lacks."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding, as tools for text models expect."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the token embedding."""
        self.text_model.set_input_embeddings(value)

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs):
        """Save the model as every transformers model does, together with the code that it needs.

        The offset of the scene scale is added to `logit_scale`, where every CLIP has it, and saved as 0.
        """
        # These imports also make transformers copy the files of the pipelines.
        from .detection_pipeline_geoalign_clip import GeoAlignCLIPDetectionPipeline
        from .pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline

        here = __name__.split(".")[-1]
        auto_map = dict(getattr(self.config, "auto_map", None) or {})
        auto_map["AutoModelForZeroShotImageClassification"] = f"{here}.{type(self).__name__}"
        self.config.auto_map = auto_map
        self.config.custom_pipelines = Pipelines(
            {
                pipeline.task_name: {
                    "impl": f"{pipeline.__module__.split('.')[-1]}.{pipeline.__name__}",
                    "pt": ["AutoModel"],
                    "type": "multimodal",
                }
                for pipeline in (ZeroShotRegionClassificationPipeline, GeoAlignCLIPDetectionPipeline)
            }
        )
        if not getattr(self, "_hf_peft_config_loaded", False):  # otherwise only the adapter is saved
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
        """Project every patch into the joint space of images and texts.

        Args:
            pixel_values: (B, 3, H, W).
            dense_mode: `last` or `value`, see `GeoAlignCLIPConfig`; None uses the mode of the config.
            interpolate_pos_encoding: whether to allow an image size other than that of training.

        Returns:
            (B, D, h, w), not normalised.

        Raises:
            ValueError: if `dense_mode` is unknown.
        """
        _, features = self._encode_pixels(pixel_values, dense_mode, interpolate_pos_encoding)
        return self.visual_projection(features).transpose(1, 2).unflatten(-1, self._grid(pixel_values))

    def _encode_pixels(
        self, pixel_values, dense_mode=None, interpolate_pos_encoding=False, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """Return the output of the vision tower and the patch features (B, h * w, hidden), in one pass."""
        dense_mode = dense_mode or self.config.dense_mode
        if dense_mode not in DENSE_MODES:
            raise ValueError(f"dense_mode is {dense_mode!r}; it must be one of {DENSE_MODES}.")
        config = self.config.vision_config
        wants_hidden_states = kwargs.get("output_hidden_states", config.output_hidden_states)
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
        """Run the last block on every patch alone. The softmax over one token is 1, so only values remain."""
        alone = hidden.flatten(0, 1).unsqueeze(1)  # (B * h * w, 1, hidden)
        return self.vision_model.encoder.layers[-1](alone, attention_mask=None).view_as(hidden)

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Return the number of patches down and across."""
        patch = self.config.vision_config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(
                f"pixel_values have {height} x {width} pixels, which are not multiples of the patch size "
                f"{patch}. Regions would be pooled from the wrong place. Resize to a multiple of {patch}."
            )
        return height // patch, width // patch

    def embed_images(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """Embed whole images.

        Args:
            pixel_values: (B, 3, H, W).
            interpolate_pos_encoding: whether to allow an image size other than that of training.

        Returns:
            (B, D), unit vectors.
        """
        return normalize_features(self.get_image_features(pixel_values, interpolate_pos_encoding), check=True)

    @can_return_tuple
    def get_region_features(
        self,
        pixel_values: torch.Tensor,
        region_boxes: torch.Tensor | None = None,
        region_quads: torch.Tensor | None = None,
        region_coverage: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        dense_mode: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Compute the features of regions, given in one of three forms. All images go through in one pass.

        Args:
            pixel_values: (B, 3, H, W).
            region_boxes: (B, R, 4), xyxy in [0, 1] of `pixel_values`.
            region_quads: (B, R, 4, 2), corners x, y in the same frame.
            region_coverage: (B, R, H, W), fraction of each pixel that the region covers. A coarser map also
                works, down to one number per patch.
            region_mask: (B, R), True for real regions; None means that all are real.
            interpolate_pos_encoding: whether to allow an image size other than that of training.
            dense_mode: `last` or `value`; None uses the mode of the config.
            **kwargs: options of the vision tower, such as `output_hidden_states`.

        Returns:
            the output of the vision tower, with `pooler_output` (B, R, D): the features of the regions, not
            normalised; zeros for padding.

        Raises:
            ValueError: if an argument is unknown, or regions are given in no form or several, for another
                number of images, or outside of [0, 1].
        """
        check_names(kwargs)
        regions = (region_boxes, region_quads, region_coverage, region_mask)
        weights = weigh_regions(pixel_values.shape[0], self._grid(pixel_values), *regions)
        output, features = self._encode_pixels(pixel_values, dense_mode, interpolate_pos_encoding, **kwargs)
        output.pooler_output = self._pool(features, weights)
        return output

    def embed_regions(
        self, pixel_values: torch.Tensor, region_boxes: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Embed regions of images.

        Args:
            pixel_values: (B, 3, H, W).
            region_boxes: (B, R, 4), xyxy in [0, 1] of `pixel_values`.
            **kwargs: further arguments of `get_region_features`, such as regions in another form.

        Returns:
            (B, R, D), unit vectors; zeros for padding.
        """
        options: dict[str, Any] = {**kwargs, "return_dict": True}
        features = self.get_region_features(pixel_values, region_boxes, **options)
        return normalize_features(features, options.get("region_mask"), check=True)

    def _pool(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        # The projection is linear: projecting R pooled vectors equals pooling h * w projected vectors.
        return self.visual_projection(pool_regions(features, weights))

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed texts.

        Args:
            input_ids: (N, L).
            attention_mask: (N, L), 1 for real tokens.

        Returns:
            (N, D), unit vectors.
        """
        features = self.get_text_features(input_ids, attention_mask=attention_mask)
        return normalize_features(features, check=True)

    def _encode_packed(self, input_ids: torch.Tensor, text_ids: torch.Tensor, **kwargs):
        """Run the text tower on texts that share rows. `pooler_output` has one row per text, (N, D)."""
        position_ids, attention_mask, ends = locate_texts(text_ids)
        attention_mask = convert_mask(attention_mask, self.text_model)
        output = self.text_model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        output.pooler_output = self.text_projection(output.last_hidden_state.flatten(0, 1)[ends])
        return output

    def cache_texts(self, is_on: bool = True):
        """Keep the text embeddings of each call of `forward` for the next call with the same texts.

        It makes the pipeline `zero-shot-image-classification` encode its labels only once. Only calls without
        gradients are kept. Changed weights and adapters are noticed.
        """
        self.text_cache = TextCache(self.get_text_features, self) if is_on else None

    def embed_concepts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embed concepts: the normalised mean over the embeddings of each concept in several templates.

        Args:
            input_ids: (C, T, L), as returned by `GeoAlignCLIPProcessor.tokenize_concepts`.
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
        inputs_embeds: None = None,
        return_loss: bool | None = None,
        return_logits: bool = True,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],  # pyright: ignore[reportGeneralTypeIssues]  # has position_ids
    ) -> GeoAlignCLIPOutput:
        """Embed images, their regions and texts, and compare them. Images or texts may be omitted.

        Args:
            input_ids: (N, L), texts.
            pixel_values: (B, 3, H, W).
            attention_mask: (N, L), 1 for real tokens.
            position_ids: (N, L), positions of the tokens.
            region_boxes: (B, R, 4), xyxy in [0, 1] of `pixel_values`.
            region_quads: (B, R, 4, 2), corners x, y in the same frame, instead of boxes.
            region_coverage: (B, R, H, W), fraction of each pixel covered, instead of boxes.
            region_mask: (B, R), True for real regions.
            text_ids: (M, L), for N texts packed by `pack_texts`: the text of each of `input_ids`.
            inputs_embeds: None, as PEFT passes it; any other value is refused.
            return_loss: whether to compute CLIP's loss, for which B and N must be equal. It has no term for
                regions, so that regions are refused beside it.
            return_logits: whether to compare everything with all texts. Training does not need it.
            interpolate_pos_encoding: whether to allow an image size other than that of training.
            **kwargs: options of both towers, such as `output_hidden_states`.

        Returns:
            `GeoAlignCLIPOutput`, or a tuple of its fields with `return_dict=False`.

        Raises:
            ValueError: if an argument is unknown, images and texts are both missing, regions are given
                without images, or `return_loss` is asked for with regions.
        """
        regions = (region_boxes, region_quads, region_coverage)
        has_regions = any(form is not None for form in regions)
        check_arguments(kwargs, inputs_embeds, input_ids, pixel_values, has_regions, return_loss)
        options: dict[str, Any] = {**kwargs, "return_dict": True}
        vision_output = text_output = image_embeds = region_embeds = text_embeds = region_logit_scale = None
        logits_per_image = logits_per_text = logits_per_region = pooler_output = loss = logit_scale = None
        if pixel_values is not None:
            if has_regions:
                grid = self._grid(pixel_values)
                weights = weigh_regions(pixel_values.shape[0], grid, *regions, region_mask)
                vision_output, patch_features = self._encode_pixels(
                    pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
                )
                vision_output.pooler_output = self.visual_projection(vision_output.pooler_output)
                region_embeds = nn.functional.normalize(self._pool(patch_features, weights), dim=-1)
            else:
                vision_output = self.get_image_features(pixel_values, interpolate_pos_encoding, **options)
            image_embeds = normalize_features(vision_output)
            if input_ids is None:
                pooler_output = vision_output.pooler_output
        if input_ids is not None:
            if text_ids is not None:
                text_output = self._encode_packed(input_ids, text_ids, **kwargs)
            else:
                encode = self.text_cache or self.get_text_features
                text_output = encode(input_ids, attention_mask, position_ids, **options)
            text_embeds = normalize_features(text_output)
        # The scales are returned only if needed: pipelines split every tensor of the output by image or text.
        if image_embeds is not None and text_embeds is not None:
            logit_scale, region_logit_scale = self.scene_scale(self.logit_scale), self.region_scale()
            if return_logits or return_loss:
                logits_per_text = text_embeds @ image_embeds.T * logit_scale
                logits_per_image = logits_per_text.T
                if region_embeds is not None:
                    logits_per_region = region_embeds @ text_embeds.T * region_logit_scale
                if return_loss:
                    # The zero term gives every parameter a gradient, as DistributedDataParallel expects.
                    loss = image_text_contrastive_loss(logits_per_text) + 0.0 * region_logit_scale
        elif region_embeds is not None:
            region_logit_scale = self.region_scale()

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
