"""Listing the files of a data set, pairing annotations with images, and reading text safely."""

import gzip
import json
import math
import os
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ..images import IMAGE_SUFFIXES
from .skipped import SkipReport

MAX_BYTES = 4 * 2**30  # of one annotation file, after decompression
MAX_EXPANSION = 200  # decompressed bytes per compressed byte; JSON of boxes stays below 50
FREE_BYTES = 64 * 2**20  # this much may always be decompressed
CHUNK = 2**20  # bytes that are read at once
SIDECAR = ".aux.xml"  # written by GDAL beside an image; it holds no annotations
# Folders that say what kind of file they hold. Two paths that differ only in these belong together.
ROLE_FOLDERS = frozenset(
    "images image imgs img jpegimages allimages labels label labeltxt annotations annotation xml txt".split()
)
SPLITS = frozenset("train training val valid validation test testing trainval".split())
FLAGS = {"0": False, "0.0": False, "false": False, "no": False}
FLAGS |= {"1": True, "1.0": True, "2": True, "true": True, "yes": True}
ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")


def list_files(source: str | Path, suffixes: Iterable[str], only: set[str] | None = None) -> list[Path]:
    """List the files below a folder that have one of some suffixes, in any case, sorted by path.

    Hidden files and folders, `__MACOSX` and GDAL's `.aux.xml` files are ignored.

    Args:
        source: A folder, which is searched with its subfolders, or one file, which is returned as it is.
        suffixes: Suffixes of the files, such as ".xml".
        only: Names without suffix of the files to list; None lists all.

    Raises:
        ValueError: If there is no such file.
    """
    source, suffixes = Path(source), tuple(suffixes)
    found = _find_files(source, suffixes) if source.is_dir() else [source]
    found = [path for path in found if only is None or path.stem in only]
    if not found:
        raise ValueError(
            f"{source} holds no files that end in {' '.join(sorted(suffixes))}. Give a file, or their folder."
        )
    return found


def _find_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if _has_suffix(path.relative_to(folder), suffixes)]
    return [path for path in found if path.is_file()]  # a named pipe would block the reader


def _has_suffix(path: PurePath, suffixes: tuple[str, ...]) -> bool:
    is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    name = path.name.lower()
    return name.endswith(suffixes) and not is_hidden and not name.endswith(SIDECAR)


def list_images(folder: str | Path) -> list[Path]:
    """List the image files below a folder, sorted by path.

    Raises:
        ValueError: If there is no image.
    """
    return list_files(folder, IMAGE_SUFFIXES)


def pair_images(
    files: list[Path], source: str | Path, folder: str | Path, report: SkipReport
) -> tuple[dict[Path, Path], list[Path]]:
    """Find the image of each annotation file.

    A file and its image have the same path below their folders, but for the suffix and folders such as
    "labels" and "images". Otherwise they have the same name, if no other file and no other image has it.

    Args:
        files: Annotation files.
        source: The folder that they were listed from, or the one file.
        folder: Folder of the images, with subfolders.
        report: Collector of files without an image, or with several.

    Returns:
        The image of each file, and the images that belong to no file.
    """
    folder, root = Path(folder), Path(source)
    root = root if root.is_dir() else root.parent
    images = list_images(folder)
    pairs: dict[Path, Path] = {}
    open_files, taken = list(files), set()
    for make_key in (_key_of_path, _key_without_roles, _key_of_name):
        of_files, of_images = defaultdict(list), defaultdict(list)
        for path in files:
            of_files[make_key(path.relative_to(root))].append(path)
        for path in images:
            of_images[make_key(path.relative_to(folder))].append(path)
        still_open = []
        for path in open_files:
            key = make_key(path.relative_to(root))
            rivals, found = of_files[key], of_images[key]
            if len(rivals) == len(found) == 1:
                if found[0] in taken or _have_other_splits(
                    path.relative_to(root), found[0].relative_to(folder)
                ):
                    still_open.append(path)
                else:
                    pairs[path] = found[0]
                    taken.add(found[0])
            elif len(found) > 1 or (found and found[0] not in taken):
                names = [str(image) for image in found]
                message = (
                    f"{path} is one of {len(rivals)} annotation files of that name, for the images {names}."
                )
                report.refuse("ambiguous image", f"{message} Leave one of each there, or give one subfolder.")
                taken.update(found)
            else:
                still_open.append(path)
        open_files = still_open
    for path in open_files:
        message = f"{path} has no image {path.stem!r} among the {len(images)} images below {folder}."
        report.refuse("no image", f"{message} Give the folder that it lies in.")
    return pairs, [image for image in images if image not in taken]


def _key_of_path(path: PurePath) -> tuple[str, ...]:
    return (*path.parent.parts, path.stem)


def _key_without_roles(path: PurePath) -> tuple[str, ...]:
    folders = [normalize_name(part) for part in path.parent.parts]
    return (*[part for part in folders if part not in ROLE_FOLDERS], normalize_name(path.stem))


def _key_of_name(path: PurePath) -> tuple[str, ...]:
    return (normalize_name(path.stem),)


def _have_other_splits(first: PurePath, second: PurePath) -> bool:
    splits = [SPLITS.intersection(map(normalize_name, path.parent.parts)) for path in (first, second)]
    return all(splits) and splits[0] != splits[1]


def normalize_name(name: str) -> str:
    r"""Write a file name in composed Unicode and lower case, for comparison.

    Example:
        >>> normalize_name("Cafe\u0301.PNG") == "caf\u00e9.png"
        True
    """
    return unicodedata.normalize("NFC", name).casefold()


class ImageFinder:
    """Finds images by the file names that annotations give.

    A name that is not the path of a file is looked up in other forms: with Windows separators and URL escapes
    replaced, with composed accents and in lower case, and at last without its folder. A form is used only if
    it is unique.

    Args:
        folder: Folder that the names are relative to.
        list_names: Function that lists all names of the annotations, to see whether a name without its folder
            is unique. It is called only if there is such a name.
    """

    def __init__(self, folder: str | Path, list_names: Callable[[], Iterable[str]]):
        self.folder = Path(folder)
        self._list_names = list_names

    @cached_property
    def _names(self) -> Counter[str]:
        return Counter(map(_find_basename, self._list_names()))

    @cached_property
    def _index(self) -> dict[tuple[str, str], list[Path]]:
        index = defaultdict(list)
        for path in _find_files(self.folder, tuple(IMAGE_SUFFIXES)):
            relative = path.relative_to(self.folder)
            index["path", unicodedata.normalize("NFC", relative.as_posix())].append(path)
            index["lower", normalize_name(relative.as_posix())].append(path)
            index["name", normalize_name(path.name)].append(path)
        return index

    def find(self, name: str, place: str, report: SkipReport) -> Path | None:
        """Find one image; None if it was skipped.

        Args:
            name: Path of the image below the folder.
            place: Name of the entry in messages.
            report: Collector of what is missing, ambiguous or outside the folder.
        """
        if ABSOLUTE.match(name) or ".." in re.split(r"[/\\]", name):
            message = f"{place} names the file {name!r}, which may lie outside {self.folder}."
            report.refuse("unsafe path", f"{message} Write file names relative to the folder of the images.")
            return None
        exact = self.folder / name
        if os.path.isfile(exact):  # Path.is_file raises at names that are too long
            return exact
        for variant in (name, unquote(name)):
            path = _write_posix(variant).as_posix()
            for key in (("path", unicodedata.normalize("NFC", path)), ("lower", normalize_name(path))):
                if len(self._index[key]) == 1:
                    return self._index[key][0]
        basename = _find_basename(name)
        found = self._index["name", basename]
        if len(found) == 1 and self._names[basename] <= 1:
            return found[0]
        if found:
            message = (
                f"{place} names the file {name!r}; {self._names[basename]} entries name a {basename!r}, "
            )
            message += f"and {self.folder} holds {[str(path) for path in found[:5]]}."
            report.refuse("ambiguous image", f"{message} Write paths relative to the folder of the images.")
        else:
            message = f"{place} names the file {name!r}, which is missing below {self.folder}."
            report.refuse("no image", f"{message} Give the folder that it lies in.")
        return None


def _write_posix(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _find_basename(name: str) -> str:
    return normalize_name(_write_posix(unquote(name)).name)


def check_size(path: str | Path) -> int:
    """Return how many bytes a file may hold, decompressed if its name ends in `.gz`.

    Raises:
        ValueError: If it is missing, not a regular file or too large.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise OSError("it is not a regular file")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Give a complete file.") from error
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; the limit is {MAX_BYTES}. Split it into parts.")
    is_gzip = path.suffix.lower() == ".gz"
    return min(MAX_BYTES, max(FREE_BYTES, MAX_EXPANSION * size)) if is_gzip else MAX_BYTES


def read_bytes(path: str | Path) -> bytes:
    """Read a file, decompressed if its name ends in `.gz`.

    Raises:
        ValueError: If it is missing, not a regular file, incomplete, corrupt or too large.
    """
    path, limit = Path(path), check_size(path)
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            # Python reserves as many bytes as are asked for, so the limit must not be asked for at once.
            chunks, left = [], limit
            while left >= 0 and (chunk := file.read(CHUNK)):
                chunks.append(chunk)
                left -= len(chunk)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}). Give a complete file.") from error
    if left < 0:
        raise ValueError(f"{path} holds more than {limit} bytes, which is the limit. Split it into parts.")
    return b"".join(chunks)


def read_text(path: str | Path) -> str:
    """Read UTF-8 text, with or without a byte order mark, also gzipped.

    Raises:
        ValueError: As `read_bytes`, and if the file has another encoding.
    """
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line} is not UTF-8 ({error}). Save the file as UTF-8.") from error


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Read the lines of a text that are not empty, each with its place."""
    for i, line in enumerate(split_lines(read_text(path)), start=1):
        if line.strip():
            yield f"{path} line {i}", line.strip()


def split_lines(text: str) -> list[str]:
    r"""Split a text at its line ends, of which Unicode has more, that may stand in a text of JSON.

    Example:
        >>> split_lines("a\r\nb\u2028c\n")
        ['a', 'b\u2028c', '']
    """
    return re.split(r"\r\n|\r|\n", text)


def try_read_lines(path: Path, report: SkipReport) -> list[tuple[str, str]] | None:
    """List the lines of an annotation file as `read_lines` does; None if the file was skipped."""
    try:
        return list(read_lines(path))
    except ValueError as error:
        report.refuse("bad file", str(error), error)
        return None


def parse_json(place: str | Path, text: str, expected: str) -> Any:
    """Parse JSON.

    Args:
        place: File or line that the text stands in.
        text: The text.
        expected: Description of what the user should give instead of a text that is not JSON.

    Raises:
        ValueError: If the text is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=refuse_repeated_keys)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, lists too deep
        raise ValueError(f"{place} cannot be read as JSON ({error}). Give {expected}.") from error


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of the pairs of a JSON object, of which Python would silently keep the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"an object repeats the keys {repeated[:5]}")
    return content


def parse_numbers(fields: list[str]) -> list[float] | None:
    """Parse finite numbers; None if a field is not one.

    Example:
        >>> parse_numbers(["1", "2.5"]), parse_numbers(["1", "ship"]), parse_numbers(["nan"])
        ([1.0, 2.5], None, None)
    """
    if not all(field.isascii() and "_" not in field for field in fields):  # float("1_0") is 10.0
        return None
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def parse_flag(value: object) -> bool | None:
    """Parse a flag as annotation tools write it; None if the value is not a flag. 2 means very difficult.

    Example:
        >>> [parse_flag(value) for value in (1, "0", "True", "2", None, "often")]
        [True, False, True, True, None, None]
    """
    return FLAGS.get(str(value).strip().lower())


def spell_flag(name: str) -> str:
    """Spell the name of a flag in one way.

    Example:
        >>> {spell_flag(name) for name in ("iscrowd", "isCrowd", "is_crowd", "Is-Crowd")}
        {'iscrowd'}
    """
    return "".join(filter(str.isalnum, name.lower()))
