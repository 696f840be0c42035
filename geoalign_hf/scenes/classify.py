"""Names for the regions of a georeferenced scene, chosen from given concepts."""

from collections.abc import Sequence

import geopandas
import numpy as np
import torch

from ..embedding.embedder import Embedder
from .reader import Scene
from .regions import embed_scene_regions


def list_columns(concepts: Sequence[str]) -> list[str]:
    """List the columns that `classify_scene_regions` adds."""
    return ["concept", "score", "valid_ground", *(f"score: {concept}" for concept in concepts)]


def classify_scene_regions(
    embedder: Embedder,
    scene: Scene,
    regions: geopandas.GeoDataFrame,
    concepts: Sequence[str],
    templates: Sequence[str],
    context: float | None = None,
) -> geopandas.GeoDataFrame:
    """Name regions of a scene.

    Args:
        embedder: a GeoAlignCLIP model and its processor.
        scene: the scene.
        regions: N polygons, as `read_regions` gives them.
        concepts: C names to choose from.
        templates: sentences with one `{}` for a concept.
        context: side of a window as a multiple of the region's longer side, see `embed_scene_regions`.

    Returns:
        The same features with the columns `concept`, `score` (probability among the concepts) and
        `valid_ground` (the part of the region that is valid ground). For each concept there also is a column
        `score: <concept>`. A region without valid ground has no concept and no scores. Columns of these names
        are replaced.
    """
    concept_embeds = embedder.embed_concepts(concepts, templates)
    region_embeds, valid_ground = embed_scene_regions(embedder, scene, regions.geometry, context)
    with torch.no_grad():
        logits = region_embeds @ concept_embeds.T * embedder.region_scale
    probabilities = logits.softmax(dim=-1).numpy()
    has_ground = valid_ground > 0
    probabilities[~has_ground] = np.nan
    best = np.where(has_ground, np.nan_to_num(probabilities).argmax(axis=1), 0)
    named = regions.copy()
    chosen = [concepts[i] if ok else None for i, ok in zip(best, has_ground, strict=True)]
    values = [chosen, probabilities[np.arange(len(best)), best], valid_ground, *probabilities.T]
    for column, of_column in zip(list_columns(concepts), values, strict=True):
        named[column] = of_column
    return named
