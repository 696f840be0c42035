"""Score maps: how similar every place of a scene is to a text, as a GeoTIFF on the grid of patches."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from transformers.utils import logging

from ..embedding.embedder import Embedder
from .reader import Scene

LEAST_VALID = 0.5  # of a cell must be valid ground, or the cell has no score


@dataclass(frozen=True)
class PatchGrid:
    """A scene's grid of cells, and the tiles over it. A cell is the ground under one patch of the model.

    Args:
        scene: the scene.
        num_patches: patches along a side of a tile.
        cell: side of a cell, in pixels of the scene.
        overlap: part of a tile's side that it shares with the next one, in [0, 1).
    """

    scene: Scene
    num_patches: int
    cell: float
    overlap: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return int(np.ceil(self.scene.height / self.cell)), int(np.ceil(self.scene.width / self.cell))

    def list_tiles(self) -> list[tuple[int, int]]:
        """List the tiles by their first row and column of cells; the outer ones reach over the edges."""
        step = max(1, round(self.num_patches * (1 - self.overlap)))
        margin = self.num_patches - step
        rows, columns = (range(-margin, max(number - margin, 1 - margin), step) for number in self.shape)
        return [(row, column) for row in rows for column in columns]

    def locate(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Locate a tile: xyxy in pixels of the scene."""
        side = self.num_patches * self.cell
        return column * self.cell, row * self.cell, column * self.cell + side, row * self.cell + side


def score_scene(
    embedder: Embedder,
    scene: Scene,
    queries: Sequence[str],
    scale: float = 1.0,
    overlap: float = 0.5,
) -> np.ndarray:
    """Compute the cosine between every cell of a scene and each query.

    Every tile is encoded once for all queries. Where tiles overlap, their cosines are averaged with weights
    that fall towards the edges of a tile (a Hann window), so that no seams appear. The context of a patch
    ends at the edge of its tile, so maps from tiles of other positions or sizes differ slightly.

    Args:
        embedder: a GeoAlignCLIP model and its processor.
        scene: the scene.
        queries: Q texts.
        scale: pixels of the scene per pixel of the model's input; above 1 the scene is shrunk.
        overlap: part of a tile's side that it shares with the next one, in [0, 1).

    Returns:
        (Q, rows, columns), float32 cosines; NaN where less than half of a cell is valid ground.

    Raises:
        ValueError: if there are no queries, or `scale` or `overlap` is out of range.
    """
    if not queries or isinstance(queries, str):
        raise ValueError(f"queries is {queries!r}; expected a list of at least one text.")
    if not (np.isfinite(scale) and scale > 0 and 0 <= overlap < 1):
        raise ValueError(f"scale is {scale} and overlap {overlap}; expected scale > 0 and 0 <= overlap < 1.")
    patch_size = embedder.model.config.vision_config.patch_size
    num_patches = embedder.image_size // patch_size
    grid = PatchGrid(scene, num_patches, patch_size * scale, overlap)
    query_embeds = embedder.embed_text(list(queries))
    window = np.hanning(num_patches + 2)[1:-1]
    taper = np.outer(window, window).astype(np.float32)

    rows, columns = grid.shape
    sums = np.zeros((len(queries), rows, columns), dtype=np.float32)
    weights, valid_ground = (
        np.zeros((rows, columns), dtype=np.float32),
        np.zeros((rows, columns), dtype=np.float32),
    )
    tiles = grid.list_tiles()
    places: list[tuple[int, int, np.ndarray]] = []

    def read_tiles() -> Iterator:
        for row, column in logging.tqdm(tiles, desc="tiles", unit=" tiles"):
            ground = scene.read(grid.locate(row, column), (embedder.image_size, embedder.image_size))
            shares = ground.valid.reshape(num_patches, patch_size, num_patches, patch_size).mean(axis=(1, 3))
            if shares.any():
                places.append((row, column, shares.astype(np.float32)))
                yield ground.image

    for patch_embeds in embedder.embed_patches(read_tiles()):
        cosines = torch.einsum("bdhw,qd->bqhw", patch_embeds, query_embeds).numpy()
        for cosine, (row, column, shares) in zip(cosines, places[: len(cosines)], strict=True):
            inside = (
                slice(max(row, 0), min(row + num_patches, rows)),
                slice(max(column, 0), min(column + num_patches, columns)),
            )
            part = tuple(
                slice(s.start - first, s.stop - first) for s, first in zip(inside, (row, column), strict=True)
            )
            weight = (taper * shares)[part]
            sums[(slice(None), *inside)] += cosine[(slice(None), *part)] * weight
            weights[inside] += weight
            valid_ground[inside] = np.maximum(valid_ground[inside], shares[part])
        del places[: len(cosines)]
    with np.errstate(invalid="ignore", divide="ignore"):
        maps = sums / weights
    maps[:, valid_ground < LEAST_VALID] = np.nan
    return maps


def write_score_maps(
    maps: np.ndarray, queries: Sequence[str], scene: Scene, cell: float, output: str | Path
) -> list[Path]:
    """Write one GeoTIFF and one picture per query.

    Args:
        maps: (Q, rows, columns), as `score_scene` gives them.
        queries: the Q texts; they name the files.
        scene: the scene that the maps are of.
        cell: side of a cell, in pixels of the scene.
        output: folder for the files; it is created.

    Returns:
        The paths of the GeoTIFFs: float32, in the scene's reference system, NaN as nodata.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    transform = scene.transform * rasterio.Affine.scale(cell)
    low, high = float(np.nanmin(maps)), float(np.nanmax(maps))
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "nodata": np.nan, "compress": "deflate"}
    profile |= {"height": maps.shape[1], "width": maps.shape[2], "crs": scene.crs, "transform": transform}
    paths = []
    for number, (query, values) in enumerate(zip(queries, maps, strict=True)):
        name = re.sub(r"[^\w]+", "_", query.lower()).strip("_")[:60]
        path = output / f"{number:02d}_{name}.tif"
        with rasterio.open(path, "w", **profile) as target:
            target.write(values.astype(np.float32), 1)
            target.set_band_description(1, query)
        draw_score_map(scene, values, query, (low, high), path.with_suffix(".png"))
        paths.append(path)
    return paths


def draw_score_map(
    scene: Scene, values: np.ndarray, title: str, limits: tuple[float, float], path: Path
) -> None:
    """Draw a score map beside its scene, with a colour bar whose scale all maps of a run share."""
    shrink = min(1.0, 900 / max(scene.width, scene.height))
    size = (max(1, round(scene.width * shrink)), max(1, round(scene.height * shrink)))
    image = scene.read((0, 0, scene.width, scene.height), size).image
    figure = Figure(figsize=(12, 6.2 * size[1] / size[0] + 0.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(image)
    shown = right.imshow(values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    right.set_title(title)
    for axes in (left, right):
        axes.set_axis_off()
    figure.colorbar(shown, ax=right, label="cosine")
    figure.savefig(path, dpi=110)
