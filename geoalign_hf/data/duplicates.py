"""Near-duplicate images: a hash of pixels, a perceptual hash, and a validation split that respects both."""

from hashlib import sha256

import numpy as np
from datasets import Dataset
from PIL import Image

# An image is reduced to SIDE x SIDE pixels. The KEPT x KEPT lowest frequencies of its cosine transform count.
SIDE, KEPT = 32, 8
# Two images are similar if so many of their 63 signs agree. On NWPU VHR-10, copies have 57 or more and other
# pairs have 51 or fewer.
FEWEST_EQUAL = 55
FLATTEST = 2.0  # standard deviation of brightness (0 to 255) below which an image has no perceptual hash
_waves = np.cos(np.pi * np.arange(KEPT)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))  # (KEPT, SIDE)


def hash_pixels(image: Image.Image) -> str:
    """Hash the decoded pixels of an image. The file format does not matter."""
    image = image.convert("RGB")
    return sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def hash_appearance(image: Image.Image) -> np.ndarray | None:
    """Hash the appearance of an image: signs of its low frequencies, which survive resizing and compression.

    Returns:
        (63,), bool. None for an image without enough contrast to tell it from others.

    Source:
        pHash: https://www.phash.org, the discrete cosine transform of 32 x 32 pixels.
    """
    small = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
    if small.std() < FLATTEST:
        return None
    amplitudes = (_waves @ small @ _waves.T).flatten()[1:]  # without the mean
    return amplitudes > np.median(amplitudes)


def list_orientations(image: Image.Image) -> list[Image.Image]:
    """Return the eight orientations of an image: rotated by multiples of 90 degrees, and mirrored."""
    return [image, *(image.transpose(way) for way in Image.Transpose)]


def group_rows(rows: Dataset) -> np.ndarray:
    """Group rows whose images show the same ground, as far as that is known.

    Two rows are in one group if they were cut from the same `source`, or if both are in the group of a third
    row. They also are if their images are equal or nearly equal, in any of their eight orientations.

    Args:
        rows: N rows. Every image is decoded once.

    Returns:
        (N,), the number of the group of each row.
    """
    groups = np.arange(len(rows))
    first_rows: dict[str, int] = {}
    kept, all_signs = [], []  # rows with a perceptual hash, and the hashes of their eight orientations

    def join(i: int, j: int) -> None:
        if groups[i] != groups[j]:
            groups[groups == groups[i]] = groups[j]

    for i, row in enumerate(rows):
        names = [f"pixels {hash_pixels(row['image'])}"]
        names += [f"source {row['source']}"] if row.get("source") else []
        for name in names:
            join(i, first_rows.setdefault(name, i))
        signs = [hash_appearance(oriented) for oriented in list_orientations(row["image"])]
        if signs[0] is not None:
            kept.append(i)
            all_signs.append([2.0 * each - 1 for each in signs])
    if kept:
        signs = np.array(all_signs, dtype=np.float32)  # (M, 8, 63), -1 or 1
        for i, oriented in zip(kept, signs, strict=True):
            num_equal = (signs[:, 0] @ oriented.T + KEPT**2 - 1).max(axis=1) / 2
            for j in np.flatnonzero(num_equal >= FEWEST_EQUAL):
                join(i, kept[j])
    return groups


def split_validation(rows: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Set rows aside for validation, so that nobody has to choose a model on the test set.

    Groups of near-duplicates stay together, see `group_rows`.

    Args:
        rows: dataset of rows.
        share: fraction of the rows to set aside, in (0, 1).
        seed: seed of the draw.

    Returns:
        The rows to train on, and those to validate on.

    Raises:
        ValueError: if the share is out of its range, or all rows belong to one group.
    """
    if not 0 < share < 1:
        raise ValueError(f"the validation share is {share}; it must be above 0 and below 1.")
    groups = group_rows(rows)
    names = np.unique(groups)
    if len(names) < 2:
        raise ValueError(f"the {len(rows)} rows are near-duplicates of one image. Give rows of more images.")
    is_aside = np.zeros(len(rows), dtype=bool)
    for name in np.random.default_rng(seed).permutation(names)[:-1]:
        if is_aside.sum() >= share * len(rows):
            break
        is_aside |= groups == name
    return rows.select(np.flatnonzero(~is_aside)), rows.select(np.flatnonzero(is_aside))
