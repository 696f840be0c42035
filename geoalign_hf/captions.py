"""Caption files in the form of RSICD and RSITMD to plain rows, or to the captions alone.

What enters is a file of images with sentences; what leaves are rows with `captions` and no regions.
"""

from collections import Counter
from pathlib import Path

from .report import Report
from .sources import finish_rows, make_row, parse_json, read_lines, read_text

CAPTION_FILE = "a caption file in the form of RSICD"


def read_captions(
    annotations: str | Path, images: str | Path, split: str | None = None, report: Report | None = None
) -> list[dict]:
    """Read a caption file in the form of RSICD and RSITMD (Karpathy's): images with sentences, no regions.

    Args:
        annotations: a file as `list_captions` takes it.
        images: the folder of the images.
        split: take this one alone; None takes all.
        report: takes up what is left out, and says whether a missing image stops the reading.

    Returns:
        One row per image, in the file's order.

    Raises:
        ValueError: if the file has another form, repeats an image, or has no such split.
    """
    report = report or Report()
    rows, entries = [], list_captions(annotations)
    names = Counter(entry["filename"] for entry in entries)
    if repeated := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(f"{annotations} repeats the images {repeated[:5]}. Give every image one entry.")
    splits = sorted({str(entry.get("split")) for entry in entries})
    if split is not None and split not in splits:
        raise ValueError(f"{annotations} has no split {split!r}; it has {splits}. Choose one of them.")
    for i, entry in enumerate(entries):
        image, place = Path(images) / entry["filename"], f"{annotations}: images[{i}]"
        if split is not None and entry.get("split") != split:
            continue
        if not image.is_file():
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
    path = Path(annotations)
    if ".jsonl" in path.suffixes:
        entries = [parse_json(place, line, CAPTION_FILE) for place, line in read_lines(path)]
    else:
        content = parse_json(path, read_text(path), CAPTION_FILE)
        entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} has no list of `images`. Give {CAPTION_FILE}.")
    found = []
    for i, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        sentences = entry.get("sentences", entry.get("captions"))
        if not isinstance(sentences, list) or not isinstance(entry.get("filename"), str):
            message = (
                f"{path}: images[{i}] has {sorted(entry)}; it needs a `filename` and a list of `sentences`."
            )
            raise ValueError(f"{message} Give {CAPTION_FILE}.")
        words = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
        if not all(isinstance(caption, str) and caption.strip() for caption in words):
            raise ValueError(f"{path}: images[{i}] has a sentence without words. Give each its `raw` words.")
        found.append({"filename": entry["filename"], "split": entry.get("split"), "captions": words})
    return found
