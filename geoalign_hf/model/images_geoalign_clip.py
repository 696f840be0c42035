# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Images as 8-bit RGB, from files, URLs, PIL images, arrays and tensors.

Pixel depth is never guessed. Eight bits per band pass unchanged. Everything else is scaled by percentiles
(`stretch`) or by fixed values (`limits`), or refused with the name of the image and a remedy. The windows of
large scenes share one stretch, which `geoalign_hf/scenes/reader.py` measures and applies.
"""

import base64
import io
from pathlib import Path

import numpy as np
from huggingface_hub import get_session
from PIL import Image, ImageOps

from .image_files_geoalign_clip import (
    ONE_PICTURE,
    ORIENTATION,
    WIDE_MODES,
    Header,
    describe_image,
    describe_opened,
    load_pixels,
    open_file,
    read_start,
)
from .image_options_geoalign_clip import (
    READER_REMEDY,
    OptionNeeded,
    ReaderNeeded,
    check_options,
    read_by_rule,
)

OTHER_COLOURS = frozenset({"P", "PA", "CMYK", "YCbCr", "HSV"})  # whose bands are not red, green and blue
COLOUR_MODES = OTHER_COLOURS | {"RGB", "RGBA", "RGBa", "RGBX"}
FILES = (str, Path, bytes, bytearray, io.BytesIO)  # paths, URLs and files in memory
PLAIN_MODES = COLOUR_MODES | {"1", "L", "LA", "La"}  # eight bits per band or fewer
FULL_SIZE = "geoalign_full_size"
LONGEST_SILENCE = 60.0  # seconds that a download may wait for its server
SCALE_REMEDY = (
    "Give stretch=(2, 98) to map these percentiles of the picture to 0 and 255, or limits=(low, high) to map "
    "these values. On the command line, give --stretch 2,98 or --limits LOW,HIGH."
)


def read_image(
    image,
    name: str,
    stretch: tuple[float, float] | None = None,
    limits: tuple[float, float] | None = None,
    bands: tuple[int, ...] | None = None,
    max_pixels: int | None = None,
    timeout: float | None = None,
    layout: str | None = None,
    fallback: dict | None = None,
    draft_side: int | None = None,
) -> Image.Image:
    """Return any image as 8-bit RGB.

    Args:
        image: a path, a URL, a `data:` URL, the bytes of a file, a PIL image, an array or a tensor. The shape
            is (H, W), (H, W, bands) or (bands, H, W). Masked pixels of a masked array have no data. A file
            or PIL image is turned upright by its orientation tag.
        name: name of the image in messages.
        stretch: two percentiles of the picture, over all chosen bands together, that become 0 and 255.
        limits: two values that become 0 and 255. Neither option changes pictures of 8 bits.
        bands: numbers of the bands to use as red, green and blue, or of one band to use as grey, from 1.
        max_pixels: largest number of pixels of a file; None means PIL's limit, twice
            `PIL.Image.MAX_IMAGE_PIXELS`.
        timeout: longest silence of a server in seconds; None means 60.
        layout: `channels_first` or `channels_last`, for arrays whose shape is ambiguous.
        fallback: `stretch`, `limits` and `bands` of a model, see `read_by_rule`. What is given directly
            replaces them.
        draft_side: smallest side, in pixels, to which a JPEG file may be reduced by decoding it at 1/2, 1/4
            or 1/8 of its size. `get_full_size` returns the size of the file. None decodes all pixels.

    Returns:
        an image of mode RGB. Its `info["natural_colour"]` is False if its colours may not be those of the
        scene: for grey images, and where `bands` are chosen or numbers are scaled.

    Raises:
        ValueError: with the name, if the image cannot be read, or its depth or bands need an option.
    """
    check_options(stretch, limits, bands)
    return read_by_rule(
        lambda *rule: read_once(image, name, *rule, max_pixels, timeout, layout, draft_side),
        (stretch, limits, bands),
        fallback,
    )


def read_once(
    image, name: str, stretch, limits, bands, max_pixels, timeout=None, layout=None, draft_side=None
):
    """Read an image as `read_image` does, but with errors that tell what is missing."""
    if isinstance(image, (str, Path)):
        image = _download(str(image), name, timeout)
    elif isinstance(image, (bytes, bytearray)):
        image = io.BytesIO(image)
    if isinstance(image, (str, io.BytesIO)):
        return _read_file(image, name, stretch, limits, bands, max_pixels, draft_side)
    if isinstance(image, Image.Image):
        return _convert_image(image, name, stretch, limits, bands)
    return _convert_array(image, name, stretch, limits, bands, layout)


def is_single(images) -> bool:
    """Whether an argument is one image: a path, a file, a PIL image, or an array of 2 or 3 dimensions."""
    return isinstance(images, (*FILES, Image.Image)) or getattr(images, "ndim", 4) in (2, 3)


def load_images(images, do_rescale: bool = True, layout=None, **options) -> list[Image.Image]:
    """Read one image or many as 8-bit RGB.

    Args:
        images: a PIL image, an array or tensor (H, W), (H, W, bands) or (bands, H, W), a path or URL; a list
            of those; or a 4-dimensional array or tensor.
        do_rescale: whether pixels are divided by 255 later. Without it, arrays of floats are refused.
        layout: `channels_first` or `channels_last`, for arrays whose shape is ambiguous.
        **options: those of `read_image`.

    Returns:
        a list of PIL images of mode RGB.

    Raises:
        ValueError: with the image's index or path, if there is no image or one cannot be read.
    """
    if is_single(images):
        images = [images]
    elif not hasattr(images, "__iter__"):
        raise ValueError(f"images is a {type(images).__name__}. Give an image or a list of images.")
    flat = []
    for i, entry in enumerate(images):
        if isinstance(entry, (list, tuple)):  # some pipelines of transformers pass a list per text
            flat += [(f"image {i}[{j}]", image) for j, image in enumerate(entry)]
        else:
            flat.append((f"image {i}", entry))
    if not flat:
        raise ValueError("images is empty. Give at least one image.")
    layout = getattr(layout, "value", layout)
    if layout not in (None, "channels_first", "channels_last"):
        raise ValueError(f"input_data_format is {layout!r}. Give channels_first or channels_last.")
    loaded = []
    for name, image in flat:
        if isinstance(image, (str, Path)):
            name = f"{name} ({str(image)[:200]!r})"
        if not do_rescale and "float" in str(getattr(image, "dtype", "")):
            raise ValueError(
                f"{name} holds floats, and do_rescale is False. Leave do_rescale at True: floats in [0, 1] "
                "are recognised by their type."
            )
        loaded.append(read_image(image, name, layout=layout, **options))
    return loaded


def _download(source: str, name: str, timeout: float | None) -> str | io.BytesIO:
    """Fetch what a URL names into memory; paths are returned as they are."""
    try:
        if source.startswith("data:"):
            return io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True))
        if source.startswith(("http://", "https://")):
            response = get_session().get(source, timeout=timeout or LONGEST_SILENCE, follow_redirects=True)
            response.raise_for_status()
            return io.BytesIO(response.content)
    except Exception as error:  # every HTTP client has exceptions of its own
        raise ValueError(f"{name} cannot be fetched ({error}). Give a URL of an image, or a path.") from error
    return source


def _read_file(source, name: str, stretch, limits, bands, max_pixels, draft_side) -> Image.Image:
    prefix, header = read_start(source, name, max_pixels)
    if header is not None and header.problem:
        raise ReaderNeeded(name, header)
    try:
        image = open_file(source, name, max_pixels)
    except ValueError as error:
        if header is None:
            raise
        header.problem = "is a TIFF that PIL cannot open"
        raise ReaderNeeded(name, header) from error
    with image:
        header = header or describe_image(image, prefix, name)
        if header.problem:
            raise ReaderNeeded(name, header)
        try:
            if draft_side is not None and image.format == "JPEG":
                image.draft(None, (draft_side, draft_side))
            load_pixels(image)
            if header.is_turned:
                ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # a damaged file makes PIL raise almost any exception
            raise ValueError(f"{name} cannot be read as an image ({error}). Replace it.") from error
        if image.mode not in WIDE_MODES:
            result = _convert_image(image, name, stretch, limits, bands, is_upright=True)
            if draft_side is not None and result.size != header.size:
                result.info[FULL_SIZE] = header.size
            return result
        return _convert_wide(image, header, name, stretch, limits, bands)


def get_full_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) of the picture in its file, of which `draft_side` may have decoded less."""
    return image.info.get(FULL_SIZE, image.size)


def _convert_wide(
    image: Image.Image, header: Header | None, name: str, stretch, limits, bands
) -> Image.Image:
    """Convert an image of one band of more than eight bits."""
    array = np.asarray(image)
    if header is None:
        return to_rgb(array[..., None], name, stretch, limits, bands)
    if header.bits == 32 and header.kind == "uint":
        array = array.view(np.uint32)
    if image.format == "JPEG2000":
        array = array >> (16 - header.bits)  # PIL fills all 16 bits
    is_valid = None if header.nodata is None else array != header.nodata
    return to_rgb(array[..., None], name, stretch, limits, bands, header.is_inverted, is_valid)


def _convert_image(
    image: Image.Image, name: str, stretch, limits, bands, is_upright: bool = False
) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels (width x height). Remove it.")
    try:
        header = describe_opened(image, name)
        load_pixels(image)
        if not is_upright and image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged file makes PIL raise almost any exception
        raise ValueError(f"{name} cannot be read as an image ({error}). Replace it.") from error
    if header is not None and header.problem and header.remedy != ONE_PICTURE:  # the frame is chosen already
        raise ValueError(f"{name} {header.problem}. {header.remedy or READER_REMEDY}")
    if image.mode in WIDE_MODES:
        return _convert_wide(image, header, name, stretch, limits, bands)
    if image.mode not in PLAIN_MODES:
        raise ValueError(f"{name} has the mode {image.mode}, which is not read. Convert it to RGB first.")
    if image.mode in ("RGBa", "La"):  # multiplied by the alpha band
        image = image.convert(image.mode.upper())
    if bands is not None:
        image = image.convert("RGB") if image.mode in OTHER_COLOURS else image
        return to_rgb(np.atleast_3d(np.asarray(image)), name, stretch, limits, bands)
    if image.mode == "RGB":
        return image
    result = image.convert("RGB")
    if image.mode not in COLOUR_MODES:
        result.info["natural_colour"] = False
    return result


def _convert_array(image, name: str, stretch, limits, bands, layout) -> Image.Image:
    if not hasattr(image, "__array__"):
        raise ValueError(
            f"{name} is a {type(image).__name__}. Give a path, a URL, a PIL image, an array or a tensor."
        )
    try:
        if hasattr(image, "detach"):
            image = image.detach().cpu().resolve_conj().resolve_neg()
            image = image.float() if str(image.dtype) == "torch.bfloat16" else image
        array = np.asarray(image)
    except Exception as error:  # libraries of arrays raise errors of many kinds
        message = (
            f"{name}, a {type(image).__name__}, cannot become an array ({error}). Give an ordinary array."
        )
        raise ValueError(message) from error
    is_valid = ~np.ma.getmaskarray(image) if isinstance(image, np.ma.MaskedArray) else None
    if array.dtype.kind not in "buifc":
        raise ValueError(f"{name} is an array of {array.dtype}. Give an array of numbers.")
    if array.ndim == 2:
        array, is_valid = array[..., None], None if is_valid is None else is_valid[..., None]
    elif array.ndim != 3:
        raise ValueError(
            f"{name} is an array of the shape {array.shape}. Give (height, width), (height, width, bands) or "
            "(bands, height, width)."
        )
    elif _is_channels_first(array.shape, name, layout, bands):
        array, is_valid = array.transpose(1, 2, 0), None if is_valid is None else is_valid.transpose(1, 2, 0)
    if 0 in array.shape[:2]:
        raise ValueError(
            f"{name} has {array.shape[1]} x {array.shape[0]} pixels (width x height). Remove it."
        )
    if is_valid is not None:  # a pixel has data if all bands that are used have
        used = range(array.shape[2]) if bands is None else [int(b) - 1 for b in bands if b <= array.shape[2]]
        is_valid = is_valid[..., list(used)].all(axis=-1)
    return to_rgb(array, name, stretch, limits, bands, is_valid=is_valid)


def _is_channels_first(shape: tuple[int, ...], name: str, layout: str | None, bands) -> bool:
    """Find the axis of the bands: of 1 or 3 (or, with `bands`, of fewer entries than the other axis)."""
    if layout is not None:
        return layout == "channels_first"
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if not first and not last and bands is not None and shape[0] != shape[2]:
        first, last = shape[0] < shape[2], shape[2] < shape[0]
    if first and last:
        raise ValueError(
            f"{name} is an array of the shape {shape}, whose first and last axes could both be bands. "
            'Say which with input_data_format="channels_first" or "channels_last".'
        )
    if not first and not last:
        raise OptionNeeded(
            f"{name} is an array of the shape {shape}, in which no axis has 1 or 3 bands. "
            "Give bands=(3, 2, 1), or another choice, to name the bands of red, green and blue."
        )
    return first


def to_rgb(
    array: np.ndarray,
    name: str,
    stretch=None,
    limits=None,
    bands=None,
    is_inverted: bool = False,
    is_valid=None,
) -> Image.Image:
    """Choose bands, scale them to 8 bits, and make an RGB image.

    Args:
        array: (H, W, bands), numbers of any type.
        name: name of the image in messages.
        stretch: two percentiles that become 0 and 255, see `read_image`.
        limits: two values that become 0 and 255, see `read_image`.
        bands: numbers of the bands to use, see `read_image`.
        is_inverted: whether 0 means white.
        is_valid: (H, W), False where there is no data; None means that all pixels are real.

    Returns:
        an image of mode RGB, black where there is no data. See `read_image` for its `info`.

    Raises:
        ValueError: with the name, if the bands are not there, or the type of numbers needs an option.
    """
    num_bands = array.shape[-1]
    if bands is not None:
        if max(bands) > num_bands:
            raise ValueError(
                f"{name} has {num_bands} bands, but bands is {tuple(bands)}. Name bands that it has."
            )
        array = array[..., [int(band) - 1 for band in bands]]
    elif num_bands not in (1, 3):
        raise OptionNeeded(
            f"{name} has {num_bands} bands. Give bands=(3, 2, 1), or another choice, to name the bands of "
            "red, green and blue (on the command line --bands 3,2,1)."
        )
    pixels = scale_to_8_bits(array, name, stretch, limits, is_valid)
    pixels = 255 - pixels if is_inverted else pixels
    if is_valid is not None:
        pixels = np.where(is_valid[..., None], pixels, np.uint8(0))
    result = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    is_scaled = (stretch is not None or limits is not None) and array.dtype not in (np.uint8, bool)
    if bands is not None or num_bands == 1 or is_scaled:
        result.info["natural_colour"] = False
    return result


def scale_to_8_bits(array: np.ndarray, name: str, stretch=None, limits=None, is_valid=None) -> np.ndarray:
    """Scale numbers of any type to 0 to 255.

    uint8 passes unchanged, booleans become 0 and 255, and floats in [0, 1] are multiplied by 255. Everything
    else needs `stretch` or `limits`. NaN becomes 0, and a picture of a single value becomes black.

    Raises:
        ValueError: with the name, if an option is missing or the numbers cannot be scaled.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "c":
        raise ValueError(f"{name} holds complex numbers. Take their magnitude first.")
    if stretch is None and limits is None:
        if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
            return (array * array.dtype.type(255)).round().astype(np.uint8)
        known = "only floats from 0 to 1" if array.dtype.kind == "f" else "only uint8"
        raise OptionNeeded(
            f"{name} holds {array.dtype} from {array.min()} to {array.max()}, but {known} can be read "
            f"without a rule for their range. {SCALE_REMEDY}"
        )
    array = array.astype(np.float64 if array.dtype.itemsize > 2 else np.float32)
    if stretch is not None:
        known = np.isfinite(array) if is_valid is None else np.isfinite(array) & is_valid[..., None]
        if not known.any():
            raise ValueError(f"{name} has no finite pixel. Remove it.")
        limits = np.percentile(array[known], stretch)
    low, high = map(float, limits)
    with np.errstate(all="ignore"):
        shares = (array - low) / (high - low) if high > low else np.zeros_like(array)
    if not np.isfinite(high - low):
        raise ValueError(f"{name} holds numbers from {low} to {high}, too far apart to be scaled.")
    return (np.nan_to_num(shares, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
