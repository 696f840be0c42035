"""Reading a large JSON file entry by entry, so that memory does not grow with the file."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .files import check_size, refuse_repeated_keys

CHUNK = 2**20  # characters that are read at once
MAX_ENTRY = 2**26  # characters of one entry
# An error so close to the end of what was read may be due to the part that is missing, as in "tru" for true.
TAIL = 16
SEPARATORS = tuple(",:]} \t\n\r")
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder(object_pairs_hook=refuse_repeated_keys)


def iterate_entries(path: str | Path, expected: str) -> Iterator[tuple[str, int | None, Any]]:
    """Read the JSON object of a file, entry by entry.

    Args:
        path: A JSON file, which may be compressed (`.gz`).
        expected: Description of what the user should give instead of another file.

    Yields:
        For a list, (key, -1, None), and then (key, number, entry) for each of its entries. For any other
        value, (key, None, value).

    Raises:
        ValueError: If the file cannot be read, or is not one JSON object. Entries before the error are
            yielded first.
    """
    try:
        limit = check_size(path)
        with _open(Path(path)) as file:
            yield from _iterate_object(_Text(file, limit))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save the file as UTF-8.") from error
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Give {expected}.") from error


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _iterate_object(text: "_Text") -> Iterator[tuple[str, int | None, Any]]:
    text.take("{")
    keys: set[str] = set()
    separator = text.take("}") if text.peek() == "}" else ","
    while separator == ",":
        key = text.decode()
        if not isinstance(key, str) or key in keys:
            raise ValueError(f"the key {key!r:.50} is repeated, or not a text")
        keys.add(key)
        text.take(":")
        if text.peek() != "[":
            yield key, None, text.decode()
        else:
            yield key, -1, None
            for number, entry in enumerate(_iterate_list(text, key)):
                yield key, number, entry
        separator = text.take(",}")
    if rest := text.peek():
        raise ValueError(f"the character {rest!r} follows the end of the object")


def _iterate_list(text: "_Text", key: str) -> Iterator[Any]:
    text.take("[")
    separator, number = text.take("]") if text.peek() == "]" else ",", 0
    while separator == ",":
        try:
            yield text.decode()
            separator = text.take(",]")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{key}[{number}]: {error}") from error
        number += 1


class _Text:
    """The part of a file that is read and not yet used.

    Args:
        file: The file.
        limit: Maximum number of characters.
    """

    def __init__(self, file: IO[str] | io.TextIOBase, limit: int):
        self.file, self.limit = file, limit
        self.text, self.start = "", 0

    def extend(self) -> bool:
        """Read on, at least as much as is held; return whether the file had more."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.start))
        self.text, self.start = self.text[self.start :] + chunk, 0
        self.limit -= len(chunk)
        if self.limit < 0:
            raise ValueError("it holds more characters than its size allows")
        return bool(chunk)

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end of the file."""
        while True:
            self.start = SPACE.match(self.text, self.start).end()
            if self.start < len(self.text) or not self.extend():
                return self.text[self.start : self.start + 1]

    def take(self, expected: str) -> str:
        """Read one character of those that are expected."""
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"expected {' or '.join(expected)}, found {found!r}")
        self.start += 1
        return found

    def decode(self) -> Any:
        """Read one value."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.start)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.text) - TAIL or error.msg.startswith("Unterminated string")
                if not is_cut or len(self.text) - self.start > MAX_ENTRY or not self.extend():
                    raise ValueError(
                        f"{error.msg}, near {error.doc[error.pos : error.pos + 20]!r}"
                    ) from error
                continue
            # Without a separator behind it, as in "1.5e", a number may go on in the part that is missing.
            if self.text[end : end + 1] in SEPARATORS or len(self.text) - end > TAIL:
                self.start = end
                return value
            length = end - self.start
            if not self.extend():
                self.start += length
                return value
