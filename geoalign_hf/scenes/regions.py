"""Names regions of a scene: features of a vector file get a concept and its score."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import geopandas
import numpy as np
import shapely
import torch
from affine import Affine
from PIL import Image
from rasterio.features import geometry_mask
from transformers.utils import logging

from ..embedding.embedder import Embedder
from ..readers.coco import read_coco
from ..storage import name_partial
from .reader import Scene

DRIVERS = {".geojson": "GeoJSON", ".json": "GeoJSON", ".gpkg": "GPKG"}


def read_regions(path: str | Path, scene: Scene, buffer: float | None = None) -> geopandas.GeoDataFrame:
    """Read regions and bring them into a scene's reference system.

    Args:
        path: a vector file that geopandas opens (GeoJSON, GeoPackage, ...), or a COCO .json file whose boxes
            are pixels of the scene's own file.
        scene: the scene.
        buffer: radius in metres of the disc that a point or a line becomes.

    Returns:
        The features with all their columns, as polygons in the scene's reference system.

    Raises:
        ValueError: if there are no features, the file has no reference system, a geometry is empty, or points
            are given without `buffer`.
    """
    path = Path(path)
    if is_coco(path):
        return _read_coco_regions(path, scene)
    try:
        frame = geopandas.read_file(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a vector file ({error}). Give GeoJSON or GeoPackage."
        ) from error
    if len(frame) == 0:
        raise ValueError(f"{path} holds no features. Give at least one.")
    if frame.crs is None:
        raise ValueError(f"{path} has no coordinate reference system. Save it with one.")
    if empty := [i for i, geometry in enumerate(frame.geometry) if geometry is None or geometry.is_empty]:
        raise ValueError(f"{path}: the features {empty[:5]} have no geometry. Remove them.")
    if not frame.geom_type.isin(["Polygon", "MultiPolygon"]).all():
        if buffer is None:
            kinds = sorted(set(frame.geom_type))
            raise ValueError(f"{path} holds {kinds}; points and lines need a buffer in metres (--buffer 20).")
        metric = frame.to_crs(frame.estimate_utm_crs())
        frame = metric.set_geometry(metric.buffer(buffer))
    return frame.to_crs(scene.crs)


def is_coco(path: Path) -> bool:
    """Check whether a .json file is a COCO detection file and not GeoJSON."""
    if path.suffix.lower() != ".json":
        return False
    start = path.read_text(encoding="utf-8", errors="replace")[:65536]
    return '"annotations"' in start or '"images"' in start


def _read_coco_regions(path: Path, scene: Scene) -> geopandas.GeoDataFrame:
    rows = [row for row in read_coco(path, Path(scene.path).parent) if row["source"] == Path(scene.path).name]
    corners = [
        row["quads"][r] if row["quads"] else [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        for row in rows
        for r, (x0, y0, x1, y1) in enumerate(row["boxes"])
    ]
    if not corners:
        raise ValueError(f"{path} has no boxes of {Path(scene.path).name}. Give the file of this scene.")
    polygons = [shapely.Polygon([scene.transform * tuple(corner) for corner in quad]) for quad in corners]
    annotated = [concept for row in rows for concept in row["concepts"]]
    return geopandas.GeoDataFrame({"annotated": annotated}, geometry=polygons, crs=scene.crs)


def embed_scene_regions(
    embedder: Embedder, scene: Scene, geometries: Iterable, context: float = 1.6
) -> tuple[torch.Tensor, np.ndarray]:
    """Embed polygons of a scene, each in a square window around it.

    Only valid ground inside the polygon is pooled.

    Args:
        embedder: a GeoAlignCLIP model and its processor.
        scene: the scene.
        geometries: N polygons in the scene's reference system.
        context: side of the window as a multiple of the longer side of the polygon's box.

    Returns:
        (N, D) unit vectors, zero for a region without valid ground; and (N,), the part of each region that is
        valid ground, in [0, 1].
    """
    geometries, size, shares = list(geometries), embedder.image_size, []

    def read_windows() -> Iterator[tuple[Image.Image, np.ndarray]]:
        for geometry in logging.tqdm(geometries, desc="regions", unit=" regions"):
            outline = shapely.transform(geometry, lambda points: np.column_stack(scene.to_pixels(*points.T)))
            x0, y0, x1, y1 = outline.bounds
            side = max(context * max(x1 - x0, y1 - y0), 1.0)
            left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
            ground = scene.read((left, top, left + side, top + side), (size, size))
            placed = Affine.translation(left, top) * Affine.scale(side / size)  # window to scene, in pixels
            inside = geometry_mask([outline], (size, size), placed, all_touched=True, invert=True)
            shares.append(float((inside & ground.valid).sum() / max(inside.sum(), 1)))
            if shares[-1]:
                yield ground.image, inside & ground.valid

    embeds = embedder.embed_masked_regions(read_windows())
    valid_ground = np.array(shares)
    result = torch.zeros(len(geometries), embeds.shape[1])
    result[torch.from_numpy(valid_ground > 0)] = embeds
    return result, valid_ground


def classify_scene_regions(
    embedder: Embedder,
    scene: Scene,
    regions: geopandas.GeoDataFrame,
    concepts: Sequence[str],
    templates: Sequence[str],
    context: float = 1.6,
) -> geopandas.GeoDataFrame:
    """Name regions of a scene.

    Args:
        embedder: a GeoAlignCLIP model and its processor.
        scene: the scene.
        regions: as `read_regions` gives them.
        concepts: C names to choose from.
        templates: sentences with one `{}` for a concept.
        context: side of the window around a region as a multiple of the longer side of its box.

    Returns:
        The same features with the columns `concept`, `score` (probability among the concepts), `valid_ground`
        (the part of the region that is valid ground) and one column `score: <concept>` for each concept. A
        region without valid ground has no concept and no scores.
    """
    region_embeds, valid_ground = embed_scene_regions(embedder, scene, regions.geometry, context)
    concept_embeds = embedder.embed_concepts(concepts, templates)
    with torch.no_grad():
        logits = region_embeds @ concept_embeds.T * embedder.model.region_scale().float().cpu()
    probabilities = logits.softmax(dim=-1).numpy()
    has_ground = valid_ground > 0
    probabilities[~has_ground] = np.nan
    best = np.where(has_ground, np.nan_to_num(probabilities).argmax(axis=1), 0)
    named = regions.copy()
    named["concept"] = [concepts[i] if ok else None for i, ok in zip(best, has_ground, strict=True)]
    named["score"] = probabilities[np.arange(len(best)), best]
    named["valid_ground"] = valid_ground
    for c, concept in enumerate(concepts):
        named[f"score: {concept}"] = probabilities[:, c]
    return named


def write_regions(regions: geopandas.GeoDataFrame, path: str | Path) -> None:
    """Write features as GeoJSON (in WGS 84, as its standard asks) or GeoPackage (in their own system).

    Raises:
        ValueError: if the suffix is neither .geojson, .json nor .gpkg.
    """
    path = Path(path)
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise ValueError(f"{path} ends in {path.suffix!r}; expected one of {sorted(DRIVERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = name_partial(path).with_suffix(path.suffix)
    partial.unlink(missing_ok=True)
    (regions.to_crs(4326) if driver == "GeoJSON" else regions).to_file(partial, driver=driver)
    partial.replace(path)
