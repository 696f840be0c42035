"""Reads DOTA text files into rows."""

import re
from pathlib import Path

from .base import (
    Annotation,
    find_image,
    finish_rows,
    index_images,
    list_files,
    list_lines,
    make_row,
    parse_numbers,
)
from .skipped import SkipReport

DOTA_HEADER = re.compile(r"^\s*(imagesource|gsd)\s*:", re.IGNORECASE)


def read_dota(
    annotations: str | Path,
    images: str | Path,
    drop_difficult: bool = False,
    concepts: list[str] | None = None,
    report: SkipReport | None = None,
) -> list[dict]:
    """Read DOTA text files: oriented boxes, each with a flag for difficult ones.

    A line is `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`; a missing flag means 0. The lines `imagesource:` and
    `gsd:` are passed over. The image of `P0001.txt` is `P0001` with any suffix of an image.

    Args:
        annotations: a file, or a folder of files.
        images: the folder of the images.
        drop_difficult: leave out what is flagged.
        concepts: the names that are allowed, as they stand there; None allows all.
        report: takes up what is left out, and says whether a wrong line or image stops the reading.

    Returns:
        One row per file, by name, with `quads`, the boxes round them, and `difficult`.

    Raises:
        ValueError: if a line is none of this form, or an image is missing.
    """
    report = report or SkipReport()
    rows, index = [], index_images(images)
    for path in list_files(annotations, ".txt"):
        lines, regions = list_lines(path, report), []
        if lines is None:
            continue
        for place, line in lines:
            fields = line.split()
            numbers = parse_numbers(fields[:8])
            if DOTA_HEADER.match(line):
                continue
            if numbers is None or len(fields) not in (9, 10) or fields[9:] not in ([], ["0"], ["1"], ["2"]):
                report.refuse(
                    "bad line",
                    f"{place} is {line!r}, not `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`. Mend or drop it.",
                )
            else:
                is_difficult = fields[9:] in (["1"], ["2"])
                regions.append(Annotation(f"{place}: quad", fields[8], numbers, is_difficult))
        if image := find_image(index, path.stem, path, report):
            rows.append(make_row(image, str(path), regions, report, None, (), concepts, drop_difficult))
    return finish_rows(rows, annotations, report)
