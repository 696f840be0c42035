"""Overlaps of oriented boxes."""

import numpy as np
import torch

from ..model.regions_geoalign_clip import quads_to_xyxy


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

    around = [quads_to_xyxy(quads) for quads in (first, second)]
    low = torch.maximum(around[0][:, None, :2], around[1][None, :, :2])
    high = torch.minimum(around[0][:, None, 2:], around[1][None, :, 2:])
    rows, columns = ((high - low) > 0).all(dim=-1).nonzero().T.numpy()  # only these can overlap
    polygons = [shapely.polygons(np.asarray(quads, dtype=np.float64)) for quads in (first, second)]
    pairs = polygons[0][rows], polygons[1][columns]
    shared = shapely.area(shapely.intersection(*pairs))
    ious = torch.zeros(len(first), len(second), dtype=torch.float64)
    ious[rows, columns] = torch.from_numpy(
        shared / (shapely.area(pairs[0]) + shapely.area(pairs[1]) - shared)
    )
    return ious
