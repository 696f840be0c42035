"""Maps of scores to the four figures of semantic localisation: pure functions on arrays.

A map says of every place of a large picture how well it fits a phrase; the truth, where the phrase is true.

Source:
    Learning to Evaluate Performance of Multi-modal Semantic Localization, https://arxiv.org/abs/2209.06515,
    with the constants of its SLM.py, which RS5M copies.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

MEDIAN_SIDE, BOX_SIDE, PEAK_SIDE = 251, 50, 1000  # of filters, in pixels of the picture
NUM_BOX_FILTERS = 5
LEAST_PEAK = 0.5  # map value
RADIUS = 1.5  # in mean distances of a truth's corners from their middle
FIGURES = ("rsu", "ras", "rda", "rmi")


class Truth(NamedTuple):
    """Where a phrase is true, in cells of the map.

    Args:
        mask: (H, W), True in any of the K places.
        centers: (K, 2), x and y.
        radii: (K,), how far from the center a peak still counts for the place.
    """

    mask: np.ndarray
    centers: np.ndarray
    radii: np.ndarray


def polygons_to_truth(polygons: list, shape: tuple[int, int], stride: int = 1) -> Truth:
    """Make the truth of polygons.

    Args:
        polygons: K lists of three or more corners x, y, in pixels of the picture.
        shape: (H, W) of the map.
        stride: side of a cell of the map, in pixels of the picture.

    Raises:
        ValueError: if there is no polygon, or one has fewer than three corners.

    Example:
        >>> truth = polygons_to_truth([[[0, 0], [2, 0], [2, 2], [0, 2]]], shape=(4, 4))
        >>> int(truth.mask.sum()), truth.centers.tolist()
        (4, [[1.0, 1.0]])
    """
    mask, centers, radii = np.zeros(shape, dtype=bool), [], []
    for k, polygon in enumerate(polygons):
        corners = np.asarray(polygon, dtype=float).reshape(-1, 2) / stride
        if len(corners) < 3:
            raise ValueError(f"polygons[{k}] has {len(corners)} corners. Give three or more, x and y each.")
        mask |= _fill(corners, shape)
        centers.append(corners.mean(axis=0))
        radii.append(RADIUS * np.linalg.norm(corners - centers[-1], axis=1).mean())
    return _check_truth(Truth(mask, np.array(centers), np.array(radii)))


def masks_to_truth(masks: np.ndarray) -> Truth:
    """Make the truth of masks; the corners of the box round each stand in for those of a polygon.

    Args:
        masks: (K, H, W), bool, at the resolution of the map, none of them empty.

    Raises:
        ValueError: if there is no mask, or one is empty.

    Example:
        >>> masks_to_truth(np.arange(20).reshape(1, 4, 5) % 5 < 3).radii.tolist()
        [3.75]
    """
    masks, centers, radii = np.asarray(masks, dtype=bool), [], []
    for k, mask in enumerate(masks):
        if not mask.any():
            raise ValueError(f"masks[{k}] covers nothing. Leave it out.")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
        centers.append((columns[0] + width / 2, rows[0] + height / 2))
        radii.append(RADIUS * np.hypot(width, height) / 2)
    return _check_truth(Truth(masks.any(axis=0), np.array(centers), np.array(radii)))


def _check_truth(truth: Truth) -> Truth:
    if not truth.mask.any() or truth.mask.all():
        raise ValueError(
            f"the truth covers {int(truth.mask.sum())} of {truth.mask.size} cells of the map, so nothing is "
            "to be found. Give places inside the picture that leave some of it out."
        )
    return truth


def normalize_map(scores: np.ndarray, stride: int = 1, through_jpeg: bool = False) -> np.ndarray:
    """Stretch scores to 0 to 1 in 256 steps, and take the median round every cell.

    Args:
        scores: (H, W), any range.
        stride: side of a cell, in pixels of the picture.
        through_jpeg: lose what JPEG loses, as in the published code, which keeps its maps as such files.

    Returns:
        (H, W), 0 to 1; a map of equal scores becomes 0.

    Example:
        >>> normalize_map(np.array([[0.2, 0.3], [0.3, 0.3]]), stride=251).tolist()
        [[0.0, 1.0], [1.0, 1.0]]
    """
    low, high = scores.min(), scores.max()
    steps = np.zeros(scores.shape) if high == low else (scores - low) / (high - low)
    steps = filter_median(np.round(255 * steps).astype(np.uint8), _count_cells(MEDIAN_SIDE, stride) | 1)
    if through_jpeg:
        file = io.BytesIO()
        Image.fromarray(steps).save(file, format="JPEG", quality=95)
        steps = np.asarray(Image.open(file))
    return steps / 255


def score_localization(score_map: np.ndarray, truth: Truth, stride: int = 1) -> dict[str, float]:
    """Compare a map with the truth.

    Args:
        score_map: (H, W), 0 to 1, as `normalize_map` gives it.
        truth: of the same shape.
        stride: side of a cell, in pixels of the picture.

    Returns:
        `rsu`, 0 to 1: how much of the map's mass is in the truth, for the truth's size. `ras`, 0 to 1, lower
        is better: how far from its center the peaks of a place are. `rda`: how undivided the attention to
        each place is; 1 for one peak, 0 for none. `rmi`, the three in one: 0.4 rsu + 0.35 (1 - ras) + 0.25
        rda.

    Raises:
        ValueError: if shapes differ.

    Example:
        >>> values = np.zeros((8, 8))
        >>> values[2:4, 2:4] = 1
        >>> truth = polygons_to_truth([[[2, 2], [4, 2], [4, 4], [2, 4]]], (8, 8))
        >>> score_localization(values, truth, stride=50)
        {'rsu': 1.0, 'ras': 0.0, 'rda': 1.0, 'rmi': 1.0}
    """
    values = np.asarray(score_map, dtype=float)
    if values.shape != truth.mask.shape:
        raise ValueError(
            f"the map has the shape {values.shape}, but the truth {truth.mask.shape}. "
            "Make both with one stride."
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
    """Rate the peaks of one place: none 0, one 1, more the less the more and the wider apart they are."""
    if len(peaks) < 2:
        return float(len(peaks))
    spread = np.linalg.norm(peaks - peaks.mean(axis=0), axis=1).mean()
    return 0.5 * (1 - spread / radius) + np.exp(-0.5 * (len(peaks) + 2))


def find_peaks(score_map: np.ndarray, stride: int = 1) -> np.ndarray:
    """Find where a map, made smooth, is highest far and wide.

    Args:
        score_map: (H, W), 0 to 1.
        stride: side of a cell, in pixels of the picture.

    Returns:
        (P, 2), x and y in cells; a plateau is one peak, in the middle of the box round it. Where the map
        itself is below one half there is no peak.

    Example:
        >>> find_peaks(np.array([[0.0, 0.0, 1.0, 1.0]]), stride=50).tolist()
        [[3.0, 0.5]]
    """
    smooth = score_map
    for _ in range(NUM_BOX_FILTERS):
        smooth = filter_mean(smooth, _count_cells(BOX_SIDE, stride))
    smooth = smooth.round(6)  # else rounding breaks a plateau into many
    is_peak = smooth == filter_highest(smooth, _count_cells(PEAK_SIDE, stride))
    is_peak &= score_map >= LEAST_PEAK
    peaks = [
        ((columns[0] + columns[1]) / 2, (rows[0] + rows[1]) / 2) for rows, columns in _find_plateaus(is_peak)
    ]
    return np.array(peaks, dtype=float).reshape(-1, 2)


def _count_cells(side: int, stride: int) -> int:
    return max(1, round(side / stride))


def filter_median(values: np.ndarray, side: int) -> np.ndarray:
    """Take the median of the square round every cell; beyond the edge the outermost cells go on.

    Args:
        values: (H, W), uint8.
        side: of the square, odd.

    Returns:
        (H, W), uint8.
    """
    padded = np.pad(values, side // 2, mode="edge")
    median, is_open = np.zeros_like(values), np.ones(values.shape, dtype=bool)
    for level in np.unique(values):
        # From this level on more than half of the square are no higher.
        is_reached = is_open & (_sum_windows((padded <= level).astype(np.int32), side) > side * side // 2)
        median[is_reached] = level
        is_open &= ~is_reached
    return median


def filter_mean(values: np.ndarray, side: int) -> np.ndarray:
    """Take the mean of the square round every cell, mirrored at the outermost cells, as OpenCV does.

    Args:
        values: (H, W).
        side: of the square; an even one reaches one cell further up and left.

    Returns:
        (H, W), float64.
    """
    before = side // 2
    padded = np.pad(values.astype(float), (before, side - 1 - before), mode="reflect")
    return _sum_windows(padded, side) / side**2


def filter_highest(values: np.ndarray, side: int) -> np.ndarray:
    """Take the maximum of the square round every cell, as far as it lies inside.

    Args:
        values: (H, W), float.
        side: of the square; an even one reaches one cell further up and left.

    Returns:
        (H, W).
    """
    before = side // 2
    highest = np.pad(values, (before, side - 1 - before), constant_values=-np.inf)
    for axis in (0, 1):
        highest = np.moveaxis(highest, axis, 0)
        reach = 1  # cells that each maximum is over; two that overlap or meet make one
        while reach < side:
            step = min(reach, side - reach)
            highest = np.maximum(highest[:-step], highest[step:])
            reach += step
        highest = np.moveaxis(highest, 0, axis)
    return highest


def _sum_windows(padded: np.ndarray, side: int) -> np.ndarray:
    """Sum every side x side window: (H + side - 1, W + side - 1) to (H, W)."""
    for axis in (0, 1):
        sums = np.moveaxis(np.cumsum(padded, axis=axis), axis, 0)
        windows = sums[side - 1 :].copy()
        windows[1:] -= sums[:-side]
        padded = np.moveaxis(windows, 0, axis)
    return padded


def _fill(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mark the cells whose middle is inside a polygon, by the even-odd rule."""
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


def _find_plateaus(is_top: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Find the parts of a mask that hang together by sides: of each the half-open rows and columns."""
    runs = []
    for row in np.flatnonzero(is_top.any(axis=1)).tolist():
        edges = np.flatnonzero(np.diff(is_top[row].astype(np.int8), prepend=0, append=0)).tolist()
        runs += [(row, start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    parents = list(range(len(runs)))

    def find_root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    first = 0  # run of the row above
    for i, (row, start, stop) in enumerate(runs):
        while runs[first][0] < row - 1:
            first += 1
        for j in range(first, i):
            if runs[j][0] == row - 1 and runs[j][1] < stop and start < runs[j][2]:
                parents[find_root(j)] = find_root(i)
    parts = {}
    for i, run in enumerate(runs):
        parts.setdefault(find_root(i), []).append(run)
    columns = [tuple(zip(*part, strict=True)) for part in parts.values()]
    return [((min(rows), max(rows) + 1), (min(starts), max(stops))) for rows, starts, stops in columns]
