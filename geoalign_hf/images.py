"""Opening images: the one place that reads, orients and converts a picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from transformers.image_utils import load_image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
EXIF_ORIENTATION = 0x0112  # from 5 on it exchanges width and height


@contextmanager
def allow_large_images() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels while a large scene is opened on purpose."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_size(path: str | Path) -> tuple[int, int]:
    """Read an image's width and height, in pixels, as the image stands after its EXIF orientation.

    Only the header is read.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    try:
        with allow_large_images(), Image.open(path) as opened:
            width, height = opened.size
            # Pillow looks for the EXIF data of a PNG behind its pixels: asking would decode the whole image.
            has_exif = opened.format != "PNG" or "exif" in opened.info
            is_turned = has_exif and opened.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}). Replace or drop it.") from error
    return (height, width) if is_turned else (width, height)


def read_image(image):
    """Read an image that is given as a path, turned as its EXIF orientation says; others stay as they are."""
    return load_image(str(image)) if isinstance(image, (str, Path)) else image
