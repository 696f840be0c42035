"""Reads YOLO text files into rows."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from .base import Annotation, bound_points, check_rows, is_concept, make_row, try_read_size
from .files import list_files, pair_images, parse_numbers, read_text, split_lines, try_read_lines
from .skipped import SkipReport

FORM = "`class x y width height`, or `class x1 y1 x2 y2 ...` with three points or more"
NOT_LABELS = ("classes.txt", "readme")  # beginnings of text files that lie beside the labels
OUTSIDE = 1.0  # a region may begin so many image sides outside the image; pixels are larger


@check_rows
def read_yolo(
    annotations: str | Path,
    images: str | Path,
    concepts: list[str] | str | Path,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read YOLO text files, in fractions of the image.

    A line is `class x y width height` (a box with its center), `class x1 y1 ... x4 y4` (an oriented box), or
    `class x1 y1 x2 y2 ...` with another number of points. Such a segment becomes the box around it.

    Args:
        annotations: A file, or a folder of files.
        images: Folder of the images; see `files.pair_images` for which image belongs to a file. An image
            without a file has no regions, if another image of its folder has a file.
        concepts: Names by number, or the file that lists them: `data.yaml`, or text with one name a line.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Yields:
        One row per image, sorted by path; with `quads` if any of its lines is oriented.

    Raises:
        ValueError: If a line has another form, its class has no name, or an image is missing.
    """
    report = report or SkipReport()
    names = concepts if isinstance(concepts, list) else read_names(Path(concepts))
    files = list_files(annotations, [".txt"])
    if Path(annotations).is_dir():
        files = [path for path in files if not path.name.lower().startswith(NOT_LABELS)]
    pairs, unlabelled = pair_images(files, annotations, images, report)
    labels = {image: path for path, image in pairs.items()}
    if Path(annotations).is_dir():
        labels |= dict.fromkeys(_list_backgrounds(unlabelled, set(pairs.values()), report))
    for image in sorted(labels):
        path, size = labels[image], try_read_size(image, report)
        lines = try_read_lines(path, report) if path else []
        if size is None or lines is None:
            continue
        regions = [_parse_line(place, line, names, size, report) for place, line in lines]
        source = image.relative_to(images).as_posix()
        yield make_row(image, source, str(path or image), list(filter(None, regions)), report)


def _list_backgrounds(unlabelled: list[Path], labelled: set[Path], report: SkipReport) -> list[Path]:
    """List images without regions. In a folder without any label file the labels are probably elsewhere."""
    folders = {image.parent for image in labelled}
    for folder in sorted({image.parent for image in unlabelled} - folders):
        count = sum(image.parent == folder for image in unlabelled)
        message = f"{folder} holds {count} images, none of which has a label file."
        report.refuse("no labels", f"{message} Give the folder of their labels, or remove these images.")
    return [image for image in unlabelled if image.parent in folders]


def _parse_line(
    place: str, line: str, names: list[str], size: tuple[int, int], report: SkipReport
) -> Annotation | None:
    fields = line.split()
    number, numbers = parse_numbers(fields[:1]), parse_numbers(fields[1:])
    is_class = number is not None and number[0].is_integer() and number[0] >= 0
    if numbers is None or not is_class or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2)):
        report.refuse("bad line", f"{place} is {line!r}, not {FORM}. Correct or remove it.")
        return None
    index = int(number[0])
    if index >= len(names):
        message = f"{place} has the class {index}, but there are {len(names)} names, counted from 0."
        report.refuse("unknown concept", f"{message} Add the name, or remove the line.")
        return None
    if not -OUTSIDE <= min(numbers) <= max(numbers) <= 1 + OUTSIDE:
        message = f"{place} is {line!r}; numbers are fractions of the image, from 0 to 1."
        report.refuse("bad line", f"{message} Divide pixels by width and height.")
        return None
    if len(numbers) == 4:
        x, y, width, height = numbers
        numbers = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    elif len(numbers) != 8:
        numbers = bound_points(numbers)
    kind = "box" if len(numbers) == 4 else "quad"
    return Annotation(f"{place}: {kind}", names[index], [n * size[i % 2] for i, n in enumerate(numbers)])


class _NamesLoader(yaml.SafeLoader):
    """Reads names as they are written. Refuses repeated keys, and aliases, which can multiply without end."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it has the alias *{self.peek_event().anchor}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise yaml.YAMLError(f"it repeats the keys {repeated[:5]}")
        return super().construct_mapping(node, deep)


_NamesLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: str(node.value))  # not 10 for 012


def read_names(path: Path) -> list[str]:
    """Read concept names from the `data.yaml` of a YOLO set, or from a text with one name a line.

    Raises:
        ValueError: If the file has no names, or a name has no words.
    """
    text = read_text(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return _check_names(path, _parse_list(path, text))
    try:
        content = yaml.load(text, Loader=_NamesLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # TypeError: a list as a key
        message = f"{path} cannot be read as YAML ({error})."
        raise ValueError(f"{message} Give the data.yaml of a YOLO set, without aliases.") from error
    if isinstance(content, dict) and "kpt_shape" in content:
        message = (
            f"{path} has kpt_shape, so its label files hold key points, which would be read as polygons."
        )
        raise ValueError(f"{message} Export boxes or polygons.")
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and names.keys() == {str(i) for i in range(len(names))}:
        names = [names[str(i)] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        message = f"{path} has the names {str(names):.200}; expected a list, or names numbered from 0."
        raise ValueError(f"{message} Correct the file.")
    return _check_names(path, names)


def _parse_list(path: Path, text: str) -> list[str]:
    """Return the lines of a text. Their places are the class numbers, so nothing else may stand there."""
    names = [line.strip() for line in split_lines(text.rstrip())]
    for i, name in enumerate(names):
        if (not name and len(names) > 1) or name.startswith("#"):
            message = f"{path} line {i + 1} is {name!r}, no name, and would shift the numbers of the names."
            raise ValueError(f"{message} Remove the line.")
    for first in (0, 1):
        if len(names) > 1 and all(re.match(rf"{i}\W+\w", name) for i, name in enumerate(names, first)):
            raise ValueError(f"{path} numbers its names, as in {names[0]!r}. Write the names alone.")
    return list(filter(None, names))


def _check_names(path: Path, names: list) -> list[str]:
    for i, name in enumerate(names):
        if not isinstance(name, str) or not is_concept(name):
            message = f"{path}: names[{i}] is {str(name)[:200]!r}; a name is words or a whole number."
            raise ValueError(f"{message} Correct it; in YAML put words such as no and null in quotes.")
    if not names:
        raise ValueError(f"{path} holds no names. Write one name a line.")
    return names
