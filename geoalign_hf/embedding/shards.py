"""Embed a folder of images and their regions to Parquet shards, and read the shards back as a dataset.

A shard holds a fixed part of the sorted list of images. Its content does not depend on the number of
processes or on the process that writes it, up to rounding of the embeddings. Shards are written atomically;
`embeds.json` beside them records the model and the protocol.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value, load_dataset
from pyarrow import parquet
from transformers.utils import logging

from ..data.loading import decode_image
from ..data.schema import write_parquet
from ..readers.coco import read_coco
from ..readers.files import list_images
from ..readers.skipped import SkipReport
from ..storage import LOCK_NAME, PARTIAL, lock_folder, no_progress_bars, read_json, write_json, write_text
from .embedder import Embedder


@dataclass
class EmbeddingJob:
    """A folder of images to embed, and how.

    Args:
        images: folder of images, searched with its subfolders.
        output: folder of the shards.
        coco: COCO file of regions; its `file_name`s are relative to `images`.
        region_source: source of a region's embedding, see `Embedder.embed_regions`.
        shard_size: number of images per shard; their regions are added.
        dtype: number type of the embeddings: "float32" or "float16".
        on_error: treatment of a wrong image or box: "stop" or "skip".
        context: side of the window, see `Embedder.embed_regions`.

    Raises:
        ValueError: if the folder has no images, `coco` is wrong, or an option has an impossible value.
    """

    images: Path
    output: Path
    coco: Path | None = None
    region_source: str | None = None
    shard_size: int = 256
    dtype: str = "float32"
    on_error: str = "stop"
    context: float | None = None
    rows: list[dict] = field(init=False, repr=False)
    report: SkipReport = field(init=False, repr=False)  # what was skipped of the annotations

    def __post_init__(self):
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}. Choose 'float32' or 'float16'.")
        if self.shard_size < 1:
            raise ValueError(f"shard_size is {self.shard_size}. Give 1 or more.")
        self.report = SkipReport(self.on_error)
        annotated = list(read_coco(self.coco, self.images, report=self.report)) if self.coco else []
        regions = {Path(row["image"]): row for row in annotated}
        no_regions = {"boxes": [], "concepts": []}
        self.rows = [
            {name: regions.get(path, no_regions)[name] for name in no_regions} | {"image": path}
            for path in list_images(self.images)
        ]
        if unlisted := sorted(map(str, regions.keys() - {row["image"] for row in self.rows})):
            raise ValueError(
                f"{self.coco} has regions of {unlisted[:3]}, which are not images below {self.images}. "
                "Give the folder that holds all of them."
            )

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-len(self.rows) // self.shard_size)

    def locate_shard(self, index: int) -> Path:
        """Give the path of a shard."""
        return self.output / name_shard(index, self.num_shards)

    def describe(self, embedder: Embedder, name: str) -> dict:
        """Describe the content of the shards: model, protocol, images and regions."""
        named = [(self.name_image(row), row["boxes"], row["concepts"]) for row in self.rows]
        source, (context,) = embedder.resolve_view(self.region_source, self.context)
        protocol = embedder.describe() | {"region_source": source, "context": context}
        return {
            "model": name,
            "weights": fingerprint_model(embedder.model),
            "protocol": protocol,
            "dtype": self.dtype,
            "num_images": len(self.rows),
            "shard_size": self.shard_size,
            "num_shards": self.num_shards,
            "source": hashlib.sha256(json.dumps(named).encode()).hexdigest(),
        }

    def name_image(self, row: dict) -> str:
        """Give the path of an image relative to the folder, as it stands in the shards."""
        return row["image"].relative_to(self.images).as_posix()


def name_shard(index: int, num_shards: int) -> str:
    """Name the file of a shard."""
    return f"embeds-{index:05d}-of-{num_shards:05d}.parquet"


def fingerprint_model(model: torch.nn.Module) -> str:
    """Hash the weights, since a model of the same name may have been trained further."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def run_job(
    job: EmbeddingJob, embedder: Embedder, name: str, accelerator: Accelerator | None = None
) -> tuple[int, int]:
    """Embed a folder: every process writes its part of the shards that do not exist yet.

    The main process holds a lock on the output folder until all processes have ended, so that a second job
    cannot write into it. A job that was interrupted continues when it is run again.

    Args:
        job: settings, the same on every process.
        embedder: model and processor.
        name: name of the model, for `embeds.json`.
        accelerator: an `accelerate.Accelerator`, for the number of processes. None is one process.

    Returns:
        The number of shards that this process wrote, and the number of images that it skipped.

    Raises:
        ValueError: if the folder holds other embeddings, or an image is wrong and `job.on_error` is "stop".
        RuntimeError: if another job is writing into the folder; the message names its process.
    """
    rank, num_processes = 0, 1
    if accelerator is not None:
        rank, num_processes = accelerator.process_index, accelerator.num_processes
    with lock_folder(job.output) if rank == 0 else nullcontext():
        if rank == 0:
            prepare_folder(job, job.describe(embedder, name))
        if accelerator is not None:
            accelerator.wait_for_everyone()
        skipped = [num_skipped for _, num_skipped in write_shards(job, embedder, rank, num_processes)]
        if accelerator is not None:
            accelerator.wait_for_everyone()
    return len(skipped), sum(skipped)


def prepare_folder(job: EmbeddingJob, description: dict) -> None:
    """Create the folder and write its `embeds.json`, or refuse a folder of another job.

    One process calls this before any shard is written. Incomplete files of a killed process are removed.

    Raises:
        ValueError: if the folder holds embeddings of another model, of other images or in other shards, or
            unrelated files.
    """
    path = job.output / "embeds.json"
    before = read_json(path) if path.exists() else description
    compared = description.keys() - {"model"}  # one model can have several names; its weights are compared
    if changed := sorted(name for name in compared if description[name] != before.get(name)):
        raise ValueError(
            f"{job.output} holds embeddings of another run: {changed} differ. "
            "Give another --output_dir, or delete the folder."
        )
    job.output.mkdir(parents=True, exist_ok=True)
    for partial in job.output.glob(f"*{PARTIAL}"):
        partial.unlink()
    if not path.exists() and (strange := {entry.name for entry in job.output.iterdir()} - {LOCK_NAME}):
        raise ValueError(
            f"{job.output} holds no embeddings, but other files such as {sorted(strange)[0]}. "
            "Give another --output_dir."
        )
    write_json(path, description)
    write_report(job.output / "annotations.jsonl", job.report)


def write_shards(
    job: EmbeddingJob, embedder: Embedder, rank: int = 0, num_processes: int = 1
) -> Iterator[tuple[Path, int]]:
    """Write the shards of one process that do not exist yet: number rank, rank + num_processes, and so on.

    Yields:
        The path of each shard, and how many of its images were skipped.
    """
    indices = range(rank, job.num_shards, num_processes)
    missing = [index for index in indices if not job.locate_shard(index).exists()]
    progress = logging.tqdm(missing, desc="shards", initial=len(indices) - len(missing), total=len(indices))
    for index in progress:
        path, report = job.locate_shard(index), SkipReport(job.on_error)
        with no_progress_bars():
            dataset = embed_shard(job, embedder, index, report)
        write_report(path.with_suffix(".jsonl"), report)
        write_parquet(dataset, path)  # last, because a shard that exists is complete
        yield path, len(report.entries)


def embed_shard(job: EmbeddingJob, embedder: Embedder, index: int, report: SkipReport) -> Dataset:
    """Embed the images of one shard and their regions, one batch at a time.

    Returns:
        One row per image, followed by one row for each of its regions: `path` relative to the folder, `kind`
        ("image" or "region"), `box` (xyxy pixels) and `concept` (both None for images), `width`, `height`,
        `embed`.

    Raises:
        ValueError: if an image cannot be decoded and `report` is set to stop.
    """
    entries, start = [], index * job.shard_size
    rows = job.rows[start : start + job.shard_size]
    for i in range(0, len(rows), embedder.batch_size):
        entries += _embed_batch(job, embedder, rows[i : i + embedder.batch_size], report)
    features = {"path": Value("string"), "kind": Value("string"), "box": List(Value("float64"), length=4)}
    features |= {"concept": Value("string"), "width": Value("int64"), "height": Value("int64")}
    features["embed"] = List(Value(job.dtype), length=embedder.model.config.projection_dim)
    columns = {name: [entry[name] for entry in entries] for name in features}
    return Dataset.from_dict(columns, features=Features(features))


def _embed_batch(
    job: EmbeddingJob, embedder: Embedder, rows: list[dict], report: SkipReport
) -> Iterator[dict]:
    decoded = []
    for row in rows:
        encoded = {"bytes": row["image"].read_bytes(), "path": str(row["image"])}
        image = decode_image(encoded, report, embedder.image_options)
        if image is not None:
            decoded.append(row | {"image": image, "path": job.name_image(row)})
    image_embeds, region_embeds = embedder.embed_rows(decoded, job.region_source, job.context)
    remaining_regions = iter(region_embeds.numpy())
    for row, embed in zip(decoded, image_embeds.numpy(), strict=True):
        width, height = row["image"].size
        shared = {"path": row["path"], "width": width, "height": height}
        yield shared | {"kind": "image", "box": None, "concept": None, "embed": embed}
        for box, concept in zip(row["boxes"], row["concepts"], strict=True):
            region = {"kind": "region", "box": box, "concept": concept}
            yield shared | region | {"embed": next(remaining_regions)}


def write_report(path: Path, report: SkipReport) -> None:
    """Write one line of JSON for everything that was skipped; without entries the file is removed."""
    path.unlink(missing_ok=True)
    if report.entries:
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in report.entries))


def read_description(folder: Path) -> dict:
    """Read the `embeds.json` of a folder of shards.

    Raises:
        ValueError: if the folder has no such file, or its entries are missing or do not fit together.
    """
    path = folder / "embeds.json"
    if not path.exists():
        raise ValueError(f"{folder} has no embeds.json. Give a folder that `geoalign-hf embed` wrote.")
    description = read_json(path)
    kinds = {"model": str, "weights": str, "protocol": dict}
    kinds |= dict.fromkeys(("num_images", "shard_size", "num_shards"), int)
    for name, kind in kinds.items():
        if type(description.get(name)) is not kind:
            raise ValueError(
                f"{path}: {name} is {description.get(name)!r}; expected a {kind.__name__}. "
                "Embed the folder again."
            )
    num_images, size, num_shards = (description[name] for name in ("num_images", "shard_size", "num_shards"))
    if size < 1 or num_images < 1 or num_shards != -(-num_images // size):
        raise ValueError(
            f"{path}: {num_images} images in shards of {size} are not {num_shards} shards. "
            "Embed the folder again."
        )
    return description


def check_model(folder: Path, model: torch.nn.Module) -> None:
    """Refuse to compare embeddings with those of another model.

    Raises:
        ValueError: if the shards were computed with other weights.
    """
    check_weights(read_description(folder), folder, model)


def check_weights(description: dict, folder: str | Path, model: torch.nn.Module) -> None:
    """Compare the weights that a description names with those of a model.

    Raises:
        ValueError: if they differ.
    """
    if fingerprint_model(model) != description["weights"]:
        raise ValueError(
            f"The embeddings in {folder} are those of {description['model']}, whose weights differ from "
            "those of this model; cosines between them would be meaningless. Load that model, or embed the "
            "folder again."
        )


def read_embeds(folder: Path) -> Dataset:
    """Load all shards as one dataset, in the order of the images; `embed` is float32.

    Raises:
        ValueError: if shards are missing or damaged.
    """
    num_shards = read_description(folder)["num_shards"]
    existing = {path.name for path in folder.glob("embeds-*.parquet")}
    names = []
    for index in range(num_shards):
        names.append(name_shard(index, num_shards))
        if names[-1] not in existing:  # stops at once, however large num_shards is
            raise ValueError(
                f"{folder} has {len(existing)} of {num_shards} shards; the first one missing is {names[-1]}. "
                "Run `geoalign-hf embed` again with the same arguments to write the missing ones."
            )
    paths = [str(folder / name) for name in names]
    for path in paths:
        try:
            columns = parquet.read_schema(path).names
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is damaged ({error}). Delete it and embed the folder again.") from error
        if "embed" not in columns:
            raise ValueError(f"{path} has the columns {columns} and no 'embed'. Embed the folder again.")
    dataset = load_dataset("parquet", data_files=paths, split="train")
    width = dataset.features["embed"].length
    return dataset.cast_column("embed", List(Value("float32"), length=width))
