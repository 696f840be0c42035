"""Reads caption files (RSICD, RSITMD, NWPU-Captions, or JSON lines) into rows, or into captions alone."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .base import check_rows, make_row
from .files import ImageFinder, parse_json, read_lines, read_text
from .skipped import SkipReport

EXPECTED = "a caption file in the form of RSICD or NWPU-Captions"


@check_rows
def read_captions(
    annotations: str | Path,
    images: str | Path,
    caption_split: str | None = None,
    report: SkipReport | None = None,
) -> Iterator[dict | None]:
    """Read a caption file: images with sentences and without regions.

    Args:
        annotations: A file; see `list_captions` for its forms.
        images: Folder of the images; see `files.ImageFinder` for how a name is found in it.
        caption_split: The split to read; None reads all.
        report: Collector of what is skipped. It decides whether an error stops the reading.

    Yields:
        One row per image, in the order of the file.

    Raises:
        ValueError: If the file has another form, repeats an image, or has no such split.
    """
    report = report or SkipReport()
    entries = _list_entries(Path(annotations), report)
    names = Counter(entry["filename"] for _, entry in entries)
    if repeated := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(f"{annotations} repeats the images {repeated[:5]}. Give every image one entry.")
    splits = sorted({str(entry.get("split")) for _, entry in entries})
    if caption_split is not None and caption_split not in splits:
        raise ValueError(
            f"{annotations} has no split {caption_split!r}; it has {splits}. Choose one of them."
        )
    finder = ImageFinder(images, names.elements)
    for place, entry in entries:
        if caption_split is not None and entry.get("split") != caption_split:
            continue
        image = finder.find(entry["filename"], place, report)
        source = image.relative_to(images).as_posix() if image else ""
        if image and (row := make_row(image, source, place, [], report)):
            yield row | {"captions": entry["captions"]}


def list_captions(annotations: str | Path) -> Iterator[dict | None]:
    """Read the captions of a file without looking for its images.

    Args:
        annotations: A JSON file with `images`, each with `filename`, `sentences` (each with `raw`) and an
            optional `split` (RSICD); a JSON file with a list for each class, of entries with `filename`,
            `raw`, `raw_1`, ... and `split` (NWPU-Captions); or JSON lines (`.jsonl`, `.jsonl.gz`) with
            `filename`, `captions` and an optional `split`.

    Returns:
        Dictionaries with `filename`, `captions`, and `split`, which may be None.

    Raises:
        ValueError: If the file has another form.
    """
    return [entry for _, entry in _list_entries(Path(annotations), SkipReport())]


def _list_entries(path: Path, report: SkipReport) -> list[tuple[str, dict]]:
    """List the valid entries of a file, each with its place."""
    entries = _list_lines(path, report) if ".jsonl" in path.suffixes else _list_objects(path)
    found = []
    for place, entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        sentences = entry.get("sentences", entry.get("captions"))
        if sentences is None:
            sentences = [entry[key] for key in sorted(entry) if key == "raw" or key.startswith("raw_")]
            sentences = sentences or None
        split = entry.get("split")
        is_named = isinstance(entry.get("filename"), str) and (split is None or isinstance(split, str))
        if not isinstance(sentences, list) or not is_named:
            message = f"{place} has {sorted(entry)}; it needs a `filename` and a list of `sentences`."
            report.refuse("bad entry", f"{message} Give {EXPECTED}.")
            continue
        captions = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
        if all(_is_text(caption) for caption in captions):
            captions = [str(caption).strip() for caption in captions]
            found.append((place, {"filename": entry["filename"], "split": split, "captions": captions}))
        else:
            report.refuse("bad entry", f"{place} has a sentence without words. Give each its `raw` words.")
    return found


def _list_lines(path: Path, report: SkipReport) -> list[tuple[str, object]]:
    entries = []
    for place, line in read_lines(path):
        try:
            entries.append((place, parse_json(place, line, EXPECTED)))
        except ValueError as error:
            report.refuse("bad entry", str(error), error)
    return entries


def _list_objects(path: Path) -> list[tuple[str, object]]:
    content = parse_json(path, read_text(path), EXPECTED)
    lists = content if isinstance(content, dict) else {}
    if "images" in lists:
        lists = {"images": lists["images"]}
    if (
        not lists
        or not all(isinstance(entries, list) for entries in lists.values())
        or not any(lists.values())
    ):
        raise ValueError(f"{path} has no list of `images`, and no list for each class. Give {EXPECTED}.")
    return [
        (f"{path}: {key}[{i}]", entry) for key, entries in lists.items() for i, entry in enumerate(entries)
    ]


def _is_text(caption: object) -> bool:
    """Return whether a caption has words and can be written as UTF-8."""
    if not isinstance(caption, str) or not any(map(str.isalnum, caption)) or "\0" in caption:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in caption)
