"""Divides source images into shards, and stores the annotations of each shard in a file of its own.

A worker reads only the annotations of its shard, so that memory does not grow with the number of images.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..data.tiling import list_tiles
from ..images import is_plain, read_size

MOST_IMAGE_BYTES = 2**31 - 1  # Arrow stores at most so many bytes in one value


class Plan(NamedTuple):
    """The parts of a build.

    Args:
        num_rows: Number of source images.
        num_shards: Number of shards.
        vocabulary: All annotated concepts, sorted.
        digest: Hash of annotations, image sizes and shards, to notice changes between two runs.
    """

    num_rows: int
    num_shards: int
    vocabulary: list[str]
    digest: str


def plan_shards(
    rows: Iterable[dict],
    folder: Path,
    most_images: int,
    most_bytes: int,
    has_bands: bool = False,
) -> Plan:
    """Divide rows into shards and write the rows of each shard to a file.

    Args:
        rows: Rows of a reader, with paths of images. `tile` may hold side and overlap of the tiles that large
            images are cut into. Rows are read once, one at a time.
        folder: Folder of the files; it must not exist.
        most_images: Maximum number of source images per shard.
        most_bytes: Maximum size of a shard's images. A larger image has a shard of its own.
        has_bands: Whether bands of the images are chosen, so that no row holds the file itself.

    Returns:
        The plan.

    Raises:
        ValueError: If an image is too large for one row.
    """
    folder.mkdir(parents=True)
    digest, vocabulary = hashlib.sha256(), set()
    index, num_images, num_bytes, file = -1, 0, 0, None
    for i, row in enumerate(rows):
        size = estimate_bytes(row["image"], row.get("tile"), has_bands)
        if file is None or num_images == most_images or num_bytes + size > most_bytes:
            if file:
                file.close()
            index, num_images, num_bytes = index + 1, 0, 0
            file = locate_rows(folder, index).open("w", encoding="utf-8")
        num_images, num_bytes = num_images + 1, num_bytes + size
        vocabulary.update(row["concepts"], row["unboxed"])
        file.write(json.dumps([i, row]) + "\n")
        annotation = {name: value for name, value in row.items() if name != "image"}
        digest.update(json.dumps([index, size, annotation], sort_keys=True).encode())
    if file is None:
        raise ValueError("the sources hold no images. Check the paths.")
    file.close()
    return Plan(i + 1, index + 1, sorted(vocabulary), digest.hexdigest())


def locate_rows(folder: Path, index: int) -> Path:
    """Return the path of the annotations of a shard."""
    return folder / f"{index:05d}.jsonl"


def read_shard_rows(folder: Path, index: int) -> Iterator[tuple[int, dict]]:
    """Read the rows of a shard, each with its number among all rows."""
    with locate_rows(folder, index).open(encoding="utf-8") as file:
        for line in file:
            number, row = json.loads(line)
            yield number, row


def estimate_bytes(path: str, tiles: tuple[int, int] | None, has_bands: bool = False) -> int:
    """Estimate the bytes that an image takes in a shard, from above.

    They are those of its file or, if the row holds other pixels than the file, those of uncompressed RGB:
    tiles, chosen bands, and images that are scaled to 8 bits.

    Raises:
        ValueError: If the image may be too large for one row.
    """
    windows = list_tiles(read_size(path), *tiles) if tiles else []
    if len(windows) > 1:
        return sum(3 * (x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in windows)
    num_bytes, kind = Path(path).stat().st_size, "bytes"
    if has_bands or not is_plain(path):
        width, height = read_size(path)
        num_bytes, kind = 3 * width * height, "bytes as 8-bit RGB"
    if num_bytes > MOST_IMAGE_BYTES:
        raise ValueError(f"{path} has {num_bytes:,} {kind}; a row holds at most 2 GiB. Cut it with --tile.")
    return num_bytes
