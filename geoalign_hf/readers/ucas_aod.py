"""Reads the text files of UCAS-AOD into rows."""

from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows, make_row
from .files import list_files, pair_images, parse_numbers, try_read_lines
from .skipped import SkipReport

FORM = "`x1 y1 x2 y2 x3 y3 x4 y4 angle x y width height`"


@check_rows
def read_ucas_aod(
    annotations: str | Path,
    images: str | Path,
    concept: str,
    only: set[str] | None = None,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read one folder of UCAS-AOD. All regions of a folder are of one concept.

    Args:
        annotations: Folder of text files with 13 numbers per line, of which the first eight are corners.
        images: Folder of the images.
        concept: Concept of the folder.
        only: Names without suffix of the files to read; None reads all.
        report: Collects what is skipped, and decides whether an error stops the reading.

    Yields:
        One row per file, sorted by path, with `quads`.
    """
    report = report or SkipReport()
    pairs, _ = pair_images(list_files(annotations, [".txt"], only), annotations, images, report)
    for path, image in pairs.items():
        lines, regions = try_read_lines(path, report), []
        if lines is None:
            continue
        for place, line in lines:
            numbers = parse_numbers(line.split())
            if numbers is None or len(numbers) != 13:
                report.refuse("bad line", f"{place} is {line!r}, not {FORM}. Correct or remove it.")
            else:
                regions.append(Annotation(f"{place}: quad", concept, numbers[:8]))
        source = image.relative_to(images).as_posix()
        yield make_row(image, source, str(path), regions, report)
