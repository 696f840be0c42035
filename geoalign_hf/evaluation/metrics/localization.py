"""The four scores of semantic localisation, computed from score maps.

A score map says for every cell of a large picture how well it fits a phrase. The truth says where the phrase
is true.

Source:
    Learning to Evaluate Performance of Multi-modal Semantic Localization, https://arxiv.org/abs/2209.06515,
    with the constants of its SLM.py, which RS5M copies.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage

from .checks import check_numbers

MEDIAN_SIDE, BOX_SIDE, PEAK_SIDE = 251, 50, 1000  # of filters, in pixels of the picture
NUM_BOX_FILTERS = 5
LEAST_PEAK = 0.5  # map value
RADIUS = 1.5  # in mean distances of a polygon's corners from its center
MAX_COORDINATE = 1e9  # pixels; no picture reaches further
FIGURES = ("rsu", "ras", "rda", "rmi")


class Truth(NamedTuple):
    """Where a phrase is true, in cells of the map.

    Args:
        mask: (H, W), True in any of the K places.
        centers: (K, 2), x and y.
        radii: (K,), largest distance from the center of a place at which a peak counts for it.
    """

    mask: np.ndarray
    centers: np.ndarray
    radii: np.ndarray


def polygons_to_truth(polygons: Sequence, shape: tuple[int, int], stride: int = 1) -> Truth:
    """Make the truth from polygons.

    Args:
        polygons: K lists of three or more corners x, y, in pixels of the picture.
        shape: (H, W) of the map.
        stride: side of a cell of the map, in pixels of the picture.

    Raises:
        ValueError: if there is no polygon, a polygon has fewer than three corners, or a corner is not finite.
            Polygons that cover nothing or all of the map are also refused.

    Example:
        >>> truth = polygons_to_truth([[[0, 0], [2, 0], [2, 2], [0, 2]]], shape=(4, 4))
        >>> int(truth.mask.sum()), truth.centers.tolist()
        (4, [[1.0, 1.0]])
    """
    _check_stride(stride)
    mask, centers, radii = np.zeros(shape, dtype=bool), [], []
    for k, polygon in enumerate(polygons):
        corners = check_numbers(polygon, f"polygons[{k}]", 1, 2)
        if corners.size % 2 or corners.size < 6 or (corners.ndim == 2 and corners.shape[1] % 2):
            raise ValueError(
                f"polygons[{k}] has the shape {corners.shape}; expected three or more corners, each x and y."
            )
        if abs(corners).max() > MAX_COORDINATE:
            raise ValueError(
                f"polygons[{k}] reaches to {abs(corners).max():g}; corners are pixels of the picture, up to "
                f"{MAX_COORDINATE:g}."
            )
        corners = corners.astype(np.float64).reshape(-1, 2) / stride
        mask |= _fill(corners, mask.shape)
        centers.append(corners.mean(axis=0))
        radii.append(RADIUS * np.linalg.norm(corners - centers[-1], axis=1).mean())
    return _check_truth(Truth(mask, np.array(centers), np.array(radii)))


def masks_to_truth(masks: ArrayLike) -> Truth:
    """Make the truth from masks. The corners of the box around each mask replace those of a polygon.

    Args:
        masks: (K, H, W), bool, at the resolution of the map; none of them is empty.

    Raises:
        ValueError: if there is no mask, one is empty, or together they cover all of the map.

    Example:
        >>> masks_to_truth(np.arange(20).reshape(1, 4, 5) % 5 < 3).radii.tolist()
        [3.75]
    """
    covered, centers, radii = check_numbers(masks, "masks", 3) != 0, [], []
    for k, mask in enumerate(covered):
        if not mask.any():
            raise ValueError(f"masks[{k}] covers nothing. Remove it.")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
        centers.append((columns[0] + width / 2, rows[0] + height / 2))
        radii.append(RADIUS * np.hypot(width, height) / 2)
    return _check_truth(Truth(covered.any(axis=0), np.array(centers), np.array(radii)))


def _check_truth(truth: Truth) -> Truth:
    if not truth.mask.any() or truth.mask.all():
        raise ValueError(
            f"The truth covers {int(truth.mask.sum())} of {truth.mask.size} cells of the map, so there is "
            "nothing to find. Give places inside the picture that leave a part of it uncovered."
        )
    return truth


def _check_stride(stride: int) -> None:
    if stride < 1:
        raise ValueError(f"stride is {stride}; it must be at least 1 pixel.")


def normalize_map(scores: ArrayLike, stride: int = 1, through_jpeg: bool = False) -> np.ndarray:
    """Stretch scores to [0, 1] in 256 steps, and take the median around every cell.

    Args:
        scores: (H, W), any range.
        stride: side of a cell, in pixels of the picture.
        through_jpeg: whether the map is stored as JPEG and read again, as the published code does.

    Returns:
        (H, W), in [0, 1]; a map of equal scores becomes 0.

    Raises:
        ValueError: if the map is empty or holds NaN.

    Example:
        >>> normalize_map([[0.2, 0.3], [0.3, 0.3]], stride=251).tolist()
        [[0.0, 1.0], [1.0, 1.0]]
    """
    _check_stride(stride)
    scores = check_numbers(scores, "scores", 2).astype(np.float64)
    low, high = scores.min(), scores.max()
    steps = np.zeros(scores.shape) if high == low else (scores - low) / (high - low)
    steps = filter_median(np.round(255 * steps).astype(np.uint8), _count_cells(MEDIAN_SIDE, stride) | 1)
    if through_jpeg:
        file = io.BytesIO()
        Image.fromarray(steps).save(file, format="JPEG", quality=95)
        steps = np.asarray(Image.open(file))
    return steps / 255


def score_localization(score_map: ArrayLike, truth: Truth, stride: int = 1) -> dict[str, float]:
    """Compare a score map with the truth.

    Args:
        score_map: (H, W), in [0, 1], as `normalize_map` returns it.
        truth: truth of a map of the same shape.
        stride: side of a cell, in pixels of the picture.

    Returns:
        Four scores. `rsu`, in [0, 1]: how much of the map's mass is in the truth, relative to the truth's
        size. `ras`, in [0, 1], lower is better: how far the peaks of a place are from its center. `rda`: how
        undivided the attention to each place is; 1 for one peak, 0 for none. `rmi` combines them: 0.4 rsu +
        0.35 (1 - ras) + 0.25 rda.

    Raises:
        ValueError: if shapes differ, or a value is outside [0, 1] or NaN.

    Example:
        >>> values = np.zeros((8, 8))
        >>> values[2:4, 2:4] = 1
        >>> truth = polygons_to_truth([[[2, 2], [4, 2], [4, 4], [2, 4]]], (8, 8))
        >>> score_localization(values, truth, stride=50)
        {'rsu': 1.0, 'ras': 0.0, 'rda': 1.0, 'rmi': 1.0}
    """
    _check_stride(stride)
    values = check_numbers(score_map, "score_map", 2).astype(np.float64)
    if values.shape != truth.mask.shape:
        raise ValueError(
            f"The map has the shape {values.shape}, but the truth {truth.mask.shape}. "
            "Make both with the same stride."
        )
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"score_map ranges from {values.min():g} to {values.max():g}; expected [0, 1]. "
            "Apply normalize_map first."
        )
    area, inside = int(truth.mask.sum()), values[truth.mask].sum()
    ratio = inside / (values.sum() - inside + 1e-7) * (values.size - area) / area
    rsu = 1 - np.exp(-0.707 * ratio)
    peaks = find_peaks(values, stride)
    offsets, attentions = [], []
    for center, radius in zip(truth.centers, truth.radii, strict=True):
        distances = np.linalg.norm(peaks - center, axis=1)
        near = peaks[distances <= radius]
        offsets.append(distances[distances <= radius].mean() / radius if len(near) else 1.0)
        attentions.append(_rate_attention(near, radius))
    ras = np.expm1(3 * np.mean(offsets)) / np.expm1(3)
    rda = np.mean(attentions)
    figures = (rsu, ras, rda, 0.4 * rsu + 0.35 * (1 - ras) + 0.25 * rda)
    return {name: float(figure) for name, figure in zip(FIGURES, figures, strict=True)}


def _rate_attention(peaks: np.ndarray, radius: float) -> float:
    """Rate the peaks of one place: 0 for none, 1 for one, less for more peaks that lie further apart."""
    if len(peaks) < 2:
        return float(len(peaks))
    spread = np.linalg.norm(peaks - peaks.mean(axis=0), axis=1).mean()
    return 0.5 * (1 - spread / radius) + np.exp(-0.5 * (len(peaks) + 2))


def find_peaks(score_map: np.ndarray, stride: int = 1) -> np.ndarray:
    """Find the cells where the smoothed map is highest within a large square.

    Args:
        score_map: (H, W), in [0, 1].
        stride: side of a cell, in pixels of the picture.

    Returns:
        (P, 2), x and y in cells. A plateau is one peak, at the center of the box around it. A cell where the
        map itself is below one half is not a peak.

    Example:
        >>> find_peaks(np.array([[0.0, 0.0, 1.0, 1.0]]), stride=50).tolist()
        [[3.0, 0.5]]
    """
    smooth, box_side = np.asarray(score_map, dtype=np.float64), _count_cells(BOX_SIDE, stride)
    for _ in range(NUM_BOX_FILTERS):
        smooth = ndimage.uniform_filter(smooth, box_side, mode="mirror")
    smooth = smooth.round(9)  # the same height all over a plateau, in spite of rounding errors
    highest = ndimage.maximum_filter(smooth, _count_cells(PEAK_SIDE, stride), mode="constant", cval=-np.inf)
    plateaus, _ = ndimage.label((smooth == highest) & (score_map >= LEAST_PEAK))
    peaks = [
        ((columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2)
        for rows, columns in ndimage.find_objects(plateaus)
    ]
    return np.array(peaks, dtype=float).reshape(-1, 2)


def _count_cells(side: int, stride: int) -> int:
    return max(1, round(side / stride))


def filter_median(values: np.ndarray, side: int) -> np.ndarray:
    """Compute the median of the square around every cell; beyond the edge the outermost cells are repeated.

    Faster than scipy.ndimage.median_filter for the large squares that are used here, since there are only 256
    values.

    Args:
        values: (H, W), uint8.
        side: side of the square in cells, odd.

    Returns:
        (H, W), uint8.
    """
    padded = np.pad(values, side // 2, mode="edge")
    median, is_open = np.zeros_like(values), np.ones(values.shape, dtype=bool)
    for level in np.unique(values):
        # From this level on, more than half of the square is not higher.
        is_reached = is_open & (_sum_windows((padded <= level).astype(np.int32), side) > side * side // 2)
        median[is_reached] = level
        is_open &= ~is_reached
    return median


def _sum_windows(padded: np.ndarray, side: int) -> np.ndarray:
    """Sum every window of side x side cells: (H + side - 1, W + side - 1) to (H, W)."""
    for axis in (0, 1):
        sums = np.moveaxis(np.cumsum(padded, axis=axis), axis, 0)
        windows = sums[side - 1 :].copy()
        windows[1:] -= sums[:-side]
        padded = np.moveaxis(windows, 0, axis)
    return padded


def _fill(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mark the cells whose center is inside a polygon, by the even-odd rule."""
    mask = np.zeros(shape, dtype=bool)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, None)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, None)
    inside = mask[low[1] : high[1], low[0] : high[0]]
    x = np.arange(low[0], low[0] + inside.shape[1]) + 0.5
    y = (np.arange(low[1], low[1] + inside.shape[0]) + 0.5)[:, None]
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return mask
