# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The pipeline for zero-shot classification of regions: it scores the regions of images against concepts."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Pipeline

from .images_geoalign_clip import is_single, load_images
from .processing_geoalign_clip import GeoAlignCLIPProcessor
from .text_cache_geoalign_clip import describe_text_weights
from .views_geoalign_clip import cut_windows

FORMS = {"boxes": "box", "quads": "quad", "masks": "mask"}  # the argument, and the key of a result
IMAGE_OPTIONS = {"timeout", "stretch", "limits", "bands", "max_pixels"}
WINDOWS_PER_PASS = 64


def is_many(images) -> bool:
    """Whether an argument is several images: a list, a column of a dataset, a stream, or an array of them."""
    if is_single(images) or isinstance(images, Mapping):
        return False
    if hasattr(images, "ndim"):
        return images.ndim in (1, 4)
    return hasattr(images, "__iter__") or hasattr(images, "__getitem__")


def list_labels(labels) -> list:
    """Return labels as a list: of a string with commas between them, of an array, or of any iterable."""
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(labels, str):
        return [label.strip() for label in labels.split(",") if label.strip()]
    if not isinstance(labels, Iterable):
        raise ValueError(
            f"candidate_labels is a {type(labels).__name__}. Give a list of words, or one string with commas "
            "between them."
        )
    return list(labels)


def _join(entry, parts: dict):
    """Make one dictionary of an image, or its dictionary, and what is given apart for it."""
    if isinstance(entry, Mapping):
        return {**entry, **parts}
    return {"image": entry, **parts} if parts else entry


class GeoAlignCLIPPipeline(Pipeline):
    """What the pipelines of the model share: loading, saving, and the embeddings of concepts."""

    model: Any  # a GeoAlignCLIPModel, which imports this file
    processor: GeoAlignCLIPProcessor

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._concepts: tuple[Any, Any, Any] = (None, None, None)  # words, weights and their embeddings

    def _answer(self, images, parts: dict, **kwargs):
        """Answer for one image, for a list of images, or for a stream.

        Args:
            images: as in a call.
            parts: what is given apart from the images by its name in their dictionaries, such as boxes: for
                one image its own, for a list of images one entry per image.
            **kwargs: further arguments of the call.

        Returns:
            one answer; for lists, and for all that has parts, a list of answers; for a stream an iterator.
        """
        is_list = isinstance(images, (list, tuple))
        if not is_many(images):
            return super().__call__(_join(images, parts), **kwargs)
        if not parts and not is_list:  # a stream
            stream = images if isinstance(images, Dataset) else (entry for entry in images)
            return super().__call__(stream, **kwargs)
        if not hasattr(images, "__len__"):
            raise ValueError(
                f"the images are a {type(images).__name__} of unknown length, but {' and '.join(parts)} are "
                'given apart. Give a list of images, or a stream of {"image": ..., "boxes": [...]}.'
            )
        parts = {name: value if hasattr(value, "__len__") else list(value) for name, value in parts.items()}
        for name, value in parts.items():
            if len(value) != len(images):
                raise ValueError(
                    f"{name} has {len(value)} entries, but there are {len(images)} images. Give one list for "
                    "each image, an empty one where there are no regions."
                )
        if not len(images):
            return []
        entries = (
            _join(image, dict(zip(parts, own, strict=True)))
            for image, *own in zip(images, *parts.values(), strict=True)
        )
        # Several workers can read from a list. The images of a column need not all be in memory.
        return list(super().__call__(list(entries) if is_list else entries, **kwargs))

    def save_pretrained(self, save_directory, **kwargs):
        """Save the model, its processor and their code, so that the folder loads without geoalign_hf."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _embed_concepts(self, labels, templates) -> torch.Tensor:
        """Embed concepts. The result is kept for further calls with the same words and weights."""
        if not labels:
            raise ValueError("no candidate_labels are given. Pass a list of at least one concept.")
        words = (tuple(labels), None if templates is None else tuple(templates))
        known_words, known_weights, embeds = self._concepts
        if words != known_words or describe_text_weights(self.model) != known_weights:
            options = {} if templates is None else {"templates": templates}
            tokens = self.processor.tokenize_concepts(list(labels), **options).to(self.device)
            embeds = self.model.embed_concepts(**tokens)
            # Only the last set of words is kept: a service with ever new concepts must not grow for ever.
            self._concepts = words, describe_text_weights(self.model), embeds
        return embeds


class ZeroShotRegionClassificationPipeline(GeoAlignCLIPPipeline):
    """Classify the regions of images with concepts given in words.

    Example:
        `pipeline("zero-shot-region-classification", model=...)("harbor.png", boxes=[[40, 12, 310, 96]],
        candidate_labels=["ship", "storage tank"])`
    """

    task_name = "zero-shot-region-classification"

    def __call__(
        self,
        images=None,
        boxes: list | None = None,
        candidate_labels=None,
        *,
        quads: list | None = None,
        masks: list | None = None,
        image=None,
        **kwargs,
    ):
        """Score every region of every image against every candidate label.

        Args:
            images: one image (PIL image, array, path or URL), a list of them or a column of a dataset, or an
                iterable of `{"image": ..., "boxes": [...]}` (or `"quads"`, `"masks"`), such as a dataset or a
                generator, which is read as a stream.
            boxes: the boxes of one image, or for a list of images one list of boxes per image. A box is xyxy
                in pixels of the image as given.
            candidate_labels: concepts to choose from: any iterable, a string with commas between them, or a
                `geoalign_hf.ConceptBank` of this model, whose embeddings are used as they are.
            quads: oriented boxes instead of boxes, four corners x, y each.
            masks: masks instead of boxes, arrays of the height and width of the image.
            image: another name for `images`.
            **kwargs: `candidate_concepts`, another name for `candidate_labels`; `hypothesis_template`, a
                sentence with one `{}` for a concept; `templates`, a list of such sentences, over which
                embeddings are averaged; `top_k`, number of concepts to return for each region; `timeout` of
                downloads in seconds; `stretch`, `limits`, `bands` and `max_pixels` for images that are not
                8-bit RGB, as in the processor; `batch_size`, images per forward pass.

        Returns:
            for one image a list with one entry per region, in the order given. An entry is a list of
            `{"score", "label", "box"}` (or `"quad"`, `"mask"`), best first; the scores over all concepts sum
            to 1. For a list of images a list of those; for a stream an iterator.

        Raises:
            ValueError: if there are no labels, the regions do not fit the images, or an argument is unknown.
        """
        if (images is None) == (image is None):
            raise ValueError("give the images once, as images= or as image=.")
        images = image if images is None else images
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        given = {"boxes": boxes, "quads": quads, "masks": masks}
        given = {form: regions for form, regions in given.items() if regions is not None}
        if len(given) > 1:
            raise ValueError(f"regions are given as {' and '.join(given)}. Give one form in a call.")
        return self._answer(images, given, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels=None,
        candidate_concepts=None,
        hypothesis_template=None,
        templates=None,
        top_k=None,
        **kwargs,
    ):
        if unknown := sorted(kwargs.keys() - IMAGE_OPTIONS):
            raise ValueError(
                f"unknown arguments {unknown}. This pipeline takes boxes, quads or masks, candidate_labels, "
                f"hypothesis_template, templates, top_k, batch_size, {', '.join(sorted(IMAGE_OPTIONS))}."
            )
        if candidate_labels is not None and candidate_concepts is not None:
            raise ValueError("candidate_labels and candidate_concepts are the same. Give one of them.")
        if hypothesis_template is not None:
            if templates is not None:
                raise ValueError("hypothesis_template and templates are both given. Give one of them.")
            templates = [hypothesis_template]
        labels = candidate_concepts if candidate_labels is None else candidate_labels
        bank_embeds = getattr(labels, "embeds", None)
        if labels is None:  # then a call uses those of the construction
            bank_embeds = getattr(self, "_forward_params", {}).get("bank_embeds")
        if bank_embeds is not None and templates is not None:
            raise ValueError("a bank of concepts already has its templates. Give no templates with it.")
        if labels is not None:
            labels = list_labels(getattr(labels, "concepts", labels))
        if labels is not None and len(set(map(str, labels))) < len(labels):
            raise ValueError(f"candidate_labels has a name twice: {list(labels)}. Give every name once.")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r}; it must be a whole number, 1 or more.")
        forward = {"labels": labels, "templates": templates}
        post = {"labels": labels, "top_k": top_k}
        steps = [
            {key: value for key, value in step.items() if value is not None}
            for step in (kwargs, forward, post)
        ]
        if labels is not None:
            steps[1]["bank_embeds"] = bank_embeds  # None too: it replaces the bank of the construction
        return tuple(steps)

    def preprocess(self, inputs, **image_options):
        """Read an image and bring its regions into the frame of `pixel_values`."""
        forms = [form for form in FORMS if inputs.get(form) is not None] if isinstance(inputs, dict) else []
        if len(forms) != 1 or "image" not in inputs:
            found = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                f"expected an image with its boxes, quads or masks, found {found}. "
                'Pass boxes=..., or images as {"image": ..., "boxes": [...]}.'
            )
        (form,) = forms
        (image,) = load_images([inputs["image"]], fallback=self.processor.image_rule, **image_options)
        if self.model.config.region_view == "window":
            checked = self.processor.check_regions(form, inputs[form], image.size, form)
            batch = {"views": self._prepare_windows(image, list(checked), form)}
        else:
            options: dict[str, Any] = {form: [inputs[form]], "return_tensors": "pt"}
            batch = self.processor(images=[image], **options)
        regions = list(inputs[form])
        if form != "masks":
            regions = [torch.as_tensor(region, dtype=torch.float64).tolist() for region in regions]
        return {**batch, "form": form, "regions": regions}

    def _prepare_windows(self, image, regions: list, form: str) -> dict[str, list]:
        """Prepare a window around each region, in parts that one forward pass takes."""
        parts = []
        for start in range(0, len(regions), WINDOWS_PER_PASS):  # windows of all regions could take gigabytes
            part = regions[start : start + WINDOWS_PER_PASS]
            windows, moved = cut_windows(image, part, self.model.config.region_context, form)
            options = {form: [[region] for region in moved], "return_tensors": "pt"}
            parts.append(dict(self.processor(images=windows, **options)))
        return {"parts": parts}

    def _forward(self, model_inputs, labels=(), templates=None, bank_embeds=None):
        form, regions = model_inputs.pop("form"), model_inputs.pop("regions")
        if bank_embeds is None:
            concept_embeds = self._embed_concepts(labels, templates)
        else:
            concept_embeds = self._check_bank(bank_embeds)
        if "views" in model_inputs:
            region_embeds = self._embed_windows(model_inputs["views"])
        else:
            region_embeds = self.model.embed_regions(**model_inputs)
        logits = region_embeds @ concept_embeds.T * self.model.region_scale()
        return {"logits": logits, "form": form, "regions": regions}

    def _embed_windows(self, views) -> torch.Tensor:
        """Embed the regions of one image, or of a list of images, from their windows: (B, R, D)."""
        views = views if isinstance(views, list) else [views]  # transformers makes a list of a batch
        nothing = torch.zeros(0, self.model.config.projection_dim, device=self.device, dtype=self.model.dtype)
        embeds = [
            torch.cat([nothing, *(self.model.embed_regions(**part)[:, 0] for part in view["parts"])])
            for view in views
        ]
        return torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True)

    def postprocess(self, model_outputs, labels=(), top_k=None):
        """Sort the concepts of every region by their score."""
        regions, key = model_outputs["regions"], FORMS[model_outputs["form"]]
        logits = model_outputs["logits"][0, : len(regions)].float()
        if not logits.isfinite().all():
            raise ValueError(
                "the scores are not finite, so the weights of the model hold NaN or infinity. "
                "Load another checkpoint, or use float32 or bfloat16 instead of float16."
            )
        scores, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        return [
            [
                {"score": score, "label": labels[c], key: region}
                for score, c in zip(region_scores[:top_k], region_order[:top_k], strict=True)
            ]
            for region, region_scores, region_order in zip(
                regions, scores.tolist(), order.tolist(), strict=True
            )
        ]

    def _check_bank(self, embeds: torch.Tensor) -> torch.Tensor:
        """Refuse the embeddings of a model of another width."""
        width = self.model.config.projection_dim
        if embeds.ndim != 2 or embeds.shape[1] != width or not len(embeds):
            raise ValueError(
                f"the bank has embeddings of the shape {tuple(embeds.shape)}, but those of this model have "
                f"{width} numbers. Build the bank with this model."
            )
        return embeds.to(self.device, self.model.dtype)
