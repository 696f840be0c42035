"""Opening images: one place reads, orients and converts them for the whole package.

The reading itself is in `geoalign_hf.model`, because it ships with every model. This module adds options as
one object, and rasterio for files that PIL cannot read in full: more than one band of more than 8 bits, or
more bands than colours.
"""

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .model.image_files_geoalign_clip import Header, check_num_pixels, read_header
from .model.image_options_geoalign_clip import (
    READER_REMEDY,
    OptionNeeded,
    ReaderNeeded,
    check_options,
    check_rule,
    merge_options,
    read_by_rule,
)
from .model.images_geoalign_clip import is_single, read_once, to_rgb
from .options import option

try:
    import rasterio
    import rasterio.errors
except ImportError:
    rasterio = None

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".j2k"})
# What makes a picture upright, by the orientation tag of its file.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageOptions:
    """Rules for images that are not 8-bit RGB. Without them such images are refused.

    Args:
        stretch: two percentiles of each picture, over all chosen bands together, that become 0 and 255.
        limits: two values that become 0 and 255, the same for all pictures. Neither option changes pictures
            of 8 bits.
        bands: numbers of the bands to use as red, green and blue, counted from 1, or of one band for grey.
        max_pixels: largest number of pixels of a file; None means PIL's limit of 179 million.

    Raises:
        ValueError: if an option cannot be used.

    Example:
        >>> ImageOptions(stretch=(2, 98), bands=(4, 3, 2)).stretch
        (2, 98)
    """

    _argument_group_name = "images that are not 8-bit RGB"

    stretch: tuple[float, float] | None = option(
        default=None,
        help="Percentiles of each image that become black and white, such as 2,98. For more than 8 bits.",
    )
    limits: tuple[float, float] | None = option(
        default=None,
        help="Values that become black and white, such as 0,3000, instead of --stretch.",
    )
    bands: tuple[int, ...] | None = option(
        default=None,
        help="Numbers of the bands for red, green and blue, such as 3,2,1, or of one band for grey.",
    )
    max_pixels: int | None = option(
        default=None,
        help="Maximum number of pixels of an image file. By default, Pillow's limit of 179 million.",
    )

    # The rule of a model, for images that cannot be read without one, where no option is given.
    fallback: dict | None = field(default=None, init=False)

    def __post_init__(self):
        check_options(self.stretch, self.limits, self.bands)
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}; it must be at least 1.")

    def with_fallback(self, rule: dict | None) -> "ImageOptions":
        """Return the same options with the rule of a model, see `GeoAlignCLIPProcessor.image_rule`."""
        options = replace(self)
        object.__setattr__(options, "fallback", check_rule(rule))
        return options

    def describe(self) -> dict | None:
        """Return the options that decide about pixel values, as JSON stores them; None without any."""
        given = {"stretch": self.stretch, "limits": self.limits, "bands": self.bands}
        return {name: list(value) for name, value in given.items() if value is not None} or None

    def make_rule(self) -> dict | None:
        """Return these options, completed by the fallback, as the rule of a model."""
        merged = merge_options(self.stretch, self.limits, self.bands, self.fallback or {})
        return ImageOptions(*merged).describe()


DEFAULT_OPTIONS = ImageOptions()


def read_size(path: str | Path) -> tuple[int, int]:
    """Read an image's width and height in pixels, upright as `read_image` gives it, from the header alone.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    return read_header(path, str(path), max_pixels=sys.maxsize).size  # nothing is decoded


def read_image(
    image,
    options: ImageOptions = DEFAULT_OPTIONS,
    draft_side: int | None = None,
    name: str | None = None,
) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    Args:
        image: a path, a URL, the bytes of a file, a PIL image, an array, a tensor, or a sample of torchgeo.
        options: rules for images that are not 8-bit RGB.
        draft_side: smallest side, in pixels, to which a JPEG file may be reduced by decoding it at 1/2, 1/4
            or 1/8 of its size. None decodes all pixels.
        name: name of the image in messages. None takes its path.

    Returns:
        an image of mode RGB.

    Raises:
        ValueError: with the image's name, if it cannot be read, or its depth or bands need an option.
    """
    if isinstance(image, Mapping):
        image = sample_to_row(image)["image"]
    if name is None:
        name = str(image) if isinstance(image, (str, Path)) else "the image"
    return read_by_rule(
        lambda *rule: _read_any(image, name, ImageOptions(*rule, options.max_pixels), draft_side),
        (options.stretch, options.limits, options.bands),
        options.fallback,
    )


def _read_any(image, name: str, options: ImageOptions, draft_side: int | None) -> Image.Image:
    try:
        given = (options.stretch, options.limits, options.bands, options.max_pixels)
        return read_once(image, name, *given, draft_side=draft_side)
    except ReaderNeeded as error:
        if rasterio is None or not isinstance(image, (str, Path, bytes)) or "://" in str(image)[:10]:
            raise
        header = error.header
    source = io.BytesIO(image) if isinstance(image, bytes) else image
    return _read_by_rasterio(source, name, header, options)


def sample_to_row(sample: Mapping) -> dict:
    """Make a row of a sample of torchgeo; rows stay as they are.

    Args:
        sample: dictionary with `image`, a tensor (bands, height, width) or an image, and `bbox_xyxy`, a
            tensor (R, 4) of pixels, if there are regions. Other entries, such as `crs`, are kept.

    Returns:
        The sample with a tensor as an array (height, width, bands), and with `boxes`.

    Raises:
        ValueError: if the image has another number of dimensions, as in a stacked batch.

    Example:
        >>> sample = {"image": np.zeros((4, 8, 6)), "bbox_xyxy": np.array([[0, 0, 3, 2]])}
        >>> row = sample_to_row(sample)
        >>> row["image"].shape, row["boxes"]
        ((8, 6, 4), [[0, 0, 3, 2]])
    """
    if "image" not in sample:
        raise ValueError(f"The sample has {list(sample)}, but no image. Give a tensor as its image.")
    if "boxes" in sample:
        return dict(sample)
    image = sample["image"]
    if hasattr(image, "ndim"):  # an array or a tensor, with its bands first
        if image.ndim != 3:
            raise ValueError(
                f"The image of a sample has the shape {tuple(image.shape)}; expected bands, height, width. "
                "Give single samples; torchgeo.datasets.unbind_samples splits a batch."
            )
        image = np.moveaxis(np.asarray(image), 0, -1)
    boxes = np.asarray(sample.get("bbox_xyxy", np.zeros((0, 4)))).tolist()
    return {**sample, "image": image, "boxes": boxes}


def check_image_list(images: Any) -> None:
    """Refuse a single image where many are expected: iterating over an array would give strips of it.

    Raises:
        ValueError: with what was found.
    """
    if is_single(images) or isinstance(images, Mapping):
        shape = getattr(images, "shape", None)
        found = f"{images!r:.80}" if shape is None else f"an array of the shape {tuple(shape)}"
        raise ValueError(f"Expected a list of images, but found {found}. Give a list, also of one image.")


def is_plain(content: bytes | str | Path) -> bool:
    """Whether an image file has 8 bits per band or fewer, in bands that PIL reads as they are meant."""
    source, name = (
        (io.BytesIO(content), "the image") if isinstance(content, bytes) else (content, str(content))
    )
    header = read_header(source, name, max_pixels=sys.maxsize)
    return header.bits <= 8 and header.problem is None


def has_natural_colour(image: Image.Image) -> bool:
    """Return whether an image shows the colours of the scene. Grey, chosen and scaled bands do not.

    Args:
        image: an image that `read_image` returned. Any other image is examined at a grid of pixels, and
            counts as grey if all of them are grey.
    """
    if (flag := image.info.get("natural_colour")) is not None:
        return flag
    pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST))
    return bool((pixels.max(axis=-1) != pixels.min(axis=-1)).any())


def _read_by_rasterio(path, name: str, header: Header, options: ImageOptions) -> Image.Image:
    """Read chosen bands in full depth. Pixels without data become black, and percentiles ignore them."""
    if header.remedy:
        raise ReaderNeeded(name, header)
    try:
        with rasterio.open(path) as file:
            check_num_pixels((file.width, file.height), name, options.max_pixels)
            bands = options.bands or (tuple(range(1, file.count + 1)) if file.count <= 4 else None)
            if bands is None or max(bands) > file.count:
                found = "" if bands is None else f", but bands is {bands}"
                raise OptionNeeded(
                    f"{name} has {file.count} bands{found}. Give bands=(3, 2, 1), or another choice, to name "
                    "the bands of red, green and blue (on the command line --bands 3,2,1)."
                )
            array = file.read(list(bands)).transpose(1, 2, 0)
            is_valid = (file.read_masks(list(bands)) > 0).all(axis=0)
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"{name} cannot be read by rasterio ({error}). {READER_REMEDY}") from error
    if header.bits < 8 and array.dtype == np.uint8:
        array = array * (255 / (2**header.bits - 1))
        array = array.round().astype(np.uint8)
    chosen = tuple(range(1, len(bands) + 1)) if options.bands else None
    rgb = to_rgb(array, name, options.stretch, options.limits, chosen, header.is_inverted, is_valid)
    rgb.info["natural_colour"] = False  # the file does not declare 8-bit red, green and blue
    turn = TURNS.get(header.orientation)
    return rgb if turn is None else rgb.transpose(turn)
