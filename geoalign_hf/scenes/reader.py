"""Reads a georeferenced raster window by window, as 8-bit RGB with a mask of valid ground."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import shapely
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

OVERVIEW_SIDE = 1024  # the stretch is measured on the scene shrunk to this longer side
CACHE_BYTES = 128 * 1024**2  # GDAL keeps blocks it read; by default in a twentieth of the memory
DEFAULT_STRETCH = (2.0, 98.0)  # percentiles, for pixels of other types than 8 bit


class Ground(NamedTuple):
    """A window of a scene: its image, and which of its pixels show ground, (height, width) bool."""

    image: Image.Image
    valid: np.ndarray


@dataclass
class Scene:
    """A raster file that is read in windows and never as a whole.

    Args:
        path: of a GeoTIFF, or of any other raster that rasterio opens.
        bands: numbers, from 1, of the bands that are red, green and blue. None takes the bands that the file
            declares as such, or its only band; a file that declares neither is refused.
        stretch: percentiles, or None. They are measured once per band on an overview of the whole scene and
            become 0 and 255, so that all windows share one stretch. None keeps 8-bit pixels as they are and
            stretches all other types by `DEFAULT_STRETCH`.

    Raises:
        ValueError: if the file cannot be opened, has no coordinates, or its bands are not given and not
            declared; or if a band does not exist or the percentiles are not two rising numbers of [0, 100].
    """

    path: str | Path
    bands: tuple[int, ...] | None = None
    stretch: tuple[float, float] | None = None

    def __post_init__(self):
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                self.dataset = rasterio.open(self.path)
        except rasterio.RasterioIOError as error:
            raise ValueError(
                f"{self.path} cannot be opened as a raster ({error}). Check the file."
            ) from error
        if self.dataset.crs is None:
            raise ValueError(
                f"{self.path} has no coordinate reference system, so results could not be placed. "
                "Give a georeferenced file; geoalign-hf embed takes plain images."
            )
        self.crs, self.transform = self.dataset.crs, self.dataset.transform
        self.width, self.height = self.dataset.width, self.dataset.height
        self.bands = self._resolve_bands()
        if self.stretch is None and any(self.dataset.dtypes[band - 1] != "uint8" for band in self.bands):
            self.stretch = DEFAULT_STRETCH
        if self.stretch is not None and not 0 <= self.stretch[0] < self.stretch[1] <= 100:
            raise ValueError(f"stretch is {self.stretch}; expected two rising percentiles, such as 2 and 98.")

    @cached_property
    def limits(self) -> np.ndarray | None:
        """The values of each band that become 0 and 255, (3, 2); None for 8-bit pixels without a stretch."""
        return self._measure_limits() if self.stretch else None

    @property
    def outline(self) -> shapely.Polygon:
        """The outline of the raster, in its reference system."""
        return self.to_ground(shapely.box(0, 0, self.width, self.height))

    def fit(self, side: int) -> tuple[int, int]:
        """Return (width, height) of the scene, shrunk so that the longer one is at most `side` pixels."""
        shrink = min(1.0, side / max(self.width, self.height))
        return max(1, round(self.width * shrink)), max(1, round(self.height * shrink))

    def _resolve_bands(self) -> tuple[int, ...]:
        count, path = self.dataset.count, self.path
        if self.bands is None:
            declared = {colour: band for band, colour in enumerate(self.dataset.colorinterp, start=1)}
            colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            if all(colour in declared for colour in colours):
                return tuple(declared[colour] for colour in colours)
            if count - (ColorInterp.alpha in declared) == 1:
                return (1, 1, 1)
            raise ValueError(
                f"{path} has {count} bands and does not declare which of them are red, green and blue. "
                "Give them, for example bands=(3, 2, 1) or --bands 3,2,1."
            )
        if len(self.bands) not in (1, 3) or not all(1 <= band <= count for band in self.bands):
            raise ValueError(
                f"bands is {self.bands}, but {path} has the bands 1 to {count}. "
                "Give one band, or three for red, green and blue."
            )
        return self.bands * 3 if len(self.bands) == 1 else self.bands

    def _measure_limits(self) -> np.ndarray:
        width, height = self.fit(OVERVIEW_SIDE)
        whole = Window(0, 0, self.width, self.height)
        pixels = self._read_pixels(whole, (3, height, width), Resampling.nearest).astype(np.float64)
        valid = ~np.ma.getmaskarray(pixels) & np.isfinite(pixels.data)
        if not valid.any(axis=(1, 2)).all():
            raise ValueError(
                f"{self.path} has no valid pixel in one of the bands {self.bands}. Check the file."
            )
        return np.array(
            [np.percentile(band[ok], self.stretch) for band, ok in zip(pixels.data, valid, strict=True)]
        )

    def read(self, window: tuple[float, float, float, float], size: tuple[int, int]) -> Ground:
        """Read a window at a given size.

        Args:
            window: xyxy, pixels of the scene; it may reach over the edges.
            size: (width, height) of the result.

        Returns:
            The window. What is nodata, masked, not finite or outside the scene is not valid; there the image
            has the mean colour of the valid pixels.
        """
        x0, y0, x1, y1 = window
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, self.width), min(y1, self.height)
        pixels, valid = np.zeros((3, size[1], size[0])), np.zeros((size[1], size[0]), dtype=bool)
        if right > left and bottom > top:
            across, down = size[0] / (x1 - x0), size[1] / (y1 - y0)
            columns = slice(round((left - x0) * across), max(round((right - x0) * across), 1))
            rows = slice(round((top - y0) * down), max(round((bottom - y0) * down), 1))
            shape = (3, rows.stop - rows.start, columns.stop - columns.start)
            part = Window(left, top, right - left, bottom - top)
            method = Resampling.average if across < 1 else Resampling.bilinear
            read = self._read_pixels(part, shape, method)
            is_ground = (~np.ma.getmaskarray(read) & np.isfinite(read.data)).all(axis=0)
            pixels[:, rows, columns] = self._scale(np.where(is_ground, read.data, 0))
            valid[rows, columns] = is_ground
        if not valid.all():
            pixels[:, ~valid] = pixels[:, valid].mean(axis=1, keepdims=True) if valid.any() else 127.0
        image = Image.fromarray(pixels.round().astype(np.uint8).transpose(1, 2, 0))
        return Ground(image, valid)

    def _read_pixels(self, window: Window, shape: tuple[int, int, int], method: Resampling):
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                return self.dataset.read(
                    self.bands, window=window, out_shape=shape, masked=True, resampling=method
                )
        except rasterio.RasterioIOError as error:
            place = [round(number) for number in window.flatten()]
            raise ValueError(
                f"{self.path} cannot be read at column, row, width, height {place} ({error}). "
                "The file is damaged; copy it again."
            ) from error

    def _scale(self, pixels: np.ndarray) -> np.ndarray:
        if self.limits is None:
            return pixels
        low, high = self.limits[:, :1, None], self.limits[:, 1:, None]
        return np.clip((pixels - low) / np.maximum(high - low, np.finfo(float).tiny), 0, 1) * 255

    def to_pixels(self, geometry: BaseGeometry) -> BaseGeometry:
        """Convert a geometry from the scene's reference system to pixels (column, row)."""
        return affine_transform(geometry, (~self.transform).to_shapely())

    def to_ground(self, geometry: BaseGeometry) -> BaseGeometry:
        """Convert a geometry from pixels (column, row) to the scene's reference system."""
        return affine_transform(geometry, self.transform.to_shapely())

    def describe(self) -> dict:
        """Describe how pixels became RGB, so that a protocol can reproduce them."""
        return {"bands": list(self.bands), "stretch": list(self.stretch) if self.stretch else None}
