"""Reads the text files of NWPU VHR-10 into rows."""

import re
from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows
from .files import parse_numbers
from .line_files import read_line_files
from .skipped import SkipReport

LINE = re.compile(r"\(([^,]+),([^)]+)\),\(([^,]+),([^)]+)\),\s*(\S+)")
FORM = "`(x0,y0),(x1,y1),class`"


@check_rows
def read_vhr10(
    annotations: str | Path,
    images: str | Path,
    classes: dict[str, str],
    only: set[str] | None = None,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read the files of `ground truth`, with one line `(x0,y0),(x1,y1),class` per box.

    Args:
        annotations: Folder of text files.
        images: Folder of the images.
        classes: Name of each class number.
        only: Names without suffix of the files to read; None reads all.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Returns:
        One row per file, sorted by path.
    """

    def parse_line(place: str, line: str) -> Annotation:
        match = LINE.fullmatch(line.replace(" ", ""))
        numbers = parse_numbers(list(match.groups()[:4])) if match else None
        if match is None or numbers is None or match[5] not in classes:
            raise ValueError(f"{FORM} with a class of {sorted(classes)}")
        return Annotation(f"{place}: box", classes[match[5]], numbers)

    return read_line_files(annotations, images, parse_line, only, report)
