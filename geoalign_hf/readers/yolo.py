"""Reads YOLO text files into rows."""

from pathlib import Path

import yaml

from .base import (
    Annotation,
    find_image,
    finish_rows,
    has_words,
    index_images,
    list_files,
    list_lines,
    make_row,
    parse_numbers,
    read_text,
    try_read_size,
)
from .skipped import SkipReport


def read_yolo(
    annotations: str | Path,
    images: str | Path,
    concepts: list[str] | str | Path,
    report: SkipReport | None = None,
) -> list[dict]:
    """Read YOLO text files: `class x y width height`, or `class x1 y1 ... x4 y4`, in shares of the image.

    Args:
        annotations: a file, or a folder of files.
        images: the folder of the images; one without a file in the folder of annotations has no regions.
        concepts: the names by number, or the file that holds them: `data.yaml`, or text, one name a line.
        report: takes up what is left out, and says whether a wrong line or image stops the reading.

    Returns:
        One row per image, by name; with `quads` if any of its lines is oriented.

    Raises:
        ValueError: if a line is none of these forms or its class has no name, or an image is missing.
    """
    report = report or SkipReport()
    names = concepts if isinstance(concepts, list) else read_names(Path(concepts))
    rows, index = [], index_images(images)
    files = {path.stem: path for path in list_files(annotations, ".txt") if path.name != "classes.txt"}
    for stem in sorted(files.keys() | index.keys() if Path(annotations).is_dir() else files):
        path = files.get(stem, Path(annotations))
        image = find_image(index, stem, path, report)
        size = image and try_read_size(image, report)
        if not size:
            continue
        lines, regions = list_lines(path, report) if stem in files else [], []
        if lines is None:
            continue
        for place, line in lines:
            fields = line.split()
            numbers = parse_numbers(fields[1:])
            if numbers is None or len(fields) not in (5, 9) or not fields[0].isdecimal():
                message = f"{place} is {line!r}, not `class x y width height` or `class x1 y1 ... x4 y4`."
                report.refuse("bad line", f"{message} Mend or drop it.")
            elif int(fields[0]) >= len(names):
                message = f"{place} names the class {fields[0]}; there are {len(names)} names, from 0."
                report.refuse("unknown concept", f"{message} Add it or drop the line.")
            else:
                if len(numbers) == 4:
                    x, y, width, height = numbers
                    numbers = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                pixels = [number * size[i % 2] for i, number in enumerate(numbers)]
                kind = "box" if len(numbers) == 4 else "quad"
                regions.append(Annotation(f"{place}: {kind}", names[int(fields[0])], pixels))
        rows.append(make_row(image, str(path), regions, report))
    return finish_rows(rows, annotations, report)


def read_names(path: Path) -> list[str]:
    """Read concept names from the `data.yaml` of a YOLO set, or from a text of one name a line.

    Raises:
        ValueError: if the file holds none, or one that has no words.
    """
    text = read_text(path)
    if path.suffix not in (".yaml", ".yml"):
        return _check_names(path, [line.strip() for line in text.splitlines() if line.strip()])
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read as YAML ({error}). Give the data.yaml of a YOLO set."
        ) from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(
            f"{path} has the names {names!r}; they are a list, or numbered from 0. Mend the file."
        )
    return _check_names(path, names)


def _check_names(path: Path, names: list) -> list[str]:
    for i, name in enumerate(names):
        if type(name) not in (str, int) or not has_words(str(name)):
            message = f"{path}: names[{i}] is {name!r}; a name is words or a whole number."
            raise ValueError(f"{message} Mend it; in YAML put words such as no and null in quotes.")
    return [str(name) for name in names]
