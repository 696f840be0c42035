"""The row: one image with its hierarchy of text. Its columns, checks and counts."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

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
    }
)
MOST_GROUP_BYTES, MOST_GROUP_ROWS = 100_000_000, 1000  # of one row group of a Parquet file
REQUIRED_COLUMNS = ("image", "boxes", "phrases", "concepts")
REGION_COLUMNS = (
    "boxes", "quads", "phrases", "concepts", "ambiguous", "hard_negatives", "negative_kinds", "difficult"
)  # fmt: skip


def build_rows(rows: Iterable[dict]) -> Dataset:
    """Check rows and make a dataset of them.

    Args:
        rows: Dictionaries with the columns of `FEATURES`. All but `REQUIRED_COLUMNS` may be missing. `image`
            is a PIL image, a path (read when the row is read), or the bytes of a file with its `path`.

    Returns:
        A dataset with exactly the columns of `FEATURES`.

    Raises:
        ValueError: If a row lacks a column, or its lists differ in length.
    """
    checked = [_check_row(i, row) for i, row in enumerate(rows)]
    if not checked:
        raise ValueError("there are no rows. Give at least one.")
    return Dataset.from_list(checked, features=FEATURES)


def _check_row(i: int, row: dict) -> dict:
    row = {name: value for name, value in row.items() if value is not None}
    if missing := [name for name in REQUIRED_COLUMNS if name not in row]:
        raise ValueError(
            f"row {i} lacks {missing}; it has {sorted(row)}. Give every row an image and its regions."
        )
    if unknown := sorted(row.keys() - FEATURES.keys()):
        raise ValueError(f"row {i} has the unknown columns {unknown}; a row has {list(FEATURES)}.")
    row = {name: None if name in ("description", "source") else [] for name in FEATURES} | row
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
    row["image"] = str(row["image"]) if isinstance(row["image"], Path) else row["image"]
    return row


def write_rows(rows: Iterable[dict], path: Path) -> None:
    """Write rows as one Parquet file, atomically. The same rows give the same bytes.

    Rows are written in groups of about `MOST_GROUP_BYTES`. Memory does not grow with the file, and Arrow's
    limit of 2 GiB per column applies to one group only.

    Args:
        rows: Rows as `build_rows` takes them, with images as `{"bytes": ..., "path": ...}`. None is valid.
        path: Path of the file.
    """
    schema = FEATURES.arrow_schema
    group, num_bytes = [], 0
    with atomic_file(path) as file, ParquetWriter(file, schema) as writer:
        for i, row in enumerate(rows):
            group.append(_check_row(i, row))
            num_bytes += len(row["image"]["bytes"])
            if num_bytes >= MOST_GROUP_BYTES or len(group) == MOST_GROUP_ROWS:
                writer.write_table(Table.from_pylist(group, schema))
                group, num_bytes = [], 0
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
    """List the concepts that occur, in alphabetical order.

    Example:
        >>> list_concepts({"concepts": [["ship"], [], ["ship", "airplane"]]})
        ['airplane', 'ship']
    """
    return sorted({concept for concepts in dataset["concepts"] for concept in concepts})


def count_rows(rows: Iterable[dict]) -> dict:
    """Count what a dataset holds.

    Args:
        rows: Its rows; images are not needed.

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
