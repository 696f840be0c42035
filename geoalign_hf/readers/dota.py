"""Reads DOTA text files into rows."""

import re
from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows
from .files import parse_numbers
from .line_files import read_line_files
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
        drop_difficult: Removal of regions that are marked as difficult.
        concepts: Names that are allowed; None allows all.
        only: Names without suffix of the files to read; None reads all.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Returns:
        One row per file, sorted by path, with `quads`, the boxes around them, and `difficult`.

    Raises:
        ValueError: If a line has another form, or an image is missing.
    """

    def parse_line(place: str, line: str) -> Annotation | None:
        if HEADER.match(line):
            return None
        fields = line.split()
        numbers = parse_numbers(fields[:8])
        if numbers is None or len(fields) not in (9, 10) or fields[9:] not in ([], ["0"], ["1"], ["2"]):
            raise ValueError(FORM)
        return Annotation(f"{place}: quad", fields[8], numbers, fields[9:] in (["1"], ["2"]))

    return read_line_files(annotations, images, parse_line, only, report, concepts, drop_difficult)
