"""Embedding drift: how far fine-tuning moved the embeddings from where they started."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import ProcessorMixin

from ..embedding.embedder import Embedder
from .metrics.scores import measure_coherence, measure_drift


def guard_embeddings(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    images: Sequence,
    texts: Sequence[str] = (),
    start: torch.nn.Module | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
) -> dict:
    """Measure what training may break while the scores above rise.

    Args:
        model: ours, or one wrapped by an adapter.
        processor: of that model, and of `start`.
        images: PIL images or paths.
        texts: to embed as well.
        start: the model that training started from; None measures coherence alone.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images per forward pass.

    Returns:
        The numbers of `measure_coherence`, means over images; with `start` those of `measure_drift`, prefixed
        by `image_` and, with `texts`, `text_`; and `protocol`.

    Raises:
        ValueError: if there are no images, or the model has no dense map.
    """
    if len(images) == 0:
        raise ValueError("there are no images to measure. Give at least one.")
    embedder = Embedder(model, processor, image_size, batch_size)
    measured, counts = [], []
    for patch_embeds in embedder.embed_patches(images):
        measured.append(measure_coherence(patch_embeds.numpy()))
        counts.append(len(patch_embeds))
    scores = {
        name: float(np.average([numbers[name] for numbers in measured], weights=counts))
        for name in measured[0]
    }
    if start is not None:
        other = Embedder(start, processor, image_size, batch_size)
        pairs = {"image": (embedder.embed_images(images), other.embed_images(images))}
        if texts:
            pairs["text"] = (embedder.embed_text(texts), other.embed_text(texts))
        for kind, (embeds, start_embeds) in pairs.items():
            drift = measure_drift(embeds.numpy(), start_embeds.numpy())
            scores |= {f"{kind}_{name}": number for name, number in drift.items()}
    counts = {"num_images": len(images), "num_texts": len(texts)}
    return scores | counts | {"protocol": {"task": "guards of the embeddings"} | embedder.describe()}
