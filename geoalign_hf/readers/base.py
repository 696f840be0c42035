"""What all annotation formats share: finding files and their images, reading them, checking regions.

What enters are paths and annotations as they stand; what leaves are plain rows, or an error that names the
file and the place in it. `readers` knows the formats.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.utils import logging

from ..captioning.grammar import add_article, count_concepts, spell_concept
from ..images import IMAGE_SUFFIXES, read_size
from ..model.regions_geoalign_clip import check_boxes, check_quads
from .skipped import SkipReport

logger = logging.get_logger(__name__)


class Annotation(NamedTuple):
    """One region as a file states it: the place in the file, its name, xyxy or four corners, its flag."""

    place: str
    name: str
    numbers: list[float]
    is_difficult: bool | None = None


def make_row(
    image: Path,
    place: str,
    annotations: list[Annotation],
    report: SkipReport,
    size: tuple[float, float] | None = None,
    crowds: tuple[str, ...] = (),
    concepts: list[str] | None = None,
    drop_difficult: bool = False,
) -> dict | None:
    """Check the annotations of one image, and word them as plainly as can be.

    Args:
        image: its file.
        place: what to call the image in a message.
        annotations: of its regions, in pixels.
        report: takes up what is left out.
        size: width and height as the annotations state them, if they do.
        crowds: names of what is in the image without a region.
        concepts: the names that are allowed; None allows all.
        drop_difficult: leave out what is flagged.

    Returns:
        A row that `rows.build_rows` takes: phrases are concepts with an article, the caption counts them.
        None if the image was left out.

    Raises:
        ValueError: if the image cannot be read or has another size, or an annotation is no region of it.
    """
    found = try_read_size(image, report)
    if found is None:
        return None
    if size is not None and tuple(size) != found:
        message = f"{place} is stated to be {size[0]:g} x {size[1]:g} pixels, but {image} has "
        message += (
            f"{found[0]} x {found[1]}, so boxes would point at other pixels. Give the image as annotated."
        )
        report.refuse("other size", message)
        return None
    kept, unboxed, seen = [], list(crowds), set()
    for annotation in _check_each(annotations, found, report):
        key = (annotation.name, *annotation.numbers)
        if not has_words(annotation.name):
            message = f"{annotation.place} has the name {annotation.name!r}, which holds no words."
            report.refuse("unknown concept", f"{message} Name it, or drop the annotation.")
        elif concepts is not None and annotation.name not in concepts:
            message = f"{annotation.place} is a {annotation.name!r}; known are {sorted(concepts)}."
            report.refuse("unknown concept", f"{message} Add the name, or drop the annotation.")
        elif drop_difficult and annotation.is_difficult:
            unboxed.append(annotation.name)
            report.skip("difficult", f"{annotation.place} is flagged as difficult.")
        elif key in seen:
            report.skip("repeated region", f"{annotation.place} repeats a region: {key}.")
        else:
            seen.add(key)
            kept.append(annotation)
    names = [spell_concept(annotation.name) for annotation in kept]
    is_oriented = any(len(annotation.numbers) == 8 for annotation in kept)
    return {
        "image": str(image),
        "source": image.name,
        "captions": [f"an aerial image with {count_concepts(names)}"] if names else [],
        "boxes": [
            [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])]
            for _, _, numbers, _ in kept
        ],
        "quads": [pair_corners(annotation.numbers) for annotation in kept] if is_oriented else [],
        "phrases": [add_article(name) for name in names],
        "concepts": names,
        "difficult": [bool(flag) for *_, flag in kept] if any(flag is not None for *_, flag in kept) else [],
        "unboxed": sorted({spell_concept(name) for name in unboxed}),
    }


def has_words(name: str) -> bool:
    """Say whether a name of an annotation file leaves a concept.

    Example:
        >>> has_words("storage_tank"), has_words(" _ ")
        (True, False)
    """
    return bool(spell_concept(name))


def _check_each(annotations: list[Annotation], size: tuple[int, int], report: SkipReport) -> list[Annotation]:
    """Give those that are regions of an image of this size; halving finds the wrong ones among many."""
    is_alone = len(annotations) == 1
    try:
        for length in (4, 8):
            numbers = [annotation.numbers for annotation in annotations if len(annotation.numbers) == length]
            _check(numbers, size, annotations[0].place if is_alone else "regions")
    except ValueError as error:
        if is_alone:
            report.refuse("bad region", str(error), error)
            return []
        half = len(annotations) // 2
        return _check_each(annotations[:half], size, report) + _check_each(annotations[half:], size, report)
    return annotations


def _check(numbers: list[list[float]], size: tuple[int, int], name: str) -> None:
    regions = torch.tensor(numbers, dtype=torch.float64)
    if regions.shape[-1] == 4:
        check_boxes(regions, *size, name=name)
    elif numbers:
        check_quads(regions.view(-1, 4, 2), *size, name=name)


def pair_corners(numbers: list[float]) -> list[list[float]]:
    """Write xyxy, or eight numbers, as four corners.

    Example:
        >>> pair_corners([0, 0, 2, 1])
        [[0, 0], [2, 0], [2, 1], [0, 1]]
    """
    if len(numbers) == 4:
        x0, y0, x1, y1 = numbers
        numbers = [x0, y0, x1, y0, x1, y1, x0, y1]
    return [list(corner) for corner in zip(numbers[::2], numbers[1::2], strict=True)]


def try_read_size(image: Path, report: SkipReport) -> tuple[int, int] | None:
    """Read an image's width and height; None if it cannot be read and `report` skips errors."""
    try:
        return read_size(image)
    except ValueError as error:
        report.refuse("bad image", str(error), error)
        return None


def list_files(source: str | Path, suffix: str) -> list[Path]:
    """Give a file, or the files of a folder that have a suffix, by name.

    Raises:
        ValueError: if there is none.
    """
    source = Path(source)
    found = sorted(source.glob(f"*{suffix}")) if source.is_dir() else [source]
    if not found:
        raise ValueError(f"{source} holds no {suffix} files. Give a file, or the folder that they lie in.")
    return found


def list_images(folder: str | Path) -> list[Path]:
    """List the image files below a folder, by path.

    Raises:
        ValueError: if there is none.
    """
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}). Give their folder.")
    return found


def index_images(folder: str | Path) -> dict[str, list[Path]]:
    """Find images by their names without suffix."""
    index: dict[str, list[Path]] = {}
    for path in list_images(folder):
        index.setdefault(path.stem, []).append(path)
    return index


def find_image(index: dict[str, list[Path]], stem: str, annotations: Path, report: SkipReport) -> Path | None:
    """Find the one image of a file of annotations; None if it was left out.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = index.get(stem, [])
    if len(found) == 1:
        return found[0]
    if found:
        names = [str(path) for path in found]
        report.refuse("ambiguous image", f"{annotations} fits the images {names}. Leave one of them there.")
    else:
        message = (
            f"{annotations} has no image {stem!r} among the {len(index)} images. Give the folder it lies in."
        )
        report.refuse("no image", message)
    return None


def read_text(path: Path) -> str:
    """Read UTF-8, also with a byte order mark, also gzipped.

    Raises:
        ValueError: if the file is missing, cut, corrupt or in another encoding.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}). Give a whole file.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line} is not UTF-8 ({error}). Save the file as UTF-8.") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Read the lines of a text that are not empty, each with its place."""
    for i, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path} line {i}", line.strip()


def list_lines(path: Path, report: SkipReport) -> list[tuple[str, str]] | None:
    """List the lines of a file of annotations as `read_lines` does; None if the file was left out."""
    try:
        return list(read_lines(path))
    except ValueError as error:
        report.refuse("bad file", str(error), error)
        return None


def parse_json(path: Path, text: str, what: str):
    """Parse JSON.

    Raises:
        ValueError: if it is none; `what` says what should be given.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, lists too deep
        raise ValueError(f"{path} cannot be read as JSON ({error}). Give {what}.") from error


def parse_numbers(fields: list[str]) -> list[float] | None:
    """Read finite numbers; None if one of the fields is none.

    Example:
        >>> parse_numbers(["1", "2.5"]), parse_numbers(["1", "ship"]), parse_numbers(["nan"])
        ([1.0, 2.5], None, None)
    """
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def finish_rows(rows: list[dict | None], source: str | Path, report: SkipReport) -> list[dict]:
    """Drop the images that were left out or come again, and say what was found.

    Raises:
        ValueError: if nothing was, or an image comes twice.
    """
    by_source = {}
    for row in filter(None, rows):
        if row["source"] in by_source:
            message = f"{source} has the image {row['source']} twice. Give every image one entry."
            report.refuse("repeated image", message)
        else:
            by_source[row["source"]] = row
    rows = list(by_source.values())
    if not rows:
        message = f"{source} has no images that can be used; left out: {report.count_kinds()}."
        first = f" The first: {report.entries[0]['message']}" if report.entries else ""
        raise ValueError(message + first)
    num_regions = sum(len(row["boxes"]) for row in rows)
    concepts = {concept for row in rows for concept in row["concepts"]}
    logger.info(f"{source}: {len(rows)} images, {num_regions} regions of {len(concepts)} concepts")
    if report.entries:
        logger.warning(f"{source}: left out {report.count_kinds()}. The report lists each with its place.")
    return rows
