"""Semantic localisation: where in a large picture a phrase is true, by tiles or by the dense map."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import ProcessorMixin
from transformers.utils import logging

from ..data.tiling import list_tiles
from ..embedding.embedder import Embedder
from ..images import read_image
from .metrics.score_maps import FIGURES, normalize_map, polygons_to_truth, score_localization
from .results import save_arrays

# Sides of the tiles, in pixels of the picture. `tile` embeds every tile as an image of its own, as AMFMN and
# RS5M do with just these sides; `dense` takes the cosine of each of its patches, and is ours.
TILE_SIDES = {"tile": (256, 512, 768), "dense": (512,)}


def localize_phrases(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    queries: Sequence[dict],
    map_source: str = "tile",
    sides: tuple[int, ...] | None = None,
    stride: int = 4,
    through_jpeg: bool = False,
    image_size: int | None = None,
    batch_size: int = 16,
    maps_path: str | Path | None = None,
) -> dict:
    """Look for phrases in large pictures, and compare the maps with where they are true.

    Args:
        model: ours, one wrapped by an adapter, or with `map_source="tile"` a stock CLIP.
        processor: of that model.
        queries: dictionaries with `image` (PIL image or path), `phrase`, and `polygons`: lists of corners
            x, y in pixels of the image as given. Queries of one image that follow each other share its tiles.
        map_source: `tile` or `dense`, see `TILE_SIDES`.
        sides: of the tiles, in pixels; None takes the usual ones.
        stride: side of a cell of the map, in pixels. 1 is the published way; 4 moves the figures by less than
            0.01 and is 50 times faster.
        through_jpeg: as the published code does, see `normalize_map`.
        image_size: side of `pixel_values`; None takes the model's own.
        batch_size: tiles per forward pass.
        maps_path: an npz file to write the maps to, 0 to 1, by the number of their query.

    Returns:
        `rsu`, `ras`, `rda` and `rmi`, means over queries; `num_queries` and `num_images`; `queries`, the
        figures of each; and `protocol`.

    Raises:
        ValueError: if there are no queries, `map_source` is unknown, or a truth is none.
    """
    if not queries:
        raise ValueError("there are no queries to score. Give at least one.")
    embedder = Embedder(model, processor, image_size, batch_size)
    groups = []  # of queries of one image
    for query in queries:
        if not groups or groups[-1][0]["image"] != query["image"]:
            groups.append([])
        groups[-1].append(query)
    scored, maps = [], {}
    for group in groups:
        phrases = [query["phrase"] for query in group]
        of_group = build_score_maps(
            embedder, read_image(group[0]["image"]), phrases, map_source, sides, stride
        )
        for query, scores in zip(group, of_group, strict=True):
            truth = polygons_to_truth(query["polygons"], scores.shape, stride)
            values = normalize_map(scores, stride, through_jpeg)
            if maps_path is not None:
                maps[str(len(scored))] = values
            scored.append({"phrase": query["phrase"]} | score_localization(values, truth, stride))
    save_arrays(maps_path, **maps)
    protocol = {
        "task": "semantic localisation",
        "map_source": map_source,
        "sides": list(sides or TILE_SIDES[map_source]),
        "stride": stride,
        "through_jpeg": through_jpeg,
    }
    scores = {name: float(np.mean([figures[name] for figures in scored])) for name in FIGURES}
    counts = {"num_queries": len(scored), "num_images": len(groups)}
    return scores | counts | {"queries": scored, "protocol": protocol | embedder.describe()}


def build_score_maps(
    embedder: Embedder,
    image: Image.Image,
    phrases: Sequence[str],
    map_source: str = "tile",
    sides: tuple[int, ...] | None = None,
    stride: int = 4,
) -> np.ndarray:
    """Give every cell of a picture the mean cosine of the phrase and what covers the cell.

    Args:
        embedder: a model and its processor.
        image: of any size.
        phrases: P of them; every tile is encoded once for all.
        map_source: `tile` or `dense`, see `TILE_SIDES`.
        sides: of the tiles, in pixels; None takes the usual ones.
        stride: side of a cell, in pixels.

    Returns:
        (P, H, W), cosines; H and W are the picture's height and width by `stride`, rounded up.

    Raises:
        ValueError: if `map_source` is unknown, or the model has no dense map to take it from.
    """
    if map_source not in TILE_SIDES:
        raise ValueError(f"map_source is {map_source!r}; it must be one of {tuple(TILE_SIDES)}.")
    phrase_embeds = embedder.embed_text(phrases)
    H, W = -(-image.height // stride), -(-image.width // stride)
    sums, counts = np.zeros((len(phrases), H, W), dtype=np.float32), np.zeros((H, W), dtype=np.float32)
    for side in sides or TILE_SIDES[map_source]:
        tiles = list_tiles(image.size, side)
        cells = [(x0 // stride, y0 // stride, -(-x1 // stride), -(-y1 // stride)) for x0, y0, x1, y1 in tiles]
        crops = TileImages(image, tiles)
        if map_source == "tile":
            cosines = (embedder.embed_images(crops, f"tiles of {side}") @ phrase_embeds.T).numpy()  # (N, P)
            patches = (cosine[:, None, None] for cosine in cosines)
        else:
            patches = _compare_patches(embedder, crops, phrase_embeds, cells)
        for (x0, y0, x1, y1), values in zip(cells, patches, strict=True):
            sums[:, y0:y1, x0:x1] += values
            counts[y0:y1, x0:x1] += 1
    return sums / counts


def _compare_patches(embedder: Embedder, crops: "TileImages", phrase_embeds: torch.Tensor, cells: list):
    """Yield for each tile the cosines of its patches, (P, rows, columns), spread over its cells."""
    progress = logging.tqdm(crops, desc="dense tiles", total=len(crops), leave=False)
    places = iter(cells)  # goes on from batch to batch
    for patch_embeds in embedder.embed_patches(progress):
        cosines = torch.einsum("bdhw,pd->bphw", patch_embeds, phrase_embeds)
        for cosine, (x0, y0, x1, y1) in zip(cosines, places, strict=False):
            yield interpolate(cosine[None], size=(y1 - y0, x1 - x0), mode="bilinear")[0].numpy()


class TileImages(Sequence):
    """The tiles of a picture, each cut when it is asked for.

    Args:
        image: the picture.
        tiles: xyxy, whole pixels.
    """

    def __init__(self, image: Image.Image, tiles: list[tuple[int, int, int, int]]):
        self.image, self.tiles = image, tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, i: int) -> Image.Image:
        return self.image.crop(self.tiles[i])
