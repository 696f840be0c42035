# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The pipeline for zero-shot object detection: it names proposals, or the windows of a grid."""

import torch

from .detection_geoalign_clip import build_vocabulary, choose_detections, list_windows, score_labels
from .images_geoalign_clip import load_images
from .pipeline_geoalign_clip import WINDOWS_PER_PASS, GeoAlignCLIPPipeline, list_labels
from .views_geoalign_clip import cut_windows

# The options of a call, by the step that takes them.
IMAGE_OPTIONS = {"timeout", "stretch", "limits", "bands", "max_pixels", "sides", "overlap"}
LABEL_OPTIONS = {"synonyms", "background_labels", "templates", "temperature", "background_bias"}
CHOICE_OPTIONS = {"threshold", "top_k", "max_iou"}


class GeoAlignCLIPDetectionPipeline(GeoAlignCLIPPipeline):
    """Find objects in images, and name them with labels given in words.

    The answer has the form of transformers' `zero-shot-object-detection`, so that code for OWL-ViT works.
    The model proposes no boxes itself: it names the boxes that are given, or the windows of a grid.

    Example:
        `pipeline("zero-shot-object-detection", model=...)("harbor.png", candidate_labels=["ship", "car"])`
    """

    task_name = "zero-shot-object-detection"

    def __call__(
        self, image=None, candidate_labels=None, *, images=None, boxes=None, objectness=None, **kwargs
    ):
        """Detect objects.

        Args:
            image: one image (PIL image, array, path or URL), a list of them, or an iterable of images or of
                `{"image": ..., "candidate_labels": [...]}`, such as a dataset or a generator, which is read
                as a stream. Its entries may also have `boxes` and `objectness`.
            candidate_labels: names to look for: any iterable, or a string with commas between the names. For
                a list of images it may be one list per image.
            images: another name for `image`.
            boxes: proposals: the boxes of one image, or for a list of images one list of boxes per image. A
                box is xyxy in pixels of the image as given. None takes a grid of windows.
            objectness: for each proposal the probability that it is an object. None takes 1.
            **kwargs: `threshold`, smallest score (0.1); `top_k`, largest number of detections per image;
                `max_iou`, largest overlap of two detections of one label (0.5); `sides` and `overlap` of the
                windows, see `list_windows`; `synonyms` and `background_labels`, see `build_vocabulary`;
                `temperature` and `background_bias`, see `score_labels`; `hypothesis_template` or `templates`,
                `timeout`, `stretch`, `limits`, `bands` and `max_pixels` as in the region pipeline;
                `batch_size`, images per call of the model's code. Windows always pass in groups of 64.

        Returns:
            for one image a list of `{"score", "label", "box"}`, best first. `box` is a dictionary of `xmin`,
            `ymin`, `xmax` and `ymax` in whole pixels, and the score is the objectness times the probability
            of the label. For a list of images a list of those; for a stream an iterator.

        Raises:
            ValueError: if there are no labels, the proposals do not fit the images, or an argument is
                unknown.
        """
        if (images is None) == (image is None):
            raise ValueError("give the images once, as image= or as images=.")
        images = image if images is None else images
        of_images = {"boxes": boxes, "objectness": objectness}
        labels = None if candidate_labels is None else list_labels(candidate_labels)
        if labels and any(isinstance(entry, (list, tuple)) for entry in labels):
            of_images["candidate_labels"], labels = labels, None
        of_images = {name: value for name, value in of_images.items() if value is not None}
        return self._answer(images, of_images, candidate_labels=labels, **kwargs)

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, **kwargs):
        if hypothesis_template is not None:
            if kwargs.get("templates") is not None:
                raise ValueError("hypothesis_template and templates are both given. Give one of them.")
            kwargs["templates"] = [hypothesis_template]
        if unknown := sorted(kwargs.keys() - IMAGE_OPTIONS - LABEL_OPTIONS - CHOICE_OPTIONS):
            known = ", ".join(sorted(IMAGE_OPTIONS | LABEL_OPTIONS | CHOICE_OPTIONS))
            raise ValueError(
                f"unknown arguments {unknown}. This pipeline takes candidate_labels, boxes, objectness, "
                f"hypothesis_template, batch_size, {known}."
            )
        steps = [
            {name: kwargs[name] for name in names if kwargs.get(name) is not None}
            for names in (IMAGE_OPTIONS, LABEL_OPTIONS, CHOICE_OPTIONS)
        ]
        if candidate_labels is not None:
            steps[1]["candidate_labels"] = list_labels(candidate_labels)
        return tuple(steps)

    def preprocess(self, inputs, sides=None, overlap=0.5, **options):
        """Read an image, and check its proposals or list the windows of the grid."""
        inputs = inputs if isinstance(inputs, dict) else {"image": inputs}
        (image,) = load_images([inputs["image"]], fallback=self.processor.image_rule, **options)
        boxes, objectness = inputs.get("boxes"), inputs.get("objectness")
        if boxes is None:
            boxes = list_windows(image.size, sides, overlap)
        else:
            boxes = self.processor.check_regions("boxes", boxes, image.size, "boxes")
        objectness = torch.ones(len(boxes)) if objectness is None else torch.as_tensor(objectness)
        if objectness.shape != (len(boxes),) or not ((objectness >= 0) & (objectness <= 1)).all():
            raise ValueError(
                f"objectness has the shape {tuple(objectness.shape)} for {len(boxes)} boxes; expected one "
                "number from 0 to 1 for each box."
            )
        labels = inputs.get("candidate_labels")
        labels = None if labels is None else list_labels(labels)
        return {"image": image, "boxes": boxes.tolist(), "objectness": objectness.tolist(), "labels": labels}

    def _forward(self, model_inputs, candidate_labels=None, **options):
        names = ("image", "boxes", "objectness", "labels")
        if not isinstance(model_inputs["image"], list):
            scores, labels = self._score(*(model_inputs[name] for name in names), candidate_labels, **options)
            return {
                "scores": scores[None],
                "boxes": torch.tensor([model_inputs["boxes"]]),
                "labels": [labels],
            }
        results = [  # transformers has made lists of a batch
            self._score(*entry, candidate_labels, **options)
            for entry in zip(*(model_inputs[name] for name in names), strict=True)
        ]
        return {
            "scores": [scores for scores, _ in results],
            "boxes": [torch.tensor(boxes) for boxes in model_inputs["boxes"]],
            "labels": [[labels] for _, labels in results],
        }

    def _score(
        self, image, boxes, objectness, own_labels, candidate_labels,
        synonyms=None, background_labels=None, templates=None, temperature=1.0, background_bias=0.0,
    ):  # fmt: skip
        """Return the scores of the labels for each box of one image, (R, C), and the labels."""
        labels = candidate_labels if own_labels is None else own_labels
        vocabulary = build_vocabulary(labels or [], synonyms, background_labels)
        word_embeds = self._embed_concepts(vocabulary.words, templates)
        embeds = [self._embed_boxes(image, part) for part in self._split(boxes)]
        if not embeds:
            return torch.zeros(0, len(vocabulary.labels)), vocabulary.labels
        logits = (torch.cat(embeds) @ word_embeds.T * self.model.region_scale()).float()
        if not logits.isfinite().all():
            raise ValueError(
                "the scores are not finite, so the weights of the model hold NaN or infinity. "
                "Load another checkpoint, or use float32 or bfloat16 instead of float16."
            )
        scores = score_labels(logits, vocabulary, temperature, background_bias)
        return scores * scores.new_tensor(objectness)[:, None], vocabulary.labels

    def _split(self, boxes: list) -> list[list]:
        """Split boxes into the parts that one forward pass takes: windows in groups, or all of an image."""
        size = WINDOWS_PER_PASS if self.model.config.region_view == "window" else max(len(boxes), 1)
        return [boxes[start : start + size] for start in range(0, len(boxes), size)]

    def _embed_boxes(self, image, boxes: list) -> torch.Tensor:
        """Embed boxes of an image, in the view that the model was trained on: (R, D)."""
        if self.model.config.region_view == "window":
            images, moved = cut_windows(image, boxes, self.model.config.region_context)
            batch = self.processor(images=images, boxes=[[box] for box in moved], return_tensors="pt")
            return self.model.embed_regions(**self._move(batch))[:, 0]
        batch = self.processor(images=[image], boxes=[boxes], return_tensors="pt")
        return self.model.embed_regions(**self._move(batch))[0]

    def _move(self, batch):
        batch = batch.to(self.device)
        return batch | {"pixel_values": batch["pixel_values"].to(self.model.dtype)}

    def postprocess(self, model_outputs, threshold=0.1, top_k=None, max_iou=0.5):
        """Choose the detections of one image."""
        scores, boxes, labels = (model_outputs[name][0] for name in ("scores", "boxes", "labels"))
        regions, numbers = choose_detections(boxes.view(-1, 4), scores, threshold, max_iou, top_k)
        return [
            {
                "score": scores[r, c].item(),
                "label": labels[c],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes[r].int().tolist(), strict=True)),
            }
            for r, c in zip(regions.tolist(), numbers.tolist(), strict=True)
        ]
