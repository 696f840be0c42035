"""Score maps of large pictures: how similar every place is to texts, found by tiles or by the dense map."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers.utils import logging

from ..data.tiling import list_tiles
from .embedder import Embedder
from .templates import check_texts

# Sides of the tiles, in pixels of the picture. `tile` embeds every tile as an image of its own; AMFMN and
# RS5M do the same with these sides. `dense` takes the cosine of each patch of the tiles, and is our own.
TILE_SIDES = {"tile": (256, 512, 768), "dense": (512,)}


def check_map_options(map_source: str, tile_sides: Sequence[int] | None, stride: int) -> None:
    """Check the options of score maps.

    Raises:
        ValueError: if `map_source` is unknown, or a side or the stride is below 1.
    """
    if map_source not in TILE_SIDES:
        raise ValueError(f"map_source is {map_source!r}; it must be one of {tuple(TILE_SIDES)}.")
    if stride < 1 or any(side < 1 for side in tile_sides or ()):
        raise ValueError(
            f"tile_sides is {tile_sides} and stride is {stride}; every number must be at least 1."
        )


def build_score_maps(
    embedder: Embedder,
    image: Image.Image,
    phrases: Sequence[str],
    map_source: str = "tile",
    tile_sides: Sequence[int] | None = None,
    stride: int = 4,
) -> np.ndarray:
    """Compute for every cell of a picture the mean cosine of a phrase and the tiles that cover the cell.

    Args:
        embedder: a model and its processor.
        image: picture of any size.
        phrases: P texts; every tile is encoded once for all of them.
        map_source: "tile" or "dense", see `TILE_SIDES`.
        tile_sides: sides of the tiles, in pixels. None takes those of `TILE_SIDES`.
        stride: side of a cell, in pixels.

    Returns:
        (P, H, W), cosines. H and W are the picture's height and width divided by `stride`, rounded up.

    Raises:
        ValueError: if an option has an impossible value, or the model has no dense map for "dense".
    """
    check_texts(phrases, "phrases")
    return map_cosines(embedder, image, embedder.embed_text(phrases), map_source, tile_sides, stride)


def map_cosines(
    embedder: Embedder,
    image: Image.Image,
    text_embeds: torch.Tensor,
    map_source: str,
    tile_sides: Sequence[int] | None = None,
    stride: int = 4,
) -> np.ndarray:
    """Compute the maps of `build_score_maps` for P texts that are embedded already, (P, D)."""
    check_map_options(map_source, tile_sides, stride)
    H, W = -(-image.height // stride), -(-image.width // stride)
    sums, counts = np.zeros((len(text_embeds), H, W), dtype=np.float32), np.zeros((H, W), dtype=np.float32)
    for side in tile_sides or TILE_SIDES[map_source]:
        tiles = list_tiles(image.size, side)
        cells = [(x0 // stride, y0 // stride, -(-x1 // stride), -(-y1 // stride)) for x0, y0, x1, y1 in tiles]
        crops = TileImages(image, tiles)
        if map_source == "tile":
            cosines = (embedder.embed_images(crops, f"tiles of {side}") @ text_embeds.T).numpy()  # (N, P)
            patches = (cosine[:, None, None] for cosine in cosines)
        else:
            patches = _compare_patches(embedder, crops, text_embeds, cells)
        for (x0, y0, x1, y1), values in zip(cells, patches, strict=True):
            sums[:, y0:y1, x0:x1] += values
            counts[y0:y1, x0:x1] += 1
    return sums / counts


def _compare_patches(embedder: Embedder, crops: "TileImages", phrase_embeds: torch.Tensor, cells: list):
    """Yield for each tile the cosines of its patches, resized to its cells: (P, rows, columns)."""
    progress = logging.tqdm(crops, desc="dense tiles", total=len(crops), leave=False)
    remaining_cells = iter(cells)  # continues from batch to batch
    for patch_embeds in embedder.embed_patches(progress):
        cosines = torch.einsum("bdhw,pd->bphw", patch_embeds, phrase_embeds)
        for cosine, (x0, y0, x1, y1) in zip(cosines, remaining_cells, strict=False):
            yield interpolate(cosine[None], size=(y1 - y0, x1 - x0), mode="bilinear")[0].numpy()


class TileImages(Sequence):
    """The tiles of a picture as a sequence; each tile is cropped when it is accessed.

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
