"""The row: one image with its hierarchy of words; made, checked, written and loaded here.

What enters are dictionaries of `readers` or of the user, or a built dataset; what leaves is a dataset with
the columns of `FEATURES`, after which nobody asks where a row came from.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    are_progress_bars_disabled,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)
from datasets.distributed import split_dataset_by_node
from transformers.utils import logging

from .readers import read_coco
from .report import Report
from .words import pluralize

logger = logging.get_logger(__name__)

FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),  # short ones, of the whole image
        "description": Value("string"),  # a long one, or None
        "boxes": List(List(Value("float64"), length=4)),  # xyxy pixels; from here on one entry per region
        "quads": List(
            List(List(Value("float64"), length=2), length=4)
        ),  # four corners; [] where boxes are all
        "phrases": List(Value("string")),
        "concepts": List(Value("string")),
        "hard_negatives": List(List(Value("string"))),  # phrases that are nearly right and wrong
        "negative_kinds": List(List(Value("string"))),  # what each of them changed
        "difficult": List(Value("bool")),  # flagged so at the source; [] where it has no flags
        "unboxed": List(Value("string")),  # concepts that are also in the image, without a region
        "source": Value("string"),  # the picture that the row was made of, as named at the source, or None
        "window": List(Value("int64")),  # the part of that picture, xyxy whole pixels; [] for all of it
    }
)

REQUIRED_COLUMNS = ("image", "boxes", "phrases", "concepts")
REGION_COLUMNS = (
    "boxes", "quads", "phrases", "concepts", "hard_negatives", "negative_kinds", "difficult"
)  # fmt: skip


def build_rows(rows: Iterable[dict]) -> Dataset:
    """Check rows and make a dataset of them.

    Args:
        rows: dictionaries with the columns of `FEATURES`; all but `REQUIRED_COLUMNS` may be missing. `image`
            is a PIL image, a path, which is read when the row is, or the bytes of a file with its `path`.

    Returns:
        A dataset with exactly the columns of `FEATURES`.

    Raises:
        ValueError: if a row lacks a column, or its lists differ in length.
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
                "Name the kind of each, or leave the column out."
            )
    row["image"] = str(row["image"]) if isinstance(row["image"], Path) else row["image"]
    return row


def from_coco(annotations: str | Path, images: str | Path) -> Dataset:
    """Read COCO detection files into rows, as `readers.read_coco` says.

    Args:
        annotations: the JSON file, or a folder of such files.
        images: the folder that `file_name` is relative to, or the one that the files lie in.

    Returns:
        One row per image, in the file's order; images are read when a row is.
    """
    return decode_images(build_rows(read_coco(annotations, images)))


def write_rows(rows: list[dict], path: Path) -> None:
    """Write rows as one Parquet file that is whole or not there, the same bytes for the same rows.

    Args:
        rows: as `build_rows` takes them, with images as bytes; none at all are allowed here.
        path: of the file.
    """
    checked = [_check_row(i, row) for i, row in enumerate(rows)]
    columns = {name: [row[name] for row in checked] for name in FEATURES}
    # As an Image() datasets would drop bytes whose path happens to be a file here, and write the path alone.
    plain = Features(FEATURES | {"image": {"bytes": Value("binary"), "path": Value("string")}})
    with _without_bars():
        dataset = Dataset.from_dict(columns, features=plain).cast(FEATURES)
    write_parquet(dataset, path)


def write_parquet(dataset: Dataset, path: Path) -> None:
    """Write a dataset as one Parquet file that is whole or not there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file, _without_bars():
        dataset.to_parquet(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _without_bars() -> Iterator[None]:
    was_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_off:
            enable_progress_bars()


def load_rows(
    source: str | Path,
    split: str = "train",
    streaming: bool = False,
    on_bad_image: str = "stop",
    rank: int = 0,
    num_processes: int = 1,
    **arguments,
) -> Dataset | IterableDataset:
    """Load a built dataset from a folder or the Hub; plain `datasets.load_dataset` reads the same rows.

    Images are decoded when a row is read, once, and not at all where only words are asked for.

    Args:
        source: a folder of `geoalign_hf.build`, or a repository.
        split: which one.
        streaming: read rows as they come, without a copy on this disk.
        on_bad_image: "stop" names the row whose image cannot be decoded; "leave_out" leaves such rows out and
            logs their number. Without streaming that decodes every image once beforehand.
        rank: of this process.
        num_processes: share the rows among so many; every row goes to one of them.
        **arguments: of `datasets.load_dataset`, such as `revision` or `token`.

    Returns:
        A dataset; streamed, one to iterate over.

    Raises:
        ValueError: if a required column is missing, or (when the row is read) an image cannot be decoded.
    """
    dataset = load_dataset(str(source), split=split, streaming=streaming, **arguments)
    check_columns(dataset)
    if num_processes > 1:
        dataset = split_dataset_by_node(dataset, rank=rank, world_size=num_processes)
    return decode_images(dataset, on_bad_image)


def decode_images(
    dataset: Dataset | IterableDataset, on_bad_image: str = "stop"
) -> Dataset | IterableDataset:
    """Make a dataset name the row whose image cannot be decoded.

    Args:
        dataset: of rows.
        on_bad_image: as for `load_rows`.

    Returns:
        The same rows; an image that cannot be decoded is an error when it is read, or its row is left out.
    """
    report = Report(on_bad_image)
    if on_bad_image == "stop":
        return dataset.cast_column("image", NamedImage())
    encoded = dataset.cast_column("image", Image(decode=False))
    if isinstance(dataset, IterableDataset):
        # A batch of one row becomes a batch of one or none.
        return encoded.map(_leave_out_bad, batched=True, batch_size=1, fn_kwargs={"report": report})
    images = encoded.select_columns(["image"])
    whole = [i for i, row in enumerate(images) if decode_image(row["image"], report) is not None]
    if report.entries:
        messages = [entry["message"] for entry in report.entries]
        logger.warning(f"left out {len(messages)} rows of {len(dataset)}; the first: {messages[:3]}")
    return dataset.select(whole).cast_column("image", NamedImage())


def decode_image(encoded: dict, report: Report) -> PIL.Image.Image | None:
    """Decode {"bytes": ..., "path": ...}; `path` names the row where that cannot be done.

    Returns:
        The image, or None if it was left out.

    Raises:
        ValueError: if it cannot be decoded and `report` says to stop.
    """
    try:
        return NamedImage().decode_example(encoded)
    except ValueError as error:
        report.refuse("bad image", str(error), error)
        return None


def _leave_out_bad(batch: dict, report: Report) -> dict:
    image = decode_image(batch["image"][0], report)
    if image is None:
        logger.warning(f"left out {len(report.entries)} rows so far: {report.entries[-1]['message']}")
        return {name: [] for name in batch}
    return batch | {"image": [image]}


@dataclass
class NamedImage(Image):
    """The feature of an image that says which image it was that could not be decoded."""

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """Decode one image.

        Raises:
            ValueError: if it cannot be decoded.
        """
        try:
            return super().decode_example(value, token_per_repo_id)
        except Exception as error:  # each format of PIL has errors of its own
            message = f"the image of row {value['path']!r} cannot be decoded ({error})."
            raise ValueError(f"{message} Replace it or leave it out.") from error


def check_columns(dataset: Dataset | IterableDataset) -> None:
    """Refuse a dataset that does not hold rows.

    Raises:
        ValueError: if a required column is missing.
    """
    if missing := [name for name in REQUIRED_COLUMNS if name not in (dataset.column_names or [])]:
        raise ValueError(
            f"the dataset lacks the columns {missing}; it has {sorted(dataset.column_names or [])}. "
            "Rename them, or build rows with geoalign_hf.rows.from_coco or build_rows."
        )


def read_rows(source: str, images: str | None, split: str) -> Dataset:
    """Read rows from a COCO .json file with its images, or from a folder or Hub repository of rows."""
    return from_coco(source, images) if source.endswith(".json") else load_rows(source, split)


def list_concepts(dataset: Dataset) -> list[str]:
    """List the concepts that occur, in alphabetical order.

    Example:
        >>> list_concepts({"concepts": [["ship"], [], ["ship", "airplane"]]})
        ['airplane', 'ship']
    """
    return sorted({concept for concepts in dataset["concepts"] for concept in concepts})


def leave_out_concepts(rows: Dataset, names: Sequence[str]) -> Dataset:
    """Take concepts out of rows, so that a model which is trained on these has never been told of them.

    Their regions go, and so does every caption, description, hard negative and region with a phrase in which
    one of the names stands, also in the plural. What is there in the pixels stays, as ground round the rest.

    Args:
        rows: a dataset of rows.
        names: of the concepts.

    Returns:
        The rows that have a region, a caption or a description left.

    Raises:
        ValueError: if a concept does not occur, or no row is left.
    """
    if unknown := sorted(set(names) - set(concepts := list_concepts(rows))):
        raise ValueError(f"the rows have no concepts {unknown}; they have {concepts}. Name some of these.")
    spelled = "|".join(re.escape(form) for name in names for form in (name, pluralize(name)))
    told = re.compile(rf"\b({spelled})\b", re.IGNORECASE)
    with _without_bars():
        words = rows.remove_columns("image").map(_leave_out_told, fn_kwargs={"told": told})
    kept = [i for i, row in enumerate(words) if row["boxes"] or row["captions"] or row["description"]]
    if not kept:
        raise ValueError(f"no row says anything but {sorted(names)}. Leave out fewer concepts.")
    with _without_bars():
        parts = [rows.select_columns("image").select(kept), words.select(kept)]
        return decode_images(concatenate_datasets(parts, axis=1))


def _leave_out_told(row: dict, told: re.Pattern) -> dict:
    pairs = enumerate(zip(row["concepts"], row["phrases"], strict=True))
    kept = [r for r, pair in pairs if not any(map(told.search, pair))]
    row |= {name: [row[name][r] for r in kept] for name in REGION_COLUMNS if row.get(name)}
    for r, phrases in enumerate(row.get("hard_negatives") or []):
        untold = [i for i, phrase in enumerate(phrases) if not told.search(phrase)]
        for name in ("hard_negatives", "negative_kinds"):
            if row.get(name):
                row[name][r] = [row[name][r][i] for i in untold]
    for name in ("captions", "unboxed"):
        row[name] = [words for words in row.get(name) or [] if not told.search(words)]
    description = row.get("description")
    row["description"] = None if description and told.search(description) else description
    return row


def count_rows(rows: Iterable[dict]) -> dict:
    """Count what a dataset holds.

    Args:
        rows: of it; their images are not looked at.

    Returns:
        `num_rows`, `num_regions`, `num_captions`, `num_descriptions`, `num_hard_negatives`, `num_phrases`
        (different ones), `rows_without_regions`; the numbers of `concepts` and `negative_kinds`, the
        commonest first; how many regions are `small`, `medium` and `large` (COCO: below 32 x 32 pixels,
        below 96 x 96, above).

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
