"""Embedding drift: how far fine-tuning moved the embeddings from where they started."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch

from ..embedding.embedder import Embedder
from ..embedding.templates import check_texts
from .evaluator import Evaluator
from .metrics.drift import measure_coherence, measure_drift


@dataclass(eq=False, repr=False)
class EmbeddingDriftEvaluator(Evaluator):
    """Measure what training may break while the other scores rise.

    The result holds the scores of `measure_coherence`, as means over images. With `start` it also holds those
    of `measure_drift`, prefixed by `image_` and, with `texts`, by `text_`.

    Args:
        images: PIL images or paths.
        texts: texts to compare as well.
        start: model that training started from, with the same processor. None measures only coherence.
        arrays_path: `.npz` file, see `Evaluator`. With `start` it receives the embeddings of both models.

    Raises:
        ValueError: if there are no images, if `arrays_path` is given without `start`, or, when called, if the
            model has no dense map.
    """

    name, primary_metric = "drift", "coherence"
    task = "embedding drift and patch coherence"

    images: Sequence
    texts: Sequence[str] = ()
    _: KW_ONLY
    start: torch.nn.Module | None = None

    def __post_init__(self):
        if len(self.images) == 0:
            raise ValueError("Expected at least one image; found none.")
        check_texts(self.texts, "texts")
        if self.arrays_path is not None and self.start is None:
            raise ValueError("arrays_path needs start: without it no embeddings are compared or saved.")

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        measured, counts = [], []
        for patch_embeds in embedder.embed_patches(self.images):
            measured.append(measure_coherence(patch_embeds.numpy()))
            counts.append(len(patch_embeds))
        scores = {
            name: float(np.average([numbers[name] for numbers in measured], weights=counts))
            for name in measured[0]
        }
        if self.start is not None:
            other = Embedder(
                self.start,
                embedder.processor,
                embedder.image_size,
                embedder.batch_size,
                embedder.image_options,
            )
            pairs = {"image": (embedder.embed_images(self.images), other.embed_images(self.images))}
            if self.texts:
                pairs["text"] = (embedder.embed_text(self.texts), other.embed_text(self.texts))
            for kind, (embeds, start_embeds) in pairs.items():
                drift = measure_drift(embeds.numpy(), start_embeds.numpy())
                scores |= {f"{kind}_{name}": number for name, number in drift.items()}
            arrays = {f"{kind}s": embeds for kind, (embeds, _) in pairs.items()}
            self._save(**arrays, **{f"start_{kind}s": start for kind, (_, start) in pairs.items()})
        return scores | {"num_images": len(self.images), "num_texts": len(self.texts)}, {}
