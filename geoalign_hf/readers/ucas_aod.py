"""Reads the text files of UCAS-AOD into rows."""

from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows
from .files import parse_numbers
from .line_files import read_line_files
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
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Returns:
        One row per file, sorted by path, with `quads`.
    """

    def parse_line(place: str, line: str) -> Annotation:
        numbers = parse_numbers(line.split())
        if numbers is None or len(numbers) != 13:
            raise ValueError(FORM)
        return Annotation(f"{place}: quad", concept, numbers[:8])

    return read_line_files(annotations, images, parse_line, only, report)
