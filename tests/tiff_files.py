"""TIFF files of any tags, which PIL and GDAL do not write themselves."""

import struct
from pathlib import Path

import numpy as np

FORMATS = {2: "s", 3: "H", 4: "I"}  # kinds of values: text, 16 bits, 32 bits


def write_tiff(path: Path, *pages: tuple[np.ndarray, dict], order: str = "<") -> Path:
    """Write pages, each of an array (height, width, bands) and tags: number -> list of numbers, or text."""
    content = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 0))
    link = 4
    for array, tags in pages:
        height, width, num_bands = array.shape
        place = len(content)
        content += array.astype(array.dtype.newbyteorder(order)).tobytes()
        kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
        entries = {256: [width], 257: [height], 258: [8 * array.itemsize] * num_bands, 259: [1]}
        entries |= {262: [2 if num_bands > 2 else 1], 273: [place], 277: [num_bands], 278: [height]}
        entries |= {279: [array.nbytes], 339: [kind] * num_bands} | tags
        encoded = []
        for number, value in sorted(entries.items()):
            if isinstance(value, str):
                code, count, packed = 2, len(value) + 1, value.encode() + b"\0"
            else:
                code = 4 if number in (273, 279) else 3
                count, packed = len(value), struct.pack(f"{order}{len(value)}{FORMATS[code]}", *value)
            if len(packed) > 4:
                offset = len(content)
                content += packed + b"\0" * (len(packed) % 2)
                packed = struct.pack(order + "I", offset)
            encoded.append(struct.pack(order + "HHI", number, code, count) + packed.ljust(4, b"\0"))
        struct.pack_into(order + "I", content, link, len(content))
        content += struct.pack(order + "H", len(encoded)) + b"".join(encoded)
        link = len(content)
        content += bytes(4)
    path.write_bytes(content)
    return path
