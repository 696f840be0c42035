"""Images of a folder, and their regions, to Parquet shards of unit vectors; and shards back to a dataset.

Shards are parts of the sorted list of images, so what is in them depends neither on which process makes them
nor on how many there are, but for the rounding of embeddings. Each is whole or not there; `embeds.json`
beside them says which model made them, and how.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, Features, List, Value, load_dataset
from transformers.utils import logging

from ..data.loading import decode_image
from ..data.schema import write_parquet
from ..readers.coco import read_coco
from ..readers.files import list_images
from ..readers.skipped import SkipReport
from ..storage import no_progress_bars, read_json, write_json, write_text
from .embedder import Embedder


@dataclass
class EmbeddingJob:
    """What is to be embedded, and where to.

    Args:
        images: folder; what lies deeper in it counts, too.
        output: folder of the shards.
        coco: COCO file of regions, whose `file_name`s are relative to `images`.
        region_source: what is encoded for a region, see `Embedder.embed_regions`.
        shard_size: images of a shard, with their regions.
        dtype: of the embeddings: "float32" or "float16".
        on_error: "stop" or "skip", at a wrong image or box.

    Raises:
        ValueError: if the folder holds no images, `coco` is wrong, or a value is not among those above.
    """

    images: Path
    output: Path
    coco: Path | None = None
    region_source: str = "image"
    shard_size: int = 256
    dtype: str = "float32"
    on_error: str = "stop"
    rows: list[dict] = field(init=False, repr=False)
    report: SkipReport = field(init=False, repr=False)  # of reading the annotations

    def __post_init__(self):
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}. Choose 'float32' or 'float16'.")
        if self.shard_size < 1:
            raise ValueError(f"shard_size is {self.shard_size}. Give 1 or more.")
        self.report = SkipReport(self.on_error)
        annotated = read_coco(self.coco, self.images, report=self.report) if self.coco else []
        regions = {Path(row["image"]): row for row in annotated}
        nothing = {"boxes": [], "concepts": []}
        self.rows = [
            {name: regions.get(path, nothing)[name] for name in nothing} | {"image": path}
            for path in list_images(self.images)
        ]
        if unlisted := sorted(map(str, regions.keys() - {row["image"] for row in self.rows})):
            raise ValueError(
                f"{self.coco} has regions of {unlisted[:3]}, which are no images below {self.images}. "
                "Give the folder that holds them all."
            )

    @property
    def num_shards(self) -> int:
        """How many there are."""
        return -(-len(self.rows) // self.shard_size)

    def locate_shard(self, index: int) -> Path:
        """Give the path of a shard."""
        return self.output / f"embeds-{index:05d}-of-{self.num_shards:05d}.parquet"

    def describe(self, embedder: Embedder, name: str) -> dict:
        """Say what the shards hold: which model, by which protocol, of which images and regions."""
        named = [(self.name_image(row), row["boxes"], row["concepts"]) for row in self.rows]
        return {
            "model": name,
            "weights": fingerprint_model(embedder.model),
            "protocol": embedder.describe() | {"region_source": self.region_source},
            "dtype": self.dtype,
            "num_images": len(self.rows),
            "shard_size": self.shard_size,
            "num_shards": self.num_shards,
            "source": hashlib.sha256(json.dumps(named).encode()).hexdigest(),
        }

    def name_image(self, row: dict) -> str:
        """Give the path of an image below the folder, as it stands in the shards."""
        return row["image"].relative_to(self.images).as_posix()


def fingerprint_model(model: torch.nn.Module) -> str:
    """Hash the weights: a model of the same name may have been trained on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def prepare_folder(job: EmbeddingJob, description: dict) -> None:
    """Make the folder and write its `embeds.json`, or refuse one of another run. For one process, first.

    What a killed process has left half done is taken away.

    Raises:
        ValueError: if the folder holds embeddings of another model, of other images or in other shards.
    """
    path = job.output / "embeds.json"
    before = read_json(path) if path.exists() else description
    told = description.keys() - {"model"}  # its path may be written in many ways; its weights tell
    if changed := sorted(name for name in told if description[name] != before.get(name)):
        raise ValueError(
            f"{job.output} holds embeddings of another run: {changed} differ. "
            "Give another --output_dir, or delete the folder."
        )
    is_strange = job.output.exists() and any(entry.suffix != ".partial" for entry in job.output.iterdir())
    if is_strange and not path.exists():
        raise ValueError(f"{job.output} is not empty and holds no embeddings. Give another --output_dir.")
    job.output.mkdir(parents=True, exist_ok=True)
    for partial in job.output.glob("*.partial"):
        partial.unlink()
    write_json(path, description)
    write_report(job.output / "annotations.jsonl", job.report)


def write_shards(
    job: EmbeddingJob, embedder: Embedder, rank: int = 0, num_processes: int = 1
) -> Iterator[tuple[Path, int]]:
    """Make the shards of one process that are not there yet: those of number rank, rank + num_processes, ...

    Yields:
        the path of each, and how many images were left out of it.
    """
    indices = range(rank, job.num_shards, num_processes)
    missing = [index for index in indices if not job.locate_shard(index).exists()]
    progress = logging.tqdm(missing, desc="shards", initial=len(indices) - len(missing), total=len(indices))
    for index in progress:
        path, report = job.locate_shard(index), SkipReport(job.on_error)
        with no_progress_bars():
            dataset = embed_shard(job, embedder, index, report)
        write_report(path.with_suffix(".jsonl"), report)
        write_parquet(dataset, path)  # last: a shard that is there is done
        yield path, len(report.entries)


def embed_shard(job: EmbeddingJob, embedder: Embedder, index: int, report: SkipReport) -> Dataset:
    """Embed the images of one shard and their regions, a batch at a time.

    Returns:
        One row per image or region, of each image first itself: `path` below the folder, `kind` ("image" or
        "region"), `box` (xyxy pixels) and `concept` (both None for images), `width`, `height`, `embed`.

    Raises:
        ValueError: if an image cannot be decoded, and `report` says to stop.
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
        image = decode_image(encoded, report)
        if image is not None:
            decoded.append(row | {"image": image, "path": job.name_image(row)})
    image_embeds = embedder.embed_images([row["image"] for row in decoded]).numpy()
    # Without regions the model need not be one that pools them.
    has_regions = any(row["boxes"] for row in decoded)
    region_embeds = embedder.embed_regions(decoded, job.region_source).numpy() if has_regions else []
    of_regions = iter(region_embeds)
    for row, embed in zip(decoded, image_embeds, strict=True):
        width, height = row["image"].size
        shared = {"path": row["path"], "width": width, "height": height}
        yield shared | {"kind": "image", "box": None, "concept": None, "embed": embed}
        for box, concept in zip(row["boxes"], row["concepts"], strict=True):
            yield shared | {"kind": "region", "box": box, "concept": concept, "embed": next(of_regions)}


def write_report(path: Path, report: SkipReport) -> None:
    """Write one line of JSON for each thing that was left out; no file where nothing was."""
    path.unlink(missing_ok=True)
    if report.entries:
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in report.entries))


def read_description(folder: Path) -> dict:
    """Read what `embeds.json` says of a folder of shards.

    Raises:
        ValueError: if there is none.
    """
    path = folder / "embeds.json"
    if not path.exists():
        raise ValueError(f"{folder} has no embeds.json. Give the output_dir of examples/embed_folder.py.")
    return read_json(path)


def check_model(folder: Path, model: torch.nn.Module) -> None:
    """Refuse to compare embeddings with those of another model.

    Raises:
        ValueError: if the shards were made with other weights.
    """
    description = read_description(folder)
    if fingerprint_model(model) != description["weights"]:
        raise ValueError(
            f"the embeddings in {folder} are of {description['model']}, whose weights are not those of this "
            "model, so cosines between them would mean nothing. Load that model, or embed the folder anew."
        )


def read_embeds(folder: Path) -> Dataset:
    """Load all shards as one dataset, in the order of the images; `embed` is float32.

    Raises:
        ValueError: if shards are missing.
    """
    num_shards = read_description(folder)["num_shards"]
    paths = [folder / f"embeds-{index:05d}-of-{num_shards:05d}.parquet" for index in range(num_shards)]
    if missing := [path.name for path in paths if not path.exists()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {num_shards} shards, the first is {missing[0]}. Run "
            "examples/embed_folder.py again with the same arguments: it makes those that are missing."
        )
    dataset = load_dataset("parquet", data_files=list(map(str, paths)), split="train")
    width = dataset.features["embed"].length
    return dataset.cast_column("embed", List(Value("float32"), length=width))
