"""Reads a georeferenced raster window by window, as 8-bit RGB with a mask of valid ground."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import rasterio
import shapely
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from ..model.image_options_geoalign_clip import check_options, merge_options

T, U = TypeVar("T"), TypeVar("U")
OVERVIEW_SIDE = 1024  # the stretch is measured on the scene shrunk to this longer side
CACHE_BYTES = 128 * 1024**2  # GDAL keeps blocks it read; by default in a twentieth of the memory
DEFAULT_STRETCH = (2.0, 98.0)  # percentiles, for pixels of other types than 8 bit
NUM_THREADS, READ_AHEAD = 4, 32  # threads that read windows, and windows that are read ahead


class Ground(NamedTuple):
    """A window of a scene: its image, and which of its pixels show ground, (height, width) bool."""

    image: Image.Image
    valid: np.ndarray


@dataclass
class Scene:
    """A raster file that is read in windows and never as a whole.

    Args:
        path: path of a GeoTIFF, or of any other raster that rasterio opens.
        bands: numbers, from 1, of the bands that are red, green and blue, or of one band for grey. None takes
            the bands that the file declares as such, or its only band.
        stretch: two percentiles that become 0 and 255. They are measured over the chosen bands together, on
            an overview of the whole scene, so that all windows share them.
        limits: two values that become 0 and 255, instead of `stretch`. Without both, 8-bit pixels are kept
            and all others are stretched by `DEFAULT_STRETCH`.
        rule: the `image_rule` of a model's processor. It completes the options for files that are not 8-bit
            or do not declare their bands.

    Raises:
        ValueError: if the file cannot be opened or has no coordinates, or an option has an impossible value.
            Bands that do not exist, or are neither given nor declared, are also refused, and so are numbers
            of a colour table and complex numbers.
    """

    path: str | Path
    bands: tuple[int, ...] | None = None
    stretch: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None
    rule: dict | None = None

    def __post_init__(self):
        check_options(self.stretch, self.limits, self.bands)
        self._handles, self._lock = threading.local(), threading.Lock()
        dataset = self._open()
        if dataset.crs is None:
            raise ValueError(
                f"{self.path} has no coordinate reference system, so results could not be placed. "
                "Give a georeferenced file; geoalign-hf embed takes plain images."
            )
        if dataset.transform.is_identity:
            raise ValueError(
                f"{self.path} has a coordinate reference system, but no transform of pixels into it. "
                "Give a georeferenced file, such as one that gdalwarp wrote."
            )
        self.crs, self.transform = dataset.crs, dataset.transform
        self.width, self.height = dataset.width, dataset.height
        bands = self.bands or _find_bands(dataset)
        is_plain = bands is not None and all(
            dataset.dtypes[b - 1] == "uint8" for b in bands if b <= dataset.count
        )
        if not is_plain:
            self.stretch, self.limits, self.bands = merge_options(
                self.stretch, self.limits, self.bands, self.rule or {}
            )
            if self.stretch is None and self.limits is None:
                self.stretch = DEFAULT_STRETCH
        self.bands = self._check_bands(dataset, self.bands or bands)

    def _open(self) -> rasterio.DatasetReader:
        """Open the file once for each thread, since a handle must not be shared."""
        if not hasattr(self._handles, "dataset"):
            try:
                with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                    self._handles.dataset = rasterio.open(self.path)
            except rasterio.RasterioIOError as error:
                raise ValueError(
                    f"{self.path} cannot be opened as a raster ({error}). Check the file."
                ) from error
        return self._handles.dataset

    def _check_bands(self, dataset: rasterio.DatasetReader, bands: tuple[int, ...] | None) -> tuple[int, ...]:
        count = dataset.count
        if bands is None:
            raise ValueError(
                f"{self.path} has {count} bands and does not declare which of them are red, green and blue. "
                "Give them, for example bands=(3, 2, 1) or --bands 3,2,1."
            )
        if max(bands) > count:
            raise ValueError(f"bands is {bands}, but {self.path} has the bands 1 to {count}. Choose others.")
        for band in bands:
            if dataset.colorinterp[band - 1] == ColorInterp.palette:
                raise ValueError(
                    f"band {band} of {self.path} holds numbers of a colour table and not brightness. Write a "
                    "file of colours first: gdal_translate -expand rgb."
                )
            if dataset.dtypes[band - 1].startswith("complex"):
                raise ValueError(
                    f"band {band} of {self.path} holds complex numbers. Write a file of amplitudes first."
                )
        return tuple(bands) * 3 if len(bands) == 1 else tuple(bands)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The values that become 0 and 255; None for 8-bit pixels that are kept as they are."""
        with self._lock:  # one thread measures, and the others wait
            return self._measured_range

    @cached_property
    def _measured_range(self) -> tuple[float, float] | None:
        if self.stretch is None:
            return self.limits
        width, height = self.fit(OVERVIEW_SIDE)
        whole = Window(0, 0, self.width, self.height)
        pixels = self._read_pixels(whole, (3, height, width), Resampling.nearest)
        valid = ~np.ma.getmaskarray(pixels) & np.isfinite(pixels.data)
        if not valid.any():
            raise ValueError(f"{self.path} has no valid pixel in the bands {self.bands}. Check the file.")
        low, high = np.percentile(pixels.data[valid].astype(np.float64), self.stretch)
        return float(low), float(high)

    @property
    def outline(self) -> shapely.Polygon:
        """The outline of the raster, in its reference system."""
        return self.to_ground(shapely.box(0, 0, self.width, self.height))

    def fit(self, side: int) -> tuple[int, int]:
        """Return (width, height) of the scene, shrunk so that the longer one is at most `side` pixels."""
        shrink = min(1.0, side / max(self.width, self.height))
        return max(1, round(self.width * shrink)), max(1, round(self.height * shrink))

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
        image, valid = np.zeros((size[1], size[0], 3), dtype=np.uint8), np.zeros(size[::-1], dtype=bool)
        across, down = size[0] / (x1 - x0), size[1] / (y1 - y0)
        columns = slice(round((left - x0) * across), round((right - x0) * across))
        rows = slice(round((top - y0) * down), round((bottom - y0) * down))
        if columns.stop > columns.start and rows.stop > rows.start:
            shape = (3, rows.stop - rows.start, columns.stop - columns.start)
            method = Resampling.average if across < 1 else Resampling.bilinear
            pixels = self._read_pixels(Window(left, top, right - left, bottom - top), shape, method)
            masked = np.ma.getmaskarray(pixels)
            # Nodata of unsigned numbers, such as 0, is also the value of some colours in one band.
            is_ground = ~(np.all if pixels.dtype.kind == "u" else np.any)(masked, axis=0)
            if pixels.dtype.kind == "f":
                is_ground &= np.isfinite(pixels.data).all(axis=0)
            image[rows, columns] = self._scale(pixels.data, is_ground).transpose(1, 2, 0)
            valid[rows, columns] = is_ground
        if not valid.all():
            image[~valid] = image[valid].mean(axis=0).round() if valid.any() else 127
        return Ground(Image.fromarray(image), valid)

    def _read_pixels(self, window: Window, shape: tuple[int, int, int], method: Resampling):
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                return self._open().read(
                    self.bands, window=window, out_shape=shape, masked=True, resampling=method
                )
        except rasterio.RasterioIOError as error:
            place = [round(number) for number in window.flatten()]
            raise ValueError(
                f"{self.path} cannot be read at column, row, width, height {place} ({error}). "
                "The file is damaged; copy it again."
            ) from error

    def _scale(self, pixels: np.ndarray, is_ground: np.ndarray) -> np.ndarray:
        value_range = self.value_range
        if value_range is None:
            return pixels
        low, high = value_range
        kind = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
        scaled = np.where(is_ground, pixels, 0).astype(kind)
        scaled -= kind(low)
        scaled *= kind(255 / (high - low) if high > low else 0)
        return scaled.clip(0, 255).round().astype(np.uint8)

    def to_pixels(self, geometry: BaseGeometry) -> BaseGeometry:
        """Convert a geometry from the scene's reference system to pixels (column, row)."""
        return affine_transform(geometry, (~self.transform).to_shapely())

    def to_ground(self, geometry: BaseGeometry) -> BaseGeometry:
        """Convert a geometry from pixels (column, row) to the scene's reference system."""
        return affine_transform(geometry, self.transform.to_shapely())

    def describe(self) -> dict:
        """Say how pixels became RGB: what a protocol needs to reproduce them."""
        given = {"bands": self.bands, "stretch": self.stretch, "limits": self.limits}
        return {name: list(value) if value else None for name, value in given.items()}


def _find_bands(dataset: rasterio.DatasetReader) -> tuple[int, ...] | None:
    """Find the bands that a file declares as red, green and blue, or its only band."""
    declared = {colour: band for band, colour in enumerate(dataset.colorinterp, start=1)}
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in declared for colour in colours):
        return tuple(declared[colour] for colour in colours)
    return (1,) if dataset.count - (ColorInterp.alpha in declared) == 1 else None


def read_ahead(read: Callable[[T], U], items: Iterable[T], num_threads: int = NUM_THREADS) -> Iterator[U]:
    """Call a function for each item in threads, some items ahead, and yield the results in order.

    Reading the next windows takes place while the model encodes the last ones.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[U]] = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
