"""Caption files in the form of RSICD and RSITMD to plain rows, or to the captions alone.

What enters is a file of images with sentences; what leaves are rows with `captions` and no regions.
"""

import os
from collections import Counter
from pathlib import Path

from .base import finish_rows, make_row, parse_json, read_lines, read_text
from .skipped import SkipReport

CAPTION_FILE = "a caption file in the form of RSICD"


def read_captions(
    annotations: str | Path,
    images: str | Path,
    caption_split: str | None = None,
    report: SkipReport | None = None,
) -> list[dict]:
    """Read a caption file in the form of RSICD and RSITMD (Karpathy's): images with sentences, no regions.

    Args:
        annotations: a file as `list_captions` takes it.
        images: the folder of the images.
        caption_split: take this split alone; None takes all.
        report: takes up what is left out, and says whether a wrong entry or image stops the reading.

    Returns:
        One row per image, in the file's order.

    Raises:
        ValueError: if the file has another form, repeats an image, or has no such split.
    """
    report = report or SkipReport()
    rows, entries = [], _list_entries(Path(annotations), report)
    names = Counter(entry["filename"] for _, entry in entries)
    if repeated := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(f"{annotations} repeats the images {repeated[:5]}. Give every image one entry.")
    splits = sorted({str(entry.get("split")) for _, entry in entries})
    if caption_split is not None and caption_split not in splits:
        raise ValueError(
            f"{annotations} has no split {caption_split!r}; it has {splits}. Choose one of them."
        )
    for place, entry in entries:
        image = Path(images) / entry["filename"]
        if caption_split is not None and entry.get("split") != caption_split:
            continue
        if not os.path.isfile(image):  # Path.is_file raises at names that are too long
            report.refuse("no image", f"{place} is missing at {image}. Give the folder it lies in.")
        elif row := make_row(image, place, [], report):
            rows.append(row | {"captions": entry["captions"], "source": entry["filename"]})
    return finish_rows(rows, annotations, report)


def list_captions(annotations: str | Path) -> list[dict]:
    """Read the captions of a file, whether or not its images are there.

    Args:
        annotations: a JSON file with `images`, each with `filename`, `sentences` (each with `raw`) and maybe
            `split`; or JSON lines (`.jsonl`, `.jsonl.gz`) with `filename`, `captions` and maybe `split`.

    Returns:
        Dictionaries with `filename`, `captions`, and `split` where it is stated.

    Raises:
        ValueError: if the file has another form.
    """
    return [entry for _, entry in _list_entries(Path(annotations), SkipReport())]


def _list_entries(path: Path, report: SkipReport) -> list[tuple[str, dict]]:
    """List the entries of a file, each with its place, without those that were left out."""
    if ".jsonl" in path.suffixes:
        entries = []
        for place, line in read_lines(path):
            try:
                entries.append((place, parse_json(place, line, CAPTION_FILE)))
            except ValueError as error:
                report.refuse("bad entry", str(error), error)
    else:
        content = parse_json(path, read_text(path), CAPTION_FILE)
        entries = content.get("images") if isinstance(content, dict) else None
        if isinstance(entries, list):
            entries = [(f"{path}: images[{i}]", entry) for i, entry in enumerate(entries)]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} has no list of `images`. Give {CAPTION_FILE}.")
    found = []
    for place, entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        sentences = entry.get("sentences", entry.get("captions"))
        if not isinstance(sentences, list) or not isinstance(entry.get("filename"), str):
            message = f"{place} has {sorted(entry)}; it needs a `filename` and a list of `sentences`."
            report.refuse("bad entry", f"{message} Give {CAPTION_FILE}.")
            continue
        words = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
        if all(isinstance(caption, str) and caption.strip() for caption in words):
            known = {"filename": entry["filename"], "split": entry.get("split")}
            known["captions"] = [caption.strip() for caption in words]
            found.append((place, known))
        else:
            message = f"{place} has a sentence without words. Give each its `raw` words."
            report.refuse("bad entry", message)
    return found
