"""Score maps: how similar every place of a scene is to a text, as a GeoTIFF on the grid of patches."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers.utils import logging

from ..embedding.embedder import Embedder
from ..storage import atomic_file
from .reader import Ground, Scene, read_ahead

COSINE_LIMITS, PROBABILITY_LIMITS = (0.0, 0.5), (0.0, 1.0)  # ends of the colour scale
PICTURE_SIDE = 900  # longer side of the scene in a picture, in pixels
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


def check_map_options(
    queries: Sequence[str], scale: float, overlap: float, limits: tuple[float, float] = COSINE_LIMITS
) -> None:
    """Check the options of score maps.

    Raises:
        ValueError: if there are no queries, or a number is out of range.
    """
    if not queries or isinstance(queries, str):
        raise ValueError(f"queries is {queries!r}; expected a list of at least one text.")
    if not (np.isfinite(scale) and scale > 0 and 0 <= overlap < 1):
        raise ValueError(f"scale is {scale} and overlap {overlap}; expected scale > 0 and 0 <= overlap < 1.")
    if not limits[0] < limits[1]:
        raise ValueError(f"limits is {limits}; expected two rising numbers, such as 0 and 0.5.")


def find_cell(embedder: Embedder, scale: float = 1.0) -> float:
    """Return the side of a cell of the score map, in pixels of the scene."""
    return embedder.model.config.vision_config.patch_size * scale


def score_scene(
    embedder: Embedder,
    scene: Scene,
    queries: Sequence[str],
    scale: float = 1.0,
    overlap: float = 0.5,
    background: Sequence[str] = (),
) -> np.ndarray:
    """Score every cell of a scene for each query.

    The score is the cosine or, with `background`, a probability. Every tile is encoded once for all queries.
    Where tiles overlap, their scores are averaged with weights that fall towards the edges of a tile (a Hann
    window), so that no seams appear. The context of a patch ends at the edge of its tile, so maps from tiles
    of other positions or sizes differ slightly.

    Args:
        embedder: a GeoAlignCLIP model and its processor.
        scene: the scene.
        queries: Q texts.
        scale: pixels of the scene per pixel of the model's input; above 1 the scene is shrunk.
        overlap: part of a tile's side that it shares with the next one, in [0, 1).
        background: texts that describe everything else. With them a score is the probability of the query
            among itself and these texts; other queries play no part in it.

    Returns:
        (Q, rows, columns), float32 scores; NaN where less than half of a cell is valid ground.

    Raises:
        ValueError: if there are no queries, or `scale` or `overlap` is out of range.
    """
    check_map_options(queries, scale, overlap)
    patch_size = embedder.model.config.vision_config.patch_size
    num_patches = embedder.image_size // patch_size
    grid = PatchGrid(scene, num_patches, find_cell(embedder, scale), overlap)
    text_embeds = embedder.embed_text([*queries, *background])
    logit_scale = embedder.region_scale.item()  # a patch is a small region
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

    def read(tile: tuple[int, int]) -> Ground:
        return scene.read(grid.locate(*tile), (embedder.image_size, embedder.image_size))

    def read_tiles() -> Iterator[Image.Image]:
        progress = logging.tqdm(read_ahead(read, tiles), total=len(tiles), desc="tiles", unit=" tiles")
        for (row, column), ground in zip(tiles, progress, strict=True):
            shares = ground.valid.reshape(num_patches, patch_size, num_patches, patch_size).mean(axis=(1, 3))
            if shares.any():
                places.append((row, column, shares.astype(np.float32)))
                yield ground.image

    for patch_embeds in embedder.embed_patches(read_tiles()):
        cosines = torch.einsum("bdhw,qd->bqhw", patch_embeds, text_embeds)
        of_queries, of_others = cosines.tensor_split([len(queries)], dim=1)
        if background:  # softmax of the query against all background texts
            against = (logit_scale * of_others).logsumexp(dim=1, keepdim=True)
            of_queries = torch.sigmoid(logit_scale * of_queries - against)
        scores = of_queries.numpy()
        for score, (row, column, shares) in zip(scores, places[: len(scores)], strict=True):
            inside = (
                slice(max(row, 0), min(row + num_patches, rows)),
                slice(max(column, 0), min(column + num_patches, columns)),
            )
            part = tuple(
                slice(s.start - first, s.stop - first) for s, first in zip(inside, (row, column), strict=True)
            )
            weight = (taper * shares)[part]
            sums[(slice(None), *inside)] += score[(slice(None), *part)] * weight
            weights[inside] += weight
            valid_ground[inside] = np.maximum(valid_ground[inside], shares[part])
        del places[: len(scores)]
    with np.errstate(invalid="ignore", divide="ignore"):
        maps = sums / weights
    maps[:, valid_ground < LEAST_VALID] = np.nan
    return maps


def write_score_maps(
    maps: np.ndarray,
    queries: Sequence[str],
    scene: Scene,
    cell: float,
    output: str | Path,
    limits: tuple[float, float] = COSINE_LIMITS,
    label: str = "cosine",
    tags: dict | None = None,
) -> list[Path]:
    """Write one GeoTIFF and one picture per query.

    Args:
        maps: (Q, rows, columns), as `score_scene` gives them.
        queries: the Q texts; they name the files.
        scene: the scene that the maps are of.
        cell: side of a cell, in pixels of the scene.
        output: folder for the files; it is created.
        limits: the scores at the ends of the picture's colour scale. They do not depend on the maps, so that
            equal colours mean equal scores in all pictures.
        label: name of the scores, beside the colour bar.
        tags: metadata that the GeoTIFFs record about how they were made.

    Returns:
        The paths of the GeoTIFFs: float32, in the scene's reference system, NaN as nodata.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    picture = scene.read((0, 0, scene.width, scene.height), scene.fit(PICTURE_SIDE)).image
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "nodata": np.nan, "compress": "deflate"}
    profile |= {"height": maps.shape[1], "width": maps.shape[2], "crs": scene.crs}
    profile["transform"] = scene.transform * rasterio.Affine.scale(cell)
    paths = []
    for number, (query, values) in enumerate(zip(queries, maps, strict=True)):
        name = re.sub(r"[^\w]+", "_", query.lower()).strip("_")[:60]
        path = output / f"{number:02d}_{name}.tif"
        with atomic_file(path) as file, rasterio.MemoryFile() as memory:
            with memory.open(**profile) as target:
                target.write(values.astype(np.float32), 1)
                target.set_band_description(1, query)
                target.update_tags(query=query, scores=label, **(tags or {}))
            file.write(memory.getbuffer())
        size = scene.width / cell, scene.height / cell
        figure = draw_score_map(picture, size, values, limits, label, query)
        figure.savefig(path.with_suffix(".png"), dpi=110)
        paths.append(path)
    return paths


def draw_score_map(
    picture: Image.Image,
    size: tuple[float, float],
    values: np.ndarray,
    limits: tuple[float, float],
    label: str,
    title: str,
) -> Figure:
    """Draw a score map beside its scene, with a colour bar of fixed ends.

    Args:
        picture: the whole scene, at any size.
        size: (width, height) of the scene in cells. The last cells may reach over its edges.
        values: (rows, columns), the scores; NaN is left white.
        limits: the scores at the ends of the colour bar.
        label: name of the scores.
        title: heading of the map; the range of the scores is added.
    """
    (width, height), (rows, columns) = size, values.shape
    inches = min(max(2.0, 5.6 * height / width), 12.0)  # a narrow strip is drawn narrower
    figure = Figure(figsize=(12, inches + 0.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(picture, extent=(0, width, height, 0))
    extent = (0, columns, rows, 0)
    shown = right.imshow(values, cmap="viridis", vmin=limits[0], vmax=limits[1], extent=extent)
    found = (
        f"{np.nanmin(values):.3f} to {np.nanmax(values):.3f}" if np.isfinite(values).any() else "no ground"
    )
    right.set_title(f"{title} ({label} {found})")
    for axes in (left, right):
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
    figure.colorbar(shown, ax=right, label=label, extend="both")
    return figure
