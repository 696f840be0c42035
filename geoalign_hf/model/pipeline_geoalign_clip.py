# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The zero-shot region pipeline: an image, its boxes and candidate concepts to scores."""

import torch
from transformers import Pipeline
from transformers.image_utils import load_image

from .processing_geoalign_clip import load_images
from .views_geoalign_clip import cut_windows

WINDOWS_PER_PASS = 64


class ZeroShotRegionClassificationPipeline(Pipeline):
    """Name what is in each box of an image, from concepts given in words.

    Example:
        `pipeline("zero-shot-region-classification", model=...)("harbor.png", boxes=[[40, 12, 310, 96]],
        candidate_concepts=["ship", "storage tank"])`
    """

    task_name = "zero-shot-region-classification"

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._concept_embeds = {}

    def __call__(self, images, boxes=None, candidate_concepts=None, **kwargs):
        """Score every box of every image against every concept.

        Args:
            images: one image (PIL image, array, path, URL), a list of them, or an iterable of
                `{"image": ..., "boxes": [...]}`, which is read as a stream.
            boxes: for one image its boxes; for a list one list of boxes per image. xyxy pixels of the image
                as given. Left out where the images carry their own.
            candidate_concepts: names to choose from.
            **kwargs: `templates`, sentences with one `{}` that word a concept; `top_k`, how many concepts to
                give per box; `batch_size`, images per forward pass.

        Returns:
            for an image a list with one entry per box, in the order of the boxes: a list of
            `{"score", "label", "box"}`, best first, scores summing to 1 over all concepts. For many images a
            list of those; for a stream an iterator.

        Raises:
            ValueError: if there are no concepts or the boxes do not fit the images.
        """
        if candidate_concepts is not None:
            kwargs["candidate_concepts"] = candidate_concepts
        if boxes is None:
            return super().__call__(images, **kwargs)
        if not isinstance(images, (list, tuple)):
            return super().__call__({"image": images, "boxes": boxes}, **kwargs)
        if len(boxes) != len(images):
            raise ValueError(
                f"boxes are given for {len(boxes)} images, but there are {len(images)} images. "
                "Give one list per image, an empty one where there are no regions."
            )
        pairs = [
            {"image": image, "boxes": list(image_boxes)}
            for image, image_boxes in zip(images, boxes, strict=True)
        ]
        return super().__call__(pairs, **kwargs)

    def _sanitize_parameters(
        self, candidate_concepts=None, templates=None, top_k=None, timeout=None, **kwargs
    ):
        if kwargs:
            raise ValueError(
                f"unknown arguments {sorted(kwargs)}. This pipeline takes boxes, candidate_concepts, "
                "templates, top_k, timeout and batch_size."
            )
        forward = {"candidate_concepts": candidate_concepts, "templates": templates}
        post = {"candidate_concepts": candidate_concepts, "top_k": top_k}
        return (
            {} if timeout is None else {"timeout": timeout},
            {key: value for key, value in forward.items() if value is not None},
            {key: value for key, value in post.items() if value is not None},
        )

    def preprocess(self, inputs, timeout=None):
        """Read the image and bring its boxes into the frame of `pixel_values`."""
        if not isinstance(inputs, dict) or not {"image", "boxes"} <= inputs.keys():
            raise ValueError(
                f"expected an image with its boxes, found {type(inputs).__name__}. "
                'Pass boxes=..., or images as {"image": ..., "boxes": [...]}.'
            )
        image = inputs["image"]
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            image = load_image(image, timeout=timeout)
        boxes = [[float(number) for number in box] for box in inputs["boxes"]]
        if self.model.config.region_view == "window":
            return {"views": self._prepare_windows(image, boxes), "boxes": boxes}
        batch = self.processor(images=image, boxes=[inputs["boxes"]], return_tensors="pt")
        return {**batch, "boxes": boxes}

    def _prepare_windows(self, image, boxes: list) -> dict[str, list]:
        """Prepare a window around each box, in parts that one forward pass takes."""
        windows, moved = cut_windows(load_images(image)[0], boxes, self.model.config.region_context)
        parts = []
        for start in range(0, len(windows), WINDOWS_PER_PASS):
            part = slice(start, start + WINDOWS_PER_PASS)
            regions = [[box] for box in moved[part]]
            parts.append(dict(self.processor(images=windows[part], boxes=regions, return_tensors="pt")))
        return {"parts": parts}

    def _forward(self, model_inputs, candidate_concepts=None, templates=None):
        boxes = model_inputs.pop("boxes")
        concept_embeds = self._embed_concepts(candidate_concepts, templates)
        if "views" in model_inputs:
            region_embeds = self._embed_windows(model_inputs["views"])
        else:
            region_embeds = self.model.embed_regions(**model_inputs)
        return {"logits": region_embeds @ concept_embeds.T * self.model.region_scale(), "boxes": boxes}

    def _embed_windows(self, views) -> torch.Tensor:
        """Embed the regions of one image, or of a list of images, from their windows: (B, R, D)."""
        views = views if isinstance(views, list) else [views]  # transformers makes a list of a batch
        nothing = torch.zeros(0, self.model.config.projection_dim, device=self.device, dtype=self.model.dtype)
        embeds = [
            torch.cat([nothing, *(self.model.embed_regions(**part)[:, 0] for part in view["parts"])])
            for view in views
        ]
        return torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True)

    def postprocess(self, model_outputs, candidate_concepts=None, top_k=None):
        """Sort the concepts of every box by their score."""
        boxes = model_outputs["boxes"]
        logits = model_outputs["logits"][0, : len(boxes)].float()
        scores, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        return [
            [
                {"score": score, "label": candidate_concepts[c], "box": box}
                for score, c in zip(box_scores[:top_k], box_order[:top_k], strict=True)
            ]
            for box, box_scores, box_order in zip(boxes, scores.tolist(), order.tolist(), strict=True)
        ]

    def _embed_concepts(self, concepts, templates) -> torch.Tensor:
        """Embed concepts once; calls with the same words take them from here."""
        if not concepts:
            raise ValueError("no candidate_concepts are given. Pass a list of at least one name.")
        key = (tuple(concepts), None if templates is None else tuple(templates))
        if key not in self._concept_embeds:
            options = {} if templates is None else {"templates": templates}
            tokens = self.processor.tokenize_concepts(list(concepts), **options).to(self.device)
            # One set of words at a time: a service with ever new concepts must not grow for ever.
            self._concept_embeds = {key: self.model.embed_concepts(**tokens)}
        return self._concept_embeds[key]
