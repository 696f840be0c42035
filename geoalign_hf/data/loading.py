"""Loading datasets of rows from annotation files, folders and the Hub, and decoding their images."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from logging import getLogger
from pathlib import Path
from typing import TypeVar

import PIL.Image
from datasets import (
    Dataset,
    Image,
    IterableDataset,
    concatenate_datasets,
    get_dataset_split_names,
    load_dataset,
)
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid
from yaml import YAMLError

from ..captioning.grammar import pluralize
from ..images import DEFAULT_OPTIONS, ImageOptions, read_image
from ..readers.coco import read_coco
from ..readers.skipped import SkipReport
from ..storage import no_progress_bars
from .schema import REGION_COLUMNS, build_rows, check_columns, list_concepts

logger = getLogger(__name__)
Rows = TypeVar("Rows", Dataset, IterableDataset)


def from_coco(
    annotations: str | Path, images: str | Path, image_options: ImageOptions = DEFAULT_OPTIONS
) -> Dataset:
    """Read COCO detection files into a dataset of rows; see `readers.coco.read_coco`.

    Args:
        annotations: A JSON file, or a folder of such files.
        images: Folder that `file_name` is relative to.
        image_options: Rules for images that are not 8-bit RGB.

    Returns:
        One row per image, in the order of the file. An image is read when its row is read.
    """
    return decode_images(build_rows(read_coco(annotations, images)), image_options=image_options)


def load_rows(
    source: str | Path,
    split: str | None = None,
    streaming: bool = False,
    on_bad_image: str = "stop",
    rank: int = 0,
    num_processes: int = 1,
    default_split: str = "train",
    image_options: ImageOptions = DEFAULT_OPTIONS,
    **arguments,
) -> Dataset | IterableDataset:
    """Load a built dataset from a folder or the Hub. `datasets.load_dataset` reads the same rows.

    An image is decoded when its row is read, and not if only other columns are read.

    Args:
        source: Folder that `geoalign-hf build` wrote, or a Hub repository.
        split: Name of the split. None takes `default_split` or, if the dataset does not have it, its only
            split. Training and evaluation therefore both find what a build wrote.
        streaming: True reads rows one after the other, without a copy on the disk.
        on_bad_image: Reaction to an image that cannot be decoded. "stop" raises an error that names its row.
            "skip" drops such rows and logs their number; without streaming, every image is decoded once
            beforehand.
        rank: Rank of this process.
        num_processes: Number of processes. Every row goes to one of them.
        default_split: The split that is preferred if `split` is None.
        image_options: Rules for images that are not 8-bit RGB.
        **arguments: Arguments of `datasets.load_dataset`, such as `revision` or `token`.

    Returns:
        A dataset; with `streaming`, an iterable one.

    Raises:
        ValueError: If a required column is missing, or (when the row is read) an image cannot be decoded.
    """
    split = split or choose_split(source, default_split, **arguments)
    with explain_errors(source):
        dataset = load_dataset(str(source), split=split, streaming=streaming, **arguments)
    check_columns(dataset)
    if num_processes > 1:
        dataset = split_dataset_by_node(dataset, rank=rank, world_size=num_processes)
    return decode_images(dataset, on_bad_image, image_options)


@contextmanager
def explain_errors(source: str | Path) -> Iterator[None]:
    """Name the dataset in errors of `datasets` that come of files of another kind.

    Raises:
        ValueError: In place of the original error.
    """
    try:
        yield
    except (DatasetGenerationError, ArrowInvalid, RuntimeError, JSONDecodeError, YAMLError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        found = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        raise ValueError(
            f"{source} cannot be loaded as a dataset ({found:.300}). A file in it is damaged or, if it is a "
            "repository, a proxy or a login page may have answered in place of the Hub."
        ) from error


def choose_split(source: str | Path, preferred: str, **arguments) -> str:
    """Choose a split of a dataset: the preferred one or, if the dataset does not have it, its only split.

    Args:
        source: Folder or Hub repository.
        preferred: Name of the preferred split.
        **arguments: Arguments of `datasets.get_dataset_split_names`, such as `revision` or `token`.

    Raises:
        ValueError: If the dataset has several splits, but not the preferred one.
    """
    with explain_errors(source):
        names = get_dataset_split_names(str(source), **arguments)
    if preferred in names or len(names) == 1:
        return preferred if preferred in names else names[0]
    raise ValueError(f"{source} has no split {preferred!r}; it has {names}. Name one of them with --split.")


def decode_images(
    dataset: Rows, on_bad_image: str = "stop", image_options: ImageOptions = DEFAULT_OPTIONS
) -> Rows:
    """Decode the images of a dataset when they are read, with errors that name the row.

    Args:
        dataset: A dataset of rows.
        on_bad_image: Reaction to an image that cannot be decoded, "stop" or "skip", as for `load_rows`.
        image_options: Rules for images that are not 8-bit RGB.

    Returns:
        The same rows with images of mode RGB, upright. An image that cannot be decoded raises an error when
        it is read, or its row is skipped.
    """
    report, feature = SkipReport(on_bad_image), NamedImage(image_options=image_options)
    if on_bad_image == "stop":
        return dataset.cast_column("image", feature)
    encoded = dataset.cast_column("image", Image(decode=False))
    if isinstance(dataset, IterableDataset):
        # A batch of one row becomes a batch of one or none.
        return encoded.map(
            _skip_bad_image, batched=True, batch_size=1, fn_kwargs={"report": report, "feature": feature}
        )
    images = encoded.select_columns(["image"])
    whole = [
        i
        for i, row in enumerate(images)
        if decode_image(row["image"], report, feature.image_options) is not None
    ]
    if report.entries:
        messages = [entry["message"] for entry in report.entries]
        logger.warning(f"skipped {len(messages)} rows of {len(dataset)}; the first: {messages[:3]}")
    return dataset.select(whole).cast_column("image", feature)


def decode_image(
    encoded: dict, report: SkipReport, image_options: ImageOptions = DEFAULT_OPTIONS
) -> PIL.Image.Image | None:
    """Decode an image {"bytes": ..., "path": ...}. `path` is its name in messages.

    Returns:
        The image of mode RGB, upright, or None if it was skipped.

    Raises:
        ValueError: If it cannot be decoded and `report` does not skip errors.
    """
    try:
        return NamedImage(image_options=image_options).decode_example(encoded)
    except ValueError as error:
        report.refuse("bad image", str(error), error)
        return None


def _skip_bad_image(batch: dict, report: SkipReport, feature: "NamedImage") -> dict:
    image = decode_image(batch["image"][0], report, feature.image_options)
    if image is None:
        logger.warning(f"skipped {len(report.entries)} rows so far: {report.entries[-1]['message']}")
        return {name: [] for name in batch}
    return batch | {"image": [image]}


@dataclass
class NamedImage(Image):
    """An image feature that reads images as `images.read_image` does; its errors name the row."""

    image_options: ImageOptions = DEFAULT_OPTIONS

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """Decode one image.

        Raises:
            ValueError: If it cannot be decoded.
        """
        if not isinstance(value, dict):  # decoded already
            return read_image(value, self.image_options)
        content = value["path"] if value["bytes"] is None else value["bytes"]
        return read_image(content, self.image_options, name=f"the image of row {value['path']!r}")


def read_rows(
    source: str,
    images: str | None,
    split: str | None = None,
    default_split: str = "train",
    image_options: ImageOptions = DEFAULT_OPTIONS,
) -> Dataset:
    """Read rows from a COCO .json file with its images, or from a folder or Hub repository of rows.

    Raises:
        ValueError: If a COCO file is given without the folder of its images, or with a split.
    """
    if source.endswith(".json"):
        if images is None:
            raise ValueError(f"{source} is a COCO file, and needs the folder of its images. Give --images.")
        if split is not None:
            raise ValueError(f"split is {split!r}, but the COCO file {source} has no splits. Omit it.")
        return from_coco(source, images, image_options)
    return load_rows(source, split, default_split=default_split, image_options=image_options)


def remove_concepts(rows: Dataset, names: Sequence[str]) -> Dataset:
    """Remove concepts from rows, so that a model that is trained on them never reads about these concepts.

    Their regions are removed. So is every caption, description and hard negative that mentions one of the
    names, also in the plural, and every region with such a phrase. The pixels stay as they are.

    Args:
        rows: A dataset of rows.
        names: Names of the concepts.

    Returns:
        The rows that still have a region, a caption or a description.

    Raises:
        ValueError: If a concept does not occur, or no row is left.
    """
    if unknown := sorted(set(names) - set(concepts := list_concepts(rows))):
        raise ValueError(f"the rows have no concepts {unknown}; they have {concepts}. Name some of these.")
    spelled = "|".join(re.escape(form) for name in names for form in (name, pluralize(name)))
    mention = re.compile(rf"\b({spelled})\b", re.IGNORECASE)
    with no_progress_bars():
        words = rows.remove_columns("image").map(_remove_mentions, fn_kwargs={"mention": mention})
    kept = [
        i for i, row in enumerate(words.to_list()) if row["boxes"] or row["captions"] or row["description"]
    ]
    if not kept:
        raise ValueError(f"no row has anything but {sorted(names)}. Remove fewer concepts.")
    with no_progress_bars():
        parts = [rows.select_columns("image").select(kept), words.select(kept)]
        return decode_images(concatenate_datasets(parts, axis=1), image_options=get_image_options(rows))


def get_image_options(rows: Dataset) -> ImageOptions:
    """Return the options with which the images of rows are read."""
    return getattr(rows.features["image"], "image_options", DEFAULT_OPTIONS)


def _remove_mentions(row: dict, mention: re.Pattern) -> dict:
    pairs = enumerate(zip(row["concepts"], row["phrases"], strict=True))
    kept = [r for r, pair in pairs if not any(map(mention.search, pair))]
    row |= {name: [row[name][r] for r in kept] for name in REGION_COLUMNS if row.get(name)}
    for r, phrases in enumerate(row.get("hard_negatives") or []):
        others = [i for i, phrase in enumerate(phrases) if not mention.search(phrase)]
        for name in ("hard_negatives", "negative_kinds"):
            if row.get(name):
                row[name][r] = [row[name][r][i] for i in others]
    for name in ("captions", "unboxed"):
        row[name] = [words for words in row.get(name) or [] if not mention.search(words)]
    description = row.get("description")
    row["description"] = None if description and mention.search(description) else description
    return row
