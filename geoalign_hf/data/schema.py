"""The row: one image with its hierarchy of text. Its columns, checks and counts."""

from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from pyarrow import Table
from pyarrow.parquet import ParquetWriter

from ..storage import atomic_file, no_progress_bars

FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),  # short texts about the whole image
        "description": Value("string"),  # a long text about the whole image, or None
        "boxes": List(List(Value("float64"), length=4)),  # xyxy pixels; from here on one entry per region
        # Four corners in pixels; [] if all regions are boxes.
        "quads": List(List(List(Value("float64"), length=2), length=4)),
        "phrases": List(Value("string")),
        "concepts": List(Value("string")),
        "ambiguous": List(Value("bool")),  # whether a phrase may also mean another region; [] if unknown
        "hard_negatives": List(List(Value("string"))),  # phrases that are nearly right, and wrong
        "negative_kinds": List(List(Value("string"))),  # what each of them changes
        "difficult": List(Value("bool")),  # marked as difficult at the source; [] if it has no such marks
        "unboxed": List(Value("string")),  # concepts that are also in the image, without a region
        "source": Value("string"),  # name of the image that the row was made of, or None
        "window": List(Value("int64")),  # part of that image, xyxy whole pixels; [] for all of it
        "dataset": Value("string"),  # name of the data set that the image comes from, or None
        "license": Value("string"),  # terms of the image and its annotations, or None
    }
)
MAX_COORDINATE = 1e9  # pixels; areas of larger boxes lose their last digits
MOST_GROUP_BYTES, MOST_GROUP_ROWS = 100_000_000, 1000  # of one row group of a Parquet file
REQUIRED_COLUMNS = ("image", "boxes", "phrases", "concepts")
REGION_COLUMNS = (
    "boxes", "quads", "phrases", "concepts", "ambiguous", "hard_negatives", "negative_kinds", "difficult"
)  # fmt: skip


def build_rows(rows: Iterable[dict]) -> Dataset:
    """Check rows and make a dataset of them.

    Args:
        rows: Dictionaries with the columns of `FEATURES`. All but `REQUIRED_COLUMNS` may be missing. `image`
            is a PIL image, the path of a file (read when the row is read), or its bytes and `path`.

    Returns:
        A dataset with exactly the columns of `FEATURES`.

    Raises:
        ValueError: If a row lacks a column, has a value of another type, or its lists differ in length. The
            message names the place.
    """
    checked = [_check_row(i, row) for i, row in enumerate(rows)]
    if not checked:
        raise ValueError("there are no rows. Give at least one.")
    return Dataset.from_list(checked, features=FEATURES)


def _check_row(i: int, row: dict) -> dict:
    """Return a row with all columns and plain lists, or raise an error that names the place.

    Raises:
        ValueError: If a column is missing, unknown, of another type or length, or a box is empty.
    """
    if not isinstance(row, dict):
        raise ValueError(f"row {i} is {row!r:.50}, not a dictionary. Give the columns {list(FEATURES)}.")
    row = {name: value for name, value in row.items() if value is not None}
    if missing := [name for name in REQUIRED_COLUMNS if name not in row]:
        found = sorted(map(str, row))
        raise ValueError(f"row {i} lacks {missing}; it has {found}. Give every row an image and its regions.")
    if unknown := sorted(map(str, row.keys() - FEATURES.keys())):
        raise ValueError(f"row {i} has the unknown columns {unknown}; a row has {list(FEATURES)}.")
    row = {name: [] if isinstance(FEATURES[name], List) else None for name in FEATURES} | row
    for name, feature in FEATURES.items():
        if name != "image" and row[name] is not None:
            try:
                row[name] = _convert(row[name], feature)
            except _Fault as fault:
                place = name + "".join(f"[{k}]" for k in reversed(fault.path))
                raise ValueError(f"row {i}: {place} is {fault.value!r:.80}; expected {fault}.") from None
    _check_lengths(i, row)
    for r, box in enumerate(row["boxes"]):
        if not (box[0] < box[2] and box[1] < box[3]) or max(map(abs, box)) > MAX_COORDINATE:
            raise ValueError(
                f"row {i}: boxes[{r}] is {box}; expected x0 < x1 and y0 < y1, in pixels of the image. "
                "Convert COCO boxes with xywh_to_xyxy, or remove the region."
            )
    return row | {"image": _check_image(i, row["image"])}


def _check_lengths(i: int, row: dict) -> None:
    for name in REGION_COLUMNS:
        is_optional = name not in REQUIRED_COLUMNS
        if len(row[name]) != len(row["boxes"]) and not (is_optional and not row[name]):
            raise ValueError(
                f"row {i} has {len(row['boxes'])} boxes, but {len(row[name])} {name}. "
                "Give one entry per region, in the same order."
            )
    for r, (phrases, kinds) in enumerate(zip(row["hard_negatives"], row["negative_kinds"], strict=False)):
        if len(phrases) != len(kinds):
            raise ValueError(
                f"row {i} has {len(phrases)} hard_negatives of region {r}, but {len(kinds)} negative_kinds. "
                "Name the kind of each, or omit the column."
            )
    if len(row["window"]) not in (0, 4):
        raise ValueError(f"row {i}: window is {row['window']}; expected four whole numbers, xyxy, or [].")


class _Fault(ValueError):
    """A value that does not fit its column, with what was expected and its path from the inside out."""

    def __init__(self, expected: str, value: object):
        super().__init__(expected)
        self.value, self.path = value, []


def _convert(value: Any, feature: List | Value) -> Any:
    """Return a value as plain lists, texts and numbers of a feature.

    Raises:
        _Fault: If it does not fit the feature.
    """
    if hasattr(value, "tolist"):  # arrays and tensors
        value = value.tolist()
    if isinstance(feature, List):
        if not isinstance(value, (list, tuple)) or feature.length not in (-1, len(value)):
            raise _Fault("a list" if feature.length == -1 else f"a list of {feature.length}", value)
        converted = []
        for k, item in enumerate(value):
            try:
                converted.append(_convert(item, feature.feature))
            except _Fault as fault:
                fault.path.append(k)
                raise
        return converted
    if feature.dtype == "string":
        if not isinstance(value, str) or not _is_encodable(value):
            raise _Fault("a text that UTF-8 can encode", value)
    elif feature.dtype == "bool":
        if not isinstance(value, bool):
            raise _Fault("True or False", value)
    elif feature.dtype == "int64":
        if type(value) is not int or abs(value) > MAX_COORDINATE:
            raise _Fault("a whole number of pixels", value)
    elif type(value) not in (int, float) or not abs(value) <= 2 * MAX_COORDINATE:  # False for NaN
        raise _Fault("a finite number of pixels", value)
    return value


def _is_encodable(text: str) -> bool:
    """Return whether a text has no lone surrogates, which Parquet cannot store."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _check_image(i: int, image: Any) -> Any:
    """Return an image as datasets takes it.

    Raises:
        ValueError: If it is neither a PIL image, nor a path, nor a dictionary of bytes and path.
    """
    if isinstance(image, Path):
        return str(image)
    is_encoded = isinstance(image, dict) and image.keys() <= {"bytes", "path"} and any(image.values())
    if is_encoded and isinstance(image.get("bytes"), (bytes, type(None))):
        is_encoded = isinstance(image.get("path"), (str, type(None)))
        if is_encoded and _is_encodable(image.get("path") or ""):
            return image
    if isinstance(image, PIL.Image.Image):
        return _encode_image(image)
    if isinstance(image, str) and image and _is_encodable(image):
        return image
    raise ValueError(
        f"row {i}: image is {image!r:.80}; expected a PIL image, a path, or {{'bytes': ..., 'path': ...}}."
    )


def _encode_image(image: PIL.Image.Image) -> PIL.Image.Image | dict:
    """Encode an image that lies in memory as a PNG, four times faster than datasets does and without loss."""
    if getattr(image, "filename", "") or image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        return image  # datasets keeps the file, or takes a TIFF
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def write_rows(rows: Iterable[dict], path: Path) -> None:
    """Write rows as one Parquet file, atomically. The same rows give the same bytes.

    Rows are written in groups of at most `MOST_GROUP_BYTES`; a larger image has a group of its own. Memory
    does not grow with the file, and Arrow's limit of 2 GiB per column applies to one group only.

    Args:
        rows: Rows as `build_rows` takes them, with images as `{"bytes": ..., "path": ...}`. There may be no
            rows.
        path: Path of the file.
    """
    schema = FEATURES.arrow_schema
    group, num_bytes = [], 0
    with atomic_file(path) as file, ParquetWriter(file, schema) as writer:
        for i, row in enumerate(rows):
            checked, size = _check_row(i, row), len(row["image"]["bytes"])
            if group and (num_bytes + size > MOST_GROUP_BYTES or len(group) == MOST_GROUP_ROWS):
                writer.write_table(Table.from_pylist(group, schema))
                group, num_bytes = [], 0
            group.append(checked)
            num_bytes += size
        if group:
            writer.write_table(Table.from_pylist(group, schema))


def write_parquet(dataset: Dataset, path: Path) -> None:
    """Write a dataset as one Parquet file, atomically."""
    with atomic_file(path) as file, no_progress_bars():
        dataset.to_parquet(file)


def check_columns(dataset: Dataset | IterableDataset) -> None:
    """Refuse a dataset that does not hold rows.

    Raises:
        ValueError: If a required column is missing.
    """
    if missing := [name for name in REQUIRED_COLUMNS if name not in (dataset.column_names or [])]:
        raise ValueError(
            f"the dataset lacks the columns {missing}; it has {sorted(dataset.column_names or [])}. "
            "Rename them, or build rows with geoalign_hf.from_coco or build_rows."
        )


def list_concepts(dataset: Dataset) -> list[str]:
    """List the concepts that occur, in alphabetical order. Null values are passed over.

    Example:
        >>> list_concepts({"concepts": [["ship"], [], ["ship", "airplane"]]})
        ['airplane', 'ship']
    """
    return sorted({concept for concepts in dataset["concepts"] for concept in concepts or [] if concept})


def count_rows(rows: Iterable[dict]) -> dict:
    """Count what a dataset holds.

    Args:
        rows: Rows of the dataset; images are not needed.

    Returns:
        `num_rows`, `num_regions`, `num_captions`, `num_descriptions`, `num_hard_negatives`, `num_phrases`
        (different ones) and `rows_without_regions`; `concepts` and `negative_kinds` with their numbers, the
        most frequent first; and the numbers of regions that are `small`, `medium` and `large` (COCO: below
        32 x 32 pixels, below 96 x 96, above).

    Example:
        >>> row = {"boxes": [[0, 0, 9, 9]], "concepts": ["ship"], "phrases": ["a ship"], "captions": []}
        >>> count_rows([row])["concepts"]
        {'ship': 1}
    """
    totals, concepts, kinds, sizes, phrases = Counter(), Counter(), Counter(), Counter(), set()
    for row in rows:
        totals["num_rows"] += 1
        totals["num_regions"] += len(row["boxes"])
        totals["num_captions"] += len(row.get("captions") or [])
        totals["num_descriptions"] += bool(row.get("description"))
        totals["rows_without_regions"] += not row["boxes"]
        totals["num_hard_negatives"] += sum(map(len, row.get("hard_negatives") or []))
        concepts.update(row["concepts"])
        phrases.update(row["phrases"])
        for names in row.get("negative_kinds") or []:
            kinds.update(names)
        for x0, y0, x1, y1 in row["boxes"]:
            area = (x1 - x0) * (y1 - y0)
            sizes["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1
    names = ("num_rows", "num_regions", "num_captions", "num_descriptions", "num_hard_negatives")
    return (
        {name: totals[name] for name in (*names, "rows_without_regions")}
        | {"num_phrases": len(phrases)}
        | {name: sizes[name] for name in ("small", "medium", "large")}
        | {"concepts": dict(concepts.most_common()), "negative_kinds": dict(kinds.most_common())}
    )
