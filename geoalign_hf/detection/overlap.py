"""Overlaps of oriented boxes and polygons, by which `model/detection_geoalign_clip.py` drops detections."""

import numpy as np
import torch


def measure_quad_ious(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compute the intersection over union of oriented boxes.

    Args:
        first: (N, 4, 2), four corners x, y each, going round.
        second: (M, 4, 2).

    Returns:
        (N, M), float64, in [0, 1].

    Example:
        >>> square = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]]])
        >>> diamond = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 1.0]]])
        >>> measure_quad_ious(square, diamond).tolist()
        [[0.5]]
    """
    import shapely  # optional, of the extra [detect]

    polygons = [shapely.polygons(np.asarray(quads, dtype=np.float64)) for quads in (first, second)]
    return measure_polygon_ious(np.asarray(polygons[0]), np.asarray(polygons[1]))


def measure_polygon_ious(first: np.ndarray, second: np.ndarray) -> torch.Tensor:
    """Compute the intersection over union of shapely polygons: (N,) and (M,) give (N, M), float64."""
    import shapely

    bounds = [shapely.bounds(polygons) for polygons in (first, second)]
    low = np.maximum(bounds[0][:, None, :2], bounds[1][None, :, :2])
    high = np.minimum(bounds[0][:, None, 2:], bounds[1][None, :, 2:])
    rows, columns = np.nonzero((high > low).all(axis=-1))  # only these can overlap
    pairs = first[rows], second[columns]
    shared = shapely.area(shapely.intersection(*pairs))
    ious = torch.zeros(len(first), len(second), dtype=torch.float64)
    ious[rows, columns] = torch.from_numpy(
        shared / (shapely.area(pairs[0]) + shapely.area(pairs[1]) - shared)
    )
    return ious
