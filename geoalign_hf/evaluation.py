"""A model and rows to a dictionary of metrics. Every result names the protocol that it was made by."""

import numpy as np
import torch
from transformers.utils import logging

from .augment import cut_window
from .concepts import ConceptBank
from .metrics import score_regions
from .model.modeling_geoalign_clip import GeoAlignCLIPModel
from .model.processing_geoalign_clip import CONCEPT_TEMPLATES, GeoAlignCLIPProcessor
from .rows import list_concepts

REGION_SOURCES = ("image", "window")


@torch.no_grad()
def classify_regions(
    model: GeoAlignCLIPModel,
    processor: GeoAlignCLIPProcessor,
    rows,
    concepts: list[str] | None = None,
    templates: tuple[str, ...] = CONCEPT_TEMPLATES,
    region_source: str = "image",
    context: float = 3.0,
    image_size: int | None = None,
    batch_size: int = 16,
) -> dict:
    """Name the concept of every ground-truth box and score it.

    Args:
        model: ours, or one wrapped by an adapter; it is put into evaluation mode and back.
        processor: of that model.
        rows: a dataset of rows.
        concepts: to choose from; None takes those that occur in the rows.
        templates: sentences that word a concept.
        region_source: what is encoded. `image`: the whole image once, regions pooled from it. `window`: for
            each region the window round it, and the region pooled from that; slower, and better for small
            regions.
        context: side of the window as a multiple of the longer side of the box.
        image_size: side of `pixel_values`; None takes the model's own. Another one interpolates its
            positions.
        batch_size: images or windows per forward pass.

    Returns:
        The scores of `score_regions` by size too, and `protocol`.

    Raises:
        ValueError: if `region_source` is unknown, `context` is below 1, or a row has a concept that is not
            among `concepts`.
    """
    if region_source not in REGION_SOURCES:
        raise ValueError(f"region_source is {region_source!r}; it must be one of {REGION_SOURCES}.")
    if context < 1:
        raise ValueError(
            f"context is {context}; it must be at least 1, or windows would cut into their boxes."
        )
    concepts = list_concepts(rows) if concepts is None else concepts
    trained_size = model.config.vision_config.image_size
    image_size = image_size or trained_size
    if unknown := sorted(set(list_concepts(rows)) - set(concepts)):
        raise ValueError(f"the rows hold the concepts {unknown}, which are not among {concepts}.")
    options = {"return_tensors": "pt", "size": {"height": image_size, "width": image_size}}
    interpolate = {} if image_size == trained_size else {"interpolate_pos_encoding": True}
    predictions, references, areas = [], [], []
    was_training = model.training
    model.eval()
    try:
        concept_embeds = ConceptBank.build(model, processor, concepts, templates).embeds.to(model.device)
        for batch in _take_batches(_list_views(rows, region_source, context), batch_size):
            images, boxes = [view["image"] for view in batch], [view["boxes"] for view in batch]
            inputs = processor(images=images, boxes=boxes, **options).to(model.device)
            region_embeds = model(**inputs, **interpolate).region_embeds[inputs["region_mask"]].float()
            predictions += (region_embeds @ concept_embeds.T).argmax(dim=-1).tolist()
            for view in batch:
                references += [concepts.index(concept) for concept in view["concepts"]]
                areas += view["areas"]
    finally:
        model.train(was_training)
    scores = score_regions(np.array(predictions), np.array(references), concepts, np.array(areas))
    protocol = {
        "task": "region classification from ground-truth boxes",
        "region_source": region_source,
        "context": context if region_source == "window" else None,
        "image_size": image_size,
        "dense_mode": model.config.dense_mode,
        "templates": list(templates),
        "concepts": list(concepts),
        "num_images": len(rows),
    }
    return scores | {"protocol": protocol}


def _list_views(rows, region_source: str, context: float):
    """Yield what is encoded at once: an image with all its regions, or a window with its one."""
    progress = logging.tqdm(rows, desc="regions", total=len(rows), leave=False)
    for row in progress:
        if not row["boxes"]:
            continue
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in row["boxes"]]
        if region_source == "image":
            yield {name: row[name] for name in ("image", "boxes", "concepts")} | {"areas": areas}
            continue
        for box, concept, area in zip(row["boxes"], row["concepts"], areas, strict=True):
            region = {"image": row["image"], "boxes": [box], "phrases": [concept], "concepts": [concept]}
            window = _find_window(box, row["image"].size, context)
            # However little of the box is inside the image, it is this region that is asked for.
            yield cut_window(region, window, min_visible=0.0) | {"areas": [area]}


def _find_window(box: list[float], size: tuple[int, int], context: float) -> tuple[int, int, int, int]:
    """Choose a square round the box, moved or cut so that it lies inside the image."""
    x0, y0, x1, y1 = box
    side = context * max(x1 - x0, y1 - y0)
    window = []
    for low, high, length in ((x0, x1, size[0]), (y0, y1, size[1])):
        extent = min(side, length)
        start = min(max((low + high - extent) / 2, 0), length - extent)
        window.append((int(start), min(length, int(np.ceil(start + extent)))))
    (left, right), (top, bottom) = window
    return left, top, right, bottom


def _take_batches(items, batch_size: int):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
