"""Any CLIP to unit vectors: a model of ours, one wrapped by an adapter, or a stock one of transformers.

What enters are images, texts and rows, as many as there are; what leaves are float32 tensors on the CPU, in
the same order. Everything that the evaluation asks of a model it asks here.
"""

import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from torch.nn.functional import normalize
from transformers import ProcessorMixin
from transformers.utils import logging

from .. import __version__
from ..data.views import list_views, resolve_context
from ..images import read_image


@dataclass
class Embedder:
    """A model and its processor, as one thing that embeds.

    Args:
        model: with `embed_images`, `embed_text` and, where regions are wanted, `embed_regions` and
            `get_patch_features`; or with transformers' `get_image_features` and `get_text_features`. It is
            put into evaluation mode and back.
        processor: of that model.
        image_size: side of `pixel_values`; None takes the model's own. Another one interpolates its
            positions.
        batch_size: images or windows per forward pass; of texts eight times as many.

    Raises:
        TypeError: if the model has neither kind of method.
    """

    model: torch.nn.Module
    processor: ProcessorMixin
    image_size: int | None = None
    batch_size: int = 16
    num_cut_texts: int = field(default=0, init=False)  # longer than the model's positions

    def __post_init__(self):
        if not (hasattr(self.model, "embed_images") or hasattr(self.model, "get_image_features")):
            raise TypeError(
                f"{type(self.model).__name__} has neither embed_images nor get_image_features, so it cannot "
                "embed images. Give a GeoAlignCLIPModel or a CLIPModel."
            )
        self.trained_size = self.model.config.vision_config.image_size
        self.image_size = self.image_size or self.trained_size

    def embed_images(self, images: Sequence, noun: str = "images") -> torch.Tensor:
        """Embed whole images.

        Args:
            images: PIL images, arrays or paths; also a column of a dataset.
            noun: for the progress bar.

        Returns:
            (N, D), unit vectors.
        """
        progress = logging.tqdm(images, desc=noun, total=len(images), leave=False)
        return self._collect(self._embed_images(batch) for batch in self._take_batches(progress))

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts; equal ones are encoded once, and get equal bits.

        Args:
            texts: N of them; what is longer than the model's positions is cut, and counted.

        Returns:
            (N, D), unit vectors.
        """
        # Those of like length together, so that short ones are not padded to long ones.
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        batches = [unique[i : i + 8 * self.batch_size] for i in range(0, len(unique), 8 * self.batch_size)]
        progress = logging.tqdm(batches, desc="texts", leave=False)
        embeds = self._collect(self._embed_texts(batch) for batch in progress)
        places = {text: i for i, text in enumerate(unique)}
        return embeds[[places[text] for text in texts]]

    def embed_concepts(self, concepts: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """Embed concepts: the mean of the unit vectors of each one's sentences, at unit length.

        Returns:
            (C, D), unit vectors.

        Raises:
            ValueError: if a concept occurs twice, or a template lacks its `{}`.
        """
        if repeated := sorted({name for name in concepts if concepts.count(name) > 1}):
            raise ValueError(f"the concepts {repeated} occur more than once. Name every concept once.")
        for t, template in enumerate(templates):
            if template.count("{}") != 1:
                raise ValueError(f"templates[{t}] = {template!r} must hold one {{}}, where the concept goes.")
        texts = [template.format(concept) for concept in concepts for template in templates]
        embeds = self.embed_text(texts).unflatten(0, (len(concepts), len(templates)))  # (C, T, D)
        return normalize(embeds.mean(dim=1), dim=-1)

    def embed_regions(self, rows, region_source: str = "image", context: float | None = None) -> torch.Tensor:
        """Embed every box of every row, in their order.

        Args:
            rows: a dataset of rows.
            region_source: what is encoded. `image`: the whole image once, regions pooled from it. `window`:
                for each region the window round it, and the region pooled from that; slower, and better for
                small regions. `crop`: the same window, embedded as an image of its own; all that a stock CLIP
                can do. `both`: the mean of `image` and `crop`, which ranks as the mean of their scores does.
            context: side of the window as a multiple of the longer side of the box; None takes `CONTEXTS`.

        Returns:
            (N, D), unit vectors.

        Raises:
            ValueError: if `region_source` is unknown, `context` is below 1, or the model pools no regions.
        """
        context = resolve_context(region_source, context)
        if region_source == "both":
            parts = [self.embed_regions(rows, source, context) for source in ("image", "crop")]
            return normalize(parts[0] + parts[1], dim=-1)
        if region_source != "crop":
            self._require("embed_regions", 'use region_source="crop"')
        progress = logging.tqdm(rows, desc="regions", total=len(rows), leave=False)
        views = list_views(progress, region_source, context)
        if region_source == "crop":
            images = ([view["image"] for view in batch] for batch in self._take_batches(views))
            return self._collect(self._embed_images(batch) for batch in images)
        return self._collect(self._embed_views(batch) for batch in self._take_batches(views))

    def embed_patches(self, images: Iterable) -> Iterator[torch.Tensor]:
        """Embed the patches of images, batch by batch: the dense map.

        Returns:
            of each batch (B, D, h, w), unit vectors.

        Raises:
            ValueError: if the model has no dense map.
        """
        self._require("get_patch_features", "measure it by tiles")
        for batch in self._take_batches(images):
            with evaluation_mode(self.model):
                features = self.model.get_patch_features(**self._prepare(batch), **self._interpolate())
            yield normalize(features.float(), dim=1).cpu()

    def describe(self) -> dict:
        """Say how embeddings are made, and by which versions: what the protocols of all tasks share."""
        config = self.model.config
        return {
            "image_size": self.image_size,
            "resize": "shorter side, center crop" if self._crops() else "square",
            "dense_mode": getattr(config, "dense_mode", None),
            "activation": config.vision_config.hidden_act,
            "text_length": config.text_config.max_position_embeddings,
            "num_cut_texts": self.num_cut_texts,
            "seed": None,  # nothing is drawn
            "versions": {
                "geoalign_hf": __version__,
                "torch": str(torch.__version__),  # a class of its own, which YAML would spell out
                "transformers": transformers.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def _require(self, method: str, instead: str):
        if not hasattr(self.model, method):
            raise ValueError(
                f"{type(self.model).__name__} has no {method}, so it knows whole images only. "
                f"Make a GeoAlignCLIP of it with geoalign_hf.convert, or {instead}."
            )

    def _crops(self) -> bool:
        return bool(getattr(self.processor.image_processor, "do_center_crop", False))

    def _interpolate(self) -> dict:
        return {} if self.image_size == self.trained_size else {"interpolate_pos_encoding": True}

    def _prepare(self, images: list, **regions) -> dict:
        side = {"height": self.image_size, "width": self.image_size}
        sizes = (
            {"size": {"shortest_edge": self.image_size}, "crop_size": side}
            if self._crops()
            else {"size": side}
        )
        images = [read_image(image) for image in images]
        inputs = self.processor(images=images, return_tensors="pt", **sizes, **regions).to(self.model.device)
        return inputs | {"pixel_values": inputs["pixel_values"].to(self.model.dtype)}

    def _embed_images(self, images: list) -> torch.Tensor:
        inputs = self._prepare(images) | self._interpolate()
        with evaluation_mode(self.model):
            if hasattr(self.model, "embed_images"):
                return self.model.embed_images(**inputs)
            return normalize(_take_pooled(self.model.get_image_features(**inputs)), dim=-1)

    def _embed_views(self, views: list[dict]) -> torch.Tensor:
        inputs = self._prepare([view["image"] for view in views], boxes=[view["boxes"] for view in views])
        with evaluation_mode(self.model):
            return self.model.embed_regions(**inputs, **self._interpolate())[inputs["region_mask"]]

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        tokenizer, longest = self.processor.tokenizer, self.model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        self.num_cut_texts += sum(length > longest for length in lengths)
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        inputs = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        with evaluation_mode(self.model):
            if hasattr(self.model, "embed_text"):
                return self.model.embed_text(**inputs)
            return normalize(_take_pooled(self.model.get_text_features(**inputs)), dim=-1)

    def _collect(self, batches: Iterator[torch.Tensor]) -> torch.Tensor:
        embeds = [batch.float().cpu() for batch in batches]
        return torch.cat(embeds) if embeds else torch.zeros(0, self.model.config.projection_dim)

    def _take_batches(self, items: Iterable) -> Iterator[list]:
        batch = []
        for item in items:
            batch.append(item)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


@contextmanager
def evaluation_mode(model: torch.nn.Module):
    """Switch off dropout and gradients, and leave the model as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _take_pooled(features) -> torch.Tensor:
    """The features as a tensor: transformers 5 wraps them in an output."""
    return getattr(features, "pooler_output", features)
