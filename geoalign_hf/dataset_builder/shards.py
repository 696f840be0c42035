"""One part of a build: some source images to one Parquet file, whole or not at all.

What enters are plain rows of `readers`; what leaves is a shard, and beside it a note of what was left out
of it. A shard depends on the settings and its number alone, so it does not matter which process makes it,
or when.
"""

import io
import json
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from ..captioning.attributes import find_facts
from ..captioning.hard_negatives import add_negatives
from ..captioning.rules import describe_row
from ..captioning.vlm import ask_model, name_row
from ..data.loading import decode_image
from ..data.schema import write_rows
from ..data.tiling import cut_tiles
from ..readers.skipped import SkipReport
from ..storage import write_text
from .leakage import EvaluationSet, find_overlaps

PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class Job:
    """All that a process needs to make any of the shards.

    Args:
        output: folder of the dataset.
        split: name of the split.
        rows: of `readers`, with paths of images.
        vocabulary: the concepts that are annotated.
        sets: evaluation sets.
        images_per_shard: so many of the rows make one shard.
        tile: larger images are cut into tiles of so many pixels a side; 0 for never.
        overlap: of tiles, in pixels.
        min_visible: a region less visible in a tile is left out of it.
        max_negatives: of one phrase.
        leaks: "skip" or "keep", of what is also in an evaluation set.
        on_error: "stop" or "skip", at an image that cannot be decoded.
        seed: of wording and choice.
    """

    output: Path
    split: str
    rows: list[dict]
    vocabulary: list[str]
    sets: list[EvaluationSet]
    images_per_shard: int
    tile: int
    overlap: int
    min_visible: float
    max_negatives: int
    leaks: str
    on_error: str
    seed: int

    @property
    def num_shards(self) -> int:
        """How many there are."""
        return -(-len(self.rows) // self.images_per_shard)

    def locate_shard(self, index: int) -> Path:
        """Give the path of a shard."""
        return self.output / "data" / f"{self.split}-{index:05d}-of-{self.num_shards:05d}.parquet"

    def locate_note(self, index: int) -> Path:
        """Give the path of the note of what a shard left out."""
        return self.output / ".build" / f"{index:05d}.json"


def build_shards(
    job: Job, indices: list[int], num_workers: int, ask: Callable | None = None
) -> Iterator[int]:
    """Make shards in this process or in several; the first error ends them all.

    Args:
        job: of the build.
        indices: of the shards.
        num_workers: processes.
        ask: the pipeline of a model that words the rows, in this process alone; else rules do.

    Yields:
        The index of each shard that is there.
    """
    num_workers = min(num_workers, len(indices))
    if num_workers <= 1:
        for index in indices:
            yield build_shard(job, index, ask)
        return
    # Spawned: a fork of a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            for future in as_completed([pool.submit(_build_in_worker, index) for index in indices]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(job: Job) -> None:
    global _job
    _job = job
    PIL.Image.MAX_IMAGE_PIXELS = None  # as in the process that started this one
    parent = multiprocessing.parent_process()

    def end_with_parent():  # who is killed cannot tell the workers to stop
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _build_in_worker(index: int) -> int:
    return build_shard(_job, index)


def build_shard(job: Job, index: int, ask: Callable | None = None) -> int:
    """Make one shard.

    Args:
        job: of the build.
        index: of the shard.
        ask: the pipeline of a model that words the rows; else rules do.

    Returns:
        The index.
    """
    report, overlaps, finished = SkipReport(job.on_error), [], []
    start = index * job.images_per_shard
    for i, row in enumerate(job.rows[start : start + job.images_per_shard], start=start):
        for t, tile in enumerate(_open_tiles(row, job, report, overlaps)):
            rng = np.random.default_rng([job.seed, i, t])
            facts = find_facts(tile)
            tile = describe_row(tile, facts, rng)
            if ask:
                answers = job.output / "answers" / f"{index:05d}.jsonl"
                (tile,) = ask_model([tile], ask, answers, seed=job.seed, skip=report.skip)
            tile = _drop_leaks(tile, job, report, overlaps)
            if tile["phrases"] or tile["captions"]:
                tile = add_negatives(tile, facts, job.vocabulary, rng, job.max_negatives)
                finished.append(_encode_image(tile))
            else:
                report.skip("no words", f"{name_row(tile)} has neither a region nor a caption.")
    note = {"left_out": report.entries, "overlaps": overlaps}
    write_text(job.locate_note(index), json.dumps(note))
    write_rows(finished, job.locate_shard(index))  # last: a shard that is there is done
    return index


def _open_tiles(row: dict, job: Job, report: SkipReport, overlaps: list[dict]) -> Iterator[dict]:
    """Decode the image of a row and cut it into tiles; nothing comes of one that is bad or evaluated on."""
    encoded = {"bytes": Path(row["image"]).read_bytes(), "path": row["source"]}
    image = decode_image(encoded, report)
    if image is None:
        return
    # The plain caption of a reader makes room for better ones; those of people stay.
    row = row | {"image": image, "encoded": encoded, "captions": [] if row["boxes"] else row["captions"]}
    if _is_evaluated_on(row, job, report, overlaps):
        return
    tiles = cut_tiles(row, job.tile, job.overlap, job.min_visible, report) if job.tile else [row]
    for tile in tiles:
        if not tile.get("window") or not _is_evaluated_on(tile, job, report, overlaps):
            yield tile


def _is_evaluated_on(row: dict, job: Job, report: SkipReport, overlaps: list[dict]) -> bool:
    found = find_overlaps(row | {"captions": []}, job.sets)
    overlaps += [{"row": name_row(row)} | overlap for overlap in found]
    if not found or job.leaks == "keep":
        return False
    report.skip(
        "evaluated on", f"{name_row(row)}: {found[0]['kind']} as {found[0]['found']} of {found[0]['set']}."
    )
    return True


def _drop_leaks(row: dict, job: Job, report: SkipReport, overlaps: list[dict]) -> dict:
    """Take away the captions that an evaluation set has, too."""
    kept = []
    for caption in row["captions"]:
        found = [(evaluation.name, evaluation.find_caption(caption)) for evaluation in job.sets]
        found = [(name, match) for name, match in found if match]
        overlaps += [
            {"row": name_row(row), "set": name, "kind": kind, "found": place, "caption": caption}
            for name, (kind, place) in found
        ]
        if found and job.leaks == "skip":
            report.skip("evaluated on", f"{name_row(row)}: the caption {caption!r} is in {found[0][0]}.")
        else:
            kept.append(caption)
    return row | {"captions": kept}


def _encode_image(row: dict) -> dict:
    """Put the image's file in its place: the one it came from, or a new one of a tile."""
    encoded = row.pop("encoded")
    if row.get("window"):
        file = io.BytesIO()
        image = row["image"] if row["image"].mode in PNG_MODES else row["image"].convert("RGB")
        image.save(file, "PNG")
        window = "_".join(map(str, row["window"]))
        encoded = {"bytes": file.getvalue(), "path": f"{Path(row['source']).with_suffix('')}_{window}.png"}
    return row | {"image": encoded}
