"""Builds the shards of a dataset: some source images become one Parquet file.

A shard depends only on the settings and on its number. It does not matter which process builds it, or when.
"""

import io
import json
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow.parquet import ParquetFile, read_metadata

from ..captioning.attributes import find_facts
from ..captioning.balance import balance_negatives
from ..captioning.hard_negatives import add_negatives
from ..captioning.rules import describe_row, list_ambiguous
from ..captioning.vlm import ask_model, name_row
from ..data.loading import decode_image
from ..data.schema import FEATURES, write_rows
from ..data.tiling import cut_tiles
from ..images import ImageOptions, has_natural_colour, is_plain
from ..readers.skipped import SkipReport
from ..storage import read_json, write_text
from .leakage import EvaluationSet, find_overlaps
from .plan import read_shard_rows

SWITCH = "GEOALIGN_HF_REGISTER"  # see `geoalign_hf`
TEXT_COLUMNS = [name for name in FEATURES if name != "image"]


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to build any of the shards.

    Args:
        output: Folder of the dataset.
        work: Folder of the unfinished build, with the plan and the notes of finished shards.
        num_shards: Number of shards.
        vocabulary: The annotated concepts.
        sets: Evaluation sets, which must not be trained on.
        split: Name of the split.
        min_visible: Smallest visible fraction of a region with which a tile keeps it, 0 to 1.
        max_negatives: Maximum number of hard negatives per phrase.
        negatives: Choice of hard negatives: "free", "matched" or "balanced", see `build_shard`.
        image_options: Rules for images that are not 8-bit RGB.
        leaks: Treatment of images and captions that are in an evaluation set: "skip" or "keep".
        on_error: Treatment of an image that cannot be decoded: "stop" or "skip".
        seed: Seed of wording and choice.
        natural_colour: Whether images show colours as the eye sees them; None finds out for each image.
    """

    output: Path
    work: Path
    num_shards: int
    vocabulary: list[str]
    sets: list[EvaluationSet]
    split: str
    min_visible: float
    max_negatives: int
    negatives: str
    image_options: ImageOptions
    leaks: str
    on_error: str
    seed: int
    natural_colour: bool | None = None

    def locate_shard(self, index: int) -> Path:
        """Return the path of a shard."""
        return self.output / "data" / f"{self.split}-{index:05d}-of-{self.num_shards:05d}.parquet"

    def locate_draft(self, index: int) -> Path:
        """Return the path of a shard whose hard negatives are not chosen yet."""
        return self.work / f"{index:05d}.parquet"

    def locate_note(self, index: int) -> Path:
        """Return the path of the note that lists what was skipped in a shard."""
        return self.work / f"{index:05d}.json"


@dataclass
class Note:
    """What was skipped while a shard was built, and its overlaps with evaluation sets."""

    report: SkipReport
    overlaps: list[dict] = field(default_factory=list)


def build_shards(
    job: Job, indices: list[int], num_workers: int, ask: Callable | None = None
) -> Iterator[int]:
    """Build shards in this process or in several. The first error ends them all.

    Args:
        job: The job.
        indices: Numbers of the shards.
        num_workers: Number of processes.
        ask: Pipeline of a model that writes the text, in this process only. By default, rules write it.

    Yields:
        The number of each finished shard.
    """
    num_workers = min(num_workers, len(indices))
    if num_workers <= 1:
        for index in indices:
            yield build_shard(job, index, ask)
        return
    # A fork of a process that has threads may hang. The server has none, and imports the package only once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(job,))
    with pool, _without_models():
        try:
            for future in as_completed([pool.submit(_build_in_worker, index) for index in indices]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _without_models() -> Iterator[None]:
    """Let processes that start here import the package without torch and transformers."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


def _start_worker(job: Job) -> None:
    global _job
    _job = job
    parent = multiprocessing.parent_process()

    def end_with_parent():  # a process that is killed cannot stop its workers
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _build_in_worker(index: int) -> int:
    return build_shard(_job, index)


def build_shard(job: Job, index: int, ask: Callable | None = None) -> int:
    """Build one shard.

    "free" hard negatives are drawn for each phrase by itself. "matched" ones are drawn from all that are
    possible in the shard, so that each change of words occurs as often as its opposite. "balanced" ones are
    drawn so that whole phrases are exchanged equally often; phrases then say one thing besides the concept.

    Args:
        job: The job.
        index: Number of the shard.
        ask: Pipeline of a model that writes the text. By default, rules write it.

    Returns:
        The number of the shard.
    """
    rows = _make_noted_rows(job, index, ask)
    if job.negatives == "free":
        write_rows(rows, job.locate_shard(index))
        return index
    draft = job.locate_draft(index)
    write_rows(rows, draft)
    write_rows(_choose_negatives(job, index, draft), job.locate_shard(index))
    draft.unlink()
    return index


def _choose_negatives(job: Job, index: int, draft: Path) -> Iterator[dict]:
    """Read the rows of a draft and keep the hard negatives that balance each other."""
    columns = ["phrases", "hard_negatives", "negative_kinds"]
    batches = ParquetFile(draft).iter_batches(1000, columns=columns)
    texts = [row for batch in batches for row in batch.to_pylist()]
    by_change = job.negatives == "matched"
    balanced, counts = balance_negatives(texts, by_change, job.max_negatives, seed=job.seed)
    note = read_json(job.locate_note(index))
    write_text(job.locate_note(index), json.dumps(note | {"balance": counts}))
    rows = (row for batch in ParquetFile(draft).iter_batches(16) for row in batch.to_pylist())
    for row, text in zip(rows, balanced, strict=True):
        yield row | text


def _make_noted_rows(job: Job, index: int, ask: Callable | None) -> Iterator[dict]:
    """Make the rows of a shard, then write its note, so that every shard that exists has a note."""
    note = Note(SkipReport(job.on_error))
    yield from _make_rows(job, index, note, ask)
    content = {"skipped": note.report.entries, "overlaps": note.overlaps, "balance": {}}
    write_text(job.locate_note(index), json.dumps(content))


def _make_rows(job: Job, index: int, note: Note, ask: Callable | None) -> Iterator[dict]:
    """Turn the annotated images of a shard into finished rows."""
    for number, row in read_shard_rows(job.work / "plan", index):
        for t, tile in enumerate(_open_tiles(row, job, note)):
            rng = np.random.default_rng([job.seed, number, t])
            facts = find_facts(tile, tile.pop("natural_colour"))
            tile = describe_row(tile, facts, rng, one_attribute=job.negatives == "balanced")
            if ask:
                answers = job.output / "answers" / f"{index:05d}.jsonl"
                (tile,) = ask_model([tile], ask, answers, seed=job.seed, skip=note.report.skip)
                tile["ambiguous"] = list_ambiguous(facts, tile["phrases"])
            tile = _drop_captions(tile, job, note)
            if tile["phrases"] or tile["captions"]:
                most = job.max_negatives if job.negatives == "free" else None
                tile = add_negatives(tile, facts, job.vocabulary, rng, most)
                yield _encode_image(tile)
            else:
                note.report.skip("no text", f"{name_row(tile)} has neither a region nor a caption.")


def _open_tiles(row: dict, job: Job, note: Note) -> Iterator[dict]:
    """Decode the image of a row and cut it into tiles, without images of evaluation sets."""
    encoded = {"bytes": Path(row["image"]).read_bytes(), "path": row["source"]}
    tile = row.pop("tile", None)
    options = job.image_options
    if tile and options.max_pixels is None:  # tiles are for large images
        options = replace(options, max_pixels=sys.maxsize)
    image = decode_image(encoded, note.report, options)
    if image is None:
        return
    natural = has_natural_colour(image) if job.natural_colour is None else job.natural_colour
    if options.bands or not is_plain(encoded["bytes"]):  # the file does not hold the pixels of the row
        encoded = encode_png(image, encoded["path"])
    # The reader's plain caption is replaced by better ones. Captions that people wrote are kept.
    row = row | {
        "image": image,
        "encoded": encoded,
        "natural_colour": natural,
        "captions": [] if row["boxes"] else row["captions"],
    }
    if _is_evaluated_on(row, job, note):
        return
    tiles = cut_tiles(row, *tile, job.min_visible, note.report) if tile else [row]
    for tile in tiles:
        if not tile.get("window") or not _is_evaluated_on(tile, job, note):
            yield tile


def _is_evaluated_on(row: dict, job: Job, note: Note) -> bool:
    found = find_overlaps(row | {"captions": []}, job.sets)
    note.overlaps += [{"row": name_row(row)} | overlap for overlap in found]
    if not found or job.leaks == "keep":
        return False
    place = f"{found[0]['kind']} as {found[0]['found']} of {found[0]['set']}"
    note.report.skip("in an evaluation set", f"{name_row(row)}: {place}.")
    return True


def _drop_captions(row: dict, job: Job, note: Note) -> dict:
    """Drop the captions that are also in an evaluation set."""
    kept = []
    for caption in row["captions"]:
        matches = [(evaluation.name, evaluation.find_caption(caption)) for evaluation in job.sets]
        matches = [(name, match) for name, match in matches if match]
        note.overlaps += [
            {"row": name_row(row), "set": name, "kind": kind, "found": place, "caption": caption}
            for name, (kind, place) in matches
        ]
        if matches and job.leaks == "skip":
            place = f"{name_row(row)}: the caption {caption!r} is in {matches[0][0]}"
            note.report.skip("in an evaluation set", f"{place}.")
        else:
            kept.append(caption)
    return row | {"captions": kept}


def _encode_image(row: dict) -> dict:
    """Replace the decoded image by the bytes of its file, or of a new file if it is a tile."""
    encoded = row.pop("encoded")
    if row.get("window"):
        window = "_".join(map(str, row["window"]))
        encoded = encode_png(row["image"], f"{Path(row['source']).with_suffix('')}_{window}.png")
    return row | {"image": encoded}


def encode_png(image: Image.Image, name: str) -> dict:
    """Encode an image as a PNG file of this name, with the ending replaced."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": str(Path(name).with_suffix(".png"))}


def iterate_rows(job: Job) -> Iterator[dict]:
    """Read the rows of all finished shards, without their images."""
    for index in range(job.num_shards):
        for batch in ParquetFile(job.locate_shard(index)).iter_batches(1000, columns=TEXT_COLUMNS):
            yield from batch.to_pylist()


def read_rows_at(job: Job, number: int) -> Iterator[dict]:
    """Read some rows with their images, chosen by the seed. The images of other rows are not decoded."""
    counts = [read_metadata(job.locate_shard(index)).num_rows for index in range(job.num_shards)]
    starts = np.cumsum([0, *counts])
    rng = np.random.default_rng(job.seed)
    for place in np.sort(rng.choice(sum(counts), min(number, sum(counts)), replace=False)):
        index = int(np.searchsorted(starts, place, side="right")) - 1
        row = _read_row(ParquetFile(job.locate_shard(index)), int(place - starts[index]))
        yield row | {"image": decode_image(row["image"], SkipReport(), ImageOptions(max_pixels=sys.maxsize))}


def _read_row(file: ParquetFile, place: int) -> dict:
    """Read one row of a file, and no other group of rows than its own."""
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        if place < num_rows:
            return file.read_row_group(group).slice(place, 1).to_pylist()[0]
        place -= num_rows
    raise IndexError(place)
