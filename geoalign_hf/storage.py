"""Files that are whole or not there, and what they say when they cannot be read."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Let the library draw no bar of its own, where another one is already there."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def write_text(path: str | Path, text: str) -> None:
    """Write a file under another name, and give it its own when everything is in it."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_text(path: str | Path) -> str:
    """Read a text.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}). Save it as one.") from error


def read_json(path: str | Path) -> dict:
    """Read a JSON file that holds one object.

    Raises:
        ValueError: if it does not.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}). Write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object by names.")
    return content


def write_json(path: str | Path, content: dict) -> None:
    """Write a JSON file that a person can read.

    Raises:
        ValueError: if a number in it is none.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False))
