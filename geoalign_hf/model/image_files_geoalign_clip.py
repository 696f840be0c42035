# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Image files: reading size, depth and bands from their headers, and opening them safely.

PIL reduces some files to 8 bits or to one band without a message. The header shows which files.
"""

import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})  # one band of more than eight bits
ANIMATED = frozenset({"AVIF", "GIF", "PNG", "WEBP"})
TO_RGB = "Convert it to 8-bit RGB."
ONE_PICTURE = "Save the picture that you mean as a file of its own."
START = 4096  # bytes at the beginning of a file that are examined
# Tags of TIFF 6.0, and what they may hold in a picture of eight bits that PIL decodes as it is meant.
ORIENTATION, PHOTOMETRIC, PAGE_KIND, EXTRA_SAMPLES, SAMPLE_FORMAT = 274, 262, 254, 338, 339
WIDTH, HEIGHT, BITS, NUM_SAMPLES, PLANES = 256, 257, 258, 277, 284
COMPRESSION, NODATA = 259, 42113
TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # photometric interpretation: number of its bands
_UNSIGNED = {(bits, "uint") for bits in (1, 2, 4, 8, 12, 16, 32)}
SWAPPED_SAMPLES = {(16, "int"), (32, "int"), (32, "float")}  # misread by PIL if big-endian and compressed
TIFF_SAMPLES = _UNSIGNED | SWAPPED_SAMPLES  # of one band


@dataclass
class Header:
    """The properties of the pixels that the header of an image file states.

    Args:
        size: (width, height) in pixels, upright.
        num_bands: number of bands.
        bits: bits of one sample.
        kind: `uint`, `int`, `float` or `complex`.
        problem: reason why PIL alone would not give the picture as it is meant; None if it does.
        is_inverted: whether 0 means white.
        is_turned: whether the orientation of the EXIF data is applied to the pixels.
        orientation: orientation tag of a TIFF, of which GDAL returns the pixels as they are stored.
        nodata: value of pixels without data in a TIFF, as GDAL states it.
        remedy: what to do about the problem; None if another program can read the file.
    """

    size: tuple[int, int]
    num_bands: int
    bits: int = 8
    kind: str = "uint"
    problem: str | None = None
    is_inverted: bool = False
    is_turned: bool = True
    orientation: int = 1
    nodata: float | None = None
    remedy: str | None = None


def check_file(path: str | Path, name: str):
    """Refuse what is not a regular file: opening a named pipe would wait for ever.

    Raises:
        ValueError: with the path.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({error}). Give the path of an image file.") from error
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "directory"), (stat.S_ISFIFO, "named pipe"))
        kind = next((kind for is_kind, kind in kinds if is_kind(mode)), "device or socket")
        raise ValueError(f"{name} is a {kind}, not a regular file. Give the path of an image file.")


def open_file(source: str | Path | io.BytesIO, name: str, max_pixels: int | None = None) -> Image.Image:
    """Open an image file without decoding its pixels.

    Args:
        source: a path, or a file in memory.
        name: name of the image in messages.
        max_pixels: largest number of pixels; None means PIL's limit, twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ValueError: with the name, if PIL cannot read it or it is larger than allowed.
    """
    if not isinstance(source, io.BytesIO):
        check_file(source, name)
    try:
        try:
            image = Image.open(source)
        except Image.DecompressionBombError:
            image = _open_without_limit(source)
    except UnidentifiedImageError as error:  # its message is the address of an object in memory
        raise ValueError(
            f"{name} cannot be read as an image (it begins as no format that PIL knows). Replace it."
        ) from error
    except Exception as error:  # a damaged file makes PIL raise almost any exception
        raise ValueError(f"{name} cannot be read as an image ({error}). Replace it.") from error
    if image.format in ("EPS", "WMF"):
        raise ValueError(f"{name} is a drawing ({image.format}), not a picture. Convert it to PNG.")
    check_num_pixels(image.size, name, max_pixels)
    return image


def load_pixels(image: Image.Image):
    """Decode the pixels of an opened image.

    Pillow maps the pixels of some TIFF files into memory instead. It then exchanges width and height of a
    turned picture, which scrambles it. Without the name of the file, it decodes them.
    """
    if isinstance(image, TiffImageFile) and image.tag_v2.get(ORIENTATION, 1) > 4:
        image.filename = ""
    image.load()


def check_num_pixels(size: tuple[int, int], name: str, max_pixels: int | None):
    """Refuse an image that has more pixels than allowed; None means PIL's limit."""
    if max_pixels is None and Image.MAX_IMAGE_PIXELS is not None:
        max_pixels = 2 * Image.MAX_IMAGE_PIXELS
    num_pixels = size[0] * size[1]
    if max_pixels is not None and num_pixels > max_pixels:
        raise ValueError(
            f"{name} has {size[0]} x {size[1]} = {num_pixels:,} pixels; at most {max_pixels:,} are allowed. "
            f"If you trust the file, give max_pixels={num_pixels} (on the command line --max_pixels "
            f"{num_pixels}); otherwise cut it into tiles."
        )


def _open_without_limit(source) -> Image.Image:
    """Open a file as `PIL.Image.open` does, without its limit, which is a variable of the whole process."""
    Image.init()
    if isinstance(source, io.BytesIO):
        prefix = source.getvalue()[:16]
        source.seek(0)
    else:
        with open(source, "rb") as file:
            prefix = file.read(16)
    factory = next(factory for factory, accept in Image.OPEN.values() if accept and accept(prefix) is True)
    return factory(source)


def read_header(source: str | Path | io.BytesIO, name: str, max_pixels: int | None = None) -> Header:
    """Read the header of an image file, without decoding its pixels.

    Raises:
        ValueError: with the name, if the file cannot be read as an image or is larger than allowed.
    """
    prefix, header = read_start(source, name, max_pixels)
    if header is not None:
        return header
    with open_file(source, name, max_pixels) as image:
        return describe_image(image, prefix, name)


def read_start(source, name: str, max_pixels: int | None) -> tuple[bytes, Header | None]:
    """Read the first bytes of a file, and the header of a TIFF, which PIL may refuse to open."""
    if isinstance(source, io.BytesIO):
        file = io.BytesIO(source.getbuffer())
    else:
        check_file(source, name)
        file = open(source, "rb")
    with file:
        prefix = file.read(START)
        if prefix[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return prefix, None
        header = _read_tiff_header(file, name)
    check_num_pixels(header.size, name, max_pixels)
    return prefix, header


def describe_image(image: Image.Image, prefix: bytes, name: str) -> Header:
    """Describe an image that is not a TIFF; `prefix` is the start of its file."""
    header = Header(image.size, len(image.getbands()))
    if image.mode in WIDE_MODES:
        header.bits, header.kind = (32, "float") if image.mode == "F" else (16, "uint")
    if image.format == "PNG":
        header.bits = prefix[24]
        # PIL looks for EXIF data behind the pixels, and asking for it would decode the whole image.
        header.is_turned = any("exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info)
        header.problem = _find_lost_depth(image, header.bits)
    elif image.format == "JPEG2000":
        header.bits, header.kind = _read_jpeg2000_depth(prefix)
        header.problem = _find_lost_depth(image, header.bits)
        if header.kind != "uint":
            header.problem = "holds signed numbers, or bands of different depths"
    elif image.format == "PPM" and prefix[:2] in (b"P2", b"P3", b"P5", b"P6"):
        highest = int(re.sub(rb"#.*", b"", prefix).split(None, 4)[3])
        header.bits = highest.bit_length()
        if highest > 255 and not (highest == 65535 and image.mode in WIDE_MODES):
            header.problem = f"has values up to {highest}, which PIL changes"
    elif image.format == "SGI":
        header.bits = 8 * prefix[3]
        header.problem = _find_lost_depth(image, header.bits)
    elif image.format == "FITS" and image.mode in WIDE_MODES:
        header.problem = "is a FITS file, whose scale and offset PIL ignores"
    if image.format in ANIMATED and getattr(image, "is_animated", False):
        header.problem, header.remedy = "holds several frames", ONE_PICTURE
    try:
        if header.is_turned and image.getexif().get(ORIENTATION) in (5, 6, 7, 8):
            header.size = image.height, image.width
    except Exception as error:  # damaged EXIF data make PIL raise almost any exception
        raise ValueError(f"{name} has EXIF data that cannot be read ({error}). Remove them.") from error
    return header


def describe_opened(image: Image.Image, name: str) -> Header | None:
    """Describe an image that was opened elsewhere; None if its file is not known or not open any more."""
    if isinstance(image, TiffImageFile):
        return describe_tags(image.tag_v2)
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("PNG", "JPEG2000", "PPM", "SGI", "FITS"):
        return None
    place = file.tell()
    file.seek(0)
    header = describe_image(image, file.read(START), name)
    file.seek(place)
    return header


def _find_lost_depth(image: Image.Image, bits: int) -> str | None:
    is_lost = bits > 8 and image.mode not in WIDE_MODES
    return f"has {bits} bits per band, of which PIL reads 8" if is_lost else None


def _read_jpeg2000_depth(prefix: bytes) -> tuple[int, str]:
    """Read the bits of a sample, from the image header box of a file or the SIZ marker of a codestream."""
    if prefix[:4] == b"\xff\x4f\xff\x51":
        depth = prefix[42]
    else:
        place = prefix.find(b"ihdr")
        depth = prefix[place + 14] if 0 <= place < 50 else 0xFF  # the value where the bands differ
    return (depth & 0x7F) + 1, "int" if depth & 0x80 else "uint"


def _read_tiff_header(file, name: str) -> Header:
    """Describe a TIFF by its tags, of which PIL refuses some and misreads others."""
    try:
        pages = _read_tiff_pages(file)
        pictures = [page for page in pages if not page.get(PAGE_KIND, 0) & 5]  # no thumbnail, no mask
        header = describe_tags(pictures[0])
    except Exception as error:  # damaged tags make PIL raise almost any exception
        raise ValueError(f"{name} cannot be read as a TIFF ({error}). Replace or remove it.") from error
    if len(pictures) > 1:
        header.problem, header.remedy = f"has {len(pictures)} pages", ONE_PICTURE
    elif pages[0] is not pictures[0]:
        header.problem, header.remedy = "begins with a thumbnail or mask, not with its picture", ONE_PICTURE
    elif header.bits > 8 and any(page.get(PAGE_KIND, 0) & 4 for page in pages):
        header.problem = header.problem or "has a mask of the pixels with data, which PIL ignores"
    return header


def describe_tags(tags) -> Header:
    """Describe one page of a TIFF."""
    width, height, num_bands = int(tags[WIDTH]), int(tags[HEIGHT]), int(tags.get(NUM_SAMPLES, 1))
    all_bits = tags.get(BITS, (1,))
    bits = max(all_bits)
    kind = {1: "uint", 2: "int", 3: "float", 4: "uint"}.get(max(tags.get(SAMPLE_FORMAT, (1,))), "complex")
    photometric, extra = tags.get(PHOTOMETRIC), tags.get(EXTRA_SAMPLES, ())
    orientation = tags.get(ORIENTATION, 1)
    size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
    header = Header(size, num_bands, bits, kind, orientation=orientation)
    header.is_inverted = photometric == 0
    try:
        header.nodata = float(tags.get(NODATA, ""))
    except ValueError:
        header.nodata = None
    is_jpeg = tags.get(COMPRESSION, 1) in (6, 7)  # its decoders convert YCbCr to RGB
    if photometric not in (0, 1, 2) and not (photometric == 6 and is_jpeg):
        header.remedy = TO_RGB  # rasterio returns other colours as they are
    num_colours = TIFF_COLOURS.get(photometric, 0)
    has_alpha = len(extra) == 1 and extra[0] in (1, 2) and num_bands == num_colours + 1
    if num_colours == 0:
        header.problem = f"has the colour space {photometric} of TIFF"
    elif photometric == 6 and not is_jpeg:
        header.problem = "has YCbCr colours without JPEG, which PIL takes for RGB"
    elif len(all_bits) not in (1, num_bands):
        header.problem = f"has {num_bands} bands, but states the bits of {len(all_bits)}"
        header.remedy = TO_RGB
    elif num_bands != num_colours and not has_alpha and not (num_colours == 3 and num_bands > 3):
        header.problem = f"has {num_bands} bands, and its header does not say which of them are colours"
    elif num_bands > 1 and (bits > 8 or kind != "uint"):
        header.problem = f"has {num_bands} bands of {bits} bits ({kind}), of which PIL reads 8"
    elif num_bands == 1 and tags.get(PLANES, 1) == 2:
        header.problem = "stores its only band as a plane of its own, which PIL misreads"
    elif num_bands == 1 and (bits, kind) not in TIFF_SAMPLES:
        header.problem = f"has samples of {bits} bits ({kind})"
    elif (bits, kind) in SWAPPED_SAMPLES and tags.prefix == b"MM" and tags.get(COMPRESSION, 1) != 1:
        header.problem = f"has compressed samples of {bits} bits ({kind}), highest byte first, of which PIL "
        header.problem += "exchanges the bytes"
    return header


def _read_tiff_pages(file, most: int = 1000) -> list:
    """Read the tags of every page of a TIFF."""
    file.seek(0)
    start = file.read(8)
    if start[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        start += file.read(8)
    offset, seen, pages = ImageFileDirectory_v2(start).next, set(), []
    while offset and offset not in seen and len(pages) < most:
        seen.add(offset)
        tags = ImageFileDirectory_v2(start)
        file.seek(offset)
        tags.load(file)
        pages.append(tags)
        offset = tags.next
    return pages
