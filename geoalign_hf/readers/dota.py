"""Reads DOTA text files into rows."""

import re
from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows, make_row
from .files import list_files, pair_images, parse_numbers, try_read_lines
from .skipped import SkipReport

HEADER = re.compile(r"^\s*(imagesource|gsd|acquisition dates?)\s*:", re.IGNORECASE)
FORM = "`x1 y1 x2 y2 x3 y3 x4 y4 class difficult`"


@check_rows
def read_dota(
    annotations: str | Path,
    images: str | Path,
    drop_difficult: bool = False,
    concepts: list[str] | None = None,
    only: set[str] | None = None,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read DOTA text files: oriented boxes, each with a flag for difficult ones.

    A line is `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`; without a flag the region is not difficult. The
    header lines `imagesource:`, `gsd:` and `acquisition dates:` are ignored.

    Args:
        annotations: A file, or a folder of files.
        images: Folder of the images; see `files.pair_images` for which image belongs to a file.
        drop_difficult: Skip regions that are marked as difficult.
        concepts: Names that are allowed; None allows all.
        only: Names without suffix of the files to read; None reads all.
        report: Collects what is skipped, and decides whether an error stops the reading.

    Yields:
        One row per file, sorted by path, with `quads`, the boxes around them, and `difficult`.

    Raises:
        ValueError: If a line has another form, or an image is missing.
    """
    report = report or SkipReport()
    pairs, _ = pair_images(list_files(annotations, [".txt"], only), annotations, images, report)
    for path, image in pairs.items():
        lines, regions = try_read_lines(path, report), []
        if lines is None:
            continue
        for place, line in lines:
            if HEADER.match(line):
                continue
            fields = line.split()
            numbers = parse_numbers(fields[:8])
            if numbers is None or len(fields) not in (9, 10) or fields[9:] not in ([], ["0"], ["1"], ["2"]):
                report.refuse("bad line", f"{place} is {line!r}, not {FORM}. Correct or remove it.")
            else:
                is_difficult = fields[9:] in (["1"], ["2"])
                regions.append(Annotation(f"{place}: quad", fields[8], numbers, is_difficult))
        source = image.relative_to(images).as_posix()
        yield make_row(image, source, str(path), regions, report, None, (), concepts, drop_difficult)
