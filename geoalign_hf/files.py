"""Files that are whole or not there."""

import json
import os
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Write a file under another name, and give it its own when everything is in it."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: str | Path, content: dict) -> None:
    """Write a JSON file that a person can read.

    Raises:
        ValueError: if a number in it is none.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False))
