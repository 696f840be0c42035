"""Georeferenced scenes of random pixels."""

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

UTM = "EPSG:32633"
NORTH_UP = from_origin(500000, 5300000, 0.5, 0.5)


def write_scene(path, pixels, crs=UTM, transform=NORTH_UP, **profile):
    """Write (bands, H, W) pixels as a tiled GeoTIFF."""
    bands, height, width = pixels.shape
    profile = {
        "driver": "GTiff",
        "count": bands,
        "width": width,
        "height": height,
        "dtype": pixels.dtype,
    } | profile
    with rasterio.open(
        path, "w", crs=crs, transform=transform, tiled=True, blockxsize=64, blockysize=64, **profile
    ) as f:
        f.write(pixels)
    return path


def draw(height=160, width=192, bands=3, seed=0, dtype=np.uint8, high=255):
    """Smooth random pixels."""
    noise = torch.rand(
        1, bands, height // 16 + 2, width // 16 + 2, generator=torch.Generator().manual_seed(seed)
    )
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].numpy()
    return (smooth * high).astype(dtype)
