"""Hard negatives: is a region more similar to its own phrase than to the wrong ones?"""

from pathlib import Path

import numpy as np
import torch
from transformers import ProcessorMixin

from ..data.views import resolve_context
from ..embedding.embedder import Embedder
from .metrics.scores import score_hard_negatives
from .results import save_arrays


def evaluate_phrase_choice(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    rows,
    region_source: str = "image",
    context: float | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Tell the phrase of every region from its hard negatives.

    Args:
        model: ours, one wrapped by an adapter, or with `region_source="crop"` a stock CLIP.
        processor: of that model.
        rows: a dataset of rows with `hard_negatives`, and `negative_kinds` if it is known what they change.
        region_source: what is encoded, see `Embedder.embed_regions`.
        context: side of windows and crops as a multiple of the longer side of the box; None takes the usual.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images or windows per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_hard_negatives`; `blind_accuracy` and `blind_per_kind`, what the same texts score
        against the mean of all regions, so what can be told from the words alone; and `protocol`.

    Raises:
        ValueError: if `region_source` is unknown, or no region has a hard negative.
    """
    context = resolve_context(region_source, context)
    embedder = Embedder(model, processor, image_size, batch_size)
    phrases = [phrase for of_row in rows["phrases"] for phrase in of_row]
    negatives = list_negatives(rows, "hard_negatives")
    kinds = list_negatives(rows, "negative_kinds") if "negative_kinds" in rows.column_names else None
    if kinds is not None:  # of rows without kinds
        kinds = [of_one or ["unknown"] * len(texts) for of_one, texts in zip(kinds, negatives, strict=True)]
    region_embeds = embedder.embed_regions(rows, region_source, context)
    texts = [*phrases, *(text for of_one in negatives for text in of_one)]
    text_embeds = embedder.embed_text(texts) if texts else region_embeds
    owners = [*range(len(phrases)), *(i for i, of_one in enumerate(negatives) for _ in of_one)]
    save_arrays(
        embeds_path,
        regions=region_embeds,
        texts=text_embeds,
        owners=np.array(owners),
        phrases=np.array(texts),
    )
    ends = len(phrases) + np.cumsum([len(of_one) for of_one in negatives])

    def score(embeds: torch.Tensor) -> dict:
        cosines = (embeds[owners] * text_embeds).sum(dim=-1).numpy()
        against = np.split(cosines, [len(phrases), *ends[:-1]])[1:] if len(phrases) else []
        return score_hard_negatives(cosines[: len(phrases)], against, kinds)

    scores = score(region_embeds)
    mean_embed = torch.nn.functional.normalize(region_embeds.mean(dim=0, keepdim=True), dim=-1)
    blind = score(mean_embed.expand_as(region_embeds))
    scores |= {"blind_accuracy": blind["accuracy"], "blind_per_kind": blind["per_kind"]}
    protocol = {
        "task": "a phrase against its hard negatives",
        "region_source": region_source,
        "context": context,
        "num_images": len(rows),
    }
    return scores | {"protocol": protocol | embedder.describe()}


def list_negatives(rows, column: str) -> list[list[str]]:
    """Give each region's list in a column that may be empty for a whole row."""
    pairs = zip(rows["boxes"], rows[column], strict=True)
    return [texts for boxes, of_row in pairs for texts in (of_row or [[]] * len(boxes))]
