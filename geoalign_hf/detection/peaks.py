"""Proposals from the dense map: the places that are most similar to a label, refined to boxes."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from ..embedding.embedder import Embedder
from ..embedding.score_maps import map_cosines
from ..model.detection_geoalign_clip import Vocabulary, score_labels
from .proposals import Proposals

LEVELS = (0.25, 0.5, 0.75)  # a box is where a map is above this share of its peak
MOST_PEAKS = 100  # per label
LEAST_PROBABILITY = 0.1  # of a peak
STRIDE = 4  # pixels; side of a cell of the map


def propose_peaks(
    embedder: Embedder,
    image: Image.Image,
    vocabulary: Vocabulary,
    word_embeds: torch.Tensor,
    tile_sides: Sequence[int] | None = None,
    temperature: float = 1.0,
    background_bias: float = 0.0,
) -> Proposals:
    """Propose boxes around the places where a label is more probable than elsewhere.

    The probabilities of the labels are computed for every patch of overlapping tiles. Each local maximum
    gives boxes around the connected area in which the probability is above a share of the maximum.

    Args:
        embedder: a GeoAlignCLIP model and its processor.
        image: the image.
        vocabulary: W words.
        word_embeds: (W, D), unit vectors.
        tile_sides: sides of the tiles in pixels. None takes one and two times the model's image size.
        temperature: divisor of the logits, see `score_labels`.
        background_bias: addition to the logit of the background, see `score_labels`.

    Returns:
        The boxes, all with the objectness 1.

    Raises:
        ValueError: if the model has no dense map.
    """
    sides = tile_sides or (embedder.image_size, 2 * embedder.image_size)
    cosines = map_cosines(embedder, image, word_embeds, "dense", sides, STRIDE)  # (W, H, W')
    logits = torch.from_numpy(cosines).flatten(1).T * embedder.region_scale
    probabilities = score_labels(logits, vocabulary, temperature, background_bias).T
    boxes = {
        box
        for values in probabilities.reshape(-1, *cosines.shape[1:]).numpy()
        for box in find_boxes(values, LEAST_PROBABILITY, MOST_PEAKS)
    }
    scaled = torch.tensor(sorted(boxes), dtype=torch.float64).view(-1, 4) * STRIDE
    limit = torch.tensor([*image.size, *image.size], dtype=torch.float64)
    return Proposals(torch.minimum(scaled, limit))


def find_boxes(values: np.ndarray, least: float, most: int) -> set[tuple[int, int, int, int]]:
    """Find the peaks of a map, and the boxes of the areas around them.

    Args:
        values: (H, W).
        least: smallest value of a peak.
        most: largest number of peaks.

    Returns:
        Boxes xyxy in cells, one for each peak and each share of `LEVELS`; equal ones once.

    Example:
        >>> sorted(find_boxes(np.array([[0.0, 0.5, 1.0, 0.3, 0.0]]), least=0.1, most=5))
        [(1, 0, 3, 1), (1, 0, 4, 1), (2, 0, 3, 1)]
    """
    rows, columns = np.nonzero((values == ndimage.maximum_filter(values, size=3)) & (values >= least))
    best = np.argsort(-values[rows, columns], kind="stable")[:most]
    boxes = set()
    for row, column in zip(rows[best], columns[best], strict=True):
        for level in LEVELS:
            areas, _ = ndimage.label(values >= level * values[row, column])
            down, across = ndimage.find_objects(areas)[areas[row, column] - 1]
            boxes.add((across.start, down.start, across.stop, down.stop))
    return boxes
