"""The entries of a COCO file, checked and grouped by image, in a temporary database instead of the memory."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import is_concept
from .json_stream import iterate_entries
from .skipped import SkipReport

# The fields that an entry must have, and their types.
FIELDS = {
    "images": {"id": (int, str), "file_name": (str,)},
    "annotations": {"image_id": (int, str), "category_id": (int, str)},
    "categories": {"id": (int, str), "name": (str,)},
}
OPTIONAL_FIELDS = {
    "images": {"width": (int, float, type(None)), "height": (int, float, type(None))},
    "annotations": {"id": (int, str)},
    "categories": {},
}
Entry = tuple[str, dict[str, Any]]  # with its place


class CocoEntries:
    """The valid entries of one COCO file.

    The file is read entry by entry. Images and annotations are kept in a database on the disk, which is
    removed with the object. So memory does not grow with the file.

    Args:
        path: The file.
        report: Collector of wrong entries. It decides whether an error stops the reading.

    Raises:
        ValueError: If it is no COCO file.
    """

    def __init__(self, path: Path, report: SkipReport):
        self.path, self.report = path, report
        self.base = sqlite3.connect("")  # a private file that SQLite removes
        self.base.execute("PRAGMA journal_mode = OFF")
        for key in FIELDS:
            self.base.execute(f"CREATE TABLE {key} (number INTEGER PRIMARY KEY, id, image, entry)")
        keys, known = [], set()
        for key, number, entry in iterate_entries(path, "a COCO annotation file"):
            keys.append(key) if number in (None, -1) else None
            if key in FIELDS and number is None:
                raise ValueError(f"{path}: {key} is {entry!r:.50}, not a list. Give a detection file.")
            known.update([key] if number == -1 else [])
            if key in FIELDS and number is not None and number >= 0:
                self._insert(key, number, entry)
        if FIELDS.keys() - known:
            raise ValueError(
                f"{path} has {sorted(keys)}; a COCO file has {sorted(FIELDS)}. Give a detection file."
            )
        for key in FIELDS:
            self._refuse_repeated(key)
        self.base.execute("CREATE INDEX by_id ON images (id)")
        self.base.execute("CREATE INDEX by_image ON annotations (image)")
        self._refuse_unknown_images()
        self.categories = dict(self._list_categories())

    def _insert(self, key: str, number: int, entry: object) -> None:
        if fault := _find_fault(key, entry):
            place = f"{self.path}: {key}[{number}]"
            self.report.refuse("bad entry", f"{place} {fault} Correct or remove it.")
            return
        ids = [json.dumps(entry[name]) if name in entry else None for name in ("id", "image_id")]
        self.base.execute(f"INSERT INTO {key} VALUES (?, ?, ?, ?)", (number, *ids, json.dumps(entry)))

    def _refuse_repeated(self, key: str) -> None:
        repeated = f"SELECT id, COUNT(*) AS times FROM {key} WHERE id NOT NULL GROUP BY id HAVING times > 1"
        found = self.base.execute(
            f"SELECT number, id, times FROM {key} JOIN ({repeated}) USING (id) ORDER BY number"
        ).fetchall()
        for number, name, times in found:
            message = f"{self.path}: {key}[{number}] has the id {json.loads(name)!r}, as {times - 1} other"
            self.report.refuse("repeated id", f"{message} {key} have. Give every entry its own id.")
        self.base.executemany(f"DELETE FROM {key} WHERE number = ?", [row[:1] for row in found])

    def _refuse_unknown_images(self) -> None:
        query = (
            "SELECT number, entry FROM annotations WHERE image NOT IN (SELECT id FROM images) ORDER BY number"
        )
        for number, text in self.base.execute(query):
            place, entry = self._place_annotation(number, json.loads(text))
            message = f"{place} names the image {entry['image_id']!r}, which is not in the file."
            self.report.refuse("unknown image", f"{message} Add it, or remove the annotation.")

    def _list_categories(self) -> Iterator[tuple[int | str, str]]:
        for number, text in self.base.execute("SELECT number, entry FROM categories ORDER BY number"):
            category = json.loads(text)
            if is_concept(category["name"]):
                yield category["id"], category["name"]
            else:
                message = f"{self.path}: categories[{number}] has the name {category['name']!r}, which holds"
                self.report.refuse("unknown concept", f"{message} no words. Name it or remove it.")

    def list_names(self) -> Iterator[str]:
        """List the file names of all images."""
        for (text,) in self.base.execute("SELECT entry FROM images"):
            yield json.loads(text)["file_name"]

    def iterate_images(self) -> Iterator[tuple[dict[str, Any], list[Entry]]]:
        """Read each image with its annotations, of which each has its place, in the order of the file."""
        query = "SELECT number, entry FROM annotations WHERE image = ? ORDER BY number"
        for name, text in self.base.execute("SELECT id, entry FROM images ORDER BY number"):
            annotations = []
            for number, annotation in self.base.execute(query, (name,)):
                place, entry = self._place_annotation(number, json.loads(annotation))
                if entry["category_id"] in self.categories:
                    annotations.append((place, entry))
                else:
                    known = list(self.categories)
                    message = f"{place} names the category {entry['category_id']!r}; the file has {known}."
                    self.report.refuse("unknown concept", f"{message} Add it, or remove the annotation.")
            yield json.loads(text), annotations

    def _place_annotation(self, number: int, entry: dict[str, Any]) -> Entry:
        name = f"annotation {entry['id']!r}" if "id" in entry else f"annotations[{number}]"
        return f"{self.path}: {name}", entry


def _find_fault(key: str, entry: object) -> str | None:
    if not isinstance(entry, dict):
        return f"is {entry!r:.50}; it needs {sorted(FIELDS[key])}."
    if missing := sorted(FIELDS[key].keys() - entry.keys()):
        return f"lacks {missing}; it has {sorted(entry)}."
    for field, kinds in (FIELDS[key] | OPTIONAL_FIELDS[key]).items():
        if field not in entry:
            continue
        value = entry[field]
        if not isinstance(value, kinds) or isinstance(value, bool):  # Python takes True for a number
            found = f"has the {field} {value!r:.50}, a {type(value).__name__}."
            return f"{found} Ids are numbers or strings, sizes numbers, names strings."
    return None
