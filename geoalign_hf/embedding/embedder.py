"""Embed images, texts, concepts and regions with any CLIP: ours, one with an adapter, or a stock one.

Inputs are images, texts and rows in any number. Outputs are float32 tensors on the CPU, in the same order.
"""

import platform
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from torch.nn.functional import normalize
from transformers import ProcessorMixin
from transformers.utils import logging

from .. import __version__
from ..data.views import list_views, resolve_context, resolve_contexts
from ..images import DEFAULT_OPTIONS, ImageOptions, check_image_list, read_image, sample_to_row
from ..model.interface_geoalign_clip import is_unit
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES
from ..model.regions_geoalign_clip import check_boxes, check_quads, stack_regions
from .checkpoints import check_tokens
from .templates import check_concepts, check_texts, resolve_templates


@dataclass(eq=False)
class Embedder:
    """A model and its processor as one object that embeds.

    Args:
        model: model with `embed_images`, `embed_text` and, for regions, `embed_regions` and
            `get_patch_features`; or with transformers' `get_image_features` and `get_text_features`. It is
            switched to evaluation mode for each call and back.
        processor: processor of that model.
        image_size: side of `pixel_values`. None takes the model's; another interpolates position embeddings.
        batch_size: number of images or windows per forward pass; eight times as many texts.
        image_options: rules for images that are not 8-bit RGB. The processor's `image_rule` completes them.
        draft_jpeg: whether `embed_images` decodes JPEG files at 1/2, 1/4 or 1/8 of their size where that is
            still as large as `image_size`. It is faster, and pixels differ by 2 of 255 on average.

    Raises:
        TypeError: if the model has neither kind of method.
        ValueError: if a size is below 1.

    Example: `Embedder(model, processor).embed_images(["harbor.png"])` gives a tensor of shape (1, D).
    """

    model: Any  # a torch.nn.Module; its methods are described above
    processor: ProcessorMixin
    image_size: int | None = None
    batch_size: int = 16
    image_options: ImageOptions = DEFAULT_OPTIONS
    draft_jpeg: bool = False
    num_cut_texts: int = field(default=0, init=False)  # texts that were longer than the model's positions

    def __post_init__(self):
        if not (hasattr(self.model, "embed_images") or hasattr(self.model, "get_image_features")):
            raise TypeError(
                f"{type(self.model).__name__} has neither embed_images nor get_image_features, so it cannot "
                "embed images. Give a GeoAlignCLIPModel or a CLIPModel."
            )
        rule = self.image_options.fallback or getattr(self.processor, "image_rule", None)
        self.image_options = self.image_options.with_fallback(rule)
        self.trained_size = self.model.config.vision_config.image_size
        self.image_size = self.trained_size if self.image_size is None else self.image_size
        for name in ("image_size", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        self.crops = bool(getattr(self.processor.image_processor, "do_center_crop", False))

    @property
    def region_scale(self) -> torch.Tensor:
        """Factor from cosines of regions and patches to logits: float32, on the CPU."""
        self._require("region_scale", "compare cosines")
        return self.model.region_scale().detach().float().cpu()

    def embed_images(self, images: Iterable, noun: str = "images") -> torch.Tensor:
        """Embed whole images.

        Args:
            images: N PIL images, arrays, paths or samples of torchgeo; a column of a dataset also works. An
                iterator without a length shows no progress bar.
            noun: label of the progress bar.

        Returns:
            (N, D), unit vectors.
        """
        check_image_list(images)
        if isinstance(images, Sized):
            images = logging.tqdm(images, desc=noun, total=len(images), leave=False)
        draft_side = self.image_size if self.draft_jpeg else None
        read = (self.read_image(image, draft_side) for image in images)
        return self._collect(self._embed_images(batch) for batch in self._take_batches(read))

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts. Equal texts are encoded once and get equal bits.

        Args:
            texts: N texts. A text longer than the model's positions is truncated and counted in
                `num_cut_texts`.

        Returns:
            (N, D), unit vectors.

        Raises:
            ValueError: for one string, an entry that is no text or has no word, or tokens the model lacks.
        """
        check_texts(texts, "texts")
        check_tokens(self.processor.tokenizer, self.model)
        # Texts of similar length form a batch, so that short ones are not padded to long ones.
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        batches = [unique[i : i + 8 * self.batch_size] for i in range(0, len(unique), 8 * self.batch_size)]
        embeds = self._collect(map(self._embed_texts, logging.tqdm(batches, desc="texts", leave=False)))
        positions = {text: i for i, text in enumerate(unique)}
        return embeds[[positions[text] for text in texts]]

    def embed_concepts(
        self, concepts: str | Sequence[str], templates: str | Sequence[str] = CONCEPT_TEMPLATES
    ) -> torch.Tensor:
        """Embed concepts: the renormalised mean over the unit vectors of each concept's sentences.

        Args:
            concepts: C different names; one string is split at its commas, as transformers does.
            templates: sentences with one `{}` for the concept, or the name of a template set.

        Returns:
            (C, D), unit vectors.

        Raises:
            ValueError: if there are no concepts, one occurs twice or is empty, or a template has no `{}`.
        """
        concepts, templates = check_concepts(concepts), resolve_templates(templates)
        texts = [template.format(concept) for concept in concepts for template in templates]
        embeds = self.embed_text(texts).unflatten(0, (len(concepts), len(templates)))  # (C, T, D)
        return normalize(embeds.mean(dim=1), dim=-1)

    def embed_regions(
        self,
        rows: Sequence[dict] | Dataset,
        region_source: str | None = None,
        context: float | None = None,
        views: Sequence[float] | None = None,
        form: str = "boxes",
    ) -> torch.Tensor:
        """Embed every box of every row, in order.

        Args:
            rows: dataset or list of rows, with `image` and `boxes` (xyxy pixels of the image, at least partly
                inside it), or of samples of torchgeo.
            region_source: source of a region's embedding. None takes the one that the model was trained for
                (`config.region_view`), or else "image".

                - "image": the whole image once; all its regions are pooled from it.
                - "window": the window around the region, from which it is pooled; better for small regions.
                - "crop": the same window, embedded as a whole image. A stock CLIP can only do this.
                - "both": the renormalised mean of "image" and "crop".
            context: side of the window, in multiples of the longer side of the box. None takes the context
                that the model was trained for, or else a default of `region_source`.
            views: several contexts in place of `context`. The result is the renormalised mean over them; each
                view costs one encoding of every window.
            form: "boxes", or "quads" for oriented boxes with `boxes` around them. Crops ignore it.

        Returns:
            (N, D), unit vectors.

        Raises:
            ValueError: if `region_source` is unknown, a context is below 1, or the model pools no regions. A
                box that is not finite, has no area, or is outside its image is also refused.
        """
        region_source, contexts = self.resolve_view(region_source, context, views)
        if region_source in ("image", "window", "both"):
            self._require("embed_regions", 'use region_source="crop"')
        sources = ("image", "crop") if region_source == "both" else (region_source,)
        parts = [
            self._embed_regions(rows, source, side, form)
            for source in sources
            for side in (contexts if source != "image" else [None])
        ]
        return parts[0] if len(parts) == 1 else normalize(torch.stack(parts).sum(dim=0), dim=-1)

    def embed_masked_regions(
        self, images_and_masks: Iterable[tuple[Image.Image, np.ndarray]]
    ) -> torch.Tensor:
        """Embed one region of each image, given as a mask.

        Args:
            images_and_masks: N pairs of an image and a bool array of its height and width.

        Returns:
            (N, D), unit vectors.

        Raises:
            ValueError: if the model pools no regions, or a mask is empty or does not fit its image.
        """
        self._require("embed_regions", "embed the windows as images")

        def encode(batch: list) -> torch.Tensor:
            images, masks = zip(*batch, strict=True)
            inputs = self._prepare([self.read_image(i) for i in images], masks=[mask[None] for mask in masks])
            with evaluation_mode(self.model):
                return self.model.embed_regions(**inputs, **self._interpolate())[:, 0]

        return self._collect(encode(batch) for batch in self._take_batches(images_and_masks))

    def embed_rows(
        self, rows: Sequence[dict], region_source: str | None = None, context: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed the images of rows, and all their regions.

        With the region source "image" every image is encoded only once. Without regions the model need not be
        one that pools them.

        Args:
            rows: N rows with `image` and `boxes`.
            region_source: source of a region's embedding, see `embed_regions`.
            context: side of the window, see `embed_regions`.

        Returns:
            (N, D) and (number of all boxes, D), unit vectors.
        """
        rows = [self._check_row(i, row) for i, row in enumerate(rows)]
        images = [row["image"] for row in rows]
        if not any(row["boxes"] for row in rows):
            return self.embed_images(images), self._collect([])
        if self.resolve_view(region_source, context)[0] != "image":
            return self.embed_images(images), self.embed_regions(rows, region_source, context)
        self._require("embed_regions", 'use region_source="crop"')
        image_embeds, region_embeds = [], []
        for batch in self._take_batches(rows):
            inputs = self._prepare([row["image"] for row in batch], boxes=[row["boxes"] for row in batch])
            with evaluation_mode(self.model):
                output = self.model(**inputs, **self._interpolate())
            image_embeds.append(output.image_embeds)
            region_embeds.append(output.region_embeds[inputs["region_mask"]])
        return self._collect(image_embeds), self._collect(region_embeds)

    def resolve_view(
        self,
        region_source: str | None = None,
        context: float | None = None,
        views: Sequence[float] | None = None,
    ) -> tuple[str, list[float | None]]:
        """Fill in the region source and the contexts that `embed_regions` uses.

        Args:
            region_source: source of a region's embedding, see `embed_regions`.
            context: side of the window, see `embed_regions`.
            views: several contexts, see `embed_regions`.

        Returns:
            The source, and its contexts: one, or several with `views`; [None] for the source "image".

        Raises:
            ValueError: as `embed_regions`, or if both `context` and `views` are given.
        """
        trained_source = getattr(self.model.config, "region_view", "image")  # a stock CLIP has none
        contexts = resolve_contexts(context, views)
        source: str = trained_source if region_source is None else region_source
        if contexts == [None] and source == trained_source == "window":
            contexts = [self.model.config.region_context]
        return source, [resolve_context(source, side) for side in contexts]

    def embed_patches(self, images: Iterable) -> Iterator[torch.Tensor]:
        """Embed the patches of images, batch by batch: the dense map.

        Yields:
            For each batch (B, D, h, w), unit vectors.

        Raises:
            ValueError: if the model has no dense map.
        """
        self._require("get_patch_features", "measure it by tiles")
        for batch in self._take_batches(map(self.read_image, images)):
            with evaluation_mode(self.model):
                features = self.model.get_patch_features(**self._prepare(batch), **self._interpolate())
            yield normalize(features.float(), dim=1).cpu()

    def describe(self) -> dict:
        """Describe how embeddings are made, and by which versions: the part that all protocols share."""
        config = self.model.config
        return {
            "image_size": self.image_size,
            "image_options": self.image_options.describe(),
            "image_rule": self.image_options.fallback,
            "resize": "shorter side, center crop" if self.crops else "square",
            "dense_mode": getattr(config, "dense_mode", None),
            "activation": config.vision_config.hidden_act,
            "text_length": config.text_config.max_position_embeddings,
            "num_cut_texts": self.num_cut_texts,
            "seed": None,  # nothing is random
            "versions": {
                "geoalign_hf": __version__,
                "torch": str(torch.__version__),  # a subclass of str, which YAML would write as an object
                "transformers": transformers.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def read_image(self, image, draft_side: int | None = None) -> Image.Image:
        """Read an image by the rules of this embedder; see `geoalign_hf.images.read_image`."""
        return read_image(image, self.image_options, draft_side)

    def _require(self, method: str, instead: str):
        if not hasattr(self.model, method):
            raise ValueError(
                f"{type(self.model).__name__} has no {method}, so it can embed only whole images. "
                f"Convert it to a GeoAlignCLIP with geoalign_hf.convert_clip, or {instead}."
            )

    def _interpolate(self) -> dict:
        return {} if self.image_size == self.trained_size else {"interpolate_pos_encoding": True}

    def _check_row(self, i: int, row: dict) -> dict:
        """Open the image of a row, and refuse boxes and quads that are not of it."""
        row = sample_to_row(row)
        image = self.read_image(row["image"])
        for r, box in enumerate(row["boxes"]):
            if len(box) != 4:
                raise ValueError(f"rows[{i}]['boxes'][{r}] = {list(box)} has {len(box)} numbers, not xyxy.")
        check_boxes(stack_regions(row["boxes"], (4,), "boxes"), *image.size, f"rows[{i}]['boxes']")
        quads = stack_regions(row.get("quads") or [], (4, 2), "quads")
        check_quads(quads, *image.size, f"rows[{i}]['quads']")
        return row | {"image": image}

    def _prepare(self, images: list, **regions) -> dict:
        square = {"height": self.image_size, "width": self.image_size}
        cropped = {"size": {"shortest_edge": self.image_size}, "crop_size": square}
        sizes = cropped if self.crops else {"size": square}
        inputs = self.processor(images=images, return_tensors="pt", **sizes, **regions).to(self.model.device)
        return inputs | {"pixel_values": inputs["pixel_values"].to(self.model.dtype)}

    def _embed_images(self, images: list) -> torch.Tensor:
        inputs = self._prepare(images) | self._interpolate()
        with evaluation_mode(self.model):
            if hasattr(self.model, "embed_images"):
                return self.model.embed_images(**inputs)
            return normalize(_take_pooled(self.model.get_image_features(**inputs)), dim=-1)

    def _embed_regions(self, rows, region_source: str, context: float | None, form: str) -> torch.Tensor:
        progress = logging.tqdm(rows, desc="regions", total=len(rows), leave=False)
        views = list_views(map(self._check_row, count(), progress), region_source, context, form)
        if region_source == "crop":
            images = ([view["image"] for view in batch] for batch in self._take_batches(views))
            return self._collect(self._embed_images(batch) for batch in images)
        return self._collect(self._embed_views(batch, form) for batch in self._take_batches(views))

    def _embed_views(self, views: list[dict], form: str) -> torch.Tensor:
        inputs = self._prepare([view["image"] for view in views], **{form: [view[form] for view in views]})
        with evaluation_mode(self.model):
            return self.model.embed_regions(**inputs, **self._interpolate())[inputs["region_mask"]]

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        tokenizer, longest = self.processor.tokenizer, self.model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        self.num_cut_texts += sum(length > longest for length in lengths)
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        tokens = tokenizer(texts, **options, return_attention_mask=True)
        inputs = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        with evaluation_mode(self.model):
            if hasattr(self.model, "embed_text"):
                return self.model.embed_text(**inputs)
            return normalize(_take_pooled(self.model.get_text_features(**inputs)), dim=-1)

    def _collect(self, batches: Iterable[torch.Tensor]) -> torch.Tensor:
        embeds = [batch.float().cpu() for batch in batches]
        if not embeds:
            return torch.zeros(0, self.model.config.projection_dim)
        embeds = torch.cat(embeds)
        if not (is_right := is_unit(embeds)).all():
            number = f"{int((~is_right).sum())} of {len(embeds)} embeddings"
            raise ValueError(f"{number} are zero, NaN or infinite. Look for such weights in the model.")
        return embeds

    def _take_batches(self, items: Iterable) -> Iterator[list]:
        iterator = iter(items)
        return iter(lambda: list(islice(iterator, self.batch_size)), [])


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch off dropout and gradients, and restore the mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _take_pooled(features) -> torch.Tensor:
    return getattr(features, "pooler_output", features)  # transformers 5 returns an output object
