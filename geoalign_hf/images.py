"""Opening images: one place reads, orients and converts them for the whole package.

The reading itself is in `geoalign_hf.model`, because it ships with every model. This module adds options as
one object, and rasterio for files that PIL cannot read in full: more than one band of more than 8 bits, or
more bands than colours.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .model.image_files_geoalign_clip import Header, check_num_pixels, read_header
from .model.images_geoalign_clip import READER_REMEDY, check_options, to_rgb
from .model.images_geoalign_clip import read_image as read_any_image

try:
    import rasterio
    import rasterio.errors
except ImportError:
    rasterio = None

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".j2k"})


@contextmanager
def allow_large_images() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels while a large scene is opened on purpose."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@dataclass(frozen=True)
class ImageOptions:
    """Rules for images that are not 8-bit RGB. Without them such images are refused.

    Args:
        stretch: two percentiles of each picture, over all chosen bands together, that become 0 and 255.
        limits: two values that become 0 and 255, the same for all pictures. Neither option changes pictures
            of 8 bits.
        bands: numbers of the bands to use as red, green and blue, counted from 1, or of one band for grey.
        max_pixels: largest number of pixels of a file; None means PIL's limit of 179 million.
        natural_colour: whether the chosen `bands` show the colours of the scene. False (the default where
            bands are chosen) keeps colours out of generated phrases. Pictures without `bands` tell by
            themselves.

    Raises:
        ValueError: if an option cannot be used.

    Example:
        >>> ImageOptions(stretch=(2, 98), bands=(4, 3, 2), natural_colour=True).stretch
        (2, 98)
    """

    stretch: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None
    bands: tuple[int, ...] | None = None
    max_pixels: int | None = None
    natural_colour: bool = False

    def __post_init__(self):
        check_options(self.stretch, self.limits, self.bands)
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}; it must be at least 1.")

    @property
    def scaling(self) -> dict:
        """The options that the processor and the region pipeline take as well."""
        return {name: value for name, value in asdict(self).items() if name != "natural_colour"}


DEFAULT_OPTIONS = ImageOptions()


def read_size(path: str | Path) -> tuple[int, int]:
    """Read an image's width and height in pixels, upright as `read_image` gives it, from the header alone.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    return read_header(path, str(path), max_pixels=sys.maxsize).size  # nothing is decoded


def read_image(image, options: ImageOptions = DEFAULT_OPTIONS, draft_side: int | None = None) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    Args:
        image: a path, a URL, a PIL image, an array or a tensor.
        options: rules for images that are not 8-bit RGB.
        draft_side: decode a JPEG file at 1/2, 1/4 or 1/8 of its size where no side becomes shorter than this.
            None decodes all pixels.

    Returns:
        an image of mode RGB.

    Raises:
        ValueError: with the file's name, if it cannot be read, or its depth or bands need an option.
    """
    name = str(image) if isinstance(image, (str, Path)) else "the image"
    is_local = isinstance(image, (str, Path)) and "://" not in name and not name.startswith("data:")
    header = read_header(image, name, options.max_pixels) if is_local else None
    if header is not None and header.problem and rasterio is not None:
        result = _read_by_rasterio(image, name, header, options)
    else:
        result = read_any_image(image, name, **options.scaling, draft_side=draft_side)
    if options.bands is not None and options.natural_colour:
        result.info["natural_colour"] = True
    return result


def has_natural_colour(image: Image.Image) -> bool:
    """Return whether an image shows the colours of the scene. Grey images and images of other bands do not.

    Args:
        image: an image that `read_image` returned. Any other image is examined at a grid of pixels, and
            counts as grey if all of them are grey.
    """
    if (flag := image.info.get("natural_colour")) is not None:
        return flag
    pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST))
    return bool((pixels.max(axis=-1) != pixels.min(axis=-1)).any())


def _read_by_rasterio(path, name: str, header: Header, options: ImageOptions) -> Image.Image:
    """Read chosen bands in full depth. Pixels without data become black, and percentiles leave them out."""
    if "pages" in header.problem:
        raise ValueError(f"{name} {header.problem}. Save the page that you mean as a file of its own.")
    try:
        with rasterio.open(path) as file:
            check_num_pixels((file.width, file.height), name, options.max_pixels)
            bands = options.bands or (tuple(range(1, file.count + 1)) if file.count <= 4 else None)
            if bands is None or max(bands) > file.count:
                found = "" if bands is None else f", but bands is {bands}"
                raise ValueError(
                    f"{name} has {file.count} bands{found}. Give bands=(3, 2, 1), or another choice, to name "
                    "the bands of red, green and blue (on the command line --bands 3,2,1)."
                )
            array = file.read(list(bands)).transpose(1, 2, 0)
            is_valid = (file.read_masks(list(bands)) > 0).all(axis=0)
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"{name} cannot be read by rasterio ({error}). {READER_REMEDY}") from error
    chosen = tuple(range(1, len(bands) + 1)) if options.bands else None
    rgb = to_rgb(array, name, options.stretch, options.limits, chosen, header.is_inverted, is_valid)
    return rgb
