"""Names regions of a scene: features of a vector file get a concept and its score."""

from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import shapely
import torch
from affine import Affine
from PIL import Image
from rasterio.features import geometry_mask
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry
from transformers.utils import logging

from ..detection.proposals import read_proposals
from ..embedding.embedder import Embedder
from ..model.views_geoalign_clip import find_window
from ..readers.coco import read_coco
from ..storage import name_partial
from .reader import Scene, read_ahead

MOST_PIXELS = 4  # sides of the model's input that a window is read with at most; GDAL shrinks larger ones
DRIVERS = {".geojson": "GeoJSON", ".json": "GeoJSON", ".gpkg": "GPKG"}


def read_regions(path: str | Path, scene: Scene, buffer: float | None = None) -> geopandas.GeoDataFrame:
    """Read regions and bring them into a scene's reference system.

    Args:
        path: a vector file that geopandas opens (GeoJSON, GeoPackage, ...), or a .json file in COCO's format
            of annotations or results whose boxes are pixels of the scene's own file. Results name it as
            `image_id`, and their scores become the column `objectness`.
        scene: the scene.
        buffer: radius in metres of the disc that a point or a line becomes.

    Returns:
        The features with all their columns, as polygons in the scene's reference system.

    Raises:
        ValueError: if there are no features, the file has no reference system, a geometry is empty, or all
            regions lie outside the scene. Points without `buffer`, and a `buffer` of 0 or less, are also
            refused.
    """
    path = Path(path)
    if buffer is not None and not buffer > 0:
        raise ValueError(f"buffer is {buffer}; expected a radius above 0 in metres.")
    read_pixels = read_coco_regions if is_coco(path) else read_result_regions if is_results(path) else None
    if read_pixels:
        frame = read_pixels(path, scene)
        if not len(frame):
            raise ValueError(f"{path} has no boxes of {Path(scene.path).name}. Give the file of this scene.")
        return frame
    regions = place_features(read_features(path), path, scene, buffer)
    if not regions.intersects(scene.outline).any():
        found, extent = (_describe_extent(bounds) for bounds in (regions.total_bounds, scene.outline.bounds))
        raise ValueError(
            f"All regions of {path} lie outside {scene.path}: they are at {found}, the scene is at {extent} "
            f"in {scene.crs}. Check the reference system of both files."
        )
    return regions


def read_features(path: Path) -> geopandas.GeoDataFrame:
    """Read the features of a vector file, in its own reference system. See `read_regions`."""
    try:
        layers = [name for name, kind in pyogrio.list_layers(path) if kind]  # tables have no kind
        frame = geopandas.read_file(path, layer=layers[0] if layers else None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a vector file ({error}). Give GeoJSON or GeoPackage."
        ) from error
    if len(layers) > 1:
        raise ValueError(
            f"{path} has the layers {layers}. Write the layer of the regions to a file of its own: "
            f"ogr2ogr regions.gpkg {path.name} {layers[0]}"
        )
    if not isinstance(frame, geopandas.GeoDataFrame) or len(frame) == 0:
        raise ValueError(f"{path} holds no features. Give at least one.")
    if frame.crs is None:
        raise ValueError(f"{path} has no coordinate reference system. Save it with one.")
    if empty := [i for i, geometry in enumerate(frame.geometry) if geometry is None or geometry.is_empty]:
        raise ValueError(f"{path}: the features {empty[:5]} have no geometry. Remove them.")
    return frame


def place_features(
    frame: geopandas.GeoDataFrame, path: Path, scene: Scene, buffer: float | None = None
) -> geopandas.GeoDataFrame:
    """Bring features into a scene's reference system, points and lines as discs. See `read_regions`.

    Polygons whose sides cross are repaired, since their areas and overlaps cannot be measured.
    """
    is_polygon = frame.geom_type.isin(["Polygon", "MultiPolygon"]).to_numpy()
    if not is_polygon.all():
        if buffer is None:
            kinds = sorted(set(frame.geom_type[~is_polygon]))
            raise ValueError(f"{path} holds {kinds}; points and lines need a buffer in metres (--buffer 20).")
        metric = geopandas.GeoSeries([scene.outline], crs=scene.crs).estimate_utm_crs()
        discs = frame.geometry.to_crs(metric).buffer(buffer).to_crs(frame.crs)
        frame = frame.set_geometry(discs.where(~is_polygon, frame.geometry))
    repaired = frame.geometry.make_valid(method="structure", keep_collapsed=False)
    frame = frame.set_geometry(frame.geometry.where(frame.is_valid, repaired))
    if flat := [i for i, geometry in enumerate(frame.geometry) if geometry.area == 0]:
        raise ValueError(f"{path}: the features {flat[:5]} have no area. Remove them.")
    return frame.to_crs(scene.crs)


def is_coco(path: Path) -> bool:
    """Check whether a .json file is a COCO detection file and not GeoJSON."""
    if path.suffix.lower() != ".json":
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(65536)
    return '"annotations"' in start or '"images"' in start


def is_results(path: Path) -> bool:
    """Check whether a .json file is a list, as COCO's results are."""
    if path.suffix.lower() != ".json":
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(64).lstrip().startswith("[")


def read_result_regions(path: Path, scene: Scene) -> geopandas.GeoDataFrame:
    """Read the boxes of a list of COCO results of a scene's own file. See `read_regions`."""
    name = Path(scene.path).name
    proposals = read_proposals(path, [name])[name]
    polygons = [scene.to_ground(shapely.box(*box)) for box in proposals.boxes.tolist()]
    return geopandas.GeoDataFrame(
        {"objectness": np.asarray(proposals.objectness)}, geometry=polygons, crs=scene.crs
    )


def read_coco_regions(path: Path, scene: Scene) -> geopandas.GeoDataFrame:
    """Read the boxes that a COCO file has of a scene's own file; there may be none. See `read_regions`."""
    rows = [row for row in read_coco(path, Path(scene.path).parent) if row["source"] == Path(scene.path).name]
    corners = [
        row["quads"][r] if row["quads"] else [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        for row in rows
        for r, (x0, y0, x1, y1) in enumerate(row["boxes"])
    ]
    polygons = [scene.to_ground(shapely.Polygon(quad)) for quad in corners]
    annotated = [concept for row in rows for concept in row["concepts"]]
    return geopandas.GeoDataFrame({"annotated": annotated}, geometry=polygons, crs=scene.crs)


def embed_scene_regions(
    embedder: Embedder, scene: Scene, geometries: Iterable, context: float | None = None
) -> tuple[torch.Tensor, np.ndarray]:
    """Embed polygons of a scene, each in a square window around it.

    Only valid ground inside the polygon is pooled.

    Args:
        embedder: a GeoAlignCLIP model and its processor.
        scene: the scene.
        geometries: N polygons in the scene's reference system.
        context: side of the window as a multiple of the longer side of the polygon's box. None takes the
            context that the model was trained for, or else that of windows (`Embedder.embed_regions`).

    Returns:
        (N, D) unit vectors, zero for a region without valid ground; and (N,), the part of each region that is
        valid ground, in [0, 1].
    """
    shares, total = [], len(geometries) if isinstance(geometries, Sized) else None
    (side,), size = embedder.resolve_view("window", context)[1], embedder.image_size

    def read_windows() -> Iterator[tuple[Image.Image, np.ndarray]]:
        context = float(side or 1)
        found = read_ahead(lambda geometry: read_region(scene, geometry, context, size), geometries)
        for image, mask, share in logging.tqdm(found, total=total, desc="regions", unit=" regions"):
            shares.append(share)
            if share:
                yield image, mask

    embeds = embedder.embed_masked_regions(read_windows())
    valid_ground = np.array(shares)
    result = torch.zeros(len(shares), embeds.shape[1])
    result[torch.from_numpy(valid_ground > 0)] = embeds
    return result, valid_ground


def read_region(
    scene: Scene, geometry: BaseGeometry, context: float, size: int
) -> tuple[Image.Image, np.ndarray, float]:
    """Read the window around a region.

    Args:
        scene: the scene.
        geometry: polygon in the scene's reference system.
        context: side of the window as a multiple of the longer side of the polygon's box.
        size: side of the result in pixels.

    Returns:
        The window, moved or cut so that it lies inside the scene; the valid ground of the region in it,
        (size, size) bool; and the part of the region that is valid ground, in [0, 1].
    """
    outline = scene.to_pixels(geometry)
    # Rounded, since a window of whole pixels would jump with the noise of a reprojection.
    box = [round(number, 3) for number in outline.bounds]
    left, top, right, bottom = window = find_window(box, (scene.width, scene.height), context)
    width, height = right - left, bottom - top
    shrink = min(1.0, MOST_PIXELS * size / max(width, height))
    ground = scene.read(window, (max(1, round(width * shrink)), max(1, round(height * shrink))))
    image = ground.image.resize((size, size), Image.Resampling.BICUBIC)
    valid = np.asarray(Image.fromarray(ground.valid).resize((size, size), Image.Resampling.NEAREST))
    placed = Affine(width / size, 0, left, 0, height / size, top)  # to pixels of the scene
    # Pixels whose centres are inside; for slivers that hold no centre, all that are touched.
    for all_touched in (False, True):
        inside = geometry_mask([outline], (size, size), placed, all_touched=all_touched, invert=True)
        if inside.any():
            break
    mask = inside & valid
    in_window = shapely.clip_by_rect(outline, left, top, right, bottom).area / outline.area
    return image, mask, float(mask.sum() / max(inside.sum(), 1) * min(in_window, 1.0))


def _describe_extent(bounds: Iterable[float]) -> str:
    west, south, east, north = (f"{number:.6g}" for number in bounds)
    return f"x {west} to {east}, y {south} to {north}"


def check_suffix(path: str | Path) -> str:
    """Return the driver that writes a vector file of this name.

    Raises:
        ValueError: if the suffix is neither .geojson, .json nor .gpkg.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in DRIVERS:
        raise ValueError(f"{path} ends in {suffix!r}; expected one of {sorted(DRIVERS)}.")
    return DRIVERS[suffix]


def check_columns(path: str | Path, columns: Iterable[str]) -> None:
    """Refuse columns that a GeoPackage cannot hold, before the work is done whose result it should store.

    Raises:
        ValueError: if the file is a GeoPackage, and two names differ only in capitals.
    """
    if check_suffix(path) != "GPKG":
        return
    seen: dict[str, str] = {}
    for column in columns:
        if (other := seen.setdefault(column.lower(), column)) != column:
            raise ValueError(
                f"{path} cannot hold the columns {other!r} and {column!r}, since names in a GeoPackage that "
                "differ only in capitals are equal. Write a .geojson, or rename one of them."
            )


def to_wgs84(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Convert polygons to WGS 84. Those across the antimeridian are cut there, as GeoJSON's standard asks."""
    placed = frame.to_crs(4326)
    bounds = placed.bounds
    wide = np.flatnonzero(bounds["maxx"] - bounds["minx"] > 180)
    if not len(wide):
        return placed
    inside = frame.iloc[wide].representative_point().to_crs(4326)
    outlines = placed.geometry.to_list()
    for number, point in zip(wide, inside, strict=True):
        # A corner beyond 180 degrees has become one near -180, and the polygon its own complement.
        if not outlines[number].contains(point):
            outlines[number] = _cut_at_antimeridian(outlines[number])
    return placed.set_geometry(geopandas.GeoSeries(outlines, placed.index, crs=4326))


def _cut_at_antimeridian(outline: BaseGeometry) -> shapely.MultiPolygon:
    turned = shapely.transform(outline, lambda points: np.column_stack([points[:, 0] % 360, points[:, 1]]))
    east = turned.intersection(shapely.box(0, -90, 180, 90))
    west = translate(turned.intersection(shapely.box(180, -90, 360, 90)), -360)
    return shapely.MultiPolygon([*shapely.get_parts(east), *shapely.get_parts(west)])


def find_center(outline: BaseGeometry) -> shapely.Point:
    """Find the centre of the largest part of an outline. One across the antimeridian has two parts."""
    return max(shapely.get_parts(outline), key=shapely.area).centroid


def write_regions(regions: geopandas.GeoDataFrame, path: str | Path) -> None:
    """Write features as GeoJSON (in WGS 84, as its standard asks) or GeoPackage (in their own system).

    Raises:
        ValueError: see `check_suffix`.
    """
    path, driver = Path(path), check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = name_partial(path).with_suffix(path.suffix)
    partial.unlink(missing_ok=True)
    placed = to_wgs84(regions) if driver == "GeoJSON" else regions
    # Names of files may not be names of layers, and names of features' columns not those of the driver's own.
    own: dict[str, Any] = {}
    if driver == "GPKG":
        own = {"FID": _find_free("fid", regions), "GEOMETRY_NAME": _find_free("geom", regions)}
    placed.to_file(partial, driver=driver, layer="regions", **own)
    partial.replace(path)


def _find_free(name: str, frame: geopandas.GeoDataFrame) -> str:
    taken = {column.lower() for column in frame.columns if column != frame.geometry.name}
    while name in taken:
        name = f"{name}_"
    return name
