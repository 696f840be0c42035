"""Reads the annotation file of VEDAI into rows."""

from collections.abc import Iterator
from pathlib import Path

from .base import Annotation, check_rows, make_row
from .files import parse_numbers, read_lines
from .skipped import SkipReport

FORM = "`image x y angle x1 x2 x3 x4 y1 y2 y3 y4 class contained occluded`"


@check_rows
def read_vedai(
    annotations: str | Path, images: str | Path, classes: dict[str, str], report: SkipReport | None = None
) -> Iterator[dict | None]:
    """Read `annotation1024.txt` or `annotation512.txt`, with one line per vehicle.

    Args:
        annotations: The file.
        images: Folder of the images. The colour image of number 12 is `00000012_co.png`.
        classes: Name of each class number.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Yields:
        One row per image, in the order of the file, with `quads`.

    Raises:
        ValueError: If the file cannot be read.
    """
    report = report or SkipReport()
    grouped: dict[str, list[Annotation]] = {}
    for place, line in read_lines(annotations):
        fields = line.split()
        numbers = parse_numbers(fields[1:12])
        if len(fields) != 15 or numbers is None or fields[12] not in classes or not fields[0].isdecimal():
            message = f"{place} is {line!r}, not {FORM} with a class of {sorted(classes)}."
            report.refuse("bad line", f"{message} Correct or remove it.")
            continue
        xs, ys = numbers[3:7], numbers[7:11]
        corners = [number for pair in zip(xs, ys, strict=True) for number in pair]
        regions = grouped.setdefault(f"{fields[0]:0>8}_co.png", [])
        regions.append(Annotation(f"{place}: quad", classes[fields[12]], corners))
    for name, regions in grouped.items():
        image, place = Path(images) / name, f"{annotations}: image {name}"
        if image.is_file():
            yield make_row(image, name, place, regions, report)
        else:
            report.refuse("no image", f"{place} is missing below {images}. Give the folder that it lies in.")
