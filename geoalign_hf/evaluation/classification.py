"""A model and data to a dictionary of scores. Every result names the protocol that it was made by.

Here are the tasks that choose among words: concepts of regions and scenes, phrases, statements; and the
guards that tell whether training has broken something else. Retrieval and maps have files of their own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import ProcessorMixin

from ..captioning.grammar import spell_concept
from ..data.schema import list_concepts
from ..data.views import resolve_context
from ..embedding.embedder import Embedder
from ..embedding.templates import resolve_templates
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES
from .metrics.scores import count_confusions, rank_concepts, score_concepts, score_regions
from .results import save_arrays


def classify_regions(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    rows,
    concepts: list[str] | None = None,
    templates: str | tuple[str, ...] = CONCEPT_TEMPLATES,
    region_source: str = "image",
    context: float | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Name the concept of every ground-truth box and score it.

    Args:
        model: ours, one wrapped by an adapter, or with `region_source="crop"` a stock CLIP.
        processor: of that model.
        rows: a dataset of rows.
        concepts: to choose from; None takes those that occur in the rows.
        templates: sentences that word a concept, or the name of a set of them.
        region_source: what is encoded, see `Embedder.embed_regions`.
        context: side of windows and crops as a multiple of the longer side of the box; None takes the usual.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images or windows per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_regions`, by size too; `confusion`, counts with a row per right concept and a
        column per answer, in the order of `protocol["concepts"]`; and `protocol`.

    Raises:
        ValueError: if `region_source` is unknown, `context` is below 1, there are no regions, or a row has a
            concept that is not among `concepts`.
    """
    context, templates = resolve_context(region_source, context), resolve_templates(templates)
    concepts = list_concepts(rows) if concepts is None else concepts
    if unknown := sorted(set(list_concepts(rows)) - set(concepts)):
        raise ValueError(f"the rows hold the concepts {unknown}, which are not among {concepts}.")
    embedder = Embedder(model, processor, image_size, batch_size)
    concept_embeds = embedder.embed_concepts(concepts, templates)
    region_embeds = embedder.embed_regions(rows, region_source, context)
    references = np.array([concepts.index(name) for names in rows["concepts"] for name in names], dtype=int)
    areas = np.array([(x1 - x0) * (y1 - y0) for boxes in rows["boxes"] for x0, y0, x1, y1 in boxes])
    save_arrays(
        embeds_path, regions=region_embeds, concepts=concept_embeds, references=references, areas=areas
    )
    predictions = rank_concepts((region_embeds @ concept_embeds.T).numpy())
    protocol = {
        "task": "region classification from ground-truth boxes",
        "region_source": region_source,
        "context": context,
        "templates": list(templates),
        "concepts": list(concepts),
        "num_images": len(rows),
    }
    scores = score_regions(predictions, references, concepts, areas)
    scores["confusion"] = count_confusions(predictions, references, len(concepts)).tolist()
    return scores | {"protocol": protocol | embedder.describe()}


def classify_scenes(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    images: Sequence,
    names: Sequence[str],
    concepts: list[str] | None = None,
    templates: str | tuple[str, ...] = CONCEPT_TEMPLATES,
    renamed: dict[str, str] | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    embeds_path: str | Path | None = None,
) -> dict:
    """Name the concept of every image and score it, without having been trained on it.

    Args:
        model: ours, one wrapped by an adapter, or a stock CLIP.
        processor: of that model.
        images: PIL images or paths; also a column of a dataset.
        names: of each image the name of its concept, as the data set writes it.
        concepts: names to choose from; None takes those that occur.
        templates: sentences that word a concept, or the name of a set of them.
        renamed: names of the data set that are to be worded otherwise; the others are worded as
            `spell_concept` says.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: images per forward pass.
        embeds_path: an npz file to write the embeddings to that the scores are made of.

    Returns:
        The scores of `score_concepts`; `confusion` as of `classify_regions`; and `protocol`.

    Raises:
        ValueError: if images and names differ in number, or a name is not among `concepts`.
    """
    if len(images) != len(names):
        raise ValueError(f"there are {len(images)} images, but {len(names)} names. Give one name per image.")
    templates, renamed = resolve_templates(templates), renamed or {}
    concepts = sorted(set(names)) if concepts is None else concepts
    if unknown := sorted(set(names) - set(concepts)):
        raise ValueError(f"the images have the concepts {unknown}, which are not among {concepts}.")
    words = [renamed.get(name, spell_concept(name)) for name in concepts]
    embedder = Embedder(model, processor, image_size, batch_size)
    concept_embeds = embedder.embed_concepts(words, templates)
    image_embeds = embedder.embed_images(images, "scenes")
    references = np.array([concepts.index(name) for name in names], dtype=int)
    save_arrays(embeds_path, images=image_embeds, concepts=concept_embeds, references=references)
    predictions = rank_concepts((image_embeds @ concept_embeds.T).numpy())
    protocol = {
        "task": "zero-shot scene classification",
        "templates": list(templates),
        "concepts": words,
        "renamed": {name: word for name, word in zip(concepts, words, strict=True) if name != word},
    }
    scores = score_concepts(predictions, references, words)
    scores["confusion"] = count_confusions(predictions, references, len(words)).tolist()
    return scores | {"protocol": protocol | embedder.describe()}
