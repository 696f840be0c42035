"""Reads the text files of NWPU VHR-10 into rows."""

import re
from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows, make_row
from .files import list_files, pair_images, parse_numbers, try_read_lines
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
        report: Collects what is skipped, and decides whether an error stops the reading.

    Yields:
        One row per file, sorted by path.
    """
    report = report or SkipReport()
    pairs, _ = pair_images(list_files(annotations, [".txt"], only), annotations, images, report)
    for path, image in pairs.items():
        lines, regions = try_read_lines(path, report), []
        if lines is None:
            continue
        for place, line in lines:
            match = LINE.fullmatch(line.replace(" ", ""))
            numbers = parse_numbers(list(match.groups()[:4])) if match else None
            if match is None or numbers is None or match[5] not in classes:
                message = f"{place} is {line!r}, not {FORM} with a class of {sorted(classes)}."
                report.refuse("bad line", f"{message} Correct or remove it.")
            else:
                regions.append(Annotation(f"{place}: box", classes[match[5]], numbers))
        source = image.relative_to(images).as_posix()
        yield make_row(image, source, str(path), regions, report)
