"""Opening images: the one place that reads, orients and converts a picture."""

from pathlib import Path

from PIL import Image
from transformers.image_utils import load_image

from .readers.skipped import Report

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
EXIF_ORIENTATION = 0x0112  # from 5 on it exchanges width and height


def read_size(image: Path, report: Report) -> tuple[int, int] | None:
    """Read width and height from an image's header; None if it cannot be read and was left out."""
    try:
        with Image.open(image) as opened:
            width, height = opened.size
            # For Exif data that may come late a PNG would be decoded whole.
            has_exif = opened.format != "PNG" or "exif" in opened.info
            is_turned = has_exif and opened.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        report.refuse(
            "bad image", f"{image} cannot be read as an image ({error}). Replace or drop it.", error
        )
        return None
    return (height, width) if is_turned else (width, height)


def read_image(image):
    """Read an image that is given as a path, turned as its EXIF orientation says; others stay as they are."""
    return load_image(str(image)) if isinstance(image, (str, Path)) else image
