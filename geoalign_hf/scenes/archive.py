"""An archive of scene tiles and regions: one GeoParquet file per scene, searched by text or by image."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import geopandas
import numpy as np
import pandas
import shapely
import torch
from transformers.utils import logging

from ..embedding.embedder import Embedder
from ..embedding.shards import fingerprint_model
from ..storage import name_partial, read_json, sync_folder, write_json
from .reader import Scene
from .regions import embed_scene_regions, read_regions

DESCRIPTION = "scenes.json"


def list_windows(scene: Scene, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """List square windows that cover a scene: xyxy in pixels. The last ones end at the scene's edges."""
    step = max(1, round(side * (1 - overlap)))

    def list_starts(length: int) -> list[int]:
        last = max(length - side, 0)
        return sorted({*range(0, last, step), last})

    return [(x, y, x + side, y + side) for y in list_starts(scene.height) for x in list_starts(scene.width)]


def embed_scene(
    embedder: Embedder,
    scene: Scene,
    tile_side: int,
    overlap: float = 0.0,
    regions: geopandas.GeoDataFrame | None = None,
) -> geopandas.GeoDataFrame:
    """Embed the tiles of a scene, and regions of it.

    Args:
        embedder: a model and its processor.
        scene: the scene.
        tile_side: side of a tile, in pixels of the scene.
        overlap: part of a tile's side that it shares with the next one, in [0, 1).
        regions: as `read_regions` gives them.

    Returns:
        One feature per tile and region that has valid ground: `scene`, `kind` ("tile" or "region"),
        `valid_ground` (the part of it that is), `embed` (a unit vector) and its outline in WGS 84.
    """
    size, kept, shares = embedder.image_size, [], []
    windows = list_windows(scene, tile_side, overlap)

    def read_tiles() -> Iterator:
        for window in logging.tqdm(windows, desc=f"tiles of {Path(scene.path).name}", unit=" tiles"):
            ground = scene.read(window, (size, size))
            if ground.valid.any():
                kept.append(window)
                shares.append(float(ground.valid.mean()))
                yield ground.image

    embeds = embedder.embed_images(read_tiles())
    outlines = [shapely.box(*window) for window in kept]
    to_ground = lambda points: np.column_stack(scene.transform * tuple(points.T))  # noqa: E731
    frames = [_make_frame(scene, "tile", [shapely.transform(o, to_ground) for o in outlines], shares, embeds)]
    if regions is not None:
        embeds, valid_ground = embed_scene_regions(embedder, scene, regions.geometry)
        chosen = valid_ground > 0
        outlines = regions.geometry[chosen]
        frames.append(_make_frame(scene, "region", outlines, valid_ground[chosen], embeds[chosen]))
    return pandas.concat(frames, ignore_index=True)


def _make_frame(
    scene: Scene, kind: str, outlines: Iterable, shares: Iterable[float], embeds: torch.Tensor
) -> geopandas.GeoDataFrame:
    columns = {
        "scene": str(scene.path),
        "kind": kind,
        "valid_ground": list(shares),
        "embed": list(embeds.numpy()),
    }
    return geopandas.GeoDataFrame(columns, geometry=list(outlines), crs=scene.crs).to_crs(4326)


def embed_scenes(
    embedder: Embedder,
    paths: Sequence[str | Path],
    output: str | Path,
    tile_side: int,
    overlap: float = 0.0,
    bands: tuple[int, ...] | None = None,
    stretch: tuple[float, float] | None = None,
    regions: str | Path | None = None,
    rank: int = 0,
    num_processes: int = 1,
) -> list[Path]:
    """Embed scenes into an archive; the same call continues one that was interrupted.

    Args:
        embedder: a model and its processor.
        paths: of the scenes. Process `rank` of `num_processes` takes every `num_processes`-th one.
        output: folder of the archive: one GeoParquet file per scene, and `scenes.json`.
        tile_side: side of a tile, in pixels of the scene.
        overlap: part of a tile's side that it shares with the next one, in [0, 1).
        bands: see `Scene`.
        stretch: see `Scene`.
        regions: vector file of regions; a scene gets those that lie in its extent.
        rank: number of this process.
        num_processes: number of processes.

    Returns:
        The files of this process's scenes.

    Raises:
        ValueError: if the folder holds an archive that was made in another way.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    description = {
        "weights": fingerprint_model(embedder.model),
        "protocol": embedder.describe(),
        "tile_side": tile_side,
        "overlap": overlap,
        "bands": list(bands) if bands else None,
        "stretch": list(stretch) if stretch else None,
        "regions": str(regions) if regions else None,
    }
    before = read_json(output / DESCRIPTION) if (output / DESCRIPTION).exists() else None
    if before is not None and before != description:
        changed = sorted(name for name in description if before.get(name) != description[name])
        raise ValueError(f"{output} is an archive of another run: {changed} differ. Give another folder.")
    if before is None and rank == 0:
        write_json(output / DESCRIPTION, description)
    written = []
    for path in sorted(map(Path, paths))[rank::num_processes]:
        name = f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}.parquet"
        target = output / name
        if not target.exists():
            scene = Scene(path, bands, stretch)
            frame = embed_scene(embedder, scene, tile_side, overlap, _list_regions(regions, scene))
            frame.to_parquet(name_partial(target))
            name_partial(target).replace(target)
            sync_folder(output)
        written.append(target)
    return written


def _list_regions(path: str | Path | None, scene: Scene) -> geopandas.GeoDataFrame | None:
    if path is None:
        return None
    regions = read_regions(path, scene)
    corners = [
        scene.transform * corner
        for corner in [(0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height)]
    ]
    return regions[regions.intersects(shapely.Polygon(corners))]


def search_archive(
    archive: str | Path, query_embed: torch.Tensor, top_k: int = 10, kind: str | None = None
) -> geopandas.GeoDataFrame:
    """Find the places of an archive that are most similar to a query.

    Args:
        archive: folder that `embed_scenes` wrote.
        query_embed: (D,), unit vector of the same model.
        top_k: number of places.
        kind: "tile" or "region"; None searches both.

    Returns:
        The places with their `cosine`, the most similar first, in WGS 84.

    Raises:
        ValueError: if the archive holds no files, or nothing of this kind.
    """
    files = sorted(Path(archive).glob("*.parquet"))
    if not files:
        raise ValueError(f"{archive} holds no .parquet files. Give a folder that embed_scenes wrote.")
    best = []
    for file in files:
        frame = geopandas.read_parquet(file)
        frame = frame[frame["kind"] == kind] if kind else frame
        if len(frame):
            cosines = np.stack(frame["embed"]) @ query_embed.numpy()
            order = np.argsort(-cosines, kind="stable")[:top_k]
            best.append(frame.iloc[order].drop(columns="embed").assign(cosine=cosines[order]))
    if not best:
        raise ValueError(f"{archive} holds nothing of the kind {kind!r}; kinds are 'tile' and 'region'.")
    found = pandas.concat(best).sort_values("cosine", ascending=False, kind="stable")
    return found.head(top_k).reset_index(drop=True)
