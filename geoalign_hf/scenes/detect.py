"""Detects objects in a scene: proposals, or a grid of windows, get a label and a score."""

import geopandas
import numpy as np
import shapely
import torch
from transformers.utils import logging

from ..detection.detector import Detector
from ..detection.overlap import measure_polygon_ious
from ..model.detection_geoalign_clip import choose_detections, list_windows
from .reader import Scene
from .regions import embed_scene_regions

CHUNK = 4096  # proposals that are embedded together; then only those above the threshold are kept
NEW_COLUMNS = ("label", "score", "valid_ground")


def detect_in_scene(
    detector: Detector,
    scene: Scene,
    proposals: geopandas.GeoDataFrame | None = None,
    context: float | None = None,
) -> geopandas.GeoDataFrame:
    """Detect objects in a scene.

    Pixels and embeddings are held for a part of the proposals at a time, outlines for all of them.

    Args:
        detector: a detector with a GeoAlignCLIP model.
        scene: the scene.
        proposals: polygons as `read_regions` gives them; a column `objectness` holds numbers from 0 to 1.
            None takes the windows of a grid, with `sides` and `overlap` of the detector's options.
        context: side of a window as a multiple of the region's longer side, see `embed_scene_regions`.

    Returns:
        The detections, best first, in the scene's reference system: columns of their proposals, `label`,
        `score` and `valid_ground`, the part of the region that is valid ground. A region without valid ground
        is never detected.

    Raises:
        ValueError: if the options ask for peaks or for a grid without `sides`, or an objectness is not a
            number from 0 to 1.
    """
    options = detector.options
    if proposals is None:
        if options.proposer != "grid":
            raise ValueError(
                f"proposer is {options.proposer!r}, but a scene is read in windows, so there is no dense map "
                "to find peaks in. Use 'grid', or give proposals."
            )
        if options.sides is None:
            raise ValueError(
                "sides is None, but no side fits all scenes. Give the sides of the grid's windows in pixels "
                f"of {scene.path}, such as those of the objects (--sides 30 60), or give proposals."
            )
        windows = list_windows((scene.width, scene.height), options.sides, options.overlap).numpy()
        outlines = [scene.to_ground(box) for box in shapely.box(*windows.T)]
        proposals = geopandas.GeoDataFrame(geometry=outlines, crs=scene.crs)
    if proposals.empty:
        return proposals.assign(label=np.array([], str), score=np.array([]), valid_ground=np.array([]))
    objectness = _read_objectness(proposals)
    parts = []
    for start in logging.tqdm(range(0, len(proposals), CHUNK), desc="parts"):
        chosen = slice(start, start + CHUNK)
        embeds, valid_ground = embed_scene_regions(
            detector.embedder, scene, proposals.geometry[chosen], context
        )
        scores = detector.score(embeds @ detector.word_embeds.T * detector.scale, objectness[chosen])
        scores[torch.from_numpy(valid_ground == 0)] = -1  # below every threshold
        kept = (scores >= options.threshold).any(dim=1).numpy()
        parts.append((np.flatnonzero(kept) + start, scores[kept], valid_ground[kept]))
    numbers, scores, valid_ground = (list(part) for part in zip(*parts, strict=True))
    candidates = proposals.iloc[np.concatenate(numbers)]
    scores = torch.cat(scores)
    polygons = np.array([scene.to_pixels(geometry) for geometry in candidates.geometry], dtype=object)
    found, labels = choose_detections(
        torch.arange(len(polygons)),
        scores,
        options.threshold,
        options.max_iou,
        options.top_k,
        lambda first, second: measure_polygon_ious(polygons[first.numpy()], polygons[second.numpy()]),
    )
    return candidates.iloc[found.numpy()].assign(
        label=[detector.vocabulary.labels[number] for number in labels],
        score=scores[found, labels].numpy(),
        valid_ground=np.concatenate(valid_ground)[found.numpy()],
    )


def _read_objectness(proposals: geopandas.GeoDataFrame) -> torch.Tensor:
    """Return the objectness of each proposal, 1 where the file has none."""
    if "objectness" not in proposals:
        return torch.ones(len(proposals))
    column = proposals["objectness"]
    values = np.array([value if isinstance(value, (int, float)) else np.nan for value in column])
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        number = int(wrong.argmax())
        raise ValueError(
            f"the feature {number} has the objectness {column.iloc[number]!r}; expected a number from 0 to 1."
        )
    return torch.from_numpy(values).float()
