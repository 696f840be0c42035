"""Reads annotation formats that have one text file per image and one region per line."""

from collections.abc import Callable, Iterator
from pathlib import Path

from .base import Annotation, make_row
from .files import list_files, pair_images, try_read_lines
from .skipped import SkipReport


def read_line_files(
    annotations: str | Path,
    images: str | Path,
    parse_line: Callable[[str, str], Annotation | None],
    only: set[str] | None = None,
    report: SkipReport | None = None,
    concepts: list[str] | None = None,
    drop_difficult: bool = False,
) -> Iterator[dict | None]:
    """Read text files with one region per line.

    Args:
        annotations: A file, or a folder of files.
        images: Folder of the images; see `files.pair_images` for which image belongs to a file.
        parse_line: Function that makes a region of the place and the text of a line. It returns None for a
            line to be ignored, and raises ValueError with the expected form for a wrong line.
        only: Names without suffix of the files to read; None reads all.
        report: Collector of what is skipped. It decides whether an error stops the reading.
        concepts: Names that are allowed; None allows all.
        drop_difficult: Removal of regions that are marked as difficult.

    Yields:
        One row per file, sorted by path, or None for an image that was skipped.
    """
    report = report or SkipReport()
    pairs, _ = pair_images(list_files(annotations, [".txt"], only), annotations, images, report)
    for path, image in pairs.items():
        lines, regions = try_read_lines(path, report), []
        if lines is None:
            continue
        for place, line in lines:
            try:
                regions.append(parse_line(place, line))
            except ValueError as error:
                message = f"{place} is {line!r}; expected {error}. Correct or remove it."
                report.refuse("bad line", message, error)
        source = image.relative_to(images).as_posix()
        found = [region for region in regions if region is not None]
        yield make_row(image, source, str(path), found, report, None, (), concepts, drop_difficult)
